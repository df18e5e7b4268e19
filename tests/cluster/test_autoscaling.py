"""``unicuco train`` on a cluster without worker nodes: refused with a sentence, or served by nodes that come for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actors.autoscaled import MOST_NODES
from tests.actors.test_autoscaling import run
from tests.cluster.autoscaled_train import BUDGET

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_train_on_a_cluster_that_begins_at_zero(tmp_path: Path) -> None:
    found = run("tests.cluster.autoscaled_train", tmp_path, UNICUCO_CACHE=str(tmp_path / "cache"))
    print(found["seconds"])
    code, said = found["refused"]
    assert code == 2 and said.count("\n") == 0 and "--evaluators N" in said
    assert not found["left"] and found["nodes_before"] == 0, "refused before any work"
    assert found["waited"], "a user who waits for machines is told so"
    assert found["nodes_most"] == MOST_NODES and found["nodes_after"] == 0
    assert len(found["ids"]) == len(set(found["ids"])) == BUDGET and found["policy"]
