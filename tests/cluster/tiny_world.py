"""A tiny real model with a policy, and commands called in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.cli import main
from tests.unicuco import tiny
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.load import load_base_model
from unicuco.preparation import prepare
from unicuco.stratnet import StratNetConfig

FLOAT = ("--dtype", "float32", "--threads", "1")


@dataclass(frozen=True)
class World:
    """A model, a text and a policy trained on them without Ray."""

    model: Path
    text: Path
    policy: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        model, text = tiny.save_model(root / "model", "llama"), tiny.write_text(root / "words.txt")
        yield World(model, text, make_policy(root, model, text))


def make_policy(root: Path, model: Path, text: Path, trust: bool = False) -> Path:
    """Ten evaluations and a short training; returns the policy folder inside the run folder."""
    config = tiny.preparation_config(text)
    base = load_base_model(str(model), trust_remote_code=trust)
    preparation = prepare(base, tiny.tokenizer(), config)
    evaluator = Evaluator(str(model), preparation.folder, EvaluatorConfig(dtype="float32", threads=1), base=base)
    provenance = {
        "model": {"spec": str(model), "digest": base.source.digest},
        "preparation": {"digest": preparation.digest, "config": config.model_dump(mode="json")},
    }
    brief = LearnerConfig(evaluations=10, batch=5, stratnet=StratNetConfig(steps=40))
    learner = Learner(preparation.space, preparation.damage, brief, EvaluationLog(root / "log"), provenance)
    while not learner.finished():
        for candidate in learner.ask(1):
            learner.tell(evaluator.evaluate(candidate))
        if learner.needs_training():
            learner.train()
    learner.save_policy(root / "run" / "policy")
    return root / "run" / "policy"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["unicuco", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What standard error says; a traceback is never part of it."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("\n") <= 1, said
    return said
