"""Objectives: hypervolume against counting cells, fronts against their definition, scales and shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import make_space
from unicuco.objectives import Scale, front, greedy_hypervolume, hypervolume, site_shares, tchebycheff

GRID = 12
# Whole numbers: ties and duplicates come up, and cells can be counted.
POINTS = st.lists(st.tuples(st.integers(0, GRID + 2), st.integers(0, GRID + 2)), max_size=12).map(
    lambda rows: np.array(rows, dtype=float).reshape(-1, 2)
)
REFERENCE = (float(GRID), float(GRID))


def cells(points: np.ndarray) -> int:
    """Unit cells below the reference whose lower left corner some point dominates."""
    return sum(any(p[0] <= i and p[1] <= j for p in points) for i in range(GRID) for j in range(GRID))


@given(POINTS)
def test_hypervolume_counts_dominated_cells(points: np.ndarray) -> None:
    assert hypervolume(points, REFERENCE) == cells(points)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    chosen = points[front(points)]
    assert (np.diff(chosen[:, 0]) > 0).all() and (np.diff(chosen[:, 1]) < 0).all()
    for p in points:
        assert any((q <= p).all() for q in chosen), "something is dominated by nothing on the front"
    for p in chosen:
        assert not any((q <= p).all() and (q < p).any() for q in points)


@given(POINTS, POINTS, st.integers(0, 6))
def test_greedy_picks_add_most_each_time(candidates: np.ndarray, known: np.ndarray, count: int) -> None:
    chosen = greedy_hypervolume(candidates, known, REFERENCE, count)
    assert len(set(chosen)) == len(chosen) <= count
    points = known
    for i in chosen:
        gains = [cells(np.vstack([points, c])) - cells(points) for c in candidates]
        assert gains[i] == max(gains) > 0
        points = np.vstack([points, candidates[i]])
    if len(chosen) < min(count, len(candidates)):
        assert cells(np.vstack([points, candidates])) == cells(points), "it stopped while there was more to gain"


def test_tchebycheff_prefers_the_balanced_point_and_breaks_ties() -> None:
    weights = torch.tensor([[0.5, 0.5]]).expand(4, 2)
    values = torch.tensor([[0.5, 0.5], [0.9, 0.0], [0.5, 0.4], [0.4, 0.4]])
    scores = tchebycheff(weights, values, 0.01)
    assert scores.argsort().tolist() == [3, 2, 0, 1]
    assert tchebycheff(weights, values, 0.0)[0] == tchebycheff(weights, values, 0.0)[2]


def test_a_scale_runs_from_nought_to_one() -> None:
    scale = Scale(0.4, (-6.0,), (2.0,))
    assert scale.size(torch.tensor([0.4, 1.0])).tolist() == pytest.approx([0, 1])
    assert scale.quality(torch.tensor([[-6.0], [-2.0], [2.0]])).flatten().tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("sites", ["sublayer", "block"])
def test_shares_give_the_size_of_any_strategy(sites: str) -> None:
    space = make_space(sites=sites)
    levels = np.random.default_rng(0).integers(0, space.num_levels, (20, space.num_sites))
    np.testing.assert_allclose(1 - space.sparsities(levels) @ site_shares(space), space.kept(levels), atol=1e-12)
