"""Drawn sub-networks: every bin before any comes again, sizes within their bins, and the step alone decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from unicuco.errors import SupernetError
from unicuco.preparation import Preparation
from unicuco.supernet import SupernetConfig, supernet_config
from unicuco.supernet.config import KEPT_HIGH
from unicuco.supernet.draws import draw_subnetworks, ladder_shapes


def test_every_bin_is_drawn_from_once_in_a_round(prepared: Callable[..., Preparation]) -> None:
    found = prepared("llama")
    config = SupernetConfig(steps=1, subnetworks=2, bins=6, kept_low=0.4)
    drawn = np.concatenate([draw_subnetworks(found.space, found.damage, config, step) for step in range(6)])
    assert drawn.shape == (12, found.space.num_sites)
    kept = found.space.kept(drawn)
    edges = np.linspace(0.4, KEPT_HIGH, 7)
    coarse = 0.5 * (edges[1] - edges[0])  # a strategy may be a level smaller than asked for
    for turn in (kept[:6], kept[6:]):
        for low, high in itertools.pairwise(edges):
            assert any(low - coarse <= k <= high for k in turn)
    assert len({row.tobytes() for row in drawn}) > 6
    again = draw_subnetworks(found.space, found.damage, config, 3)
    assert np.array_equal(again, drawn[6:8])
    other = draw_subnetworks(found.space, found.damage, config.model_copy(update={"seed": 1}), 3)
    assert not np.array_equal(other, again)


def test_the_ladder_has_the_sizes_asked_for(prepared: Callable[..., Preparation]) -> None:
    found = prepared("llama")
    shapes = ladder_shapes(found.space, found.damage, (0.9, 0.6))
    sizes = [sum(shape.neurons) + sum(shape.groups) for shape in shapes]
    assert sizes[0] > sizes[1]


def test_settings_are_refused_in_one_sentence() -> None:
    with pytest.raises(SupernetError, match="either steps or minutes"):
        supernet_config()
    with pytest.raises(SupernetError, match="more subnetworks"):
        supernet_config(steps=1, subnetworks=3, bins=2)
    with pytest.raises(SupernetError, match="'self'"):
        supernet_config(steps=1, corpus="self")
    with pytest.raises(SupernetError, match="kept_low"):
        supernet_config(steps=1, kept_low=0.99)
