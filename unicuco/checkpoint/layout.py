"""The tensors and the configuration of a pruned model, in each layout.

``hetero`` regroups the surviving sublayers around the attentions: every stored layer is one attention, the MLP that
follows it, the MLPs until the next attention (*trailing*) and, in the first layer only, the MLPs before it (*leading*).
A model whose first attentions are dropped, or which has several MLPs in a row, thus has as many layers as attentions,
and caches, ``generate`` and serving engines see nothing unusual.

``uniform`` has the same widths in every block that is left, and whole blocks dropped: the family's own configuration
with smaller numbers.

``padded`` fills the dense shapes with zeros: no smaller, but it loads everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unicuco.errors import CheckpointError
from unicuco.models.load import BaseModel
from unicuco.models.separate import stored_tensors
from unicuco.models.sites import Block, decoder_layers, find_blocks
from unicuco.pruners.base import PrunedBlock
from unicuco.space import Shape


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a ``hetero`` checkpoint, as block indices of the base model."""

    attention: int
    mlp: int | None
    """Block whose MLP follows the attention directly; ``None`` when the next attention does."""
    leading: tuple[int, ...]
    trailing: tuple[int, ...]


def regroup(shape: Shape) -> list[StoredLayer]:
    """The stored layers of a strategy.

    Raises:
        CheckpointError: every attention is dropped; there is no layer to store MLPs in.
    """
    leading: list[int] = []
    attentions: list[tuple[int, list[int]]] = []
    for block, (groups, neurons) in enumerate(zip(shape.groups, shape.neurons, strict=True)):
        if groups:
            attentions.append((block, []))
        if neurons:
            (attentions[-1][1] if attentions else leading).append(block)
    if not attentions:
        raise CheckpointError(
            "This strategy drops every attention, and the 'hetero' layout stores layers around attentions; "
            "use the layout 'padded'."
        )
    return [
        StoredLayer(block, mlps[0] if mlps else None, tuple(leading) if i == 0 else (), tuple(mlps[1:]))
        for i, (block, mlps) in enumerate(attentions)
    ]


def outer_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything of ``model`` that no strategy touches: embeddings, final norm, head (under both names when tied)."""
    prefix = layers_prefix(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}


def layers_prefix(model: nn.Module) -> str:
    """What the names of all decoder layers start with, e.g. ``model.layers.``."""
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers) + "."


def hetero_tensors(base: BaseModel, pruned: list[PrunedBlock], layers: list[StoredLayer]) -> dict[str, Tensor]:
    """State dict of the ``hetero`` model; pruned tensors are views of the pruner's."""
    tensors, prefix, blocks = outer_tensors(base.model), layers_prefix(base.model), find_blocks(base.model)
    for i, layer in enumerate(layers):
        found = layer_tensors(blocks, pruned, layer)
        tensors |= {f"{prefix}{i}.{name}": tensor for name, tensor in found.items()}
    return tensors


def layer_tensors(blocks: list[Block], pruned: Sequence[PrunedBlock], layer: StoredLayer) -> dict[str, Tensor]:
    """State dict of one stored layer, named from the layer on; each of its blocks is asked for once, in order."""
    needed = sorted({layer.attention, *([] if layer.mlp is None else [layer.mlp]), *layer.leading, *layer.trailing})
    left = {index: pruned[index] for index in needed}
    tensors: dict[str, Tensor] = {}

    def put(where: str, block: Block, named: dict[str, Tensor], norms: tuple[str, ...]) -> None:
        tensors.update({f"{where}{name}": tensor for name, tensor in named.items()})
        for norm in norms:
            found = getattr(block.layer, norm).state_dict()
            tensors.update({f"{where}{norm}.{name}": tensor for name, tensor in found.items()})

    def put_mlp(where: str, index: int) -> None:
        block = blocks[index]
        put(where, block, stored_tensors(block.mlp, "mlp", left[index].mlp), block.mlp_norms)

    block = blocks[layer.attention]
    named = stored_tensors(block.attention, block.attention_name, left[layer.attention].attention)
    put("", block, named, block.attention_norms)
    if layer.mlp is not None:
        put_mlp("", layer.mlp)
    for place, indices in (("leading", layer.leading), ("trailing", layer.trailing)):
        for j, index in enumerate(indices):
            put_mlp(f"{place}.{j}.", index)
    return tensors


