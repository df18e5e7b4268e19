"""``unicuco recover``: a checkpoint in, the same one with what pruning lost trained back out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.distilling import given_settings, training_session

MINUTES = 10.0


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
    from unicuco.recovery import recover, recovery_config

    config = recovery_config(**given_settings(given.settings, MINUTES))
    with training_session(given.threads) as session:
        done = recover(
            given.checkpoint,
            given.output,
            config,
            given.base,
            given.second,
            given.replace,
            command=session.command,
            stage=session.stage,
            progress=session.progress,
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
        session.console.print(line, highlight=False, soft_wrap=True)
