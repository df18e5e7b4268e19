"""Choosing the pruner that a preparation was made for."""

from __future__ import annotations

from unicuco.models.load import BaseModel
from unicuco.preparation import Preparation
from unicuco.pruners.base import Pruner
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.leveled import LevelPruner
from unicuco.pruners.width import WidthPruner


def build_pruner(base: BaseModel, preparation: Preparation) -> Pruner:
    """The pruner of ``preparation`` on ``base``; ``width`` permutes the base model's weights in place.

    Raises:
        PreparationError: the preparation belongs to another base model.
    """
    preparation.check_model(base.source.digest, base.source.spec)
    if preparation.config.space.pruner == "depth":
        return DepthPruner(base)
    if preparation.config.space.is_sparse:
        return LevelPruner(base, preparation)
    return WidthPruner(base, preparation)