def hetero_config(base: BaseModel, shape: Shape, layers: list[StoredLayer]) -> Any:
    """The base configuration with per-layer widths, regrouped MLPs, and the classes to load it with.

    Raises:
        CheckpointError: a family for which there are no ``hetero`` classes, or layers that depend on their place.
    """
    from unicuco.models.hetero import FAMILIES, NEURONS, class_name, config_class

    family = base.geometry.family
    if family not in FAMILIES:
        raise CheckpointError(
            f"The layout 'hetero' knows the families {', '.join(sorted(FAMILIES))}, not '{family}'; "
            "use the layout 'padded'."
        )
    values = clean_config(base).to_dict()
    _check_places(values)
    for key in ("model_type", "architectures", "transformers_version"):
        values.pop(key, None)
    _regroup_lists(values, layers, len(shape.groups))
    overrides: dict[int, dict[str, Any]] = {}
    extra: dict[str, dict[str, list[int]]] = {}
    for i, layer in enumerate(layers):
        geometry, groups = base.geometry.blocks[layer.attention], shape.groups[layer.attention]
        overrides[i] = {"num_attention_heads": groups * geometry.heads_per_group}
        if "num_key_value_heads" in values:  # GPT-2 and OPT have as many as query heads, and no name for them
            overrides[i]["num_key_value_heads"] = groups
        if layer.mlp is None:
            overrides[i]["skip"] = ["mlp"]
        else:
            overrides[i][NEURONS.get(family, "intermediate_size")] = shape.neurons[layer.mlp]
        places = {"leading": layer.leading, "trailing": layer.trailing}
        widths = {place: [shape.neurons[b] for b in blocks] for place, blocks in places.items() if blocks}
        if widths:
            extra[str(i)] = widths
    values |= {
        "num_hidden_layers": len(layers),
        "head_dim": base.geometry.blocks[0].head_dim,
        "per_layer_config": overrides,
        "extra_mlps": extra or None,
        "architectures": [class_name(family, "ForCausalLM")],
        "auto_map": {
            "AutoConfig": f"configuration_unicuco.{class_name(family, 'Config')}",
            "AutoModel": f"modeling_unicuco.{class_name(family, 'Model')}",
            "AutoModelForCausalLM": f"modeling_unicuco.{class_name(family, 'ForCausalLM')}",
        },
    }
    return config_class(family).from_dict(values)


def uniform_layers(base: BaseModel, shape: Shape) -> list[StoredLayer]:
    """The stored layers of a strategy that the family's own classes can hold: the blocks that are left.

    Raises:
        CheckpointError: it keeps half of a block, or different widths, or no block at all.
    """
    pairs = list(zip(shape.groups, shape.neurons, strict=True))
    geometries = base.geometry.blocks
    left = {(*pair, geometries[b].head_dim, geometries[b].heads_per_group) for b, pair in enumerate(pairs) if any(pair)}
    if len(left) != 1 or not all(all(pair) or not any(pair) for pair in pairs):
        raise CheckpointError(
            "The layout 'uniform' holds whole blocks of the same width, and this strategy has others; use 'hetero', or "
            "ask a policy for a uniform strategy."
        )
    return [StoredLayer(b, b, (), ()) for b, pair in enumerate(pairs) if any(pair)]


def uniform_config(base: BaseModel, shape: Shape, layers: list[StoredLayer]) -> Any:
    """The base configuration with fewer blocks, heads and neurons.

    Raises:
        CheckpointError: the family does not allow so many heads.
    """
    from unicuco.models.hetero import NEURONS

    family, first = base.geometry.family, layers[0].attention
    block, groups = base.geometry.blocks[first], shape.groups[first]
    values = clean_config(base).to_dict()
    _check_places(values)
    _regroup_lists(values, layers, len(shape.groups))
    values |= {"num_hidden_layers": len(layers), NEURONS.get(family, "intermediate_size"): shape.neurons[first]}
    if "num_key_value_heads" in values:
        values |= {"head_dim": block.head_dim, "num_key_value_heads": groups}
        values["num_attention_heads"] = groups * block.heads_per_group
    elif groups < block.groups:
        raise CheckpointError(
            f"'{family}' models have as many heads as fill their hidden size; use 'hetero', or a strategy that leaves "
            "attentions whole."
        )
    try:
        return type(base.model.config).from_dict(values)
    except Exception as error:  # configurations check themselves with exceptions of their own
        why = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(f"Models of this family cannot have these widths ({why}); use 'hetero'.") from error


