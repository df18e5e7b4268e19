"""Recovery of tiny checkpoints: KL goes down, a killed run ends as an unbroken one, and what is written says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.unicuco import tiny
from unicuco.assess import assess
from unicuco.errors import CalibrationError, CheckpointError, RecoveryError
from unicuco.recovery import RecoveryConfig, RecoveryReport, recover, recovery_config

Quick = Callable[..., RecoveryConfig]
Pruned = Callable[[str], Path]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def done(pruned: Pruned, recovery_text: Path, tmp_path_factory: pytest.TempPathFactory) -> RecoveryReport:
    """One recovery of the hetero checkpoint that several tests look at."""
    root = tmp_path_factory.mktemp("done")
    config = RecoveryConfig(
        corpus=str(recovery_text), steps=40, rank=16, learning_rate=1e-2, batch=4, window_length=32,
        heldout_windows=16, dtype="float32", text_weight=0.0,
    )  # fmt: skip
    second = tiny.write_text(root / "other.txt", seed=3)
    return recover(str(pruned("hetero")), root / "recovered", config, second=str(second), command="unicuco recover")


def test_kl_goes_down_on_text_that_was_not_trained_on(done: RecoveryReport) -> None:
    words, other = done.texts["words"], done.texts["other"]
    assert words.kl_after < 0.85 * words.kl_before
    assert other.kl_after < 0.85 * other.kl_before
    assert done.training.steps == 40 and done.trained_tokens == 40 * 4 * 32
    assert done.training.last.kl < done.training.first.kl


def test_the_folder_is_what_was_measured_and_says_so(done: RecoveryReport, pruned: Pruned) -> None:
    old, new = pruned("hetero"), done.folder
    about = json.loads((new / "unicuco.json").read_text(encoding="utf-8"))
    before = json.loads((old / "unicuco.json").read_text(encoding="utf-8"))
    assert about["shape"] == before["shape"] and about["base_model"] == before["base_model"]
    assert about["measured"]["kl_heldout"] == done.texts["words"].kl_after
    assert "kl_reverse_heldout" not in about["measured"]
    assert about["recovery"]["measured_before"]["kl_heldout"] == 9.0
    assert about["recovery"]["config"]["rank"] == 16 and about["verification"]["max_abs_diff"] < 1e-3
    readme = (new / "README.md").read_text(encoding="utf-8")
    assert "## Recovery" in readme and "40 steps" in readme
    assert "| kl_heldout (measured) | 9 |" not in readme and "kl_reverse_heldout" not in readme
    assert {p.name for p in new.iterdir()} == {p.name for p in old.iterdir()}
    changed = {n for n, t in weights(new).items() if not torch.equal(t, weights(old)[n])}
    assert changed and all(name.endswith("proj.weight") for name in changed)
    assert {n: t.shape for n, t in weights(new).items()} == {n: t.shape for n, t in weights(old).items()}
    assert not list(new.parent.glob(".*"))
    plain = AutoModelForCausalLM.from_pretrained(new, trust_remote_code=True)
    assert plain.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


def test_evaluate_finds_the_same(done: RecoveryReport, pruned: Pruned, recovery_text: Path) -> None:
    text = {"texts": str(recovery_text), "tokens": 512, "window_length": 32, "dtype": "float32"}
    _, before, after = assess([str(pruned("hetero")), str(done.folder)], seed=0, **text)
    # The held-out windows are those that every command holds out with this seed.
    assert before.texts[0].kl == pytest.approx(done.texts["words"].kl_before, rel=1e-3)
    assert after.texts[0].kl == pytest.approx(done.texts["words"].kl_after, rel=1e-3)


class KilledError(Exception):
    pass


def test_a_killed_run_ends_as_an_unbroken_one(
    done: RecoveryReport, pruned: Pruned, quick: Quick, tmp_path: Path
) -> None:
    def kill(step: int, total: int, kl: float) -> None:
        if step == 25:
            raise KilledError

    config = quick(save_every=10)
    with pytest.raises(KilledError):
        recover(str(pruned("hetero")), tmp_path / "r", config, verify=False, progress=kill)
    assert not (tmp_path / "r").exists() and len(list(tmp_path.glob(".r.recovery-*"))) == 1
    steps: list[int] = []
    again = recover(
        str(pruned("hetero")), tmp_path / "r", config, verify=False, progress=lambda step, total, kl: steps.append(step)
    )
    assert again.training.resumed_at == 20 and steps[0] == 21
    for name, tensor in weights(done.folder).items():
        assert torch.equal(weights(tmp_path / "r")[name], tensor)
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


def test_a_state_of_other_settings_is_left_alone(pruned: Pruned, quick: Quick, tmp_path: Path) -> None:
    def kill(step: int, total: int, kl: float) -> None:
        if step == 6:
            raise KilledError

    with pytest.raises(KilledError):
        recover(str(pruned("hetero")), tmp_path / "r", quick(save_every=3), verify=False, progress=kill)
    other = recover(str(pruned("hetero")), tmp_path / "r", quick(steps=2, seed=1), verify=False)
    assert other.training.resumed_at == 0
    assert len(list(tmp_path.glob(".r.recovery-*"))) == 1


def test_a_padded_checkpoint_keeps_its_zeros(pruned: Pruned, quick: Quick, tmp_path: Path) -> None:
    found = recover(str(pruned("padded")), tmp_path / "p", quick(), verify=False)
    assert found.texts["words"].kl_after < 0.85 * found.texts["words"].kl_before
    old, new = weights(pruned("padded")), weights(tmp_path / "p")
    assert sum(int((t == 0).sum()) for t in old.values()) > 1000
    for name, tensor in old.items():
        assert bool((new[name][tensor == 0] == 0).all())


def test_gradient_checkpointing_changes_nothing(
    done: RecoveryReport, pruned: Pruned, quick: Quick, tmp_path: Path
) -> None:
    recover(str(pruned("hetero")), tmp_path / "r", quick(gradient_checkpointing=True), verify=False)
    for name, tensor in weights(done.folder).items():
        torch.testing.assert_close(weights(tmp_path / "r")[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompts", [None, "bos"])
def test_the_dense_model_writes_the_text(
    prompts: str | None, pruned: Pruned, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unicuco.recovery.run as module

    seen: list = []
    write = module.write_self_data
    monkeypatch.setattr(module, "write_self_data", lambda *args: seen.append(write(*args)) or seen[-1])
    stages: list[str] = []
    settings = quick(corpus="self", prompts=prompts, steps=40)
    first = recover(
        str(pruned("hetero")), tmp_path / "a", settings, verify=False, stage=lambda name, *_: stages.append(name)
    )
    assert first.texts["words"].kl_after < first.texts["words"].kl_before
    assert "the dense model writes text" in stages
    again = recover(str(pruned("hetero")), tmp_path / "b", settings, verify=False)
    assert (seen[0] == seen[1]).all() and seen[0].shape == (160, 32)
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(weights(tmp_path / "b")[name], tensor)
    assert again.texts == first.texts
    # What it writes is likely to it: more than a text of random words would be.
    model = AutoModelForCausalLM.from_pretrained(
        json.loads((tmp_path / "a/unicuco.json").read_text())["base_model"]["spec"]
    )
    ids = torch.from_numpy(seen[0][:32]).long()
    random = torch.randint(4, tiny.VOCAB, ids.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < model(input_ids=random, labels=random).loss - 0.5


def test_minutes_become_steps_and_the_budget_changes_no_weight(pruned: Pruned, quick: Quick, tmp_path: Path) -> None:
    timed = recover(str(pruned("hetero")), tmp_path / "timed", quick(steps=None, minutes=0.05), verify=False)
    recover(str(pruned("hetero")), tmp_path / "counted", quick(steps=timed.training.steps), verify=False)
    assert timed.training.steps >= 1
    for name, tensor in weights(tmp_path / "timed").items():
        assert torch.equal(weights(tmp_path / "counted")[name], tensor)


def test_mistakes_are_one_sentence_before_any_work(pruned: Pruned, quick: Quick, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        recover(str(pruned("hetero")), taken, quick())
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        recover(str(pruned("hetero")), taken, quick(), replace=True)
    bare = tmp_path / "bare"
    shutil.copytree(pruned("hetero"), bare, ignore=shutil.ignore_patterns("unicuco.json"))
    with pytest.raises(RecoveryError, match="give it with --base"):
        recover(str(bare), tmp_path / "r", quick())
    with pytest.raises(RecoveryError, match="its own base model"):
        recover(str(bare), tmp_path / "r", quick(), base=str(bare))
    with pytest.raises(CalibrationError, match="too short"):
        recover(str(pruned("hetero")), tmp_path / "r", quick(window_length=8192))
    with pytest.raises(RecoveryError, match="either steps or minutes"):
        recovery_config(steps=3, minutes=1.0)
    with pytest.raises(RecoveryError, match="prompts belong to"):
        recovery_config(steps=3, prompts="bos")
    with pytest.raises(RecoveryError, match="no number after"):
        recover(str(pruned("hetero")), tmp_path / "r", quick(learning_rate=1e30))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "taken"]
