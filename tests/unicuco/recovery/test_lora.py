"""Low-rank updates: they start at nothing, merged they are what the model computed, and zeros stay zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.unicuco import tiny
from unicuco.errors import RecoveryError
from unicuco.recovery.lora import add_lora, merge_lora

IDS = torch.randint(4, tiny.VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shake(added: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    for update in added.values():
        update.up.data = 0.05 * torch.randn(update.up.shape, generator=generator)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_merged_weights_compute_what_the_updates_did(family: str) -> None:
    model = tiny.random_model(family)
    before, kinds = logits(model), {name: type(m) for name, m in model.named_modules()}
    added = add_lora(model, 4, 0, keep_zeros=False)
    assert len(added) == 7 * 3
    assert torch.equal(logits(model), before)
    shake(added)
    moved = logits(model)
    assert (moved - before).abs().max() > 0.1
    merge_lora(model, added)
    torch.testing.assert_close(logits(model), moved, rtol=1e-5, atol=1e-5)
    assert {name: type(m) for name, m in model.named_modules()} == kinds


def test_zeros_stay_zero_and_merging_is_exact() -> None:
    model = tiny.random_model("llama")
    layers = model.model.layers
    layers[0].mlp.down_proj.weight.data[:, 100:] = 0.0  # padded
    layers[1].self_attn.q_proj.weight.data *= torch.rand(layers[1].self_attn.q_proj.weight.shape) < 0.5  # sparse
    layers[2].mlp.up_proj.weight.data.zero_()  # dropped
    zeros = {name: p == 0 for name, p in copy.deepcopy(model).named_parameters()}
    added = add_lora(model, 4, 0, keep_zeros=True)
    assert "model.layers.2.mlp.up_proj" not in added
    shake(added)
    moved = logits(model)
    merge_lora(model, added)
    torch.testing.assert_close(logits(model), moved, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert bool((parameter[zeros[name]] == 0).all())
    assert layers[0].mlp.down_proj.weight[:, :100].count_nonzero() == 100 * 64


def test_gradients_through_a_mask_are_those_of_the_masked_product() -> None:
    model = tiny.random_model("llama")
    layer = model.model.layers[0].mlp.gate_proj
    layer.weight.data[:5] = 0.0
    update = add_lora(model, 4, 0, keep_zeros=True)["model.layers.0.mlp.gate_proj"]
    update.up.data = torch.randn(update.up.shape)
    inputs = torch.randn(3, 64)
    update(inputs).square().sum().backward()
    down, up = update.down.detach().clone().requires_grad_(), update.up.detach().clone().requires_grad_()
    weight = layer.weight + torch.where(layer.weight != 0, up @ down, torch.zeros(()))
    (inputs @ weight.T).square().sum().backward()
    torch.testing.assert_close(update.down.grad, down.grad)
    torch.testing.assert_close(update.up.grad, up.grad)


def test_a_model_of_zeros_has_nothing_to_train() -> None:
    model = tiny.random_model("llama")
    for parameter in model.model.layers.parameters():
        parameter.data.zero_()
    with pytest.raises(RecoveryError, match="no linear layer left"):
        add_lora(model, 4, 0, keep_zeros=True)
