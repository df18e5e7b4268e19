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
from transformers.pytorch_utils import Conv1D

from .attention_unicuco import fast_attention
from .configuration_unicuco import FAMILIES, NEURONS, class_name, config_class, family_class

_HEADS_DIVIDE_HIDDEN_SIZE = ("gpt2", "opt")


class Nothing(nn.Module):
    """In place of a dropped attention or MLP: adds zero to the residual."""

    def __init__(self, is_attention: bool) -> None:
        super().__init__()
        self.is_attention = is_attention

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        zeros = hidden_states.new_zeros((1, 1, hidden_states.shape[-1]))
        return (zeros, None) if self.is_attention else zeros


NORMS = (  # of the attention and of the MLP; the first pair that a layer has is its own
    (("input_layernorm", "post_attention_layernorm"), ("pre_feedforward_layernorm", "post_feedforward_layernorm")),
    (("post_attention_layernorm",), ("post_feedforward_layernorm",)),
    (("input_layernorm",), ("post_attention_layernorm",)),
    (("ln_1",), ("ln_2",)),
    (("self_attn_layer_norm",), ("final_layer_norm",)),
)


def _drop(layer: nn.Module, sublayer: str) -> None:
    """Takes the attention or the MLP, and the norms that serve only it, out of ``layer``."""
    norms = next(pair for pair in NORMS if all(hasattr(layer, name) for names in pair for name in names))
    if sublayer == "attention":
        setattr(layer, "attn" if hasattr(layer, "attn") else "self_attn", Nothing(is_attention=True))
    elif hasattr(layer, "fc1"):  # OPT's MLP has no module of its own
        layer.fc1, layer.activation_fn, layer.fc2 = nn.Identity(), nn.Identity(), Nothing(is_attention=False)
    else:
        layer.mlp = Nothing(is_attention=False)
    for norm in norms[0 if sublayer == "attention" else 1]:
        setattr(layer, norm, nn.Identity())


class _OwnHeads:
    """The model's configuration with one layer's number of heads, for attentions that ask for it at every call."""

    def __init__(self, config: Any, own: Any) -> None:
        self._config, self.num_attention_heads = config, own.num_attention_heads

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_config":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._config, name)


def _narrow(attention: Any, heads: int) -> None:
    """Gives an attention whose family divides the hidden size by the number of heads fewer heads of the same width."""
    hidden, width = attention.embed_dim, heads * attention.head_dim
    attention.num_heads = heads
    if hasattr(attention, "c_attn"):
        attention.split_size = width
        attention.c_attn, attention.c_proj = Conv1D(3 * width, hidden), Conv1D(hidden, width)
    else:
        bias = attention.out_proj.bias is not None
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, nn.Linear(hidden, width, bias))
        attention.out_proj = nn.Linear(width, hidden, bias)


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
            heads = own.num_attention_heads
            if family in _HEADS_DIVIDE_HIDDEN_SIZE:
                own.num_attention_heads = own.hidden_size // own.head_dim
            super().__init__(own, layer_idx)
            attention: Any = self.attn if hasattr(self, "attn") else self.self_attn
            if family in _HEADS_DIVIDE_HIDDEN_SIZE:
                _narrow(attention, heads)
            # Not the layer's own copy, so that set_attn_implementation reaches it.
            attention.config = _OwnHeads(config, own) if hasattr(attention, "qkv_proj") else config
            if "mlp" in getattr(own, "skip", []):
                _drop(self, "mlp")
            extra = (config.extra_mlps or {}).get(str(layer_idx), {})
            for place in ("leading", "trailing"):
                blocks = [self._mlp_block(own, layer_idx, neurons) for neurons in extra.get(place, [])]
                setattr(self, place, nn.ModuleList(blocks))

        @staticmethod
        def _mlp_block(config: Any, layer_idx: int, neurons: int) -> nn.Module:
            own = copy.copy(config)
            setattr(own, NEURONS.get(family, "intermediate_size"), neurons)
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
        # Old files of GPT-2 have masks under "attn.bias"; ours have not, and vLLM would drop "c_attn.bias" for it.
        "_keys_to_ignore_on_load_unexpected": None,
        "_can_record_outputs": {**(plain_model._can_record_outputs or {}), "hidden_states": layer},
        "__module__": __name__,
    }

    # The family's class that holds the layers; OPT's lies one module further in.
    plain_stack = family_class(family, "modeling", "Decoder") if family == "opt" else plain_model

    def stack_of(model: Any) -> Any:
        return model.decoder if family == "opt" else model

    @functools.wraps(plain_stack.forward)  # transformers reads signatures
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.default_attention or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return plain_stack.forward(self, *args, **kwargs)
        with fast_attention(self):
            return plain_stack.forward(self, *args, **kwargs)

    # The constructors are without annotations: vLLM compares them, as types, with what it passes.
    def init_model(self, config):
        nobody_chose = config._attn_implementation is None
        plain = _without_layers(config)
        plain_model.__init__(self, plain)
        _take_config(self, config)
        if family == "opt":
            self.decoder = stack(plain)
            _take_config(self.decoder, config)
        held = stack_of(self)
        layers = nn.ModuleList([layer(config, index) for index in range(config.num_hidden_layers)])
        setattr(held, "h" if hasattr(held, "h") else "layers", layers)
        held.default_attention = nobody_chose  # a user's own choice of attention is left alone
        self.post_init()

    def init_lm(self, config):
        nobody_chose = config._attn_implementation is None
        plain_lm.__init__(self, _without_layers(config))
        _take_config(self, config)
        inner = model(config)
        stack_of(inner).default_attention = nobody_chose
        setattr(self, self.base_model_prefix, inner)
        self.post_init()

    names = [class_name(family, suffix) for suffix in ("Decoder", "Model", "ForCausalLM")]
    own = {**shared, "forward": forward}
    stack: Any = type(names[0], (plain_stack,), own) if family == "opt" else None
    model = type(names[1], (plain_model,), {**(shared if stack else own), "__init__": init_model})
    lm = type(names[2], (plain_lm,), {**shared, "__init__": init_lm})
    return {layer.__name__: layer, names[1]: model, names[2]: lm}


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
