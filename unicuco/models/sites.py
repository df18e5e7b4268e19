"""Finds a model's prunable parts through its own modules: KV groups with their query heads, MLP neurons, blocks.

A model qualifies when every decoder layer has one attention with separate q, k, v and o projections and one MLP with
up and down projections and mostly a gate: by itself (Llama, Mistral, Qwen, Gemma, OLMo 2, SmolLM3, Granite and their
kin), or brought into that form (``separate.py``: Phi-3, GPT-2, OPT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unicuco.errors import ModelError
from unicuco.models.geometry import BlockGeometry, Geometry

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FAMILIES = "Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3, Phi-3, OLMo 2, SmolLM3, Granite, GPT-2, OPT"
NORMS = (  # of the attention and of the MLP; the first pair that a layer has is its own (as in modeling_unicuco.py)
    (("input_layernorm", "post_attention_layernorm"), ("pre_feedforward_layernorm", "post_feedforward_layernorm")),
    (("post_attention_layernorm",), ("post_feedforward_layernorm",)),
    (("input_layernorm",), ("post_attention_layernorm",)),
    (("ln_1",), ("ln_2",)),
    (("self_attn_layer_norm",), ("final_layer_norm",)),
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts."""


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
    attention_name: str = "self_attn"
    """Attribute name of the attention on ``layer``; that of the MLP is ``mlp``."""
    norms_span_heads: bool = False
    """Whether queries and keys are normed over all heads at once (OLMo 2), not head by head."""

    @property
    def normed_outputs(self) -> bool:
        """Whether what a sublayer gives goes through a norm before it is added to the residual."""
        return "post_feedforward_layernorm" in self.mlp_norms

    def rows(self, geometry: BlockGeometry, groups: int, neurons: int) -> dict[str, int]:
        """How many rows each input projection, and each norm over them, has with ``groups`` and ``neurons``."""
        key = groups * geometry.head_dim
        query = key * geometry.heads_per_group
        rows = {"q_proj": query, "k_proj": key, "v_proj": key, "gate_proj": neurons, "up_proj": neurons}
        return rows | ({"q_norm": query, "k_norm": key} if self.norms_span_heads else {})


def decoder(model: Any) -> Any:
    """The module that holds the decoder layers, the embeddings and the final norm of a causal language model."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
    if inner is None or _layers(inner) is None:
        raise ModelError(f"{type(model).__name__} has no list of decoder layers that UniCuCo can prune.")
    return inner


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal language model.

    Raises:
        ModelError: there is no such list.
    """
    found = _layers(decoder(model))
    assert found is not None
    return found


def _layers(inner: Any) -> nn.ModuleList | None:
    lists = (getattr(inner, name, None) for name in ("layers", "h"))
    return next((found for found in lists if isinstance(found, nn.ModuleList)), None)


def check_config(config: Any) -> None:
    """Refuses, before any weights are read, what no weights can make prunable.

    Raises:
        ModelError: a mixture of experts, or norms after the residual.
    """
    family = config.model_type
    if any(getattr(config, name, None) for name in EXPERTS):
        raise ModelError(f"'{family}' is a mixture of experts, which UniCuCo does not prune; it prunes {FAMILIES}.")
    if family == "opt" and not config.do_layer_norm_before:
        raise ModelError(
            "This OPT norms the residual stream after each sublayer (do_layer_norm_before is false), so none of them "
            "can be dropped; UniCuCo prunes the OPT models that norm before."
        )
    if getattr(config, "add_cross_attention", False):
        raise ModelError(f"This '{family}' has cross-attention, which UniCuCo does not prune.")


def find_blocks(model: Any) -> list[Block]:
    """The prunable blocks of ``model``, in order.

    Raises:
        ModelError: a layer lacks one of the projections, or has experts.
    """
    blocks = []
    for index, layer in enumerate(decoder_layers(model)):
        attention_name = "attn" if hasattr(layer, "attn") else "self_attn"
        attention: Any = getattr(layer, attention_name, None)
        mlp: Any = getattr(layer, "mlp", None)
        required = (attention, ATTENTION_PROJECTIONS, "attention"), (mlp, MLP_PROJECTIONS[1:], "MLP")
        for module, names, what in required:
            missing = [name for name in names if not isinstance(getattr(module, name, None), nn.Linear)]
            if missing:
                raise ModelError(
                    f"Block {index} of {type(model).__name__} cannot be pruned: its {what} has no linear "
                    f"{', '.join(missing)}. UniCuCo prunes {FAMILIES} and models built like them."
                )
        norms = [pair for pair in NORMS if all(hasattr(layer, name) for names in pair for name in names)]
        if not norms:
            raise ModelError(f"Block {index} of {type(model).__name__} has no norms that UniCuCo knows.")
        gain = getattr(getattr(attention, "q_norm", None), "weight", None)
        spanning = gain is not None and gain.shape == attention.q_proj.weight.shape[:1] != (attention.head_dim,)
        blocks.append(Block(layer, attention, mlp, norms[0][0], norms[0][1], attention_name, spanning))
    if not blocks:
        raise ModelError(f"{type(model).__name__} has no decoder layers.")
    return blocks


def mlp_inputs(mlp: Any) -> list[nn.Linear]:
    """The projections that an MLP's neurons read through: gate and up, or up alone."""
    return [getattr(mlp, name) for name in MLP_PROJECTIONS[:2] if hasattr(mlp, name)]


def read_geometry(model: Any) -> Geometry:
    """Sizes of every block of ``model``, checked against the model's own parameter count."""
    blocks = tuple(_block_geometry(block) for block in find_blocks(model))
    unique = {id(parameter): parameter.numel() for parameter in model.parameters()}
    total, in_blocks = sum(unique.values()), sum(block.params for block in blocks)
    counted = sum(p.numel() for p in decoder_layers(model).parameters())
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
    if block.norms_span_heads:
        grouped += [attention.q_norm.weight, attention.k_norm.weight]
    rows = [p for linear in mlp_inputs(mlp) for p in linear.parameters()] + [mlp.down_proj.weight]
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
