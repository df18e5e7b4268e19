"""``unicuco recover``: a checkpoint in, the same one with what pruning lost trained back out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.progress import stages

if TYPE_CHECKING:
    from unicuco.recovery.training import TrainProgress

MINUTES = 10.0
LINES = 10
"""Lines that are printed in all when the output is no terminal."""


@dataclass(frozen=True)
class RecoverOptions:
    """What the command line gives; ``unicuco.recovery.RecoveryConfig`` says what ``settings`` mean."""

    checkpoint: str
    output: Path
    base: str | None
    second: str | None
    threads: int | None
    replace: bool
    settings: dict[str, Any]


def run_recover(given: RecoverOptions) -> None:
    """Trains, writes, and prints perplexity and KL before and after.

    Raises:
        UniCuCoError: before any work where possible; nothing half-written is left.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from unicuco.recovery import recover, recovery_config

    settings = {name: value for name, value in given.settings.items() if value is not None}
    if "steps" not in settings and "minutes" not in settings:
        settings["minutes"] = MINUTES
    config = recovery_config(**settings)
    transformers_logging.disable_progress_bar()
    if given.threads:
        torch.set_num_threads(given.threads)
    console = Console()
    command = shlex.join(["unicuco", *sys.argv[1:]])
    with stages(console) as stage, _training_bar(console) as progress:
        done = recover(
            given.checkpoint,
            given.output,
            config,
            given.base,
            given.second,
            given.replace,
            command=command,
            stage=stage,
            progress=progress,
        )
    trained = done.training
    resumed = f", from step {trained.resumed_at} on in this session" if trained.resumed_at else ""
    lines = [
        f"trained     {done.parameters:,} parameters, {trained.steps:,} steps, {done.trained_tokens:,} tokens, "
        f"{trained.seconds:.0f} s{resumed}"
    ]
    for name, text in done.texts.items():
        drop = 1 - text.perplexity_after / text.perplexity_before
        lines.append(
            f"{name:<11} perplexity {text.perplexity_before:.2f} -> {text.perplexity_after:.2f} ({drop:+.1%} less; "
            f"dense {text.perplexity_dense:.2f}), KL {text.kl_before:.4f} -> {text.kl_after:.4f}, "
            f"{text.tokens:,} tokens not trained on"
        )
    lines.append(f"checkpoint  {done.folder}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _training_bar(console: Console) -> Iterator[TrainProgress]:
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
