"""How training towards the dense model is shown: steps, KL and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from unicuco.recovery.training import TrainProgress

LINES = 10
"""Lines that are printed in all when the output is no terminal."""


@contextmanager
def training_bar(console: Console) -> Iterator[TrainProgress]:
    """A bar with the KL on a terminal, a few lines elsewhere."""
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

        def report(done: int, total: int, kl: float) -> None:
            bar.update(task, completed=done, total=total, description=f"KL {kl:.3f}", visible=done < total)
            if console.is_terminal:
                bar.refresh()
            elif done == total or done % max(total // LINES, 1) == 0:
                console.print(f"training: step {done} of {total}, KL {kl:.3f}", highlight=False)

        yield report
