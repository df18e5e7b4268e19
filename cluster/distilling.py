"""What the commands that train towards the dense model share: settings, threads, and what is shown meanwhile."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.progress import stages

if TYPE_CHECKING:
    from collections.abc import Callable

    from unicuco.recovery.training import TrainProgress

LINES = 10
"""Lines that are printed in all when the output is no terminal."""


@dataclass(frozen=True)
class Session:
    """What a training is told of where it runs: how to report, and the command that it came from."""

    console: Console
    command: str
    stage: Callable[[str, int, int], None]
    progress: TrainProgress


def given_settings(settings: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Those that the user gave; ``minutes`` where no length was."""
    found = {name: value for name, value in settings.items() if value is not None}
    return found if {"steps", "minutes"} & found.keys() else found | {"minutes": minutes}


@contextmanager
def training_session(threads: int | None) -> Iterator[Session]:
    """Sets torch's threads, keeps transformers quiet, and shows what happens."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    command = shlex.join(["unicuco", *sys.argv[1:]])
    with stages(console) as stage, _training_bar(console) as progress:
        yield Session(console, command, stage, progress)


@contextmanager
def _training_bar(console: Console) -> Iterator[TrainProgress]:
    """A bar with the loss on a terminal, a few lines elsewhere."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
    ) as bar:
        task = bar.add_task("", total=None, visible=False)

        def report(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, description=f"loss {loss:.3f}", visible=done < total)
            if console.is_terminal:
                bar.refresh()
            elif done == total or done % max(total // LINES, 1) == 0:
                console.print(f"training: step {done} of {total}, loss {loss:.3f}", highlight=False)

        yield report
