"""From a model to a smaller checkpoint without data: right shapes, right rows, and no text read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import unicuco.models.hetero  # noqa: F401  (checkpoints load without their own code)
from tests.unicuco import tiny
from unicuco import calibration
from unicuco.datafree import DATA_FREE, DataFreeConfig, data_free_pruner, prune_data_free
from unicuco.errors import ModelError, PolicyError, StrategyError
from unicuco.models.load import load_base_model
from unicuco.models.sites import find_blocks
from unicuco.pruners.prunenet import PruneNetConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> str:
        raise AssertionError("text was read")

    monkeypatch.setattr(calibration, "read_text", refuse)


@pytest.mark.usefixtures("no_text")
@pytest.mark.parametrize("method", DATA_FREE)
def test_a_smaller_checkpoint_and_no_text_read(model: Path, tmp_path: Path, method: str) -> None:
    config = DataFreeConfig(method=method, sparsity=0.3, dtype="float32")  # type: ignore[arg-type]
    done = prune_data_free(str(model), config, tmp_path / "small")
    loaded, dense = AutoModelForCausalLM.from_pretrained(tmp_path / "small"), load_base_model(str(model)).model
    for small, whole in zip(find_blocks(loaded), find_blocks(dense), strict=True):
        assert small.mlp.down_proj.weight.shape == (64, 179)  # ⌊0.7 · 256⌋
        assert torch.equal(small.attention.o_proj.weight, whole.attention.o_proj.weight)
        if method != "folding":  # rows of one and the same neurons
            kept = [int((whole.mlp.gate_proj.weight == row).all(1).nonzero()) for row in small.mlp.gate_proj.weight]
            assert torch.equal(small.mlp.up_proj.weight, whole.mlp.up_proj.weight[kept])
            assert torch.equal(small.mlp.down_proj.weight, whole.mlp.down_proj.weight[:, kept])
    record = json.loads((tmp_path / "small" / "unicuco.json").read_text())
    assert record["pruner"] == method and record["measured"] == done.measured == {}
    assert record["shape"]["neurons"] == [179] * 3 and record["verification"] is not None
    assert "no text was read" in record["calibration"]["calibration"]


@pytest.mark.usefixtures("no_text")
def test_mlps_without_a_gate(tmp_path: Path) -> None:
    model = str(tiny.save_model(tmp_path / "gpt2", "gpt2"))
    prune_data_free(model, DataFreeConfig(method="row-norms", sparsity=0.3, dtype="float32"), tmp_path / "small")
    loaded, dense = AutoModelForCausalLM.from_pretrained(tmp_path / "small"), load_base_model(model).model
    for small, whole in zip(loaded.transformer.h, find_blocks(dense), strict=True):
        longest = whole.mlp.up_proj.weight.norm(dim=1).topk(179).indices.sort().values
        assert torch.equal(small.mlp.c_fc.weight, whole.mlp.up_proj.weight[longest].T)
        assert torch.equal(small.mlp.c_fc.bias, whole.mlp.up_proj.bias[longest])
        assert torch.equal(small.mlp.c_proj.weight, whole.mlp.down_proj.weight[:, longest].T)
    with pytest.raises(ModelError, match="MLPs have no gate"):
        data_free_pruner(load_base_model(model), DataFreeConfig(method="alignment", sparsity=0.3))


READ_BY_PYTHON = (".py", ".pyc", ".so")
_watched: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook stays until Python ends, so there is one, which notes what is opened while somebody watches."""
    if event == "open" and _watched and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _watched[-1].append(os.fsdecode(arguments[0]))
    elif event.startswith("socket.connect") and _watched:
        _watched[-1].append("a connection")


sys.addaudithook(_note)


@pytest.mark.parametrize("reward", ["reproduction", "spectrum"])
def test_prunenet_learns_and_chooses_without_opening_a_file(model: Path, reward: str, tmp_path: Path) -> None:
    base = load_base_model(str(model), "float32")
    learning = PruneNetConfig(sparsity=0.3, episodes=3, reward=reward)  # type: ignore[arg-type]
    opened: list[str] = []
    _watched.append(opened)
    try:
        data_free_pruner(base, DataFreeConfig(method="prunenet", sparsity=0.3, prunenet=learning))
        assert [path for path in opened if not path.endswith(READ_BY_PYTHON)] == []
        (tmp_path / "text.txt").write_text("words")
        assert any(path.endswith("text.txt") for path in opened)  # it would have been seen
    finally:
        _watched.clear()


def test_what_is_chosen_depends_on_weights_and_seed_alone(model: Path) -> None:
    learning = PruneNetConfig(sparsity=0.3, episodes=4)

    def kept(config: PruneNetConfig) -> list[torch.Tensor]:
        base = load_base_model(str(model), "float32")
        pruner = data_free_pruner(base, DataFreeConfig(method="prunenet", sparsity=0.3, prunenet=config))
        return [pruner.pruned_block(b, 4, 179).mlp["gate_proj.weight"] for b in range(3)]

    first = kept(learning)
    assert all(map(torch.equal, first, kept(learning)))
    assert not all(map(torch.equal, first, kept(learning.model_copy(update={"seed": 1}))))


def test_measuring_reads_text_and_says_what_it_found(model: Path, tmp_path: Path) -> None:
    text = tiny.calibration(tiny.write_text(tmp_path / "words.txt"))
    done = prune_data_free(str(model), DataFreeConfig(method="random", sparsity=0.5), tmp_path / "small", text)
    assert done.measured["kl_heldout"] > 0 and done.measured["perplexity_heldout"] > 1


@pytest.mark.usefixtures("no_text")
def test_a_policy_is_learned_once_and_chooses_at_other_shares(model: Path, tmp_path: Path) -> None:
    base = load_base_model(str(model))
    config = DataFreeConfig(method="prunenet", sparsity=0.4, policy=tmp_path / "policy")
    data_free_pruner(base, config)
    written = (tmp_path / "policy" / "policy.safetensors").read_bytes()
    again = data_free_pruner(base, config.model_copy(update={"sparsity": 0.2, "seed": 3}))
    assert again.shape.neurons == (204,) * 3 and (tmp_path / "policy" / "policy.safetensors").read_bytes() == written
    with pytest.raises(StrategyError, match="pruned to 204"):
        again.pruned_block(0, 4, 100)
    paper = PruneNetConfig(reward="spectrum")
    with pytest.raises(PolicyError, match="learned by the reward 'reproduction', not 'spectrum'"):
        data_free_pruner(base, config.model_copy(update={"prunenet": paper}))
    other = load_base_model(str(tiny.save_model(tmp_path / "other", "llama", intermediate_size=128)))
    with pytest.raises(ModelError, match="does not fit"):
        data_free_pruner(other, config)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PolicyError, match="exists already"):
        data_free_pruner(base, config.model_copy(update={"policy": tmp_path / "file"}))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"method": "folding", "sparsity": 0.2, "policy": "here"}, "only 'prunenet'"),
        ({"method": "folding", "sparsity": 0.0}, "greater than 0"),
        ({"method": "folding"}, "required"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        DataFreeConfig.model_validate(values)
