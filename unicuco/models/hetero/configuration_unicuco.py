"""Configurations of models whose layers differ in width, one class per family.

This file travels inside every ``hetero`` checkpoint, so it imports nothing but transformers.

A stored layer is: leading MLPs, one attention with its MLP, trailing MLPs. Widths are in transformers' own
``per_layer_config`` (``num_attention_heads``, ``num_key_value_heads``, ``intermediate_size``, ``skip``); the MLPs
around an attention, which that schema cannot say, are in ``extra_mlps``.
"""

from __future__ import annotations

import importlib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

FAMILIES: dict[str, str] = {
    # model_type of the base model -> name its transformers classes start with
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "gpt2": "GPT2",
    "opt": "OPT",
}
NEURONS = {"gpt2": "n_inner", "opt": "ffn_dim"}
"""What a family's configuration calls the width of its MLPs, where that is not ``intermediate_size``."""

_PREFIX = "UniCuCo"
_OTHER_NAMES = {"GPT2DecoderLayer": "GPT2Block", "GPT2ForCausalLM": "GPT2LMHeadModel"}


def class_name(family: str, suffix: str) -> str:
    """Name of our class for ``family``: ``("llama", "ForCausalLM")`` -> ``UniCuCoLlamaForCausalLM``."""
    return f"{_PREFIX}{FAMILIES[family]}{suffix}"


def family_class(family: str, kind: str, suffix: str) -> Any:
    """The installed transformers class, e.g. ``("llama", "modeling", "DecoderLayer")`` -> ``LlamaDecoderLayer``."""
    package = family.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{package}.{kind}_{package}")
    text_only = f"{FAMILIES[family]}Text{suffix}"  # multimodal families name their language part so
    plain = f"{FAMILIES[family]}{suffix}"
    return getattr(module, text_only if hasattr(module, text_only) else _OTHER_NAMES.get(plain, plain))


def _tensor_parallel_plan(plan: dict[str, str] | None) -> dict[str, str]:
    """The family's own plan, said for the MLPs around an attention too."""
    mlps = {name: style for name, style in (plan or {}).items() if name.startswith("layers.*.mlp.")}
    around = {
        name.replace("layers.*.", f"layers.*.{place}.*.", 1): style
        for place in ("leading", "trailing")
        for name, style in mlps.items()
    }
    return {**(plan or {}), **around}


def _config_class(family: str) -> type:
    base: Any = family_class(family, "configuration", "Config")

    class Config(base):
        __doc__ = f"``{base.__name__}`` with per-layer widths and regrouped MLPs."
        model_type = f"unicuco_{family}"
        base_model_tp_plan = _tensor_parallel_plan(base.base_model_tp_plan)

        extra_mlps: dict | None = None
        """Layer (as a string, sparse) -> {"leading": [neurons, ...], "trailing": [neurons, ...]}."""

        def validate_architecture(self) -> None:
            # The family's own check reads the global head count, which has no meaning when layers differ.
            for index, layer in enumerate(self.per_layer_config):
                heads = layer.num_attention_heads
                groups = getattr(layer, "num_key_value_heads", heads)  # GPT-2 and OPT have one per head
                if heads % groups:
                    raise ValueError(
                        f"layer {index}: {heads} query heads cannot be shared out over {groups} key/value heads"
                    )
            for key, mlps in (self.extra_mlps or {}).items():
                if not 0 <= int(key) < self.num_hidden_layers or set(mlps) - {"leading", "trailing"}:
                    raise ValueError(f"extra_mlps: no layer {key}, or something besides 'leading' and 'trailing' in it")

        def validate_rope(self) -> None:
            PreTrainedConfig.validate_rope(self)  # Phi-3's own reads the global head count, too

    Config.__name__ = Config.__qualname__ = class_name(family, "Config")
    return strict(Config)


def config_class(family: str) -> Any:
    """Our configuration class for ``family``, made when it is first asked for: other families are never imported."""
    name = class_name(family, "Config")
    if name not in globals():
        globals()[name] = _config_class(family)
    return globals()[name]


def __getattr__(name: str) -> Any:
    for family in FAMILIES:
        if name == class_name(family, "Config"):
            return config_class(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
