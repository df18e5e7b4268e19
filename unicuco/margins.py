"""Margins: what one more or one less level of every site would cost, all sites at once, from one backward pass.

At a pruned model, KL(dense || pruned) has a gradient with respect to every output projection. With δ the gradient at
a projection's output and a the activations at its input, both as they are in the pruned model,

    KL(site's projection W_l -> W_m)  ≈  KL + ⟨Σ_t δ_t a_tᵀ, W_m − W_l⟩  +  (a second-order term),

for every level m at once: pruning is not differentiable in its levels, but it is in the projections that they mean.
The second-order term needs no backward pass. Compensated projections are orthogonal projections of W onto nested
subspaces in the metric of the inputs' Gram matrix, so what lies between two levels is the difference of their predicted
damages (Pythagoras); the surrogate adds it. (Ours; measured in docs/decisions.md.)

The units that a strategy removed still have to be seen, to know what giving them back is worth: the forward runs at
full width with zero columns in the output projections, which is the pruned model exactly. Cost: a forward and a
backward of the dense model, counted as three forwards.

With a sparsity pruner all matrices of a site change, so the gradients of all are taken (in float32: the memory of the
blocks' matrices once more), and the shapes are dense already. Its levels are nested too: Wanda's masks exactly, the
others' corrections nearly; so the second-order terms are the same differences of damages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unicuco.models.attention_gradient import fast_gradients
from unicuco.models.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, find_blocks
from unicuco.models.swap import SwitchableModel
from unicuco.pruners.base import PrunedBlock, Pruner, SparsityPruner, pruned_blocks
from unicuco.space import SearchSpace, Shape

POSITIONS_AT_ONCE = 128
"""Tokens whose logits and their gradient are held at once."""
OUTPUTS = {"attention": "o_proj", "mlp": "down_proj"}
MATRICES = {"attention": ATTENTION_PROJECTIONS, "mlp": MLP_PROJECTIONS}


@dataclass(frozen=True)
class Margins:
    """First-order changes of KL around one strategy.

    Attributes:
        kl: of the strategy itself on the windows of the margins, nats per token.
        change: by how much KL would change, to first order, if one site alone went to another level
            (``num_sites x max_levels``; 0 at the strategy's own levels and where nothing is known).
    """

    kl: float
    change: np.ndarray


def measure_margins(
    model: Any,
    switch: SwitchableModel,
    pruner: Pruner,
    space: SearchSpace,
    levels: np.ndarray,
    tokens: Tensor,
    dense: Tensor,
    logits: Callable[[Tensor], Tensor],
) -> Margins:
    """Margins of one strategy on ``tokens``.

    Args:
        model: the pinned base model, and its ``switch``.
        levels: ``num_sites`` level indices.
        tokens: ``num_windows x window_length``.
        dense: last hidden states of the dense model on them (``tokens x hidden``).
        logits: the model's head.
    """
    shape = space.shape(levels)
    gradients: dict[tuple[str, int], Tensor] = {}
    outputs: dict[str, tuple[str, ...]] = {kind: (output,) for kind, output in OUTPUTS.items()}
    watched = MATRICES if space.is_sparse else outputs
    spanning = {b for b, block in enumerate(find_blocks(model)) if block.norms_span_heads}
    sparse = space.is_sparse
    switch.apply(pruned_blocks(pruner, shape) if sparse else _at_full_width(pruner, space, shape, spanning))
    try:
        with _watching(model, watched, gradients), fast_gradients(model):
            kl = sum(
                _backward(model, window, states, logits, tokens.numel())
                for window, states in zip(tokens, dense.split(tokens.shape[1]), strict=True)
            )
    finally:
        switch.restore()
    if isinstance(pruner, SparsityPruner) and space.is_sparse:
        return Margins(float(kl), _sparse_changes(pruner, space, levels, gradients))
    return Margins(float(kl), _changes(pruner, space, levels, gradients, _unseen(model, space, shape)))


def _at_full_width(
    pruner: Pruner, space: SearchSpace, shape: Shape, spanning: Collection[int] = ()
) -> list[PrunedBlock]:
    """The blocks of ``shape`` with every unit computed and the removed ones multiplied by zero.

    Not in the attentions of the blocks ``spanning``, whose norms would see the removed heads: they stay as they are.
    """
    whole = pruned_blocks(pruner, _dense_shape(space))
    blocks = []
    for b, (full, pruned) in enumerate(zip(whole, pruned_blocks(pruner, shape), strict=True)):
        attention, mlp = dict(full.attention), dict(full.mlp)
        for tensors, left, output in ((attention, pruned.attention, "o_proj"), (mlp, pruned.mlp, "down_proj")):
            name = f"{output}.weight"
            padded = torch.zeros_like(tensors[name])
            if left:
                padded[:, : left[name].shape[1]] = left[name]
            tensors[name] = padded
            if not left and f"{output}.bias" in tensors:  # goes with its sublayer
                tensors[f"{output}.bias"] = torch.zeros_like(tensors[f"{output}.bias"])
        narrow = b in spanning and pruned.groups > 0
        groups, attention = (pruned.groups, pruned.attention) if narrow else (full.groups, attention)
        blocks.append(PrunedBlock(groups, full.neurons, attention, mlp))
    return blocks


def _dense_shape(space: SearchSpace) -> Shape:
    blocks = space.geometry.blocks
    return Shape(tuple(block.groups for block in blocks), tuple(block.neurons for block in blocks))


def _unseen(model: Any, space: SearchSpace, shape: Shape) -> set[tuple[str, int]]:
    """Sublayers whose gradient says nothing about any step from where they are.

    Dropped ones whose output goes through a norm, and attentions that lack heads where a norm spans all of them.
    """
    found = set()
    for b, block in enumerate(find_blocks(model)):
        lacking = block.norms_span_heads and shape.groups[b] < space.geometry.blocks[b].groups
        if lacking or (block.normed_outputs and not shape.groups[b]):
            found.add(("attention", b))
        if block.normed_outputs and not shape.neurons[b]:
            found.add(("mlp", b))
    return found


@contextmanager
def _watching(
    model: Any, watched: dict[str, tuple[str, ...]], gradients: dict[tuple[str, int], Tensor]
) -> Iterator[None]:
    """Collects Σ_t δ_t a_tᵀ (``out x in``, float32) of every watched matrix, by its name and block, while backward
    passes run.

    Of a projection with a bias there is one column more, Σ_t δ_t: its activation is always 1.
    """

    def hook(key: tuple[str, int]) -> Callable[..., None]:
        def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
            activations = inputs[0].detach().flatten(0, -2)
            if module.bias is not None:
                activations = torch.cat([activations, activations.new_ones(len(activations), 1)], dim=1)

            def backward(gradient: Tensor) -> None:
                product = (gradient.flatten(0, -2).T @ activations).float()
                gradients[key] = gradients[key] + product if key in gradients else product

            output.register_hook(backward)

        return forward

    handles = [
        getattr(getattr(block, kind), name).register_forward_hook(hook((name, b)))
        for b, block in enumerate(find_blocks(model))
        for kind, names in watched.items()
        for name in names
        if hasattr(getattr(block, kind), name)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _backward(model: Any, ids: Tensor, dense: Tensor, logits: Callable[[Tensor], Tensor], count: int) -> float:
    """One window's share of the mean KL over ``count`` tokens; runs its gradient back to the first block."""
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(ids[None]).detach().requires_grad_(True)
        hidden = model.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]
    kl, gradient = _gradient_of_kl(hidden.detach(), dense, logits, count)
    torch.autograd.grad(hidden, embeddings, gradient)
    return kl


