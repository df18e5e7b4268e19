"""What super-network training is told."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from unicuco.calibration import CalibrationConfig, Domain
from unicuco.errors import SupernetError
from unicuco.preparation import PreparationConfig
from unicuco.recovery.config import SELF, TrainingConfig
from unicuco.request import explain_validation

KEPT_HIGH = 0.97
"""The largest sub-networks that are drawn; above it, nearly nothing is pruned."""


class SupernetConfig(TrainingConfig):
    """Settings of ``train_supernet``."""

    learning_rate: float = Field(default=1e-3, gt=0)
    text_weight: float = Field(default=0.0, ge=0, le=1)
    heldout_windows: int = Field(default=8, ge=1)
    calibration_windows: int = Field(default=64, ge=1)
    """Windows that units are ordered and output projections re-solved by, where no preparation is given."""
    kept_low: float = Field(default=0.5, gt=0, lt=KEPT_HIGH)
    """Share of the blocks' parameters in the smallest sub-networks that are trained."""
    subnetworks: int = Field(default=2, ge=1)
    """That each step trains, besides the whole network."""
    whole_every: int = Field(default=4, ge=1)
    """The whole network is trained in every so many steps."""
    bins: int = Field(default=20, ge=1)
    """Of sizes, equally wide. Sub-networks are drawn from all before they are drawn from one again."""
    spread: float = Field(default=0.5, ge=0)
    """Standard deviation of the log factors that disturb the damages by which a sub-network's widths are chosen."""

    @model_validator(mode="after")
    def _from_text(self) -> Self:
        if self.corpus == SELF:
            raise ValueError("corpus 'self' is for recovery; give a text")
        if self.subnetworks > self.bins:
            raise ValueError("there cannot be more subnetworks per step than bins")
        return self

    def preparation(self) -> PreparationConfig:
        """What the base model is prepared with, on the corpus."""
        calibration = CalibrationConfig(
            domains=(Domain.parse(self.corpus),),
            window_length=self.window_length,
            calibration_windows=self.calibration_windows,
            search_windows=1,
            margin_windows=0,
        )
        return PreparationConfig(calibration=calibration, dtype=self.dtype)


def supernet_config(**values: Any) -> SupernetConfig:
    """The settings, with one sentence for what is wrong with them.

    Raises:
        SupernetError: which value, and what is allowed.
    """
    try:
        return SupernetConfig(**values)
    except ValidationError as error:
        raise SupernetError(f"{explain_validation(error)}.") from error
