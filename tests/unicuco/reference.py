"""A slow reference for evaluations: masked and re-solved weights in an untouched model, in float64, KL spelled out.

It shares no code with what it checks, except for which units survive (the preparation's order).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicuco.space import Shape


def projections(model: Any) -> list[dict[str, Any]]:
    """Output projections of every layer by their names in transformers."""
    inner = model.get_decoder()
    layers = inner.h if hasattr(inner, "h") else inner.layers
    attentions = [layer.attn if hasattr(layer, "attn") else layer.self_attn for layer in layers]
    pairs = zip(attentions, layers, strict=True)
    return [{"attention": attention.o_proj, "mlp": layer.mlp.down_proj} for attention, layer in pairs]


def input_grams(model: Any, tokens: np.ndarray) -> list[dict[str, Tensor]]:
    """Mean of x xᵀ over all tokens, x the input of each output projection."""
    layers = projections(model)
    sums: list[dict[str, Tensor]] = [{} for _ in layers]
    handles = []
    for layer, store in zip(layers, sums, strict=True):
        for kind, linear in layer.items():

            def hook(module: Any, args: Any, kind: str = kind, store: dict[str, Tensor] = store) -> None:
                for row in args[0].flatten(0, -2).double():
                    store[kind] = store.get(kind, 0) + torch.outer(row, row)

            handles.append(linear.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(tokens).long(), use_cache=False)
    for handle in handles:
        handle.remove()
    return [{kind: total / tokens.size for kind, total in store.items()} for store in sums]


@dataclass
class SlowReference:
    """Measures shapes on a float64 model that keeps all its modules.

    Attributes:
        model: untouched, float64.
        orders: units by importance, ``attention.B`` and ``mlp.B``.
        ridge: as in the preparation.
    """

    model: Any
    grams: list[dict[str, Tensor]]
    orders: dict[str, Tensor]
    ridge: float

    def log_probs(self, shape: Shape | None, tokens: np.ndarray) -> Tensor:
        """Log-probabilities (``windows x length x vocab``) of the model masked to ``shape``; dense without one."""
        layers = projections(self.model)
        saved = [{kind: copy.deepcopy(linear.state_dict()) for kind, linear in layer.items()} for layer in layers]
        if shape is not None:
            for b, layer in enumerate(layers):
                for kind, kept in (("attention", shape.groups[b]), ("mlp", shape.neurons[b])):
                    self._mask(b, kind, layer[kind], kept)
        handles = self._norms_of_the_heads_left(shape) if shape else []
        try:
            with torch.no_grad():
                rows = [self.model(input_ids=torch.from_numpy(w).long()[None]).logits[0] for w in tokens]
        finally:
            for handle in handles:
                handle.remove()
            for layer, weights in zip(layers, saved, strict=True):
                for kind, linear in layer.items():
                    linear.load_state_dict(weights[kind])
        return torch.log_softmax(torch.stack(rows), dim=-1)

    def _norms_of_the_heads_left(self, shape: Shape) -> list[Any]:
        """OLMo 2's norms span all heads; the mean square is of those that are left."""
        handles = []
        for b, layer in enumerate(self.model.get_decoder().layers if self.model.config.model_type == "olmo2" else ()):
            order = self.orders[f"attention.{b}"]
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                unit = len(norm.weight) // len(order)
                left = [u * unit + i for u in order[: shape.groups[b]].tolist() for i in range(unit)]

                def hook(norm: Any, args: Any, output: Tensor, left: list[int] = left) -> Tensor:
                    mean = args[0][..., left].square().mean(-1, keepdim=True) if left else 1.0
                    return norm.weight * args[0] / (mean + norm.variance_epsilon) ** 0.5

                handles.append(norm.register_forward_hook(hook))
        return handles

    def _mask(self, block: int, kind: str, linear: Any, kept: int) -> None:
        order, weight = self.orders[f"{kind}.{block}"], linear.weight.data
        unit = weight.shape[1] // len(order)
        stays = torch.cat([torch.arange(u * unit, (u + 1) * unit) for u in order[:kept].tolist()] or [order[:0]])
        new = torch.zeros_like(weight)
        if 0 < kept < len(order):
            gram = self.grams[block][kind]
            gram = gram + self.ridge * gram.diagonal().median() * torch.eye(len(gram), dtype=gram.dtype)
            new[:, stays] = weight @ gram[:, stays] @ torch.linalg.inv(gram[stays][:, stays])
        elif kept:
            new = weight.clone()
        elif linear.bias is not None:  # goes with its sublayer
            linear.bias.data = torch.zeros_like(linear.bias.data)
        linear.weight.data = new


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of every position, over the whole vocabulary."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def perplexity(log_probs: Tensor, tokens: np.ndarray) -> float:
    target = torch.from_numpy(tokens).long()[:, 1:, None]
    return float((-log_probs[:, :-1].gather(-1, target).mean()).exp())
