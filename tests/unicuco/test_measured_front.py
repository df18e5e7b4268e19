"""The measured front, one evaluation at a time, against the front of all of them at once."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.evaluations import Candidate
from unicuco.measured_front import MeasuredFront
from unicuco.objectives import front, hypervolume
from unicuco.surrogate import NOISE_FLOOR

SPACE = make_space(2)
EVALUATION = KnownDamage(SPACE).evaluation(Candidate("000000", (0,) * SPACE.num_sites, "prior"))
NUMBERS = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.7])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_it_is_the_front_of_everything(found: list[tuple[float, float]]) -> None:
    """Ties in either figure included."""
    uniform = dataclasses.replace(EVALUATION, kept=0.5, kl=0.9, origin="uniform")
    done = [uniform, *(dataclasses.replace(EVALUATION, kept=kept, kl=kl) for kept, kl in found)]
    measured = MeasuredFront(done)
    points = np.array([(e.kept, e.kl) for e in done])
    assert measured.points() == [tuple(row) for row in points[front(points)].tolist()]
    logs = np.column_stack([points[:, 0], np.log(np.maximum(points[:, 1], NOISE_FLOOR))])
    assert measured.hypervolume() == pytest.approx(hypervolume(logs, (1.0, math.log(0.9))))


def test_broken_figures_and_no_reference() -> None:
    measured = MeasuredFront(dataclasses.replace(EVALUATION, kept=0.5, kl=kl) for kl in (math.nan, math.inf, 0.0, -1.0))
    assert measured.points() == [] and measured.hypervolume() == 0.0
    measured.add(dataclasses.replace(EVALUATION, kept=0.5, kl=0.3))
    assert measured.points() == [(0.5, 0.3)] and measured.hypervolume() == 0.0, "no uniform strategy was measured"
