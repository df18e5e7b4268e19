"""Block influence on a real, small model against a plain recomputation; drops inside every bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.baselines.made_up import assert_within_and_full
from tests.unicuco.synthetic import make_space
from tests.unicuco.tiny import VOCAB, random_model
from unicuco.baselines.influence import block_influence, shortgpt
from unicuco.errors import InfeasibleRequestError
from unicuco.models.sites import find_blocks
from unicuco.space import SearchSpace

SPACES = {
    "sublayer": make_space(6),
    "block": make_space(6, sites="block"),
    "depth": make_space(6, pruner="depth"),
    "depth of blocks": make_space(6, pruner="depth", sites="block"),
}
INFLUENCE = np.array([0.9, 0.3, 0.05, 0.2, 0.1, 0.6])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_influence_is_one_minus_the_mean_cosine_of_every_block(family: str) -> None:
    model = random_model(family)
    tokens = np.random.default_rng(0).integers(3, VOCAB, (3, 20))
    found = block_influence(model, tokens)
    streams = [[] for _ in range(4)]
    for window in tokens:
        states = model(torch.as_tensor(window)[None], output_hidden_states=True).hidden_states
        for stream, state in zip(streams, states, strict=True):
            stream.append(state[0].double())
    # transformers gives the last block's output only after the final norm: the last block is checked below.
    for block in range(2):
        before, after = torch.cat(streams[block]), torch.cat(streams[block + 1])
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert found[block] == pytest.approx(1 - float(cosine.mean()), rel=1e-5)
    assert found.shape == (3,) and (found > 1e-3).all() and (found <= 2).all()


def test_a_block_that_does_nothing_has_no_influence_and_hooks_are_gone() -> None:
    model = random_model("llama")
    tokens = np.random.default_rng(0).integers(3, VOCAB, (2, 16))
    assert block_influence(model, tokens)[2] > 1e-3
    for projection in (find_blocks(model)[2].attention.o_proj, find_blocks(model)[2].mlp.down_proj):
        projection.weight.data.zero_()
    assert abs(block_influence(model, tokens)[2]) < 1e-9
    assert not any(block.layer._forward_hooks for block in find_blocks(model))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("kept", [1.0, 0.9, 0.7, 0.5, 0.2, 0.0])
def test_within_and_full_with_the_least_influential_blocks_gone(space: SearchSpace, kept: float) -> None:
    levels = shortgpt(space, INFLUENCE, kept)
    assert_within_and_full(space, levels, kept)
    touched = {site.block for site, level in zip(space.sites, levels, strict=True) if level}
    order = [int(block) for block in np.argsort(INFLUENCE)]
    assert touched == set(order[: len(touched)])
    assert len(touched) >= np.floor(6 * (1 - kept) + 1e-9)
    # All but the last of them whole, unless this space has no partial levels.
    whole = [b for b in touched if (levels == space.num_levels - 1)[[s.block == b for s in space.sites]].all()]
    assert len(whole) >= len(touched) - 1


def test_room_goes_to_the_mlp_of_the_last_dropped_block_first() -> None:
    space = make_space(6)
    levels = shortgpt(space, INFLUENCE, 0.7)  # one block is dropped, of the second four fifths have to go
    names = {site.name: int(level) for site, level in zip(space.sites, levels, strict=True) if level}
    assert set(names) == {"blocks.2.attention", "blocks.2.mlp", "blocks.4.attention", "blocks.4.mlp"}
    assert names["blocks.2.mlp"] == 8 and names["blocks.2.attention"] == 3
    assert names["blocks.4.mlp"] < 8


def test_no_size_below_everything_dropped() -> None:
    with pytest.raises(InfeasibleRequestError, match="the smallest"):
        shortgpt(make_space(3), INFLUENCE[:3], -0.1)
