"""Models whose layers differ in width, one set of classes per family, built from the installed family's own layers.

This file travels inside every ``hetero`` checkpoint, so it imports nothing but torch and the files beside it.

A dropped sublayer is a stub that returns zeros of shape (1, 1, hidden), and its norms are identities: the family's
forward runs unchanged and adds nothing. A stored layer holds exactly one attention, so caches need no special case.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from .attention_unicuco import fast_attention
from .configuration_unicuco import FAMILIES, class_name, config_class, family_class


class Nothing(nn.Module):
    """In place of a dropped attention or MLP: adds zero to the residual."""

    def __init__(self, is_attention: bool) -> None:
        super().__init__()
        self.is_attention = is_attention

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        zeros = hidden_states.new_zeros((1, 1, hidden_states.shape[-1]))
        return (zeros, None) if self.is_attention else zeros


def _drop(layer: nn.Module, sublayer: str) -> None:
    """Takes the attention or the MLP, and the norms that serve only it, out of ``layer``."""
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # norms before and after each sublayer, as in Gemma
    if sublayer == "attention":
        layer.self_attn = Nothing(is_attention=True)
        norms = ("input_layernorm", "post_attention_layernorm") if sandwich else ("input_layernorm",)
    else:
        layer.mlp = Nothing(is_attention=False)
        norms = (
            ("pre_feedforward_layernorm", "post_feedforward_layernorm") if sandwich else ("post_attention_layernorm",)
        )
    for norm in norms:
        setattr(layer, norm, nn.Identity())


def _without_layers(config: Any) -> Any:
    """A plain copy of ``config`` with which the family's constructor builds all but the layers."""
    plain = copy.deepcopy(config)
    plain.per_layer_config = None
    plain.num_hidden_layers = 0
    return plain


def _layer_class(family: str) -> type:
    plain_layer: Any = family_class(family, "modeling", "DecoderLayer")

    class Layer(plain_layer):
        """Leading MLPs, one attention with or without an MLP, trailing MLPs."""

        def __init__(self, config: Any, layer_idx: int) -> None:
            own = copy.copy(config.per_layer_config[layer_idx])
            super().__init__(own, layer_idx)
            self.self_attn.config = config  # so that set_attn_implementation reaches it
            if "mlp" in getattr(own, "skip", []):
                _drop(self, "mlp")
            extra = (config.extra_mlps or {}).get(str(layer_idx), {})
            for place in ("leading", "trailing"):
                blocks = [self._mlp_block(own, layer_idx, neurons) for neurons in extra.get(place, [])]
                setattr(self, place, nn.ModuleList(blocks))

        @staticmethod
        def _mlp_block(config: Any, layer_idx: int, neurons: int) -> nn.Module:
            own = copy.copy(config)
            own.intermediate_size = neurons
            block = plain_layer(own, layer_idx)
            _drop(block, "attention")
            return block

        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            for block in self.leading:
                hidden_states = block(hidden_states)
            hidden_states = super().forward(hidden_states, *args, **kwargs)
            for block in self.trailing:
                hidden_states = block(hidden_states)
            return hidden_states

    return Layer


def _classes(family: str) -> dict[str, type]:
    """The decoder layer, the model and the causal language model of ``family``, by name."""
    config = config_class(family)
    plain_model = family_class(family, "modeling", "Model")
    plain_lm = family_class(family, "modeling", "ForCausalLM")
    layer = _layer_class(family)
    layer.__name__ = layer.__qualname__ = class_name(family, "DecoderLayer")
    shared = {
        "config_class": config,
        "_no_split_modules": [layer.__name__],
        "_can_record_outputs": {**(plain_model._can_record_outputs or {}), "hidden_states": layer},
        "__module__": __name__,
    }

    # The constructors are without annotations: vLLM compares them, as types, with what it passes.
    def init_model(self, config):
        nobody_chose = config._attn_implementation is None
        plain_model.__init__(self, _without_layers(config))
        _take_config(self, config)
        self.layers = nn.ModuleList([layer(config, index) for index in range(config.num_hidden_layers)])
        self.default_attention = nobody_chose  # a user's own choice of attention is left alone
        self.post_init()

    @functools.wraps(plain_model.forward)  # transformers reads signatures
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.default_attention or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return plain_model.forward(self, *args, **kwargs)
        with fast_attention(self):
            return plain_model.forward(self, *args, **kwargs)

    def init_lm(self, config):
        nobody_chose = config._attn_implementation is None
        plain_lm.__init__(self, _without_layers(config))
        _take_config(self, config)
        self.model = model(config)
        self.model.default_attention = nobody_chose
        self.post_init()

    model_name = class_name(family, "Model")
    lm_name = class_name(family, "ForCausalLM")
    model = type(model_name, (plain_model,), {**shared, "__init__": init_model, "forward": forward})
    lm = type(lm_name, (plain_lm,), {**shared, "__init__": init_lm})
    return {layer.__name__: layer, model_name: model, lm_name: lm}


def _take_config(model: Any, config: Any) -> None:
    config._attn_implementation_internal = model.config._attn_implementation_internal
    model.config = config


def __getattr__(name: str) -> Any:
    """Makes a family's classes when one is first asked for: the other families are never imported."""
    for family in FAMILIES:
        if name in [class_name(family, s) for s in ("DecoderLayer", "Model", "ForCausalLM")]:
            globals().update(_classes(family))
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
