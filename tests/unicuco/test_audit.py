"""``unicuco verify``: a good checkpoint passes, and every way of not being one is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unicuco.checkpoint_models import PrefixPruner, tiny_model, tiny_tokenizer, write
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.audit import audit
from unicuco.checkpoint.recorded import LOGITS
from unicuco.errors import CheckpointError
from unicuco.space import Shape
from unicuco.storage import file_digest

SHAPE = Shape((0, 1, 2, 1), (32, 0, 96, 16))


def test_a_good_checkpoint_passes_until_its_logits_are_others(tmp_path: Path) -> None:
    base = tiny_model("qwen2")
    shape = Shape((0, 1, 2, 1), (32, 96, 0, 16))
    folder = write_checkpoint(base, tiny_tokenizer(), PrefixPruner(base), shape, tmp_path / "c").folder
    found = audit(folder)
    assert found.passed and found.logits is not None and found.loaded is not None
    assert found.logits.tokens == 32 and found.logits.max_abs_diff < 1e-4 < found.logits.tolerance
    assert found.loaded["layers"] == [
        {"heads": 2, "kv_heads": 1, "mlps": [96, 32]},  # 32: before its attention
        {"heads": 4, "kv_heads": 2, "mlps": []},
        {"heads": 2, "kv_heads": 1, "mlps": [16]},
    ]
    assert found.loaded["params"] == found.record["size"]["params"]
    assert found.loaded["prefill_tokens_per_second"] > 0 and found.loaded["decode_tokens_per_second"] > 0

    recorded = json.loads((folder / LOGITS).read_text())
    recorded["logsumexp"][1][15] += 0.1  # one of the last token's; the tolerance is 1e-3 of the largest
    rewrite(folder, LOGITS, json.dumps(recorded))
    found = audit(folder)
    assert not found.passed
    assert found.problems[0].startswith("Its logits differ from those recorded by up to 0.1 (allowed 0.0")


def test_one_that_was_written_unverified_has_no_logits_to_compare(tmp_path: Path) -> None:
    found = audit(write(tiny_model("llama"), SHAPE, tmp_path / "c", "padded"))
    assert found.passed and found.logits is None and found.loaded is not None
    assert found.loaded["class"] == "LlamaForCausalLM"


def test_damage_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    folder = write(tiny_model("llama"), SHAPE, tmp_path / "c", "hetero")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "generation_config.json").unlink()
    (folder / "README.md").write_text("short")
    (folder / "sitecustomize.py").write_text("raise SystemExit")
    (folder / ".gitattributes").write_text("what a hub adds is no damage")
    found = audit(folder)
    assert not found.passed and found.loaded is None
    assert [problem.split(" ", 1)[0] for problem in found.problems] == [
        "README.md", "generation_config.json", "model.safetensors", "sitecustomize.py",
    ]  # fmt: skip
    assert "has 5 bytes, not" in found.problems[0] and "is missing" in found.problems[1]
    assert "SHA-256 is not the one recorded" in found.problems[2] and "was not written with" in found.problems[3]


def test_files_that_transformers_cannot_load_are_a_problem_not_a_crash(tmp_path: Path) -> None:
    folder = write(tiny_model("llama"), SHAPE, tmp_path / "c", "padded")
    rewrite(folder, "config.json", "{}")
    found = audit(folder)
    assert not found.passed and found.problems[0].startswith("A fresh process could not load it (")


def test_code_that_is_not_ours_does_not_run_unasked(tmp_path: Path) -> None:
    folder = write(tiny_model("llama"), SHAPE, tmp_path / "c", "hetero")
    theirs = (folder / "modeling_unicuco.py").read_text() + f"\n\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
    rewrite(folder, "modeling_unicuco.py", theirs)
    with pytest.raises(CheckpointError, match=r"not this version's own \(modeling_unicuco.py\)"):
        audit(folder)
    assert not (tmp_path / "ran").exists()
    assert audit(folder, trust_remote_code=True).passed
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no checkpoint of UniCuCo: it holds no unicuco.json"),
        ("{", "is damaged"),
        ("[]", "does not describe a checkpoint"),
        ('{"format": 99}', "of format 99, not 1"),
        ('{"format": 1, "size": {"params_stored": 1}, "files": {"a": {}}}', "does not describe a checkpoint"),
        (
            '{"format": 1, "size": {"params_stored": 1}, "files": {"../a": {"sha256": "0", "bytes": 1}}}',
            "names files outside the folder",
        ),
    ],
)
def test_other_folders_are_refused(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "unicuco.json").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        audit(tmp_path)
    with pytest.raises(CheckpointError, match="No folder at"):
        audit(tmp_path / "nothing")


def rewrite(folder: Path, name: str, text: str) -> None:
    """Changes a file and what is recorded of it."""
    (folder / name).write_text(text)
    record = json.loads((folder / "unicuco.json").read_text())
    record["files"][name] = {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / "unicuco.json").write_text(json.dumps(record))
