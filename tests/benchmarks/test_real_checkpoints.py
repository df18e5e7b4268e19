"""The benchmark of real models, on tiny ones: equal layouts pass, others are found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import real_checkpoints
from benchmarks.tiny_families import some_tokens, tiny_model
from unicuco.models.load import BaseModel

PROMPTS = [some_tokens(5, seed)[:1] for seed in (1, 2)]


@pytest.fixture
def base() -> BaseModel:
    return tiny_model("gemma3_text")


def test_strategies_drop_the_first_sublayers_and_reach_their_size(base: BaseModel) -> None:
    found = real_checkpoints.strategies(base.geometry, 6)
    shapes = list(found.values())
    assert len(found) == 6 and found == real_checkpoints.strategies(base.geometry, 6)
    assert [(bool(s.groups[0]), bool(s.neurons[0])) for s in shapes[:3]] == [
        (False, True),
        (True, False),
        (False, False),
    ]
    assert real_checkpoints.KEPT - 0.02 < real_checkpoints.kept(base.geometry, shapes[3]) <= real_checkpoints.KEPT
    assert all(shapes[3].groups) and all(shapes[3].neurons)
    assert all(any(s.groups) for s in shapes)


def test_equal_layouts_pass(base: BaseModel) -> None:
    for name, shape in real_checkpoints.strategies(base.geometry, 3).items():
        found = real_checkpoints.check_strategy(base, name, shape, some_tokens(24), PROMPTS)
        assert not found.failed and found.masked < 1e-4 and found.layouts < 1e-4 and abs(found.ratio - 1) < 1e-4
        assert 1 < found.perplexity < 1e6


def test_what_is_wrong_is_found(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embeddings are a little off by the time the padded layout is written."""
    right = real_checkpoints.write_checkpoint

    def wrong(base: Any, tokenizer: Any, pruner: Any, shape: Any, target: Path, layout: str, **options: Any) -> Any:
        if layout == "padded":
            base.model.get_output_embeddings().weight.data.mul_(1.05)
        return right(base, tokenizer, pruner, shape, target, layout, **options)

    monkeypatch.setattr(real_checkpoints, "write_checkpoint", wrong)
    (name, shape), *_ = real_checkpoints.strategies(base.geometry, 1).items()
    failed = real_checkpoints.check_strategy(base, name, shape, some_tokens(24), PROMPTS).failed
    assert [reason.split(" by ")[0] for reason in failed[:2]] == [
        "logits differ from each other", "logits differ from the masked original",
    ]  # fmt: skip
    assert any("perplexities have the ratio" in reason for reason in failed)
    nothing, zeros = torch.tensor([[[torch.nan], [0.0]]]), torch.zeros(1, 2, 1)
    spoilt = real_checkpoints.worse(1.0, nothing, zeros)
    assert math.isnan(spoilt) and math.isnan(real_checkpoints.worse(spoilt, zeros, zeros))
