"""The attention with a gradient against torch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unicuco.models.attention_gradient import CausalBlocks, _attend


def inputs(length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 6, length, 16), (2, 2, length, 16), (2, 2, length, 16)]
    return [torch.randn(shape, generator=generator).bfloat16().requires_grad_(True) for shape in shapes]


def exact(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    repeated = [t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value)]
    out = nn.functional.scaled_dot_product_attention(query, *repeated, is_causal=True, scale=scaling)
    return out.transpose(1, 2)


@pytest.mark.parametrize("length", [1, 63, 64, 150])
def test_result_and_gradients_are_those_of_exact_attention(length: int) -> None:
    """Within the rounding of bfloat16: eight bits, of sums of terms of about that size."""
    ours = inputs(length)
    theirs = [t.detach().double().requires_grad_(True) for t in ours]
    weights = torch.randn(2, length, 6, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    out, expected = CausalBlocks.apply(*ours, 0.3), exact(*theirs, 0.3)
    assert (out.double() - expected).abs().max() < 0.03
    found = torch.autograd.grad(out, ours, weights)
    right = torch.autograd.grad(expected, theirs, weights.double())
    for got, wanted in zip(found, right, strict=True):
        assert got.dtype == torch.bfloat16 and got.shape == wanted.shape
        assert (got.double() - wanted).norm() < 0.02 * wanted.norm() + 1e-9


def test_the_future_has_no_gradient() -> None:
    query, key, value = inputs(100)
    out, _ = _attend(nn.Module(), query, key, value, None, is_causal=True)
    to_key, to_value = torch.autograd.grad(out[:, :70].float().sum(), (key, value))
    assert (to_key[:, :, 70:] == 0).all() and (to_value[:, :, 70:] == 0).all() and (to_value[:, :, :70] != 0).any()


def test_masks_and_other_dtypes_go_to_torch() -> None:
    query, key, value = (t.detach().float() for t in inputs(8))
    module = nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    out, _ = _attend(module, query, key, value, None, is_causal=True, scaling=0.25)
    torch.testing.assert_close(out, exact(query, key, value, 0.25))
