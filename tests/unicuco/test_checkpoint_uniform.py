"""Uniform checkpoints: plain models of their family, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unicuco.checkpoint_models import CONFIGS, load, logits_of, masked_model, some_tokens, tiny_model, write
from unicuco.errors import CheckpointError
from unicuco.models.hetero import NEURONS
from unicuco.space import Shape

torch.set_num_threads(1)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_uniform_checkpoint_is_a_plain_model_of_its_family(family: str, tmp_path: Path) -> None:
    base, tokens = tiny_model(family), some_tokens()
    # GPT-2 and OPT have no name for the number of heads that are left, and another for that of neurons.
    few, many = (base.geometry.blocks[0].groups,) * 2 if family in NEURONS else (1, 2)
    for i, shape in enumerate((Shape((few, 0, few, few), (32, 0, 32, 32)), Shape((0, *(many,) * 3), (0, 96, 96, 96)))):
        folder = write(base, shape, tmp_path / str(i), "uniform")
        model = load(folder)
        assert type(model) is type(base.model) and not list(folder.glob("*.py"))
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [type(base.model).__name__]
        assert not {"auto_map", "per_layer_config", "extra_mlps"} & config.keys()
        neurons = getattr(model.config, NEURONS.get(family, "intermediate_size"))
        assert (model.config.num_hidden_layers, neurons) == (3, max(shape.neurons))
        expected = logits_of(masked_model(base, shape), tokens)
        torch.testing.assert_close(logits_of(model, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "shape",
    [
        Shape((1, 1, 1, 2), (32, 32, 32, 32)),
        Shape((1, 1, 1, 1), (32, 32, 32, 48)),
        Shape((1, 1, 1, 0), (32, 32, 32, 32)),
        Shape((0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_other_shapes_are_not_uniform(shape: Shape, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="whole blocks of the same width"):
        write(tiny_model("llama"), shape, tmp_path / "out", "uniform")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", NEURONS)
def test_heads_that_a_family_cannot_leave_out_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="as many heads as fill their hidden size"):
        write(tiny_model(family), Shape((1,) * 4, (32,) * 4), tmp_path / "out", "uniform")
    assert not list(tmp_path.iterdir())


def test_widths_that_a_family_does_not_allow_are_refused(tmp_path: Path) -> None:
    base = tiny_model("llama", hidden_size=80)  # not a multiple of six heads; of four it is
    with pytest.raises(CheckpointError, match=r"cannot have these widths.*not a multiple"):
        write(base, Shape((3,) * 4, (32,) * 4), tmp_path / "out", "uniform")
    assert type(load(write(base, Shape((2,) * 4, (32,) * 4), tmp_path / "in", "uniform"))) is type(base.model)
