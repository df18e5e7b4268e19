"""Folding: exact where neurons are duplicates, means and sums elsewhere, the same on every run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unicuco import tiny
from unicuco.models.sites import find_blocks
from unicuco.pruners.folding import fold_blocks, fold_columns, fold_rows, k_means


def duplicated(family: str) -> Any:
    """A model in which the last 64 of 256 neurons of every MLP read what the first 64 read."""
    model = tiny.random_model(family)
    for block in find_blocks(model):
        for name in ("gate_proj", "up_proj"):
            weight = getattr(block.mlp, name).weight
            weight.data[192:] = weight.data[:64]
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_duplicates_are_folded_exactly(family: str) -> None:
    model, tokens = duplicated(family), torch.arange(4, 44)[None]
    before = model(input_ids=tokens).logits
    for block, state in zip(find_blocks(model), fold_blocks(find_blocks(model), 0.25), strict=True):
        assert state["down_proj.weight"].shape[1] == len(state["up_proj.weight"]) == 192
        for name, tensor in state.items():
            block.mlp.get_submodule(name.split(".")[0]).weight.data = tensor
    torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=1e-4, atol=1e-4)


def test_rows_are_averaged_and_columns_added() -> None:
    rows, clusters = torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([1, 0, 1])
    assert fold_rows(rows, clusters, 2).tolist() == [[3, 4], [3, 4]]
    assert fold_columns(rows.T.contiguous(), clusters, 2).tolist() == [[3, 6], [4, 8]]


@pytest.mark.parametrize("seed", range(4))
def test_k_means_finds_clusters_that_are_there(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.randn(6, 5, generator=generator)
    wanted = torch.arange(6).repeat(10)
    found = k_means(centres[wanted] + 0.1 * torch.randn(60, 5, generator=generator), 6, generator)
    assert len({(int(a), int(b)) for a, b in zip(wanted, found, strict=True)}) == 6


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_no_cluster_is_empty_even_among_duplicates(count: int) -> None:
    points = torch.tensor([[0.0, 1], [2, 3], [4, 9]])[torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])]
    clusters = k_means(points, count, torch.Generator().manual_seed(0))
    assert sorted(set(clusters.tolist())) == list(range(count))


def test_the_same_seed_folds_the_same() -> None:
    blocks = find_blocks(tiny.random_model("llama"))
    first, second, other = (fold_blocks(blocks, 0.25, seed) for seed in (0, 0, 1))
    name = "gate_proj.weight"
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a[name], b[name]) for a, b in zip(first, other, strict=True))
