"""Causal attention for CPUs in bfloat16, where torch's fused kernel is slow.

This file travels inside every ``hetero`` checkpoint, so it imports nothing but torch and transformers.

Query blocks against the keys they may see, with the query heads of a KV group folded into rows, so that both products
are large bfloat16 matrix products and nothing above the diagonal's blocks is computed. Measured on 2 AVX-512 cores,
SmolLM2's shapes: 4 x 512 tokens 6.2 ms against 18.2 ms, 1 x 2048 tokens 17 ms against 40 ms (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "unicuco_causal_blocks"
QUERIES_AT_ONCE = 64


def use_fast_attention(model: Any) -> None:
    """Lets ``model`` (a transformers model) use this attention from now on, where it helps: bfloat16 on a CPU."""
    if _helps(model):
        model.set_attn_implementation(NAME)


@contextlib.contextmanager
def fast_attention(model: Any) -> Iterator[None]:
    """The same for one forward: to transformers, which knows some implementations by name, ``model`` stays ``sdpa``."""
    config = model.config
    if torch.is_grad_enabled() or not _helps(model):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        if config._attn_implementation == NAME:
            config._attn_implementation = "sdpa"


def _helps(model: Any) -> bool:
    return model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and model.dtype == torch.bfloat16


def causal_blocks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; everything but plain causal self-attention goes to its ``sdpa``.

    Args:
        query: ``batch x heads x length x head_dim``; key, value: ``batch x groups x length x head_dim``.

    Returns:
        ``batch x length x heads x head_dim``.
    """
    if attention_mask is not None or not _plain_causal(module, query, key, value, options):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    each = heads // groups
    rows = (query * (width**-0.5 if scaling is None else scaling)).view(batch, groups, each, length, width)
    keys = key.transpose(2, 3)
    out = torch.empty(batch, length, groups, each, width, dtype=query.dtype)
    future = torch.ones(QUERIES_AT_ONCE, QUERIES_AT_ONCE, dtype=torch.bool).triu(1)
    for start in range(0, length, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, length)
        size = end - start
        scores = rows[:, :, :, start:end].reshape(batch, groups, each * size, width) @ keys[..., :end]
        diagonal = scores.view(batch, groups, each, size, end)[..., start:end]
        diagonal.masked_fill_(future[:size, :size], float("-inf"))
        mixed = torch.softmax(scores, dim=-1) @ value[:, :, :end]
        out[:, start:end] = mixed.view(batch, groups, each, size, width).permute(0, 3, 1, 2, 4)
    return out.view(batch, length, heads, width), None


def _plain_causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    """Whether a call without a mask is what ``causal_blocks`` computes: the whole sequence, each token on its past."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    extras = any(options.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    return (
        causal
        and not extras
        and not options.get("dropout")
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and key.shape[2] == query.shape[2]
        and value.shape[3] == query.shape[3]
        and not torch.is_grad_enabled()
    )


AttentionInterface.register(NAME, causal_blocks)
AttentionMaskInterface.register(NAME, sdpa_mask)
