"""Recorded logs: how well forms of the surrogate predict evaluations that they have not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from unicuco import damage
from unicuco.errors import PolicyError
from unicuco.evaluations import Evaluation, EvaluationLog
from unicuco.policy_parts import load_parts
from unicuco.preparation import Preparation
from unicuco.proposals import strategy_key
from unicuco.slopes import read_slopes
from unicuco.space import SearchSpace
from unicuco.storage import cache_dir
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

SHARES = (0.2, 0.4, 0.7)
LEAST, MOST = 0.4, 0.97
"""Kept shares of others' strategies that count: what a search covers."""
RIVAL = "oracle"
"""Origin of what rivals measured (unicuco/baselines/cached.py)."""
FORMS: dict[str, tuple[str, bool, dict[str, float]]] = {
    "as it is": ("damage", True, {}),
    "margins left out": ("damage", False, {}),
    "weights do not drift": ("damage", True, {"DRIFT": 0.0}),
    "neighbours unlike": ("damage", True, {"NEIGHBOURS": 0.0}),
    "plain GP": ("plain", False, {}),
}
"""Name -> mean, whether margins are read, constants of ``unicuco.damage``."""


@contextmanager
def constants(changed: dict[str, Any]) -> Iterator[None]:
    """``unicuco.damage`` with other constants; one that is not there any more is an error."""
    with ExitStack() as stack:
        for name, value in changed.items():
            stack.enter_context(patch.object(damage, name, value))
        yield


def log_errors(folder: Path, others: Path | None) -> dict[str, Any]:
    """RMSE of log KL per form, ``later`` in the same log and of ``others``' strategies, after each of ``SHARES``.

    A cache of ``benchmarks.search`` may be either: of it as a log, what a learner proposed counts, the rest is others'.
    """
    space, table, done = read_log(folder)
    done = [e for e in done if e.origin != RIVAL]
    done = [e for e in done if e.windows == done[0].windows]
    dense = [e for e in done if not any(e.levels)]
    done = [e for e in done if any(e.levels)]
    tests: dict[str, list[Evaluation]] = {}
    if others is not None:
        known = {strategy_key(e.levels_array()) for e in (*done, *dense)}
        tests["others"] = [
            e
            for e in {e.levels: e for e in EvaluationLog(others).read()}.values()
            if e.windows == done[0].windows
            and e.preparation == done[0].preparation
            and LEAST <= e.kept <= MOST
            and strategy_key(e.levels_array()) not in known
        ]
    found: dict[str, Any] = {"evaluations": len(done), "others": len(tests.get("others", []))}
    for form, (mean, margins, changed) in FORMS.items():
        errors: dict[str, list[float]] = {}
        for share in SHARES:
            first = max(8, round(share * len(done)))
            with constants(changed):
                surrogate = _fit(space, table, done[:first], mean, margins)
                for kind, rows in {"later": done[first:], **tests}.items():
                    if rows:
                        errors.setdefault(kind, []).append(_rmse(space, surrogate, rows))
        found[form] = errors
    return found


def read_log(folder: Path) -> tuple[SearchSpace, np.ndarray | None, list[Evaluation]]:
    """Search space, predicted damages and evaluations (in the order in which they finished) of a recorded run.

    Raises:
        SystemExit: nothing is recorded there, or its preparation is not in the cache.
    """
    try:
        parts = load_parts(folder)
    except PolicyError:
        done = EvaluationLog(folder).read()
        if not done:
            raise SystemExit(f"{folder} is neither a policy nor a folder of evaluations.") from None
        place = cache_dir() / "preparations" / done[0].preparation[:24]
        if not place.is_dir():
            raise SystemExit(f"The preparation of {folder} is not in {cache_dir()}.") from None
        preparation = Preparation.open(place)
        return preparation.space, preparation.damage, done
    return parts.space, parts.damage, sorted(parts.evaluations, key=lambda e: (e.finished, e.eval_id))


def _fit(
    space: SearchSpace, table: np.ndarray | None, done: Sequence[Evaluation], mean: str, margins: bool
) -> Surrogate:
    levels, kl = np.array([e.levels for e in done]), np.array([e.kl for e in done])
    config = SurrogateConfig.model_validate({"mean": mean})
    return Surrogate(space, table, config).fit(levels, kl, read_slopes(space, done) if margins else None)


def _rmse(space: SearchSpace, surrogate: Surrogate, rows: Sequence[Evaluation]) -> float:
    with torch.no_grad():
        mean, _ = surrogate.predict(torch.as_tensor(space.sparsities(np.array([e.levels for e in rows]))))
    error = np.log(np.array([e.kl for e in rows]) + NOISE_FLOOR) - mean.numpy()
    return float(np.sqrt((error**2).mean()))
