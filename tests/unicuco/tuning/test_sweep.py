"""What a sweep varies: names, values, draws, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unicuco.errors import TuningError
from unicuco.learner_config import LearnerConfig
from unicuco.tuning.sweep import Range, Sweep, apply, draw_settings, parse_vary, read_sweep

BASE = LearnerConfig()


def test_the_default_comes_first_and_no_setting_twice() -> None:
    settings = draw_settings(Sweep(settings=40), BASE)
    assert settings[0] == {} and len(settings) == 40
    assert len({apply(BASE, setting) for setting in settings}) == 40
    assert draw_settings(Sweep(settings=40), BASE) == settings
    assert draw_settings(Sweep(settings=40, seed=1), BASE)[1:] != settings[1:]
    assert all(set(setting) == set(Sweep().vary) for setting in settings[1:])


def test_a_small_space_is_tried_whole() -> None:
    """Three values, of which one is the run's own."""
    settings = draw_settings(Sweep(vary={"learner.stratnet.width": [64, 128, BASE.stratnet.width]}), BASE)
    assert sorted(setting.get("stratnet.width", 0) for setting in settings) == [0, 64, 128]


def test_draws_stay_within_their_range_and_their_type() -> None:
    vary: dict[str, Any] = {
        "stratnet.steps": Range(low=10, high=20),
        "stratnet.learning_rate": Range(low=1e-4, high=1e-1),
        "stratnet.pessimism": Range(low=0, high=1),
    }
    drawn = draw_settings(Sweep(vary=vary, settings=200), BASE)[1:]
    assert all(
        isinstance(setting["stratnet.steps"], int) and 10 <= setting["stratnet.steps"] <= 20 for setting in drawn
    )
    rates = np.array([setting["stratnet.learning_rate"] for setting in drawn], dtype=float)
    assert rates.min() >= 1e-4 and rates.max() <= 1e-1
    assert abs(np.log10(rates).mean() - -2.5) < 0.3  # three decades: evenly in logarithms
    assert abs(np.mean([setting["stratnet.pessimism"] for setting in drawn]) - 0.5) < 0.1


def test_the_command_line_and_the_file_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    vary = {"stratnet.width": [64, 128], "stratnet.learning_rate": {"low": 0.0005, "high": 0.01}}
    file.write_text(json.dumps({"vary": vary, "settings": 9, "seeds": 3}))
    typed = read_sweep(None, ["stratnet.width=64, 128", "stratnet.learning_rate=0.0005..0.01"], settings=9, seeds=3)
    assert read_sweep(file) == typed
    assert read_sweep(file, settings=4).settings == 4
    narrower = read_sweep(file, ["stratnet.width=32"])
    assert narrower.vary == typed.vary | {"stratnet.width": [32]}


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        ("stratnet.witdh=64", "no setting stratnet.witdh to sweep; there are stratnet.batch, "),
        ("optimism=0,1", "optimism decides what is measured"),
        ("learner.evaluations=10,20", "learner.evaluations decides what is measured"),
        ("stratnet.width=0,64", "stratnet.width: Input should be greater than or equal to 1"),
        ("stratnet.width=0..64", "stratnet.width: Input should be greater than or equal to 1"),
        ("stratnet.width=wide", "stratnet.width: Input should be a valid integer"),
        ("surrogate.mean=plain,best", "surrogate.mean: Input should be 'damage' or 'plain'"),
        ("surrogate.mean=1..2", "surrogate.mean has no range"),
        ("stratnet.steps=400", "nothing to try"),
    ],
)
def test_a_wrong_setting_is_one_sentence(vary: str, sentence: str) -> None:
    with pytest.raises(TuningError, match=sentence) as error:
        draw_settings(read_sweep(None, [vary]), BASE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["width", "=3", "a=", "a=1..b", "a=2..1", "a=nan..1"])
def test_what_does_not_say_what_varies_is_refused(text: str) -> None:
    with pytest.raises(TuningError):
        parse_vary(text)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"cuts": [0.5, 0.2]}', "cuts are ascending shares"),
        ('{"vary": {"stratnet.width": []}}', "stratnet.width has no values"),
        ('{"vary": {"stratnet.teaching": {"low": -1, "high": 1, "log": true}}}', "needs a positive 'low'"),
        ('{"vary": 3}', "vary: "),
        ('{"trials": 3}', "trials: Extra inputs are not permitted"),
        ('{"settings": 1}', "settings: "),
    ],
)
def test_a_wrong_file_is_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(TuningError, match=sentence):
        draw_settings(read_sweep(tmp_path / "sweep.json"), BASE)
    with pytest.raises(TuningError, match="cannot be read"):
        read_sweep(tmp_path / "missing.json")
