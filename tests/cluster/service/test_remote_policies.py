"""A service on a run at a URI: its policy, its preparation and its log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.service import policies as module
from cluster.service.config import PolicyConfig
from cluster.service.policies import Policies
from tests.cluster.service.conftest import config_of, serving
from tests.cluster.service.test_checkpoints import order, wait_for
from tests.unicuco.remote.faulty import writes_fail
from unicuco.errors import PolicyError, RemoteError
from unicuco.evaluations import EvaluationLog
from unicuco.policy import Policy
from unicuco.preparation import Preparation
from unicuco.remote.documents import put_folder
from unicuco.remote.log import RemoteLog
from unicuco.remote.nodes import put_preparation
from unicuco.remote.store import Store
from unicuco.request import Request


@pytest.fixture
def uri(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny run as training leaves it at a URI."""
    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "URI_SECONDS", 0.0)
    store = Store(f"faulty://{tmp_path}/bucket/run", pauses=())
    searched = [e for e in EvaluationLog(tiny_run / "evaluations").read() if e.origin != "checkpoint"]
    RemoteLog(tmp_path / "log", store).append(*searched)  # without what other tests have built
    put_folder(store, "policy", tiny_run / "policy")
    return store.uri


def test_new_versions_are_taken_up_and_what_is_broken_changes_nothing(uri: str, tiny_run: Path, tmp_path: Path) -> None:
    offered = Policies({"tiny": PolicyConfig(path=uri)})
    own = Policy.load(tiny_run).answer([Request(kept=0.7)])
    assert offered.get("tiny").answer([Request(kept=0.7)]) == own
    assert offered.refresh() == []
    fresh = Policy.load(tiny_run)
    fresh.parts.provenance["note"] = "again"
    fresh.save(tmp_path / "fresh")
    store = Store(uri, pauses=())
    with writes_fail("/policy/"), pytest.raises(RemoteError):
        put_folder(store, "policy", tmp_path / "fresh")
    assert offered.refresh() == []
    put_folder(store, "policy", tmp_path / "fresh")
    before = offered.get("tiny").digest
    assert offered.refresh() == ["tiny"] and offered.get("tiny").digest != before
    shutil.rmtree(tmp_path / "bucket")
    assert offered.refresh() == [] and offered.get("tiny").answer([Request(kept=0.7)]) == own
    with pytest.raises(PolicyError, match="No policy at faulty:///"):
        Policies({"tiny": PolicyConfig(path=uri)})


def test_a_checkpoint_is_built_and_its_measurement_goes_back(uri: str, tiny_run: Path, tmp_path: Path) -> None:
    recorded = Policy.load(tiny_run).parts.provenance["preparation"]
    put_preparation(uri, Preparation.open(Path(recorded["folder"])))
    Path(recorded["folder"]).rename(tmp_path / "away")  # the service runs on another machine
    try:
        with serving(config_of(uri, tmp_path)) as client:
            entered = order(client)
            assert wait_for(client, entered["id"])["state"] == "done"
    finally:
        (tmp_path / "away").rename(recorded["folder"])
    logged = RemoteLog(tmp_path / "read", Store(uri)).read()
    (back,) = [e for e in logged if e.eval_id.startswith("checkpoint-")]
    assert list(back.levels) == entered["answer"]["levels"] and back.kl > 0
    assert (tmp_path / "cache" / "preparations" / recorded["digest"][:24] / "order.safetensors").is_file()
