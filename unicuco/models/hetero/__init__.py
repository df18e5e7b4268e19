"""Importing this teaches transformers' Auto classes our ``hetero`` checkpoints, so that they load without remote code.

>>> import unicuco.models.hetero
>>> AutoModelForCausalLM.from_pretrained("my-checkpoint")
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from unicuco.models.hetero import modeling_unicuco
from unicuco.models.hetero.configuration_unicuco import FAMILIES, NEURONS, class_name, config_class

__all__ = ["FAMILIES", "NEURONS", "class_name", "config_class", "model_class"]


def model_class(family: str, suffix: str = "ForCausalLM") -> Any:
    """Our model class for ``family``; ``suffix`` is ``Model`` or ``ForCausalLM``."""
    return getattr(modeling_unicuco, class_name(family, suffix))


def _register(family: str) -> None:
    config, model, lm = config_class(family), model_class(family, "Model"), model_class(family)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, lm, exist_ok=True)
    # A model saved again then carries its code with it, however it was loaded.
    config.register_for_auto_class("AutoConfig")
    model.register_for_auto_class("AutoModel")
    lm.register_for_auto_class("AutoModelForCausalLM")


for _family in FAMILIES:
    _register(_family)
