"""What a sweep varies: settings of the learner by name, each over a list of values or a range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field, ValidationError, model_validator

from unicuco.errors import TuningError
from unicuco.learner_config import LearnerConfig
from unicuco.request import explain_validation
from unicuco.stratnet import StratNetConfig
from unicuco.surrogate import SurrogateConfig

Value = int | float | str
Setting = dict[str, Value]
"""Values by name; what is not named is as in the run. {} is the default."""

TUNABLE: dict[str, Any] = {
    f"{part}.{name}": field.annotation
    for part, config in (("surrogate", SurrogateConfig), ("stratnet", StratNetConfig))
    for name, field in config.model_fields.items()
}
"""Name -> type of every setting that changes what is learned from a log."""
DRAWS_PER_SETTING = 50
"""Draws after which a small space is taken to be exhausted."""


class Range(Config):
    """All values from ``low`` to ``high``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool | None = None
    """Draw evenly in logarithms; None: where both ends are positive and a factor of ten or more apart."""

    @model_validator(mode="after")
    def _ascends(self) -> Range:
        if not self.low < self.high:
            raise ValueError("'low' must be below 'high'")
        if self.log and self.low <= 0:
            raise ValueError("a range in logarithms needs a positive 'low'")
        return self

    def draw(self, rng: np.random.Generator) -> float:
        """One value, rounded to three significant digits: more would only be harder to read."""
        even_in_logs = self.low > 0 and self.high / self.low >= 10 if self.log is None else self.log
        if even_in_logs:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(f"{value:.3g}"), self.low), self.high)


class Sweep(Config):
    """How much is tried, and over what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vary: dict[str, Range | list[Value]] = Field(
        default={
            "surrogate.relinearise": [1, 2, 3],
            "stratnet.width": [64, 128, 256],
            "stratnet.learning_rate": Range(low=5e-4, high=1e-2),
            "stratnet.tie_breaker": [0.0, 0.01, 0.05],
            "stratnet.pessimism": Range(low=0.0, high=1.0),
            "stratnet.teaching": Range(low=1.0, high=30.0),
        },
        min_length=1,
    )
    """Name (``TUNABLE``) -> values; naming any replaces all of these.

    ``stratnet.steps`` and ``batch`` are not among them: more of either takes longer and is hardly ever worse.
    """
    settings: int = Field(default=64, ge=2)
    """How many settings are tried, the default included; fewer where there are no more."""
    finalists: int = Field(default=3, ge=1)
    """How many get as far as the finals, besides the default."""
    seeds: int = Field(default=4, ge=3)
    """Seeds of the finals."""
    seed: int = Field(default=0, ge=0)
    """Of the draws and of all trials before the finals, which have seeds of their own."""
    cuts: tuple[float, ...] = Field(default=(0.2, 0.4, 0.7), min_length=1)
    """Shares of the log that are learned from, each judged by what comes after it."""

    @model_validator(mode="after")
    def _is_sound(self) -> Sweep:
        if not all(0 < cut < 1 for cut in self.cuts) or list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError("cuts are ascending shares between 0 and 1")
        return self


def parse_vary(text: str) -> tuple[str, Range | list[Value]]:
    """``stratnet.width=64,128`` or ``stratnet.learning_rate=0.0005..0.01``.

    Raises:
        TuningError: neither.
    """
    name, given, values = text.partition("=")
    if not given or not name.strip() or not values.strip():
        raise TuningError(f"'{text}' does not say what varies: write NAME=VALUE,VALUE or NAME=LOW..HIGH.")
    low, is_range, high = values.partition("..")
    if not is_range:
        return name.strip(), [_value(part.strip()) for part in values.split(",")]
    try:
        return name.strip(), Range(low=float(low), high=float(high))
    except ValidationError as error:
        raise TuningError(f"{name.strip()}: {explain_validation(error)}.") from error
    except ValueError as error:
        raise TuningError(f"{name.strip()}: '{values}' is no range of numbers.") from error


def read_sweep(file: Path | None, vary: Sequence[str] = (), **given: Any) -> Sweep:
    """A sweep from a JSON file with fields of ``Sweep``, with what varies (``parse_vary``) and other fields over it.

    Raises:
        TuningError: the file cannot be read, or a field is wrong.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TuningError(f"{file} cannot be read as JSON: {error}.") from error
        if not isinstance(values, dict):
            raise TuningError(f"{file} holds no JSON object.")
    values |= {name: value for name, value in given.items() if value is not None}
    if vary:
        if not isinstance(values.get("vary", {}), dict):
            raise TuningError(f"{file}: 'vary' must be a JSON object.")
        values["vary"] = values.get("vary", {}) | dict(map(parse_vary, vary))
    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        raise TuningError(f"The sweep: {explain_validation(error)}.") from error


def apply(base: LearnerConfig, setting: Mapping[str, Value]) -> LearnerConfig:
    """``base`` with ``setting`` over it.

    Raises:
        TuningError: names the setting and what is allowed.
    """
    values = base.model_dump()
    for name, value in setting.items():
        part, _, own = name.partition(".")
        values[part][own] = value
    try:
        return LearnerConfig.model_validate(values)
    except ValidationError as error:
        raise TuningError(f"The sweep: {explain_validation(error)}.") from error


def draw_settings(sweep: Sweep, base: LearnerConfig) -> list[Setting]:
    """The settings to try, all different; first {}, the default.

    Raises:
        TuningError: a name or a value that no setting of the learner has, or nothing but the default to try.
    """
    vary = {_own_name(name): values for name, values in sweep.vary.items()}
    for name, values in vary.items():
        _check(name, values, base)
    rng = np.random.default_rng(sweep.seed)
    drawn: list[Setting] = [{}]
    seen = {base}
    for _ in range(DRAWS_PER_SETTING * sweep.settings):
        if len(drawn) == sweep.settings:
            break
        setting = {name: _draw(name, values, rng) for name, values in vary.items()}
        config = apply(base, setting)
        if config not in seen:
            seen.add(config)
            drawn.append(setting)
    if len(drawn) == 1:
        raise TuningError("The sweep has nothing to try: every value that it varies is the run's own.")
    return drawn


def _own_name(name: str) -> str:
    """A setting's name among the learner's; it may be given as ``train --config`` has it, below ``learner``."""
    own = name.removeprefix("learner.")
    if own in TUNABLE:
        return own
    if own in LearnerConfig.model_fields and own not in ("surrogate", "stratnet"):
        raise TuningError(
            f"{name} decides what is measured, and a log cannot say what else would have been: it cannot be swept."
        )
    raise TuningError(f"There is no setting {name} to sweep; there are {', '.join(sorted(TUNABLE))}.")


def _check(name: str, values: Range | list[Value], base: LearnerConfig) -> None:
    if isinstance(values, list):
        if not values:
            raise TuningError(f"{name} has no values to try.")
        for value in values:
            apply(base, {name: value})
        return
    if TUNABLE[name] not in (int, float):
        raise TuningError(f"{name} has no range: list the values to try.")
    for end in (values.low, values.high):
        apply(base, {name: _rounded(name, end)})


def _draw(name: str, values: Range | list[Value], rng: np.random.Generator) -> Value:
    if isinstance(values, list):
        return values[int(rng.integers(len(values)))]
    return _rounded(name, values.draw(rng))


def _rounded(name: str, value: float) -> Value:
    return round(value) if TUNABLE[name] is int else value


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