def _gradient_of_kl(
    hidden: Tensor, dense: Tensor, logits: Callable[[Tensor], Tensor], count: int
) -> tuple[float, Tensor]:
    """Σ KL ÷ ``count`` over the rows, and its gradient with respect to ``hidden``; the head runs in chunks."""
    kl, parts = 0.0, []
    for rows, dense_rows in zip(hidden.split(POSITIONS_AT_ONCE), dense.split(POSITIONS_AT_ONCE), strict=True):
        with torch.no_grad():
            log_p = logits(dense_rows).float().log_softmax(-1)
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_(True)
            scores = logits(leaf)
        with torch.no_grad():
            log_q = scores.float().log_softmax(-1)
            p = log_p.exp()
            kl += float((p * (log_p - log_q)).sum()) / count
            of_scores = log_q.exp_().sub_(p).div_(count)  # ∂KL/∂logits = q − p
        parts.append(torch.autograd.grad(scores, leaf, of_scores.to(scores.dtype))[0])
    return kl, torch.cat(parts)


def _changes(
    pruner: Pruner,
    space: SearchSpace,
    levels: np.ndarray,
    gradients: dict[tuple[str, int], Tensor],
    unseen: set[tuple[str, int]],
) -> np.ndarray:
    """⟨gradient, W_m − W_l⟩ for every level m of every site (``num_sites x max_levels``)."""
    change: np.ndarray = np.zeros(space.levels.shape)
    for i, site in enumerate(space.sites):
        b = site.block
        for j, level in enumerate(site.levels):
            left = pruner.pruned_block(b, level.groups or 0, level.neurons or 0)
            for kind, width, tensors in (("attention", level.groups, left.attention), ("mlp", level.neurons, left.mlp)):
                if width and (kind, b) not in unseen:
                    gradient = gradients[OUTPUTS[kind], b]
                    weight, bias = tensors[f"{OUTPUTS[kind]}.weight"], tensors.get(f"{OUTPUTS[kind]}.bias")
                    change[i, j] += float((gradient[:, : weight.shape[1]] * weight).sum())
                    if bias is not None:
                        change[i, j] += float(gradient[:, -1] @ bias.float())
        change[i, : len(site.levels)] -= change[i, int(levels[i])]
    return change


def _sparse_changes(
    pruner: SparsityPruner, space: SearchSpace, levels: np.ndarray, gradients: dict[tuple[str, int], Tensor]
) -> np.ndarray:
    """The same over all matrices of every site."""
    change: np.ndarray = np.zeros(space.levels.shape)
    for i, site in enumerate(space.sites):
        for kind, names in MATRICES.items():
            if site.kind in (kind, "block"):
                for name in names:
                    if (name, site.block) in gradients:
                        change[i] += pruner.products(site.block, name, gradients[name, site.block])
        change[i] -= change[i, int(levels[i])]
    return change
