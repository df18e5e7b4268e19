"""Bounds on latency over HTTP: tables are described, bound answers, and are measured on what is built."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cluster.commands.profile import profile as profile_command
from cluster.service.policies import Policies
from tests.cluster.service.conftest import config_of, serving
from tests.cluster.service.test_checkpoints import wait_for
from tests.cluster.service.tiny_run import learn_latency
from tests.unicuco.tables import made_up_table
from unicuco.errors import RequestError
from unicuco.latency import LatencyConfig, LatencyTable
from unicuco.models.load import load_base_model
from unicuco.policy import Policy
from unicuco.profiling import profile

CONFIG = LatencyConfig(dtype="float32", threads=1, context=16)


@pytest.fixture(scope="module")
def timed_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a table that was measured here."""
    run = tmp_path_factory.mktemp("timed") / "run"
    shutil.copytree(tiny_run, run)
    spec = Policy.load(run).parts.provenance["model"]["spec"]
    profile(load_base_model(spec, "float32"), CONFIG, neuron_multiple=32).save(run / "latency" / "here.json")
    return run


@pytest.fixture
def client(timed_run: Path, tmp_path: Path) -> Iterator[TestClient]:
    with serving(config_of(timed_run, tmp_path)) as client:
        yield client


def test_tables_are_described_and_bound_answers(client: TestClient) -> None:
    (described,) = client.get("/v1/policies").json()["policies"][0]["latency"]
    assert described["name"] == "here" and "decode after 16 tokens" in described["workload"]
    assert 0 < described["fastest_ms"] < described["dense_ms"]
    bound = 0.7 * described["dense_ms"] + 0.3 * described["fastest_ms"]
    requests = [{"max_latency_ms": bound}, {"kept": 0.7, "latency": "here"}, {"max_latency_ms": bound, "kept": 0.6}]
    answers = client.post("/v1/answers", json={"requests": requests}).json()["answers"]
    assert all(answer["feasible"] and answer["latency_table"] == "here" for answer in answers)
    assert max(answers[0]["latency_ms"], answers[2]["latency_ms"]) <= bound and answers[2]["kept"] <= 0.6
    impossible = client.post("/v1/answers", json={"requests": [{"max_latency_ms": 1e-6}]}).json()["answers"][0]
    assert not impossible["feasible"] and "fastest strategy takes" in impossible["note"]


def test_what_the_policy_does_not_know_is_a_problem_in_one_sentence(client: TestClient, tiny_run: Path) -> None:
    refused = client.post("/v1/answers", json={"requests": [{"kept": 0.7}, {"kept": 0.7, "latency": "phone"}]})
    assert refused.status_code == 422 and refused.json()["detail"].endswith("'phone'; this policy knows here.")
    assert refused.json()["errors"][0]["where"] == "body.requests.1"
    assert client.post("/v1/answers", json={"requests": [{"max_latency_ms": -1}]}).status_code == 422


def test_preferences_for_latency_with_and_without_training_on_it(timed_run: Path, tmp_path: Path) -> None:
    learned = tmp_path / "learned"
    shutil.copytree(timed_run, learned)
    learn_latency(learned)
    requests = [{"preference": {"latency": w, "prose": 1 - w}, "latency": "here"} for w in (0.1, 0.9)]
    for run, objectives in ((timed_run, ["size", "mean"]), (learned, ["size", "latency", "mean"])):
        (tmp_path / objectives[1]).mkdir()
        with serving(config_of(run, tmp_path / objectives[1])) as client:
            assert client.get("/v1/policies").json()["policies"][0]["objectives"] == objectives
            answers = client.post("/v1/answers", json={"requests": requests}).json()["answers"]
            assert answers[1]["latency_ms"] < answers[0]["latency_ms"]
            own = client.post("/v1/answers", json={"requests": [{"preference": {"latency": 1, "prose": 1}}]})
            assert own.json()["answers"][0]["latency_table"] == ("here" if run == timed_run else "box")


def test_no_other_table_takes_the_name_of_the_one_that_was_trained_on(timed_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(timed_run, run)
    learn_latency(run)
    with pytest.raises(RequestError, match="was trained on another table 'box': choose another name"):
        profile_command(str(run), name="box")
    assert not (run / "latency" / "box.json").exists()


def test_a_checkpoint_is_measured_by_its_table(client: TestClient) -> None:
    described = client.get("/v1/policies").json()["policies"][0]["latency"][0]
    order = client.post("/v1/checkpoints", json={"request": {"max_latency_ms": 0.8 * described["dense_ms"]}})
    assert order.status_code == 202
    made = wait_for(client, order.json()["id"])
    assert made["state"] == "done", made
    assert made["result"]["measured"]["latency_ms"] > 0 and made["answer"]["latency_ms"] > 0


def test_new_tables_are_taken_up_and_broken_ones_are_not(timed_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(timed_run, run)
    policies = Policies(config_of(run, tmp_path).policies)
    assert policies.refresh() == []
    table: LatencyTable = made_up_table(policies.get("tiny").policy.space.geometry)
    table.save(run / "latency" / "other.json")
    assert policies.refresh() == ["tiny"] and policies.get("tiny").policy.timed.names == ["here", "other"]
    (run / "latency" / "third.json").write_text("{")
    assert policies.refresh() == [] and policies.get("tiny").policy.timed.names == ["here", "other"]
