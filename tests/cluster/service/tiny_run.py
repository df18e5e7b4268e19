"""A run folder as training leaves it, on a tiny random base model, made in this process without Ray."""

from __future__ import annotations

from pathlib import Path

from tests.unicuco import tiny
from tests.unicuco.tables import made_up_table
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.latency import LatencyTable, NamedTable
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.policy_parts import load_parts
from unicuco.preparation import PreparationConfig, prepare
from unicuco.stratnet import StratNetConfig

EVALUATIONS = 16


def make_run(folder: Path, seed: int = 0) -> Path:
    """Trains a policy; ``folder/run`` holds evaluations and policy, the base model lies beside."""
    model = tiny.save_model(folder / "model", "llama", seed)
    source = find_model(str(model))
    recipe: PreparationConfig = tiny.preparation_config(tiny.write_text(folder / "prose.txt"))
    base = load_base_model(source, recipe.dtype)
    prepared = prepare(base, load_tokenizer(source), recipe, root=folder / "preparations")
    evaluator = Evaluator(source.spec, prepared.folder, EvaluatorConfig(dtype="float32"), base=base)
    facts = {
        "model": {"spec": source.spec, "digest": source.digest},
        "preparation": {
            "digest": prepared.digest,
            "folder": str(prepared.folder),
            "config": recipe.model_dump(mode="json"),
        },
    }
    config = LearnerConfig(evaluations=EVALUATIONS, batch=8, stratnet=StratNetConfig(width=32, steps=30), margins=0)
    log = EvaluationLog(folder / "run" / "evaluations")
    learner = Learner(prepared.space, prepared.damage, config, log, facts, domains=("prose",))
    while not learner.finished():
        if learner.needs_training():
            learner.train()
            continue
        for candidate in learner.ask(1):
            learner.tell(evaluator.evaluate(candidate))
    learner.save_policy(folder / "run" / "policy")
    return folder / "run"


def learn_latency(run: Path, name: str = "box") -> LatencyTable:
    """Trains the policy of ``run`` again, on the same evaluations, with latency among its objectives."""
    parts = load_parts(run)
    table = made_up_table(parts.space.geometry)
    config = LearnerConfig(evaluations=EVALUATIONS, batch=8, stratnet=StratNetConfig(width=32, steps=60), margins=0)
    log, box = EvaluationLog(run / "evaluations"), NamedTable.of(name, table)
    learner = Learner(parts.space, parts.damage, config, log, parts.provenance, domains=("prose",), latency=box)
    learner.train()
    learner.save_policy(run / "policy")
    return table
