"""Latency tables that are made up: exact sums, and no table that is damaged or of another model gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unicuco.synthetic import geometry, make_space
from tests.unicuco.tables import made_up_table
from unicuco.latency import LatencyConfig, LatencyError, LatencyTable, SublayerTimes, load_table
from unicuco.space import SearchSpace

SPACE = make_space(5)
TABLE = made_up_table(SPACE.geometry)


@pytest.mark.parametrize("config", [{}, {"drop": False}, {"pruner": "depth"}, {"sites": "block"}])
def test_sums_over_levels_are_what_the_table_says_of_the_shape(config: dict[str, Any]) -> None:
    space = make_space(5, **config)
    costs, fixed = TABLE.nanoseconds(space)
    rng = np.random.default_rng(0)
    for _ in range(50):
        levels = rng.integers(0, space.num_levels)
        total = fixed + costs[np.arange(space.num_sites), levels].sum()
        assert total / 1e6 == pytest.approx(TABLE.predict(space.shape(levels)), abs=1e-4)
    assert (np.diff(costs, axis=1) <= 0).all()  # pruning more never costs more


def test_widths_between_measured_ones_are_interpolated_and_dropped_ones_are_free() -> None:
    times = SublayerTimes(widths=(64, 128), ms=(1.0, 3.0))
    assert [times.at(width) for width in (0, 32, 64, 96, 128)] == [0.0, 1.0, 1.0, 2.0, 3.0]


def test_a_table_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "a.json")
    found = load_table(tmp_path / "a.json")
    assert found == TABLE and found.digest == TABLE.digest
    assert found.error == max(abs(check.error) for check in TABLE.checks)


def without(name: str) -> Any:
    return lambda values: values.pop(name)


def faster(values: Any) -> None:
    values["fixed_ms"] *= 0.5


def falling(values: Any) -> None:
    values["blocks"][0]["mlp"]["ms"][-1] = 1e-9


def negative(values: Any) -> None:
    values["fixed_ms"] = -1.0


def newer(values: Any) -> None:
    values["format"] = 99


def too_few(values: Any) -> None:
    values["times_of"].pop()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("blocks"), "blocks"),
        (without("times_of"), "no latency table"),
        (faster, "not what its digest says"),
        (falling, "do not fall with the width"),
        (negative, "fixed_ms"),
        (newer, "format 99"),
        (too_few, "every block"),
    ],
)
def test_a_damaged_table_is_refused_in_one_sentence(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "table.json"
    TABLE.save(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(LatencyError, match=says) as refused:
        load_table(path)
    assert "\n" not in str(refused.value) and "table.json" in str(refused.value)


@pytest.mark.parametrize("content", [None, "{", "[]", "null", '"text"'])
def test_what_is_no_table_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LatencyError, match="latency table"):
        load_table(path)


def test_a_table_of_another_model_is_refused() -> None:
    other = SearchSpace(geometry(blocks=4))
    with pytest.raises(LatencyError, match="made-up"):
        TABLE.nanoseconds(other)


@pytest.mark.parametrize(
    "values",
    [{"device": "abacus"}, {"dtype": "int8"}, {"mode": "both"}, {"batch": 0}, {"clock": "processor", "threads": 2}],
)
def test_a_workload_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LatencyConfig.model_validate(values)


def test_a_table_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TABLE.fixed_ms = 1.0  # type: ignore[misc]
    assert isinstance(TABLE, LatencyTable)
