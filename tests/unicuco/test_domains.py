"""What a policy promises per domain."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unicuco.synthetic import KnownDomains, make_space
from unicuco.domains import of_domain, tried_shares
from unicuco.evaluations import Candidate

SPACE = make_space(3)
MODEL = KnownDomains(SPACE)


def test_evaluations_of_one_domain_have_its_windows_and_its_kl() -> None:
    levels = (SPACE.num_levels // 2).tolist()
    evaluation = MODEL.evaluation(Candidate("0", tuple(levels), "x", margin_group=1))
    for d in range(2):
        (found,) = of_domain([evaluation], MODEL.names, d)
        assert found.kl == pytest.approx(evaluation.domain_kl[d]) == pytest.approx(np.mean(found.window_kl))
        assert len(found.window_kl) == 4 and found.margin_group == -1
    assert of_domain([evaluation], ("other", "names"), 0) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tried_shares_lie_on_the_simplex_and_hold_its_corners(count: int) -> None:
    shares = np.array(tried_shares(count))
    assert (shares >= 0).all() and len({tuple(row) for row in shares.tolist()}) == len(shares)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares[0], 1 / count)
    assert all(any(np.allclose(row, corner) for row in shares) for corner in np.eye(count))
