"""A policy for a base model that is only a formula, and requests of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco.policy import Policy
from unicuco.request import Answer, Request

SPACE = make_space(5)
MODEL = KnownDamage(SPACE, seed=4)
GEOMETRY = SPACE.geometry
FLOOR = int(SPACE.total(SPACE.num_levels - 1))
SOURCE = {"model": {"spec": "made-up", "digest": "a" * 64}, "preparation": {"digest": "p" * 64}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    learner = make_learner(tmp_path_factory.mktemp("log"), MODEL, evaluations=32)
    learner.provenance = SOURCE
    return search(learner, MODEL).policy()


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("run") / "policy"
    policy.save(target)
    return target


def mixed(count: int = 64) -> list[Request]:
    """Every kind of request, sizes from nearly nothing to more than dense."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        share, weight = float(rng.uniform(0.3, 1.0)), float(rng.random())
        kinds: list[dict[str, Any]] = [
            {"kept": share},
            {"ratio": share},
            {"params": int(share * 1.1 * GEOMETRY.params)},
            {"bytes": int(share * 2.2 * GEOMETRY.params)},
            {"preference": (weight, 1 - weight)},
            {"max_kl": float(np.exp(rng.uniform(-5, 0)))},
            {"preference": (1 - weight, weight), "kept": share},
            {"max_kl": 0.5, "ratio": share},
            {"kept": share, "ratio": float(rng.uniform(0.5, 1)), "bytes": int(1.8 * GEOMETRY.params)},
        ]
        made.append(Request(id=f"r{i}", **kinds[i % len(kinds)]))
    return made


def within_bounds(answer: Answer) -> bool:
    request = answer.request
    return (
        (request.params is None or answer.params <= request.params)
        and (request.bytes is None or answer.bytes <= request.bytes)
        and (request.ratio is None or answer.ratio <= request.ratio + 1e-9)
        and (request.kept is None or answer.kept <= request.kept + 1e-9)
    )
