"""Judging checkpoints: texts in and out of distribution side by side, against plain transformers; one picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unicuco import tiny
from unicuco.assess import assess
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.errors import CalibrationError, ModelError
from unicuco.evaluator import Evaluator
from unicuco.report.judgements import draw_judgements
from unicuco.tasks import Score, TaskScore

SMALL = {"tokens": 256, "window_length": 32, "dtype": "float32"}


@pytest.fixture(scope="module")
def checkpoint(llama: Evaluator, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with a third of its levels gone, calibrated on the session's text."""
    levels = np.arange(llama.space.num_sites) % 3
    card = CheckpointCard(calibration=tiny.calibration(text_file).model_dump(mode="json"))
    target = tmp_path_factory.mktemp("assess") / "small"
    write_checkpoint(llama.base, tiny.tokenizer(), llama.pruner, llama.space.shape(levels), target, card=card)
    return target


def test_every_text_beside_the_dense_model(
    checkpoint: Path, text_file: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tiny.write_text(tmp_path / "other.txt", seed=5)
    dense, small = assess(str(checkpoint), texts=[str(text_file), f"else={other}"], **SMALL)
    assert [(t.text, t.distribution) for t in small.texts] == [("words", "in"), ("else", "out")]
    plain = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float32).eval()
    for i, file in enumerate((text_file, other)):
        ids = tiny.tokenizer()(file.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0, :256].view(8, 32)
        with torch.no_grad():
            expected = math.exp(plain(input_ids=ids, labels=ids).loss.item())
        assert dense.texts[i].perplexity == pytest.approx(expected, rel=1e-5)
        assert dense.texts[i].kl is None and dense.texts[i].perplexity_ratio == 1.0
        assert small.texts[i].kl > 0.01
        assert small.texts[i].perplexity_ratio == pytest.approx(small.texts[i].perplexity / expected, rel=1e-5)
    assert small.parameters < dense.parameters


def test_without_a_text_it_is_what_the_checkpoint_was_calibrated_on(checkpoint: Path, text_file: Path) -> None:
    (_, plain), (_, named) = assess(str(checkpoint), **SMALL), assess(str(checkpoint), texts=str(text_file), **SMALL)
    assert plain.texts[0].distribution == "in"
    assert plain.texts[0].kl == named.texts[0].kl


def test_several_checkpoints_are_compared_with_one_base(checkpoint: Path, text_file: Path) -> None:
    dense, first, second = assess([str(checkpoint), str(checkpoint)], texts=str(text_file), **SMALL)
    assert first.texts[0].kl == second.texts[0].kl > 0.0
    assert dense.texts[0].kl is None


def test_mistakes_are_found_before_any_model_is_loaded(
    checkpoint: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("unicuco.assess.load_model", loaded)
    with pytest.raises(CalibrationError, match="Two texts are called 'words'"):
        assess(str(checkpoint), texts=[str(text_file), str(text_file)], **SMALL)
    with pytest.raises(CalibrationError, match=r"nowhere\.txt"):
        assess(str(checkpoint), texts=[str(text_file), "nowhere.txt"], **SMALL)
    with pytest.raises(ModelError, match="nowhere"):
        assess([str(checkpoint), "./nowhere"], texts=str(text_file), **SMALL)


def test_the_picture_shows_every_text_and_task(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    results = assess(str(checkpoint), texts=str(text_file), **SMALL)
    picture = draw_judgements(results)
    picture.save(tmp_path / "plain.png")
    assert len(picture.figure.axes) == 1
    scored = {"piqa": TaskScore({"acc": Score(0.6, 0.1, [1.0, 0.0])}, "acc", 0.5, 2)}
    picture = draw_judgements([replace(result, tasks=scored) for result in results])
    picture.save(tmp_path / "tasks.png")
    texts, tasks = picture.figure.axes
    heights = [bar.get_height() for bar in texts.patches]
    assert heights == [1.0, results[1].texts[0].perplexity_ratio]
    assert [label.get_text() for label in texts.get_xticklabels()] == ["words\n(in)"]
    assert [bar.get_height() for bar in tasks.patches] == [0.6, 0.6]
    assert (tmp_path / "tasks.png").read_bytes()[:4] == b"\x89PNG"
