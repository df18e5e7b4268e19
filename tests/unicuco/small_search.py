"""A learner on a base model that is only a formula, for the learner's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unicuco.synthetic import FAST_NET, KnownDamage, make_learner, make_space
from unicuco.learner import Learner

SPACE = make_space(4)
MODEL = KnownDamage(SPACE, seed=3)
FAST: dict[str, Any] = {"evaluations": 24, "batch": 8, "stratnet": FAST_NET.model_copy(update={"steps": 60})}


def learner(folder: Path, **config: Any) -> Learner:
    return make_learner(folder, MODEL, **FAST | config)


def balanced(status: Any) -> bool:
    return bool(status.submitted == status.done + status.failed + status.running)
