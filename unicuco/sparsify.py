"""From a base model to a checkpoint with zeros: prune by one method to one sparsity, measure on fresh text, write.

Zeros in dense shapes load in every tool and make nothing smaller or faster by themselves; the card says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unicuco.assess import hidden_states
from unicuco.beforeafter import before_and_after
from unicuco.calibration import CalibrationConfig, draw_windows
from unicuco.checkpoint import CheckpointCard, CheckpointReport, write_checkpoint
from unicuco.errors import StrategyError
from unicuco.heldout import WINDOWS
from unicuco.models.load import DTYPES, load_base_model, load_tokenizer
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.masks import Pattern
from unicuco.pruners.owl import outlier_shares, owl_allocation
from unicuco.pruners.sequential import Method, Report, count_zeros, prune_in_place
from unicuco.space import Shape


class SparsifyConfig(BaseModel):
    """What to remove, and on what text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights of every matrix in the blocks that become zero; or a ``pattern``."""
    pattern: str | None = None
    """``N:M``: at most N of every M neighbours in a row are left."""
    allocation: Literal["uniform", "owl"] = "uniform"
    """Whether all blocks get the same sparsity, or those with more outliers less."""
    calibration: CalibrationConfig = CalibrationConfig()
    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    """Of the checkpoint; pruning itself runs in float32."""
    device: str = "cpu"
    trust_remote_code: bool = False

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, text: str | None) -> str | None:
        try:
            return None if text is None else str(Pattern.parse(text))
        except StrategyError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _one_of_both(self) -> SparsifyConfig:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either a sparsity or a pattern")
        if self.pattern and self.allocation != "uniform":
            raise ValueError("a pattern fixes the sparsity of every block; no other allocation goes with it")
        return self

    @property
    def share(self) -> float:
        """Share of the weights that go."""
        return self.sparsity if self.sparsity is not None else self.groups.sparsity  # type: ignore[union-attr]

    @property
    def groups(self) -> Pattern | None:
        return Pattern.parse(self.pattern) if self.pattern else None


@dataclass(frozen=True)
class Sparsified:
    """A checkpoint, the share of the blocks' matrices that is zero, and what was measured on fresh text.

    Attributes:
        measured: as ``unicuco.beforeafter`` names it, nats per token; SparseLLM's mean error and OWL's sparsities too.
    """

    checkpoint: CheckpointReport
    zeros: float
    measured: dict[str, Any]


def sparsify(
    model: str,
    config: SparsifyConfig,
    target: Path,
    replace: bool = False,
    command: str | None = None,
    report: Report = lambda what, done, total: None,
) -> Sparsified:
    """Prunes ``model`` and writes it to ``target``.

    Raises:
        UniCuCoError: a model, text or folder that will not do, before any work where possible.
    """
    base = load_base_model(model, "float32", config.device, config.trust_remote_code)
    tokenizer = load_tokenizer(base.source, config.trust_remote_code)
    windows = draw_windows(config.calibration, tokenizer, "calibration")
    fresh = draw_windows(config.calibration, tokenizer, "heldout", WINDOWS)
    report("reading fresh text, dense", 0, 1)
    dense, _ = hidden_states(base.model, fresh)
    geometry = base.geometry
    shares = [config.share] * len(geometry.blocks)
    if config.allocation == "owl":
        shares = owl_allocation(outlier_shares(base.model, windows), config.share)
    each = [(share, share) for share in shares]
    traces = prune_in_place(base.model, windows, config.method, each, config.groups, report)
    torch.nn.Module.to(base.model, DTYPES[config.dtype])  # what is measured is what is stored
    report("reading fresh text, pruned", 0, 1)
    pruned, _ = hidden_states(base.model, fresh)
    zeros, weights = count_zeros(base.model)
    figures: dict[str, Any] = before_and_after(base.model, dense, pruned, fresh)
    if traces[0]:
        figures["ffn_error_mean"] = sum(t.errors[t.best] for t in traces if t) / len(traces)
    if config.allocation != "uniform":
        figures["sparsity_of_blocks"] = " ".join(f"{share:.3f}" for share in shares)
    asked: dict[str, Any] = config.model_dump(mode="json", exclude={"calibration"}, exclude_none=True)
    card = CheckpointCard(
        request=asked,
        measured=figures,
        calibration={**config.calibration.model_dump(mode="json"), "dtype": "float32"},
        command=command,
        zeros=zeros,
    )
    report("writing and reloading", 0, 1)
    blocks = geometry.blocks
    shape = Shape(tuple(block.groups for block in blocks), tuple(block.neurons for block in blocks))
    pruner = DepthPruner(base, config.method)
    done = write_checkpoint(base, tokenizer, pruner, shape, Path(target), "padded", card, replace=replace)
    return Sparsified(done, zeros / weights, figures)
