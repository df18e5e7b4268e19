"""Finds a model's prunable parts through its own modules: KV groups with their query heads, MLP neurons, blocks.

Nothing here knows a family by name. A model qualifies when every decoder layer has one attention with separate q, k, v
and o projections and one gated MLP (gate, up, down): Llama, Mistral, Qwen2, Qwen3, Gemma 3 and their kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unicuco.errors import ModelError
from unicuco.models.geometry import BlockGeometry, Geometry

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Block:
    """The modules of one decoder layer, named by what they do."""

    # Any: torch types every attribute of a module as Tensor | Module, and families name their own.
    layer: Any
    attention: Any
    mlp: Any
    attention_norms: tuple[str, ...]
    """Attribute names, on ``layer``, of the norms that serve only the attention."""
    mlp_norms: tuple[str, ...]


def decoder(model: Any) -> Any:
    """The module that holds ``layers``, the embeddings and the final norm of a causal language model."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
    if inner is None or not isinstance(getattr(inner, "layers", None), nn.ModuleList):
        raise ModelError(f"{type(model).__name__} has no list of decoder layers that UniCuCo can prune.")
    return inner


def find_blocks(model: Any) -> list[Block]:
    """The prunable blocks of ``model``, in order.

    Raises:
        ModelError: a layer lacks one of the projections, or has experts.
    """
    blocks = []
    attention_norms: tuple[str, ...]
    mlp_norms: tuple[str, ...]
    for index, layer in enumerate(decoder(model).layers):
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        for module, names, what in ((attention, ATTENTION_PROJECTIONS, "attention"), (mlp, MLP_PROJECTIONS, "MLP")):
            missing = [name for name in names if not isinstance(getattr(module, name, None), nn.Linear)]
            if missing:
                raise ModelError(
                    f"Block {index} of {type(model).__name__} cannot be pruned: its {what} has no linear "
                    f"{', '.join(missing)}. UniCuCo prunes models with separate q/k/v/o and gate/up/down projections "
                    "(Llama, Mistral, Qwen2, Qwen3, Gemma 3 and their kin)."
                )
        if hasattr(layer, "pre_feedforward_layernorm"):  # norms before and after each sublayer, as in Gemma
            attention_norms = ("input_layernorm", "post_attention_layernorm")
            mlp_norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        else:
            attention_norms = ("input_layernorm",)
            mlp_norms = ("post_attention_layernorm",)
        absent = [name for name in attention_norms + mlp_norms if not hasattr(layer, name)]
        if absent:
            raise ModelError(f"Block {index} of {type(model).__name__} has no {', '.join(absent)}.")
        blocks.append(Block(layer, attention, mlp, attention_norms, mlp_norms))
    if not blocks:
        raise ModelError(f"{type(model).__name__} has no decoder layers.")
    return blocks


def read_geometry(model: Any) -> Geometry:
    """Sizes of every block of ``model``, checked against the model's own parameter count."""
    blocks = tuple(_block_geometry(block) for block in find_blocks(model))
    unique = {id(parameter): parameter.numel() for parameter in model.parameters()}
    total, in_blocks = sum(unique.values()), sum(block.params for block in blocks)
    counted = sum(p.numel() for p in decoder(model).layers.parameters())
    if counted != in_blocks:
        raise ModelError(
            f"{type(model).__name__}: the decoder layers hold {counted:,} parameters but attention, MLP and norms "
            f"explain {in_blocks:,}; its layers have parts that UniCuCo does not know."
        )
    head = model.get_output_embeddings()
    return Geometry(
        family=model.config.model_type,
        hidden_size=model.config.hidden_size,
        vocab_size=head.weight.shape[0],
        blocks=blocks,
        fixed_params=total - in_blocks,
        fixed_macs=head.weight.numel(),
    )


def _block_geometry(block: Block) -> BlockGeometry:
    attention, mlp = block.attention, block.mlp
    head_dim = attention.head_dim
    groups = attention.k_proj.out_features // head_dim
    heads = attention.q_proj.out_features // head_dim
    if heads % groups or attention.v_proj.out_features != attention.k_proj.out_features:
        raise ModelError(f"{heads} query heads cannot be shared out over {groups} key/value heads.")
    grouped = [p for name in ATTENTION_PROJECTIONS[:3] for p in getattr(attention, name).parameters()]
    grouped.append(attention.o_proj.weight)
    rows = [p for name in MLP_PROJECTIONS[:2] for p in getattr(mlp, name).parameters()] + [mlp.down_proj.weight]
    per_group = sum(p.numel() for p in grouped) // groups
    per_neuron = sum(p.numel() for p in rows) // mlp.down_proj.in_features
    attention_all = sum(p.numel() for p in attention.parameters()) + _norm_params(block.layer, block.attention_norms)
    mlp_all = sum(p.numel() for p in mlp.parameters()) + _norm_params(block.layer, block.mlp_norms)
    return BlockGeometry(
        groups=groups,
        heads_per_group=heads // groups,
        head_dim=head_dim,
        neurons=mlp.down_proj.in_features,
        attention_fixed=attention_all - per_group * groups,
        params_per_group=per_group,
        macs_per_group=sum(p.numel() for p in grouped if p.dim() == 2) // groups,
        mlp_fixed=mlp_all - per_neuron * mlp.down_proj.in_features,
        params_per_neuron=per_neuron,
        macs_per_neuron=sum(p.numel() for p in rows if p.dim() == 2) // mlp.down_proj.in_features,
    )


def _norm_params(layer: Any, names: tuple[str, ...]) -> int:
    return sum(p.numel() for name in names for p in getattr(layer, name).parameters())
