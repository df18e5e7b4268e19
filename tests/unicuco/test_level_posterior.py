"""Whole levels, looked up: the same posterior as the surrogate has for any sparsities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.test_surrogate import MODEL, PLAIN, SPACE, design, measured, x_of
from unicuco.slopes import read_slopes
from unicuco.surrogate import Surrogate


@pytest.mark.parametrize("with_slopes", [False, True])
def test_it_is_what_the_surrogate_predicts(with_slopes: bool) -> None:
    levels = design(20, 0)
    slopes = read_slopes(SPACE, measured(levels[-5:], margins=True)) if with_slopes else None
    surrogate = Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels), slopes)
    rng = np.random.default_rng(0)
    asked = np.vstack(
        [
            levels[:3],  # where it was measured
            np.zeros((1, SPACE.num_sites), dtype=np.int64),
            SPACE.smallest[None],
            rng.integers(0, SPACE.num_levels, (30, SPACE.num_sites)),
        ]
    )
    on_levels = surrogate.on_levels()
    assert on_levels is not None
    with torch.no_grad():
        expected = torch.stack(surrogate.predict(x_of(asked))).numpy()
    np.testing.assert_allclose(on_levels(asked), expected, rtol=1e-7, atol=1e-7)
    for row in (0, 7):
        np.testing.assert_allclose(on_levels(asked[row : row + 1])[:, 0], expected[:, row], rtol=1e-7, atol=1e-7)


def test_it_stays_as_it_was_when_the_surrogate_learns_more() -> None:
    surrogate = Surrogate(SPACE, MODEL.table).fit(design(12, 0), MODEL.kl(design(12, 0)))
    before, asked = surrogate.on_levels(), design(8, 3)
    assert before is not None
    found = before(asked)
    surrogate.fit(design(24, 1), MODEL.kl(design(24, 1)))
    np.testing.assert_array_equal(before(asked), found)


def test_the_plain_form_has_none() -> None:
    assert Surrogate(SPACE, None, PLAIN).fit(design(12, 0), MODEL.kl(design(12, 0))).on_levels() is None
