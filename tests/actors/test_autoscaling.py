"""Autoscaling from zero: Ray's autoscaler adds nodes because evaluators ask for them, and takes them away again."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.actors.autoscaled import MOST_NODES
from tests.actors.autoscaled_run import BUDGET
from tests.conftest import ROOT, SETTINGS

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STRICT = {"RAY_enable_infeasible_task_early_exit": "true"}
"""Version 2 then refuses what the cluster cannot hold at its largest. Ray 2.60 says that this will be the default."""


def run(module: str, *arguments: object, **settings: str) -> dict[str, Any]:
    """What ``module`` prints at its end, in a process of its own."""
    environment = {**os.environ, **SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize(("version", "settings"), [(1, {}), (2, {}), (2, STRICT)], ids=["v1", "v2", "v2-strict"])
def test_nodes_come_for_evaluators_and_go_after_them(version: int, settings: dict[str, str], tmp_path: Path) -> None:
    ended = run("tests.actors.autoscaled_run", version, tmp_path, **settings)
    print(version, settings, ended["seconds"])
    assert ended["nodes_before"] == 0 and ended["nodes_most"] == MOST_NODES
    once = sorted(f"e{i}" for i in range(BUDGET))
    assert ended["ids"] == once and ended["worked_on"] == once, "each was on disk once, and worked on once"
    assert (ended["done"], ended["failed"], ended["returned"]) == (BUDGET, 0, 0)
    assert ended["ready_most"] == MOST_NODES, "one more was asked for, and did no harm"
    assert ended["nodes_after"] == 0
