"""The search spaces that users choose by name, and the levels that each of them allows."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.unicuco.synthetic import geometry
from unicuco.calibration import Windows
from unicuco.errors import SpaceError
from unicuco.levels import SPACES, SpaceConfig
from unicuco.preparation import PreparationConfig, preparation_digest
from unicuco.request import explain_validation
from unicuco.space import SearchSpace

WIDTH = {"drop": False}


def levels_of(config: SpaceConfig, **shape: int) -> list[list[tuple[int | None, int | None]]]:
    """(groups, neurons) of every level of the first block's sites."""
    space = SearchSpace(geometry(blocks=2, **shape), config)
    return [[(level.groups, level.neurons) for level in site.levels] for site in space.sites if site.block == 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks", [[(2, 160), (0, 0)]]),
        ("sublayers", [[(2, None), (0, None)], [(None, 160), (None, 0)]]),
        ("width", [[(2, None), (1, None)], [(None, 160), (None, 128), (None, 64)]]),
        ("mixed", [[(2, None), (1, None), (0, None)], [(None, 160), (None, 128), (None, 64), (None, 0)]]),
    ],
)
def test_what_each_space_decides(name: str, expected: list[list[tuple[int | None, int | None]]]) -> None:
    assert levels_of(SPACES[name], groups=2, neurons=160) == expected
    assert PreparationConfig.model_validate({"space": name}).space == SPACES[name]


def test_mixed_is_the_default() -> None:
    assert SPACES["mixed"] == SpaceConfig() == PreparationConfig().space


def test_a_space_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(ValidationError) as error:
        PreparationConfig.model_validate({"space": "depth"})
    expected = "space: 'depth' is no search space; choose mixed, width, sublayers or blocks"
    assert explain_validation(error.value) == expected
    with pytest.raises(ValidationError, match="does nothing but drop"):
        SpaceConfig(pruner="depth", drop=False)


@pytest.mark.parametrize(
    ("space", "digest"),
    [
        (SPACES["mixed"], "b70663209b49c22501137f6ba20e515b4905ccf16b0d6ac84c6156752aa8f7c4"),
        (SPACES["sublayers"], "00a49654462a4f550aae46a05c5d8523be0488ea2c280cfccaa8f32b6cee9858"),
        (SPACES["blocks"], "3bb031a8433ead7f6a757fcc4d5c4022c007bd9c00e8ffc0359ab08fea1a6de7"),
    ],
)
def test_preparations_from_before_keep_their_names(space: SpaceConfig, digest: str) -> None:
    """Hours of measurements lie under these hashes: they were taken before spaces had names."""
    windows = Windows(np.arange(8).reshape(2, 4), np.zeros(2, dtype=np.int64), ("sotu",))
    config = PreparationConfig(space=space)
    assert preparation_digest("m" * 64, config, {"search": windows}) == digest
    assert set(config.model_dump(mode="json")["space"]) == {"sites", "pruner", "neuron_multiple"}
    other = PreparationConfig(space=SPACES["width"])
    assert preparation_digest("m" * 64, other, {"search": windows}) != digest


@pytest.mark.parametrize("name", SPACES)
def test_a_space_survives_json(name: str) -> None:
    config = SPACES[name]
    assert SpaceConfig.model_validate_json(config.model_dump_json()) == config


def test_one_kv_group_cannot_be_narrowed() -> None:
    """Its site is there, with one level, and everything still adds up."""
    space = SearchSpace(geometry(blocks=2, groups=1), SpaceConfig.model_validate(WIDTH))
    assert space.num_levels.tolist() == [1, 4, 1, 4]
    assert space.snap(np.ones(4))[0].tolist() == [0, 3, 0, 3] == space.smallest.tolist()
    assert space.deepest.tolist() == [0, 1 - (64 + 64 * 192) / (64 + 256 * 192), 0, space.deepest[3]]
    budget = space.total(space.smallest)
    assert (space.project(np.zeros((1, 4)), {"params": np.array([budget])})[0] == space.smallest).all()


def test_a_space_without_decisions_is_refused() -> None:
    with pytest.raises(SpaceError, match="choose another space than width"):
        SearchSpace(geometry(groups=1, neurons=64), SpaceConfig.model_validate(WIDTH))


def test_a_search_below_the_smallest_strategy_is_refused() -> None:
    space = SearchSpace(geometry(), SPACES["width"])
    smallest = float(space.kept(space.smallest))
    assert 0.2 < smallest < 0.4
    space.check_reach(0.4)
    with pytest.raises(SpaceError, match=f"keeps {smallest:.3f} of the blocks' parameters.*kept_low is 0.2"):
        space.check_reach(0.2)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"pruner": "width", "sparsities": (0, 0.5)}, "levels of the pruners wanda, sparsegpt, sparsellm"),
        ({"pruner": "wanda", "drop": True}, "drops nothing"),
        ({"pruner": "wanda", "sparsities": (0.2, 0.5)}, "begin with 0"),
        ({"pruner": "wanda", "sparsities": (0, 0.5, 0.4)}, "rise to below 1"),
        ({"pruner": "wanda", "sparsities": (0, 1)}, "rise to below 1"),
        ({"pruner": "sparsegpt", "sparsities": (0,)}, "2 to 250"),
    ],
)
def test_sparsities_that_make_no_sense_are_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        SpaceConfig.model_validate(values)


@pytest.mark.parametrize("sites", ["sublayer", "block"])
def test_a_sparsity_pruner_leaves_every_shape_and_sets_weights_to_zero(sites: str) -> None:
    config = SpaceConfig.model_validate({"pruner": "wanda", "sites": sites, "sparsities": (0, 0.5, 0.8)})
    assert SpaceConfig.model_validate(config.model_dump(mode="json")) == config
    space = SearchSpace(geometry(blocks=2), config)
    assert space.num_sites == (4 if sites == "sublayer" else 2) and not space.is_binary
    levels = np.arange(space.num_sites) % 3
    shape, dense = space.shape(levels), space.shape(np.zeros_like(levels))
    assert (shape.groups, shape.neurons) == (dense.groups, dense.neurons)
    expected = ((0, 0.5), (0.8, 0)) if sites == "sublayer" else ((0, 0), (0.5, 0.5))
    assert shape.sparsity == expected
    # Norms stay, so a site loses a little less than its matrices do.
    assert all(0.45 < site.sparsity[1] <= 0.5 and 0.75 < site.sparsity[2] <= 0.81 for site in space.sites)
