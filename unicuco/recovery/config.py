"""What a recovery is told: the text, the budget, and how to train."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unicuco.errors import RecoveryError
from unicuco.request import explain_validation

SELF = "self"
"""The corpus that the dense model writes itself."""


class TrainingConfig(BaseModel):
    """What every training towards the dense model is told. With ``steps``, equal settings and threads give equal
    weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str = Field(default="sotu", min_length=1)
    """``[NAME=]SOURCE`` as calibration text is given."""
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    """Instead of ``steps``: as many as fit, from the time of a few steps at the start."""
    rank: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak; warmed up linearly over ``warmup`` of the steps, then down a cosine to a tenth."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    batch: int = Field(default=1, ge=1)
    """Windows per step."""
    window_length: int = Field(default=512, ge=8)
    text_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the text's own next token in the target; the rest is the dense model's distribution."""
    heldout_windows: int = Field(default=16, ge=1)
    """Windows that are kept out of training to measure on, before and after."""
    seed: int = Field(default=0, ge=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen weights and activations; what is trained is float32."""
    device: str = "cpu"
    gradient_checkpointing: bool = False
    save_every: int = Field(default=25, ge=1)
    """Steps between two savings of the state; a crash loses no more."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        return self


class RecoveryConfig(TrainingConfig):
    """Settings of ``recover``. ``corpus`` may be ``self``, too: the dense model continues prompts."""

    prompts: str | None = None
    """With ``self``: the text that prompts are cut from, or ``bos``; ``None``: the checkpoint's calibration text."""

    @model_validator(mode="after")
    def _prompts_of_self(self) -> Self:
        if self.prompts is not None and self.corpus != SELF:
            raise ValueError("prompts belong to the corpus 'self'")
        return self


def recovery_config(**values: Any) -> RecoveryConfig:
    """The settings, with one sentence for what is wrong with them.

    Raises:
        RecoveryError: which value, and what is allowed.
    """
    try:
        return RecoveryConfig(**values)
    except ValidationError as error:
        raise RecoveryError(f"{explain_validation(error)}.") from error
