"""``unicuco supernet``: a base model in, the same one trained so that its slices work."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.distilling import given_settings, training_session

MINUTES = 30.0


@dataclass(frozen=True)
class SupernetOptions:
    """What the command line gives; ``unicuco.supernet.SupernetConfig`` says what ``settings`` mean."""

    model: str
    output: Path
    threads: int | None
    replace: bool
    settings: dict[str, Any]


def run_supernet(given: SupernetOptions) -> None:
    """Trains, writes, and prints KL and perplexity of every size before and after.

    Raises:
        UniCuCoError: before any work where possible; nothing half-written is left.
    """
    from unicuco.supernet import supernet_config, train_supernet

    config = supernet_config(**given_settings(given.settings, MINUTES))
    with training_session(given.threads) as session:
        done = train_supernet(
            given.model,
            given.output,
            config,
            replace=given.replace,
            command=session.command,
            stage=session.stage,
            progress=session.progress,
        )
    table = Table(
        "kept", "KL before", "KL after", "after / before", "perplexity before", "perplexity after",
        title=f"Slices on {done.tokens:,} tokens not trained on (dense perplexity {done.perplexity:.2f})",
    )  # fmt: skip
    for figures in done.sizes:
        ratio = f"{figures.kl_after / figures.kl_before:.3f}" if figures.kept < 1 else ""
        table.add_row(
            f"{figures.kept:.2f}", f"{figures.kl_before:.4f}", f"{figures.kl_after:.4f}", ratio,
            f"{figures.perplexity_before:.2f}", f"{figures.perplexity_after:.2f}",
        )  # fmt: skip
    session.console.print(table)
    trained = done.training
    resumed = f", from step {trained.resumed_at} on in this session" if trained.resumed_at else ""
    for line in (
        f"trained        {done.parameters:,} parameters, {trained.steps:,} steps, {trained.seconds:.0f} s{resumed}",
        f"super-network  {done.folder}",
        f"search it      unicuco train {shlex.quote(str(done.folder))} --run runs/{done.folder.name}",
    ):
        session.console.print(line, highlight=False, soft_wrap=True)
