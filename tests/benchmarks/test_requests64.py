"""Which requests rivals run for, and what time counts."""

from types import SimpleNamespace

import numpy as np

from benchmarks.requests64 import COUNT, rival_order, without_interruptions


def test_first_rivals_are_spread_over_the_sizes_and_more_keep_them() -> None:
    kept = np.random.default_rng(0).permutation(np.linspace(0.4, 1.0, COUNT))
    order = rival_order([SimpleNamespace(kept=value) for value in kept])  # type: ignore[misc]
    assert sorted(order) == list(range(COUNT))
    assert abs(kept[order[0]] - 0.7) < 0.02
    assert np.ptp(kept[order[:3]]) > 0.25
    assert np.diff(np.sort(kept[order[:15]])).max() < 0.06


def test_an_interrupted_evaluation_counts_as_the_median() -> None:
    assert without_interruptions([4.0, 5.0, 6.0, 200.0, 12.0]) == [4.0, 5.0, 6.0, 6.0, 12.0]
    assert without_interruptions([3.0]) == [3.0]
