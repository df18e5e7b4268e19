"""The commands on a tiny real model: what they leave behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.tiny_world import FLOAT, World, make_policy, run, sentence, world
from tests.unicuco import tiny
from unicuco.latency import load_table
from unicuco.space import Shape

__all__ = ["world"]  # a fixture


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
