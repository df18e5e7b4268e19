"""Families that fuse, transpose or misplace their projections, brought to the form that the rest of UniCuCo works on.

In memory every prunable model has linear ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` in its attentions and
``up_proj`` and ``down_proj``, mostly ``gate_proj`` too, in its MLPs. Phi-3 (fused q/k/v and gate/up), GPT-2 (fused
q/k/v, transposed weights) and OPT (an MLP without a module of its own) get there once after loading; their own forward
goes on running, on stand-ins for what it calls. Checkpoints are written in the family's own form again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Stored:
    """One projection as its family stores it.

    Attributes:
        name: relative to the decoder layer (``self_attn.qkv_proj``).
        parts: the separate projections that its rows are, in order.
        transposed: whether the weight is stored as ``in x out``.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


def separate(model: Any, layers: nn.ModuleList) -> None:
    """Brings the decoder ``layers`` of ``model`` into the common form, in place; most families are in it already."""
    if is_separated(model.config.model_type):
        work = {"phi3": _phi3, "gpt2": _gpt2, "opt": _opt}[model.config.model_type]
        for layer in layers:
            work(layer)


def is_separated(family: str) -> bool:
    """Whether the tensors in memory are others than those in a file."""
    return family in ("phi3", "gpt2", "opt")


def stored_tensors(module: nn.Module, where: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of an attention or MLP (``q_proj.weight``, ...) as its family stores them, named from the layer on.

    Args:
        where: attribute name of ``module`` in its layer.
    """
    named = {f"{where}.{name}": tensor for name, tensor in tensors.items()}
    for stored in getattr(module, "stored_as", ()):
        for leaf in ("weight", "bias"):
            parts = [named.pop(f"{where}.{part}.{leaf}") for part in stored.parts if f"{part}.{leaf}" in tensors]
            if parts:
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
                named[f"{stored.name}.{leaf}"] = joined.T if stored.transposed and leaf == "weight" else joined
    return named


class _Call:
    """Where a family's forward calls a projection: the outputs of the separate ones, side by side."""

    def __init__(self, owner: nn.Module, names: tuple[str, ...]) -> None:
        self._owner, self._names = owner, names

    def __call__(self, hidden_states: Tensor) -> Tensor:
        parts = [getattr(self._owner, name)(hidden_states) for name in self._names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class _OwnHeads:
    """A configuration with an attention's present number of heads."""

    def __init__(self, config: Any, heads: int) -> None:
        self._config, self.num_attention_heads = config, heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


class _OptMlp(nn.Module):
    """OPT's MLP, which lies open in its decoder layer."""

    def __init__(self, up: nn.Linear, act_fn: nn.Module, down: nn.Linear) -> None:
        super().__init__()
        self.up_proj, self.act_fn, self.down_proj = up, act_fn, down

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


def _phi3(layer: Any) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    width = attention.head_dim * attention.num_key_value_heads
    sizes = [width * attention.num_key_value_groups, width, width]
    _split(attention, "qkv_proj", QUERY_KEY_VALUE, sizes, transposed=False)
    _split(mlp, "gate_up_proj", ("gate_proj", "up_proj"), [mlp.down_proj.in_features] * 2, transposed=False)
    mlp.act_fn = mlp.activation_fn
    attention.stored_as = (Stored("self_attn.qkv_proj", QUERY_KEY_VALUE),)
    mlp.stored_as = (Stored("mlp.gate_up_proj", ("gate_proj", "up_proj")),)
    config = attention.__dict__.pop("config")
    attention.whole_config = config
    attention.__class__ = _measured(type(attention), config=_heads_config, num_key_value_heads=_groups)


def _gpt2(layer: Any) -> None:
    attention, mlp = layer.attn, layer.mlp
    _split(attention, "c_attn", QUERY_KEY_VALUE, [attention.embed_dim] * 3, transposed=True)
    _split(attention, "c_proj", ("o_proj",), [attention.embed_dim], transposed=True)
    _split(mlp, "c_fc", ("up_proj",), [mlp.c_fc.weight.shape[1]], transposed=True)
    _split(mlp, "c_proj", ("down_proj",), [attention.embed_dim], transposed=True)
    mlp.act_fn = mlp.act
    attention.stored_as = (
        Stored("attn.c_attn", QUERY_KEY_VALUE, transposed=True),
        Stored("attn.c_proj", ("o_proj",), transposed=True),
    )
    mlp.stored_as = (
        Stored("mlp.c_fc", ("up_proj",), transposed=True),
        Stored("mlp.c_proj", ("down_proj",), transposed=True),
    )
    attention.__class__ = _measured(type(attention), split_size=_query_width)


def _opt(layer: Any) -> None:
    attention = layer.self_attn
    _rename(attention, "out_proj", "o_proj")
    attention.stored_as = (Stored("self_attn.out_proj", ("o_proj",)),)
    attention.__class__ = _measured(type(attention), num_heads=_groups)
    mlp: Any = _OptMlp(layer.fc1, layer.activation_fn, layer.fc2)
    mlp.stored_as = (Stored("fc1", ("up_proj",)), Stored("fc2", ("down_proj",)))
    del layer.fc1, layer.fc2
    # The layer's forward calls these three in a row; the first two pass on, the last runs the whole MLP.
    layer.fc1, layer.activation_fn, layer.fc2 = nn.Identity(), nn.Identity(), _Call(layer, ("mlp",))
    layer.mlp = mlp


def _split(module: Any, name: str, parts: tuple[str, ...], sizes: list[int], transposed: bool) -> None:
    """Puts separate linear ``parts`` (views where they can be) in the place of ``module``'s projection ``name``."""
    fused = getattr(module, name)
    weight = fused.weight.data.T if transposed else fused.weight.data
    biases = [None] * len(parts) if fused.bias is None else fused.bias.data.split(sizes)
    delattr(module, name)
    for part, rows, bias in zip(parts, weight.split(sizes), biases, strict=True):
        linear = nn.Linear(rows.shape[1], rows.shape[0], bias is not None, device="meta")
        linear.weight = nn.Parameter(rows.contiguous(), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        module.add_module(part, linear)
    setattr(module, name, _Call(module, parts))


def _rename(module: Any, name: str, new: str) -> None:
    projection = getattr(module, name)
    delattr(module, name)
    module.add_module(new, projection)
    setattr(module, name, _Call(module, (new,)))


def _measured(plain: Any, **sizes: Callable[[Any], Any]) -> Any:
    """``plain`` with attributes that are read from the weights, which change width under it."""
    return type(plain.__name__, (plain,), {name: property(size) for name, size in sizes.items()})


def _query_width(attention: Any) -> int:
    return int(attention.q_proj.weight.shape[0])


def _groups(attention: Any) -> int:
    return int(attention.k_proj.weight.shape[0]) // int(attention.head_dim)


def _heads_config(attention: Any) -> Any:
    return _OwnHeads(attention.whole_config, _query_width(attention) // attention.head_dim)
