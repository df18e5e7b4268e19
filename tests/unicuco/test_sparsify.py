"""From a model to a checkpoint with zeros: as many as asked for, loaded by stock transformers, described honestly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tests.unicuco import tiny
from unicuco.calibration import CalibrationConfig
from unicuco.models.sites import find_blocks
from unicuco.pruners.sequential import matrices
from unicuco.sparsify import SparsifyConfig, sparsify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> CalibrationConfig:
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "words.txt")
    return tiny.calibration(text)


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.6, None), (None, "2:4")])
def test_stock_transformers_loads_what_was_asked_for(
    model: Path, calibration: CalibrationConfig, tmp_path: Path, sparsity: float | None, pattern: str | None
) -> None:
    config = SparsifyConfig(
        method="sparsegpt", sparsity=sparsity, pattern=pattern, calibration=calibration, dtype="float32"
    )
    done = sparsify(str(model), config, tmp_path / "sparse")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    weights = [m.weight for block in find_blocks(loaded) for m in matrices(block).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(w.numel() for w in weights) == pytest.approx(config.share, abs=0.002) == done.zeros
    dense = AutoModelForCausalLM.from_pretrained(model)
    assert torch.equal(loaded.model.embed_tokens.weight, dense.model.embed_tokens.weight)
    record = json.loads((tmp_path / "sparse" / "unicuco.json").read_text())
    assert record["pruner"] == "sparsegpt" and record["zeros"] == zeros and record["layout"] == "padded"
    assert record["measured"]["kl_heldout"] == done.measured["kl_heldout"] > 0
    assert record["calibration"]["seed"] == 0 and record["request"]["method"] == "sparsegpt"
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert f"{zeros:,} of" in card and "no smaller or faster" in card


def test_blocks_may_have_sparsities_of_their_own(model: Path, calibration: CalibrationConfig, tmp_path: Path) -> None:
    config = SparsifyConfig(method="wanda", sparsity=0.5, allocation="owl", calibration=calibration, dtype="float32")
    done = sparsify(str(model), config, tmp_path / "sparse")
    assert done.zeros == pytest.approx(0.5, abs=0.01)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    each = [
        np.mean([float((m.weight == 0).float().mean()) for m in matrices(block).values()])
        for block in find_blocks(loaded)
    ]
    stated = json.loads((tmp_path / "sparse" / "unicuco.json").read_text())["measured"]["sparsity_of_blocks"].split()
    assert [float(share) for share in stated] == pytest.approx(each, abs=0.02)
    assert max(each) - min(each) > 0.05


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"method": "sparsegpt"}, "either a sparsity or a pattern"),
        ({"method": "sparsegpt", "sparsity": 0.5, "pattern": "2:4"}, "either a sparsity or a pattern"),
        ({"method": "wanda", "pattern": "2:4", "allocation": "owl"}, "no other allocation"),
        ({"method": "wanda", "sparsity": 1.0}, "less than 1"),
        ({"method": "wanda", "pattern": "4:2"}, "N:M"),
        ({"method": "guess", "sparsity": 0.5}, "'magnitude', 'wanda', 'sparsegpt' or 'sparsellm'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_is_allowed(values: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        SparsifyConfig.model_validate(values)
