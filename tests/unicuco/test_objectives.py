"""Objectives: hypervolume against counting cells, fronts against their definition, scales and shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import make_space
from unicuco.objectives import (
    Scale,
    directed_hypervolume,
    front,
    greedy_hypervolume,
    hypervolume,
    site_shares,
    tchebycheff,
)

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


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_in_directions_is_the_exact_one_up_to_chance(objectives: int) -> None:
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    points = np.random.default_rng(objectives).uniform(0.2, 1.1, (12, objectives))
    reference = np.ones(objectives)
    exact = Hypervolume(torch.as_tensor(-reference)).compute(torch.as_tensor(-points[(points < 1).all(axis=1)]))
    found = (
        directed_hypervolume(np.where((points < 1).all(axis=1)[:, None], reference - points, 0.0)).max(axis=0).mean()
    )
    assert found == pytest.approx(exact, rel=0.08)


def test_greedy_picks_for_three_objectives_add_what_nothing_else_covers() -> None:
    reference = (1.0, 1.0, 1.0)
    known = np.array([[0.5, 0.5, 0.5]])
    dominated, small, large, other = [0.6, 0.6, 0.6], [0.45, 0.45, 0.45], [0.2, 0.2, 0.2], [0.9, 0.05, 0.9]
    beyond, unknown = [1.2, 0.0, 0.0], [np.nan, 0.1, 0.1]
    candidates = np.array([dominated, small, large, other, beyond, unknown])
    assert greedy_hypervolume(candidates, known, reference, 6) == [2, 3]
    assert greedy_hypervolume(candidates[:1], known, reference, 3) == []
    assert greedy_hypervolume(candidates[[4]], known[:0], reference, 3) == []


def test_several_qualities_enter_the_maximum_as_one() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25]]).expand(2, 3)
    values = torch.tensor([[0.4, 0.9, 0.1], [0.4, 0.5, 0.5]])
    assert tchebycheff(weights, values, 0.0).tolist() == pytest.approx([0.25, 0.25])
    values = torch.tensor([[0.4, 0.9, 0.1], [0.4, 0.5, 0.3]])
    assert tchebycheff(weights, values, 0.0).tolist() == pytest.approx([0.25, 0.2])


def test_several_costs_enter_the_maximum_as_one() -> None:
    weights = torch.tensor([[0.25, 0.25, 0.5]]).expand(2, 3)
    values = torch.tensor([[0.9, 0.1, 0.4], [0.5, 0.1, 0.4]])
    assert tchebycheff(weights, values, 0.0, num_costs=2).tolist() == pytest.approx([0.25, 0.2])


@given(st.integers(0, 1000))
def test_with_size_alone_it_is_the_papers_formula_bit_for_bit(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    weights, values = (torch.rand(20, 2, generator=drawn, dtype=torch.float64) for _ in range(2))
    weighted = weights * values
    paper = torch.maximum(weighted[:, 0], weighted[:, 1]) + 0.01 * weighted.sum(dim=-1)
    assert torch.equal(tchebycheff(weights, values, 0.01), paper)


def test_tchebycheff_prefers_the_balanced_point_and_breaks_ties() -> None:
    weights = torch.tensor([[0.5, 0.5]]).expand(4, 2)
    values = torch.tensor([[0.5, 0.5], [0.9, 0.0], [0.5, 0.4], [0.4, 0.4]])
    scores = tchebycheff(weights, values, 0.01)
    assert scores.argsort().tolist() == [3, 2, 0, 1]
    assert tchebycheff(weights, values, 0.0)[0] == tchebycheff(weights, values, 0.0)[2]


def test_a_scale_runs_from_nought_to_one() -> None:
    scale = Scale(0.4, (-6.0,), (2.0,))
    assert scale.cost(torch.tensor([0.4, 1.0])).tolist() == pytest.approx([0, 1])
    several = Scale(0.4, (-6.0, -4.0), (2.0, 0.0))
    found = several.values(torch.tensor([[0.7]]).double(), torch.tensor([[-2.0, -1.0]]).double())
    assert found.tolist() == [pytest.approx([0.5, 0.5, 0.75])] and several.num_qualities == 2
    assert scale.quality(torch.tensor([[-6.0], [-2.0], [2.0]])).flatten().tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("sites", ["sublayer", "block"])
def test_shares_give_the_size_of_any_strategy(sites: str) -> None:
    space = make_space(sites=sites)
    levels = np.random.default_rng(0).integers(0, space.num_levels, (20, space.num_sites))
    np.testing.assert_allclose(1 - space.sparsities(levels) @ site_shares(space), space.kept(levels), atol=1e-12)
