"""OWL: outliers counted as in the paper, blocks with more of them keep more, the mean stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.pruners.test_sequential import inputs_of, windows
from tests.unicuco.tiny import random_model
from unicuco.errors import StrategyError
from unicuco.models.sites import find_blocks
from unicuco.pruners.owl import REACH, outlier_shares, owl_allocation
from unicuco.pruners.sequential import matrices


def test_outliers_are_counted_in_the_dense_model() -> None:
    model, text = random_model("qwen2"), windows()
    wanted = []
    for block in find_blocks(model):
        flags = []
        for matrix in matrices(block).values():
            scores = matrix.weight.abs() * inputs_of(model, matrix, text).norm(dim=0)
            flags.append((scores > 3 * scores.mean()).flatten())
        wanted.append(float(torch.cat(flags).float().mean()))
    assert outlier_shares(model, text, multiple=3.0) == pytest.approx(wanted, rel=1e-3)
    assert min(wanted) > 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0.2, 0.8))
def test_more_outliers_keep_more_and_the_mean_stays(shares: list[float], sparsity: float) -> None:
    found = np.array(owl_allocation(np.array(shares), sparsity))
    assert found.mean() == pytest.approx(sparsity)
    assert np.abs(found - sparsity).max() <= 2 * REACH + 1e-9
    order = np.argsort(shares)
    assert (np.diff(found[order]) <= 1e-9).all()


def test_a_sparsity_near_the_ends_is_refused() -> None:
    with pytest.raises(StrategyError, match="further from the ends"):
        owl_allocation(np.array([0.0, 0.0, 0.0, 1.0]), 0.97)
