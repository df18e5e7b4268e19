"""Texts that a model writes: drawn from its own distribution; and exactly what MLPs lose there without neurons."""

from __future__ import annotations

import pytest
import torch

from tests.unicuco import tiny
from unicuco.models.sites import find_blocks
from unicuco.pruners.selfwritten import first_token, losses_by_pairs, share_lost, write_texts


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_texts_are_drawn_from_the_models_distribution(family: str) -> None:
    """With the same draws, one full forward per token writes the same: the cache changes nothing."""
    model = tiny.random_model(family)
    texts = write_texts(model, 3, 12, seed=4)
    generator, slow = torch.Generator().manual_seed(4), torch.full((3, 1), model.config.bos_token_id)
    for _ in range(11):
        chances = model(input_ids=slow, use_cache=False).logits[:, -1].softmax(-1)
        slow = torch.cat([slow, torch.multinomial(chances, 1, generator=generator)], dim=1)
    assert torch.equal(texts, slow)
    assert not torch.equal(texts, write_texts(model, 3, 12, seed=5))


def test_a_text_begins_with_what_the_model_has() -> None:
    config = tiny.random_model("llama").config
    assert first_token(config) == config.bos_token_id == 1
    config.bos_token_id, config.eos_token_id = None, [7, 8]
    assert first_token(config) == 7
    config.eos_token_id = None
    assert first_token(config) == 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_share_that_is_lost_is_that_of_the_pruned_mlp_itself(family: str) -> None:
    model = tiny.random_model(family)
    texts = write_texts(model, 5, 8, seed=0)
    pairs = losses_by_pairs(model, texts, at_once=2)
    inputs: list[torch.Tensor] = []
    blocks = find_blocks(model)
    hooks = [b.mlp.register_forward_pre_hook(lambda mlp, given: inputs.append(given[0])) for b in blocks]
    model(input_ids=texts)
    for hook in hooks:
        hook.remove()
    gone = (torch.rand(2, 256, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    for block, x, q in zip(blocks, inputs, pairs, strict=True):
        whole, down = block.mlp(x).clone(), block.mlp.down_proj.weight.data.clone()
        for t, found in zip(gone, share_lost(q, gone), strict=True):
            block.mlp.down_proj.weight.data = down * (1 - t)
            lost = (whole - block.mlp(x)).square().sum(-1) / whole.square().sum(-1)
            block.mlp.down_proj.weight.data = down
            torch.testing.assert_close(found, lost.mean(), rtol=1e-3, atol=1e-5)
    assert not any(b.mlp.down_proj._forward_pre_hooks for b in blocks)


def test_without_all_neurons_everything_is_lost_and_with_all_nothing() -> None:
    model = tiny.random_model("llama")
    for q in losses_by_pairs(model, write_texts(model, 2, 6, seed=0)):
        torch.testing.assert_close(share_lost(q, torch.ones(1, 256)), torch.ones(1), rtol=1e-4, atol=0)
        assert share_lost(q, torch.zeros(1, 256)) == 0
