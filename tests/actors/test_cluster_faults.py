"""Faults of a real cluster of several nodes: after each, the run ends with every evaluation once (docs/faults.md)."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.actors.cluster_run import BUDGET
from tests.conftest import ROOT, SETTINGS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(fault: str, folder: Path) -> dict[str, Any]:
    """One run with ``fault`` in a process of its own."""
    environment = {**os.environ, **SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.actors.cluster_run", fault, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize("fault", ["node", "gcs", "object-store", "slow-network", "learner-memory"])
def test_every_evaluation_is_there_once(fault: str, tmp_path: Path) -> None:
    ended = run(fault, tmp_path)
    assert ended["ids"] == sorted(f"e{i}" for i in range(BUDGET))
    assert (ended["done"], ended["failed"], ended["unbalanced"]) == (BUDGET, 0, 0)
    if fault == "node":
        assert ended["returned"] >= 1, "its work was handed out again"
    if fault == "learner-memory":
        assert (tmp_path / "hoarded").exists() and ended["learners"] == 2, "one was ended, and the next went on"


def test_an_evaluator_that_ray_ends_for_its_memory_takes_one_candidate_with_it(tmp_path: Path) -> None:
    ended = run("memory", tmp_path)
    assert ended["ids"] == sorted(f"e{i}" for i in range(BUDGET) if i != 20)
    assert (ended["done"], ended["failed"], ended["unbalanced"]) == (BUDGET - 1, 1, 0)
    assert ended["returned"] >= 2 and "died" in ended["reasons"][0]
