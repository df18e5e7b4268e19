"""Masks: exact counts, documented ties, N:M."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unicuco.errors import StrategyError
from unicuco.pruners.masks import Pattern, lowest, lowest_of_groups, lowest_of_rows


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 81), st.integers(0, 10**6), st.integers(1, 5))
def test_exactly_as_many_as_asked_go_and_none_that_is_higher(
    rows: int, columns: int, count: int, seed: int, values: int
) -> None:
    """Few different values: most scores tie."""
    scores = torch.randint(0, values, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    mask = lowest(scores, min(count, rows * columns))
    assert int(mask.sum()) == min(count, rows * columns)
    if mask.any() and not mask.all():
        assert scores[mask].max() <= scores[~mask].min()
    by_row = lowest_of_rows(scores, min(count, columns))
    assert (by_row.sum(dim=1) == min(count, columns)).all()


def test_among_equals_the_earlier_column_goes_first_then_the_earlier_row() -> None:
    scores = torch.zeros(2, 3)
    assert lowest(scores, 3).tolist() == [[True, True, False], [True, False, False]]
    assert lowest_of_rows(scores, 2).tolist() == [[True, True, False]] * 2
    assert lowest_of_groups(torch.zeros(1, 4), Pattern(2, 4)).tolist() == [[True, True, False, False]]


def test_every_group_keeps_its_n_best() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 0, 0, 9, 9], [1, 2, 3, 4, 8, 7, 6, 5]])
    left = ~lowest_of_groups(scores, Pattern.parse("2:4"))
    assert left.tolist() == [
        [True, False, True, False, False, False, True, True],
        [False, False, True, True, True, True, False, False],
    ]


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "two:four", "2:4:8", ""])
def test_what_is_no_pattern_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(StrategyError, match="N:M"):
        Pattern.parse(text)


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(StrategyError, match=r"6 columns .* groups of 4"):
        lowest_of_groups(torch.zeros(2, 6), Pattern(2, 4))