def _check_places(values: dict[str, Any]) -> None:
    if values.get("scale_attn_by_inverse_layer_idx"):
        raise CheckpointError(
            "This model scales each attention by its place, which dropped blocks change; use the layout 'padded'."
        )


def _regroup_lists(values: dict[str, Any], layers: list[StoredLayer], blocks: int) -> None:
    """Entries of a configuration with one item per layer: ``layer_types``, ``no_rope_layers`` and their like."""
    for name, value in values.items():
        if isinstance(value, list) and "layer" in name and len(value) >= blocks:
            values[name] = [value[layer.attention] for layer in layers]


def clean_config(base: BaseModel) -> Any:
    """A copy of the base configuration without where it was loaded from and how it had been quantised."""
    config = copy.deepcopy(base.model.config)
    config._name_or_path = ""
    if hasattr(config, "quantization_config"):  # a model read from GGUF keeps one, and then refuses to save
        del config.quantization_config
    return config


def padded_block(block: Block, pruned: PrunedBlock) -> dict[str, Tensor]:
    """State dict of one dense decoder layer, as it is in memory, that computes what ``pruned`` does.

    Dropped sublayers are all zero. Where queries and keys are normed over all heads (OLMo 2), the pruned model takes
    the mean square of those that are left, the dense layer that of the zeros as well, which is smaller by the share s
    of heads that are left. Rows longer by 1/√s make both means equal, and gains smaller by √s undo that afterwards:
    √s g (x/√s) / √(mean + ε).
    """
    state = dict(block.layer.state_dict())
    parts = (block.attention_name, block.attention, pruned.attention), ("mlp", block.mlp, pruned.mlp)
    for part, module, tensors in parts:
        for name, dense in module.state_dict().items():
            state[f"{part}.{name}"] = _padded(dense, tensors.get(name))
    if block.norms_span_heads and pruned.attention:
        for norm, rows in (("q_norm", "q_proj"), ("k_norm", "k_proj")):
            whole = f"{block.attention_name}.{norm}.weight"
            share = pruned.attention[f"{norm}.weight"].numel() / state[whole].numel()
            for name in [n for n in state if share < 1 and n.startswith(f"{block.attention_name}.{rows}.")]:
                state[name] = state[name].float() * share**-0.5
            state[whole] = state[whole].float() * share**0.5 if share < 1 else state[whole]
    return state


def padded_layer(block: Block, pruned: PrunedBlock, dtype: torch.dtype) -> dict[str, Tensor]:
    """``padded_block`` as its family stores it, named from the layer on."""
    state = _as_stored(block, padded_block(block, pruned))
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def stored_names(model: nn.Module) -> dict[str, Tensor]:
    """State dict of ``model`` as its family stores it, without any numbers (on the meta device)."""
    tensors = {name: tensor.to("meta") for name, tensor in outer_tensors(model).items()}
    prefix = layers_prefix(model)
    for i, block in enumerate(find_blocks(model)):
        state = {name: tensor.to("meta") for name, tensor in block.layer.state_dict().items()}
        tensors |= {f"{prefix}{i}.{name}": tensor for name, tensor in _as_stored(block, state).items()}
    return tensors


def _as_stored(block: Block, state: dict[str, Tensor]) -> dict[str, Tensor]:
    for part, module in ((block.attention_name, block.attention), ("mlp", block.mlp)):
        own = {n.removeprefix(f"{part}."): state.pop(n) for n in list(state) if n.startswith(f"{part}.")}
        state |= stored_tensors(module, part, own)
    return state


def _padded(dense: Tensor, pruned: Tensor | None) -> Tensor:
    if pruned is not None and pruned.shape == dense.shape:
        return pruned
    out = torch.zeros_like(dense)
    if pruned is not None:
        out[tuple(slice(0, n) for n in pruned.shape)] = pruned
    return out
