"""The evaluator's causal attention with a gradient: what margins run on CPUs in bfloat16.

torch's fused CPU attention takes more than a quarter of a forward and backward pass there, most of it in its backward
pass. Here both work on blocks of queries against the keys that they may see, as large matrix products. Probabilities
are computed again in the backward pass, so that only inputs and output are kept (as FlashAttention does, Dao et al.
2022, arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from unicuco.models.hetero.attention_unicuco import NAME as WITHOUT_GRADIENT
from unicuco.models.hetero.attention_unicuco import QUERIES_AT_ONCE, causal_blocks

NAME = "unicuco_causal_blocks_gradient"


@contextmanager
def fast_gradients(model: Any) -> Iterator[None]:
    """Attention with this gradient for a while, where ``model`` uses the one without: bfloat16 on a CPU."""
    config = model.config
    if config._attn_implementation != WITHOUT_GRADIENT:
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = WITHOUT_GRADIENT


class CausalBlocks(torch.autograd.Function):
    """Causal self-attention of whole sequences.

    Query is ``batch x heads x length x head_dim``, key and value ``batch x groups x length x head_dim``, the result
    ``batch x length x heads x head_dim``; all bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        # Gradients are off in here, which is when the attention of evaluations takes the call.
        out = causal_blocks(nn.Module(), query, key, value, None, scaling=scaling, is_causal=True)[0]
        ctx.save_for_backward(query, key, value, out)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out = ctx.saved_tensors
        batch, heads, length, width = query.shape
        groups = key.shape[1]
        each = heads // groups
        rows = (query * ctx.scaling).view(batch, groups, each, length, width)
        gradient, result = (t.view(batch, length, groups, each, width) for t in (gradients[0], out))
        to_query = torch.empty_like(query).view(batch, groups, each, length, width)
        # Summed over blocks of queries, so in float32.
        to_key, to_value = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (key, value))
        future = torch.ones(QUERIES_AT_ONCE, QUERIES_AT_ONCE, dtype=torch.bool, device=query.device).triu(1)
        for start in range(0, length, QUERIES_AT_ONCE):
            end = min(start + QUERIES_AT_ONCE, length)
            size = end - start
            folded = (batch, groups, each * size, width)
            queries = rows[:, :, :, start:end].reshape(folded)
            grad, mixed = (t[:, start:end].permute(0, 2, 3, 1, 4).reshape(folded) for t in (gradient, result))
            keys, values = key[:, :, :end], value[:, :, :end]
            scores = queries @ keys.transpose(2, 3)
            scores.view(batch, groups, each, size, end)[..., start:end].masked_fill_(
                future[:size, :size], float("-inf")
            )
            chances = torch.softmax(scores, dim=-1)
            mean = (grad.float() * mixed.float()).sum(-1, keepdim=True).to(grad.dtype)
            of_scores = (grad @ values.transpose(2, 3)).sub_(mean).mul_(chances)
            to_query[:, :, :, start:end] = (of_scores @ keys).mul_(ctx.scaling).view(batch, groups, each, size, width)
            to_key[:, :, :end] += of_scores.transpose(2, 3) @ queries
            to_value[:, :, :end] += chances.transpose(2, 3) @ grad
        return to_query.view_as(query), to_key.to(key.dtype), to_value.to(value.dtype), None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; what ``causal_blocks`` would not take goes to ``sdpa``."""
    extras = ("softcap", "position_bias", "cache")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    plain = causal and attention_mask is None and not options.get("dropout")
    plain = plain and all(options.get(name) is None for name in extras) and key.shape[2] == query.shape[2]
    if not plain or query.dtype != torch.bfloat16 or query.device.type != "cpu" or value.shape[3] != query.shape[3]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    return CausalBlocks.apply(query, key, value, query.shape[3] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
