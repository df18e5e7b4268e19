"""Every mistake is one sentence with exit code 2 that leaves nothing behind."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.cluster.tiny_world import World, run, sentence, world
from tests.unicuco import tiny

__all__ = ["world"]  # a fixture


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
