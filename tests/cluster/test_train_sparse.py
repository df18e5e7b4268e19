"""A run with a sparsity pruner from end to end: trained, answered, exported with zeros, evaluated and reported."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli import app
from tests.cluster.tiny import make_model, make_text
from unicuco.errors import CheckpointError, RequestError
from unicuco.evaluator import EvaluatorConfig
from unicuco.policy import Policy
from unicuco.prune import Writing, prune
from unicuco.request import Request

if TYPE_CHECKING:
    from cluster.training import TrainResult

pytestmark = pytest.mark.ray
SPARSITIES = [0, 0.3, 0.5, 0.6, 0.7, 0.8]


@dataclass(frozen=True)
class Trained:
    model: Path
    text: Path
    run: Path
    result: TrainResult


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    from cluster.training import TrainConfig, train

    root = tmp_path_factory.mktemp("sparse")
    model, text = make_model(root / "model"), make_text(root / "words.txt")
    config = TrainConfig.model_validate(
        {
            "model": str(model),
            "run": root / "run",
            "preparation": {
                "calibration": {
                    "domains": [{"name": "words", "source": str(text)}],
                    "window_length": 32, "calibration_windows": 8, "search_windows": 16,
                },
                "space": {"pruner": "wanda", "sparsities": SPARSITIES},
            },
            "learner": {"evaluations": 16, "kept_low": 0.25, "stratnet": {"steps": 20}},
            "evaluator": {"dtype": "float32"},
        }
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", str(root / "cache"))
        yield Trained(model, text, root / "run", train(config, Console(file=io.StringIO(), width=200)))


def test_the_run_measures_and_its_answers_are_never_over_budget(trained: Trained) -> None:
    assert trained.result.failed == 0 and trained.result.evaluations >= 8
    policy = Policy.load(trained.run)
    assert any(e.margins for e in policy.parts.evaluations)
    dense = policy.space.geometry.params
    for kept in (0.3, 0.35, 0.4, 0.55, 0.8, 1.0):
        answer = policy.answer([Request(kept=kept)])[0]
        assert answer.feasible and answer.kept <= kept
        assert set(answer.groups) == {2} and set(answer.neurons) == {256}
        assert answer.bytes == 2 * dense and answer.params < dense + 1
    assert not policy.answer([Request(kept=0.1)])[0].feasible
    rows = json.loads((trained.run / "heldout.json").read_text())
    assert [row["kept"] for row in rows] == [0.7, 0.6, 0.5, 0.4, 0.3]


def test_fewer_bytes_cannot_be_asked_of_zeros(trained: Trained) -> None:
    policy = Policy.load(trained.run)
    dense = 2 * policy.space.geometry.params
    with pytest.raises(RequestError, match="zero in dense shapes"):
        policy.answer([Request(bytes=dense - 1)])
    with pytest.raises(RequestError, match="bound 'kept'"):
        policy.check_request(Request(bytes=dense - 1))
    assert policy.answer([Request(bytes=dense, kept=0.5)])[0].kept <= 0.5


def test_an_answer_is_pruned_again_in_order_measured_and_described_honestly(trained: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from unicuco.calibration import Windows
    from unicuco.models.load import load_base_model
    from unicuco.preparation import Preparation
    from unicuco.pruners.sequential import count_zeros, prune_in_place

    config = EvaluatorConfig(dtype="float32")
    done = prune(trained.run, Request(kept=0.4), tmp_path / "sparse", config=config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    policy = Policy.load(trained.run)
    zeros, _ = count_zeros(loaded)
    assert zeros == done.zeros == policy.space.geometry.params - done.answer.params
    preparation = Preparation.open(Path(policy.parts.provenance["preparation"]["folder"]))
    windows: Windows = preparation.calibration_windows
    expected = load_base_model(str(trained.model), "float32").model
    shape = policy.space.shape(torch.tensor(done.answer.levels).numpy())
    prune_in_place(expected, windows, "wanda", shape.sparsity)
    for (name, mine), own in zip(loaded.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, own), name
    record = json.loads((tmp_path / "sparse" / "unicuco.json").read_text())
    assert record["zeros"] == zeros and record["pruner"] == "wanda" and record["layout"] == "padded"
    assert done.measured is not None and record["measured"]["kl_heldout"] == done.measured.kl > 0
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert f"{zeros:,} of" in card and "no smaller or faster" in card


def test_narrow_shapes_are_refused_before_any_work(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="use 'padded'"):
        prune(trained.run, Request(kept=0.4), tmp_path / "sparse", Writing(layout="hetero"))
    assert not (tmp_path / "sparse").exists()


def test_the_commands_say_that_files_stay_dense(trained: Trained, tmp_path: Path) -> None:
    runner, run, folder = CliRunner(), str(trained.run), str(tmp_path / "sparse")
    said = runner.invoke(app, ["answer", run, "--kept", "0.4"], catch_exceptions=False).output
    assert "files stay dense" in said.replace("\n", " ")
    order = ["prune", run, "--kept", "0.4", "--output", folder, "--dtype", "float32"]
    said = runner.invoke(app, order, catch_exceptions=False).output
    assert "weights are zero" in said and "no smaller and no faster" in said and "(padded)" in said
    text = ["--text", str(trained.text), "--tokens", "640", "--window-length", "32", "--dtype", "float32"]
    assert runner.invoke(app, ["evaluate", folder, *text], catch_exceptions=False).exit_code == 0
    assert runner.invoke(app, ["report", run], catch_exceptions=False).exit_code == 0
    page = (trained.run / "report" / "index.html").read_text()
    assert "share of the weights that wanda does not set to zero" in page
