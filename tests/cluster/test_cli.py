"""The commands on a tiny real model: what they leave behind, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.cli import main
from tests.unicuco import tiny
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.latency import load_table
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.load import load_base_model
from unicuco.preparation import prepare
from unicuco.space import Shape
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


def test_answers_go_to_the_table_and_the_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"id": "a", "kept": 0.8}\n{"id": "b", "preference": [1, 1]}\n{"id": "c", "params": 1}\n')
    assert run(monkeypatch, "answer", world.policy, "--requests", requests, "--output", tmp_path / "out.jsonl") == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["a", "b", "c"]
    assert answers[0]["kept"] <= 0.8
    assert [answer["feasible"] for answer in answers] == [True, True, False]
    assert "kept 0.8" in capsys.readouterr().out
    asked = ("--preference", "size=1,words=3", "--output", tmp_path / "named.jsonl")
    assert run(monkeypatch, "answer", world.policy, *asked) == 0
    assert "preference size=1,words=3" in capsys.readouterr().out
    assert json.loads((tmp_path / "named.jsonl").read_text())["preference"] == [0.25, 0.75]


def test_prune_then_evaluate(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "small"
    assert run(monkeypatch, "prune", world.policy.parent, "--kept", 0.7, "--output", checkpoint, *FLOAT) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["measuring on fresh text ...", "writing and reloading ..."] and said[2].startswith("request")
    record = json.loads((checkpoint / "unicuco.json").read_text())
    assert record["size"]["kept"] <= 0.7
    assert record["verification"] is not None
    assert record["measured"]["kl_heldout"] > 0
    figures = tmp_path / "figures.json"
    other = tiny.write_text(tmp_path / "other.txt", seed=5)
    options = ("--tokens", 256, "--window-length", 32, "--json", figures, "--picture", tmp_path / "both.png")
    options += ("--text", world.text, "--text", f"else={other}")
    assert run(monkeypatch, "evaluate", checkpoint, *options, *FLOAT) == 0
    dense, pruned = json.loads(figures.read_text())["results"]
    assert [text["distribution"] for text in pruned["texts"]] == ["in", "out"]
    assert dense["texts"][0]["kl"] is None
    assert pruned["texts"][0]["kl"] > 0
    assert pruned["parameters"] == record["size"]["params"] < dense["parameters"]
    assert "perplexity" in capsys.readouterr().out
    assert (tmp_path / "both.png").stat().st_size > 1000
    assert run(monkeypatch, "verify", checkpoint, "--threads", 1, "--json", figures) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "good"
    found = json.loads(figures.read_text())
    assert found["passed"] and found["loaded"]["params"] == record["size"]["params"] and found["logits"]["tokens"] == 32
    (checkpoint / "config.json").write_text("{}")
    assert run(monkeypatch, "verify", checkpoint) == 1
    assert "config.json has 2 bytes" in capsys.readouterr().out
    assert run(monkeypatch, "verify", tmp_path) == 1 and "is no checkpoint of UniCuCo" in sentence(capsys)


def test_profile_then_answer_and_prune_within_milliseconds(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, measured = tmp_path / "box.json", ("--dtype", "float32", "--threads", 1, "--tokens", 16)
    assert run(monkeypatch, "profile", world.model, *measured, "--output", table) == 0
    assert "whole models" in capsys.readouterr().out and table.with_suffix(".png").stat().st_size > 1000
    dense = load_table(table).predict(Shape((4, 4, 4), (256, 256, 256)))
    asked = ("--max-latency-ms", 0.8 * dense, "--latency", table)
    assert run(monkeypatch, "answer", world.policy, *asked, "--output", tmp_path / "answers.jsonl") == 0
    assert "max_latency_ms" in capsys.readouterr().out
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert answer["latency_table"] == "box" and answer["latency_ms"] <= 0.8 * dense
    weighed = ("--preference", "latency=2,words=1", "--latency", table, "--output", tmp_path / "weighed.jsonl")
    assert run(monkeypatch, "answer", world.policy, *weighed) == 0
    assert json.loads((tmp_path / "weighed.jsonl").read_text())["latency_ms"] < dense
    capsys.readouterr()
    checkpoint = tmp_path / "quick"
    assert run(monkeypatch, "prune", world.policy, *asked, "--output", checkpoint, *FLOAT) == 0
    assert "ms predicted (table 'box'), measured" in capsys.readouterr().out
    record = json.loads((checkpoint / "unicuco.json").read_text())
    assert record["measured"]["latency_ms"] > 0 and record["predicted"]["latency_ms"] == answer["latency_ms"]
    assert record["calibration"]["latency_table"] == load_table(table).digest
    assert "latency_ms (measured)" in (checkpoint / "README.md").read_text()


def test_prune_then_recover(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, better = tmp_path / "small", tmp_path / "better"
    options = ("--no-measure", "--layout", "padded", "--output", checkpoint)
    assert run(monkeypatch, "prune", world.policy.parent, "--kept", 0.7, *options, *FLOAT) == 0
    options = ("--corpus", world.text, "--steps", 4, "--window-length", 32, "--batch", 2, "--output", better)
    assert run(monkeypatch, "recover", checkpoint, *options, *FLOAT) == 0
    shown = capsys.readouterr().out
    assert "4 steps, 256 tokens" in shown and "training: step 4 of 4" in shown
    record = json.loads((better / "unicuco.json").read_text())
    assert record["recovery"]["steps"] == 4 and "unicuco recover" in record["recovery"]["command"]
    assert run(monkeypatch, "recover", checkpoint, *options, *FLOAT) == 2 and "exists already" in sentence(capsys)


def test_supernet_is_a_base_model_for_the_others(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "super"
    options = ("--corpus", world.text, "--steps", 4, "--window-length", 32, "--batch", 2, "--output", output)
    options += ("--windows", 16)
    assert run(monkeypatch, "supernet", world.model, *options, *FLOAT) == 0
    shown = capsys.readouterr().out
    assert "4 steps" in shown and "training: step 4 of 4" in shown and f"unicuco train {output}" in shown
    record = json.loads((output / "unicuco.json").read_text())
    assert record["supernet"]["steps"] == 4 and "unicuco supernet" in record["command"]
    assert run(monkeypatch, "supernet", world.model, *options, *FLOAT) == 2 and "exists already" in sentence(capsys)
    assert run(monkeypatch, "verify", output) == 0


def test_prune_with_a_sparsity_pruner_needs_no_policy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--pruner", "wanda", "--pattern", "2:4", "--calibration", world.text, "--windows", 8, *FLOAT)
    options += ("--window-length", 32)
    assert run(monkeypatch, "prune", world.model, *options) == 0
    folder = tmp_path / "checkpoints" / f"{world.model.name}-wanda-2of4"
    assert json.loads((folder / "unicuco.json").read_text())["zeros"] > 0
    assert "50.0% of the weights" in capsys.readouterr().out
    assert run(monkeypatch, "prune", world.model, *options) == 2 and "exists already" in sentence(capsys)


def test_prune_without_data_learns_a_policy_once_and_reuses_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, order = tmp_path / "learned", ("prune", world.model, "--pruner", "prunenet", "--no-measure", *FLOAT)
    order += ("--prunenet-policy", learned)
    reward = ("--prunenet-reward", "spectrum")
    assert run(monkeypatch, *order, *reward, "--sparsity", 0.25, "--output", tmp_path / "first") == 0
    assert json.loads((learned / "policy.json").read_text())["config"]["reward"] == "spectrum"
    written = (learned / "policy.json").read_bytes()
    assert "25.0% of the neurons" in capsys.readouterr().out
    assert run(monkeypatch, *order, "--sparsity", 0.5, "--output", tmp_path / "second") == 0
    assert (learned / "policy.json").read_bytes() == written
    sizes = [json.loads((tmp_path / n / "unicuco.json").read_text())["size"]["params"] for n in ("first", "second")]
    assert sizes[0] > sizes[1]


def test_a_base_model_with_code_of_its_own_is_pruned_once_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # transformers puts its folder of modules there
    model, text = tiny.save_model(tmp_path / "model", "llama"), tiny.write_text(tmp_path / "words.txt")
    give_it_code(model)
    policy = make_policy(tmp_path, model, text, trust=True)
    shutil.rmtree(tmp_path / "cache" / "preparations")  # so that it is built again, which loads the model once more
    order = ("prune", policy, "--kept", 0.7, "--output", tmp_path / "small", "--layout", "padded", *FLOAT)
    assert run(monkeypatch, *order) == 2
    assert "trust_remote_code" in capsys.readouterr().err and not (tmp_path / "small").exists()
    assert run(monkeypatch, *order, "--trust-remote-code") == 0
    assert (tmp_path / "small" / "modeling_own.py").is_file()
    assert json.loads((tmp_path / "small" / "unicuco.json").read_text())["verification"] is not None


def give_it_code(model: Path) -> None:
    """Makes ``model`` a family that transformers does not know, with its class beside the weights."""
    (model / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("answer", "nowhere", "--kept", 0.5), "No readable policy"),
        (("answer", "POLICY"), "Ask by options"),
        (("answer", "POLICY", "--kept", 1.5), "less than or equal to 1"),
        (("answer", "POLICY", "--preference", "a,b"), "preference"),
        (("answer", "POLICY", "--kept", 0.5, "--preference", "poems=1"), "knows size, words"),
        (("answer", "POLICY", "--kept", 0.5, "--preference", "words"), "preference"),
        (("answer", "POLICY", "--max-kl", "poems=0.1"), "knows words"),
        (("answer", "POLICY", "--max-kl", "little"), "max_kl"),
        (("answer", "POLICY", "--requests", "BROKEN"), "line 2"),
        (("answer", "POLICY", "--requests", "nowhere.jsonl"), "nowhere.jsonl"),
        (("prune", "POLICY", "--output", "OUT", "--params", 1), "parameters are left"),
        (("prune", "POLICY", "--output", "OUT", "--kept", 0.7, "--layout", "odd"), "hetero, uniform or padded"),
        (("prune", "POLICY", "--output", "OUT", "--kept", 0.7, "--model", "OTHER"), "trained for"),
        (("prune", "POLICY", "--output", "OUT", "--kept", 0.7, "--dtype", "int8"), "dtype"),
        (("prune", "POLICY", "--output", "OUT", "--kept", 0.7, "--device", "abacus"), "abacus"),
        (("prune", "MODEL", "--pruner", "guess", "--sparsity", 0.5, "--output", "OUT"), "'sparsegpt' or 'sparsellm'"),
        (("prune", "MODEL", "--pruner", "folding", "--pattern", "2:4", "--output", "OUT"), "no --pattern"),
        (("prune", "MODEL", "--pruner", "folding", "--output", "OUT"), "needs --sparsity"),
        (("prune", "MODEL", "--pruner", "prunenet", "--sparsity", 0.5, "--windows", 4), "leave out --windows"),
        (("prune", "MODEL", "--pruner", "folding", "--sparsity", 1.5, "--output", "OUT"), "less than 1"),
        (("prune", "MODEL", "--pruner", "folding", "--sparsity", 0.5, "--prunenet-policy", "OUT"), "only 'prunenet'"),
        (("prune", "MODEL", "--pruner", "folding", "--sparsity", 0.5, "--prunenet-reward", "spectrum"), "only 'prun"),
        (("prune", "MODEL", "--pruner", "prunenet", "--sparsity", 0.5, "--prunenet-reward", "x"), "'reproduction' or"),
        (("prune", "--prunenet-reward", "spectrum"), "belong to --pruner"),
        (("prune", "MODEL", "--pruner", "wanda", "--sparsity", 0.5, "--no-measure"), "belong to pruners without"),
        (("prune", "MODEL", "--pruner", "wanda", "--output", "OUT"), "either a sparsity or a pattern"),
        (("prune", "MODEL", "--pruner", "wanda", "--pattern", "5:4", "--output", "OUT"), "N:M"),
        (("prune", "MODEL", "--pruner", "wanda", "--sparsity", 0.5, "--kept", 0.5, "--output", "OUT"), "no request"),
        (("prune", "POLICY", "--sparsity", 0.5, "--output", "OUT"), "belong to --pruner"),
        (("prune", "POLICY", "--kept", 0.5), "--output"),
        (("prune", "POLICY", "--kept", 0.5, "--output", "OUT", "--shard-size", "many"), "no size of a file"),
        (("prune", "POLICY", "--kept", 0.5, "--output", "what://ever"), "cannot be opened"),
        (("prune", "MODEL", "--pruner", "wanda", "--sparsity", 0.5, "--no-verify"), "no request"),
        (("export-gguf", "MODEL", "OUT", "--tokenizer-pre", "default"), "only byte-pair ones"),
        (("answer", "POLICY", "--max-latency-ms", 5), "no latency table"),
        (("answer", "POLICY", "--preference", "latency=1,words=1"), "prefers latency, but this policy has no latency"),
        (("answer", "POLICY", "--max-latency-ms", 5, "--latency", "nowhere.json"), "No latency table at nowhere.json"),
        (("answer", "POLICY", "--max-latency-ms", 5, "--latency", "BROKEN"), "latency: "),
        (("answer", "POLICY", "--max-latency-ms", -1), "max_latency_ms"),
        (("answer", "http://127.0.0.1:9", "--kept", 0.5, "--latency", "box.json"), "give --latency one of their names"),
        (("profile", "./nowhere"), "No folder at ./nowhere"),
        (("profile", "MODEL", "--mode", "both"), "mode"),
        (("profile", "MODEL", "--clock", "processor"), "threads 1"),
        (("profile", "MODEL", "--name", "box"), "a run or policy folder"),
        (("profile", "MODEL", "--output", "OUT"), "should end in .json"),
        (("profile", "MODEL", "--tokens", 1000), "reads at most"),
        (("evaluate", "./nowhere"), "No folder at ./nowhere"),
        (("evaluate", "MODEL", "--text", "nowhere.txt"), "nowhere.txt"),
        (("evaluate", "MODEL", "--limit", 20), "belong to --tasks"),
        (("recover", "MODEL", "--output", "OUT"), "give it with --base"),
        (("recover", "MODEL", "--output", "OUT", "--steps", 3, "--minutes", 1), "either steps or minutes"),
        (("recover", "MODEL", "--output", "OUT", "--steps", 0), "steps"),
        (("supernet", "./nowhere", "--output", "OUT"), "No folder at ./nowhere"),
        (("supernet", "MODEL", "--output", "OUT", "--kept-low", 2), "kept_low"),
        (("supernet", "MODEL", "--output", "OUT", "--corpus", "nowhere.txt"), "nowhere.txt"),
        (("evaluate", "MODEL", "--tasks", "piqa", "--task-data", "nowhere"), "No folder of task data"),
        (("train", "./nowhere", "--run", "OUT"), "No folder at ./nowhere"),
        (("report", "MODEL"), "run"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"kept": 0.5}\n{"kept": \n')
    if "OTHER" in arguments:
        tiny.save_model(tmp_path / "other", "llama", seed=1)
    places = {"POLICY": world.policy, "MODEL": world.model, "OUT": tmp_path / "out"}
    places |= {"BROKEN": tmp_path / "broken.jsonl", "OTHER": tmp_path / "other"}
    assert run(monkeypatch, *(places.get(str(a), a) for a in arguments)) == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_sentence(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"kept": 0.8}\n' * 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the system refuses the write, as a full disk does
    try:
        code = run(monkeypatch, "answer", world.policy, "--requests", requests, "--output", tmp_path / "answers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert "disk is full" in sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = (
        "import sys, cluster.cli; print([m for m in ('torch', 'ray', 'transformers', 'botorch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cluster.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    "command",
    ["train", "answer", "profile", "prune", "verify", "export-gguf", "evaluate", "recover", "supernet", "report"],
)
def test_every_command_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert f"unicuco {command}" in capsys.readouterr().out
