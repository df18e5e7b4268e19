"""The level database: each level is what the pruner makes of the matrix on dense activations, no more and no less."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from unicuco.errors import DiskFullError, ModelError, StrategyError
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.level_database import database_bytes, wanda_levels
from unicuco.levels import SPARSITY_PRUNERS, SpaceConfig
from unicuco.models.load import BaseModel
from unicuco.models.sites import find_blocks
from unicuco.preparation import Preparation, prepare
from unicuco.pruners.build import build_pruner
from unicuco.pruners.leveled import LevelPruner
from unicuco.pruners.scores import wanda
from unicuco.pruners.sequential import count_zeros, matrices, prune_in_place

SPARSITIES = (0.0, 0.3, 0.5, 0.75)
ROOT = Path(__file__).resolve().parents[2]


def sparse_space(pruner: str, **changes: Any) -> SpaceConfig:
    return SpaceConfig.model_validate({"pruner": pruner, "sparsities": SPARSITIES} | changes)


@pytest.fixture(params=SPARSITY_PRUNERS)
def pruner(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prepare_float32(base: BaseModel, text: Path, space: SpaceConfig, root: Path | None = None) -> Preparation:
    config = tiny.preparation_config(text, space=space, calibration_windows=10)
    config = config.model_copy(update={"dtype": "float32"})
    return prepare(base, tiny.tokenizer(), config, root=root)


def by_hand(load: Callable[..., BaseModel], found: Preparation, levels: np.ndarray, family: str = "llama") -> Any:
    """The model with every matrix pruned on the dense model's activations, by the pruner itself."""
    model = load(family).model
    shares = found.space.shape(levels).sparsity
    windows = found.calibration_windows
    prune_in_place(model, windows, found.config.space.pruner, shares, dense_inputs=True)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_levels_are_what_the_pruner_makes_of_each_matrix_on_dense_inputs(
    load: Callable[..., BaseModel], text_file: Path, pruner: str, family: str
) -> None:
    base = load(family)
    found = prepare_float32(base, text_file, sparse_space(pruner))
    own = build_pruner(base, found)
    assert isinstance(own, LevelPruner)
    for level in range(1, len(SPARSITIES)):
        model = by_hand(load, found, np.full(found.space.num_sites, level), family)
        for b, block in enumerate(find_blocks(model)):
            for name, matrix in matrices(block).items():
                weight = own.weight(b, name, level)
                if pruner == "wanda":
                    assert torch.equal(weight, matrix.weight), (b, name, level)
                else:
                    torch.testing.assert_close(weight, matrix.weight, rtol=1e-3, atol=1e-4, msg=f"{b} {name} {level}")


@pytest.mark.parametrize(("family", "sites"), [("qwen2", "sublayer"), ("qwen2", "block"), ("opt", "sublayer")])
def test_what_a_strategy_says_it_keeps_is_what_is_not_zero(
    load: Callable[..., BaseModel], text_file: Path, pruner: str, family: str, sites: str
) -> None:
    base = load(family)
    found = prepare_float32(base, text_file, sparse_space(pruner, sites=sites, sparsities=(0, 0.33, 0.515, 0.77)))
    space, own = found.space, build_pruner(base, found)
    assert isinstance(own, LevelPruner)
    rng = np.random.default_rng(0)
    for levels in [space.smallest, *(rng.integers(0, 4, space.num_sites) for _ in range(4))]:
        shares = space.shape(levels).sparsity
        zeros = 0
        for b, (attention, mlp) in enumerate(shares):
            left = own.sparse_block(b, attention, mlp)
            tensors = (left.attention, left.mlp)
            zeros += sum(int((t == 0).sum()) for part in tensors for name, t in part.items() if "proj.weight" in name)
        size = space.size(levels)
        assert size.params == space.geometry.params - zeros
        assert size.kept == pytest.approx(1 - zeros / space.geometry.block_params, abs=1e-12)
        # Zeros in dense shapes make nothing smaller or faster.
        dense = space.size(np.zeros_like(levels))
        assert (size.bytes, size.flops_per_token, size.kv_bytes_per_token) == (
            dense.bytes,
            dense.flops_per_token,
            dense.kv_bytes_per_token,
        )


def test_an_evaluation_is_that_of_a_model_whose_weights_were_pruned_by_hand(
    load: Callable[..., BaseModel], text_file: Path, pruner: str, model_folder: Callable[[str], Path]
) -> None:
    found = prepare_float32(load("llama"), text_file, sparse_space(pruner))
    evaluator = Evaluator(str(model_folder("llama")), found.folder, tiny.FLOAT32)
    dense, tokens = load("llama").model, torch.from_numpy(found.search_windows.tokens).long()
    for levels in tiny.some_strategies(found.space, 2):
        model = by_hand(load, found, levels)
        with torch.no_grad():
            p, q = (m(input_ids=tokens).logits.double().log_softmax(-1) for m in (dense, model))
        expected = float((p.exp() * (p - q)).sum(-1).mean())
        assert tiny.measured(evaluator, levels).kl == pytest.approx(expected, rel=2e-3)
    assert tiny.measured(evaluator, np.zeros(found.space.num_sites, dtype=int)).kl == pytest.approx(0, abs=1e-6)


def test_wandas_masks_are_nested_and_break_ties_as_the_pruner_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (8, 50), generator=generator) / 2  # ties, and zeros
    energy = torch.randint(0, 3, (50,), generator=generator).float()
    sparsities = tuple(i / 40 for i in range(40))
    dies = wanda_levels(weight, energy, sparsities)
    for level, sparsity in enumerate(sparsities):
        assert torch.equal(weight.masked_fill(dies <= level, 0), wanda(weight, energy, sparsity))
    assert int(dies.max()) == 40 and dies.dtype == torch.uint8


def test_damage_grows_with_the_level_and_foretells_which_site_hurts_more(
    load: Callable[..., BaseModel], text_file: Path, pruner: str, model_folder: Callable[[str], Path]
) -> None:
    found = prepare_float32(load("llama"), text_file, sparse_space(pruner))
    assert (np.diff(found.damage, axis=1) >= 0).all() and not found.damage[:, 0].any()
    evaluator = Evaluator(str(model_folder("llama")), found.folder, tiny.FLOAT32)
    single = np.eye(found.space.num_sites, dtype=int) * 2
    measured = [tiny.measured(evaluator, row).kl for row in single]
    predicted = found.damage[:, 2]
    assert np.corrcoef(np.log(measured), np.log(predicted))[0, 1] > 0.7
    assert 0.2 < np.exp(np.mean(np.log(predicted) - np.log(measured))) < 5


def test_a_database_takes_what_was_said_and_wandas_one_byte_a_weight(
    load: Callable[..., BaseModel], text_file: Path, pruner: str, tmp_path: Path
) -> None:
    said: list[str] = []
    base = load("llama", "bfloat16")
    config = tiny.preparation_config(text_file, space=sparse_space(pruner))
    found = prepare(base, tiny.tokenizer(), config, lambda stage, done, total: said.append(stage), tmp_path)
    bytes_said = database_bytes(base.geometry, config.space, 2)
    stored = [path.stat().st_size for path in found.folder.glob("levels.*")]
    assert bytes_said <= sum(stored) <= bytes_said + 1500 * len(stored)  # headers
    _, weights = count_zeros(base.model)
    assert bytes_said == weights * (1 if pruner == "wanda" else 2 * 3)
    assert "on disk" in said[0]
    reopened = build_pruner(load("llama"), found)  # float32: levels are stored in the preparation's own dtype
    assert isinstance(reopened, LevelPruner) and reopened.weight(0, "q_proj", 1).dtype == torch.float32


def test_masked_weights_are_cached_within_a_budget(load: Callable[..., BaseModel], text_file: Path) -> None:
    base = load("llama")
    found = prepare_float32(base, text_file, sparse_space("wanda"))
    own = LevelPruner(base, found, cache_bytes=40_000)
    first = own.weight(0, "q_proj", 1)
    assert own.weight(0, "q_proj", 1) is first
    for level in (1, 2, 3):
        own.sparse_block(1, SPARSITIES[level], SPARSITIES[level])
    assert own._cache.held_bytes <= max(40_000, own.weight(0, "gate_proj", 1).nbytes)
    assert torch.equal(own.weight(0, "q_proj", 1), first)


def test_a_sparsity_that_is_no_level_is_refused(load: Callable[..., BaseModel], text_file: Path) -> None:
    base = load("llama")
    own = build_pruner(base, prepare_float32(base, text_file, sparse_space("wanda")))
    assert isinstance(own, LevelPruner)
    with pytest.raises(StrategyError, match=r"no sparsity of 0\.4; it has 0, 0\.3, 0\.5, 0\.75"):
        own.sparse_block(0, 0.4, 0.0)


def test_no_room_on_the_disk_is_said_before_any_work(
    load: Callable[..., BaseModel], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(DiskFullError, match="level database takes"):
        prepare_float32(load("llama"), text_file, sparse_space("sparsegpt"), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_sparsellm_refuses_biases_before_any_work(
    load: Callable[..., BaseModel], text_file: Path, tmp_path: Path
) -> None:
    base = load("llama")
    find_blocks(base.model)[1].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(64))
    with pytest.raises(ModelError, match="without biases"):
        prepare_float32(base, text_file, sparse_space("sparsellm"), tmp_path)


BUILD = """
import sys
from pathlib import Path
from tests.unicuco import tiny
from tests.unicuco.test_level_database import prepare_float32, sparse_space
from unicuco.models.load import load_base_model
base = load_base_model(sys.argv[1], "float32")
prepare_float32(base, Path(sys.argv[2]), sparse_space("sparsegpt"), Path(sys.argv[3]))
"""


def test_a_builder_that_is_killed_leaves_nothing_that_counts_and_the_next_clears_up(
    model_folder: Callable[[str], Path], load: Callable[..., BaseModel], text_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", BUILD, str(model_folder("llama")), str(text_file), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while process.poll() is None and not list(tmp_path.glob(".*/levels.001.*")):
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"
    assert not list(tmp_path.glob("*/preparation.json")) and list(tmp_path.glob(".*.tmp"))
    found = prepare_float32(load("llama"), text_file, sparse_space("sparsegpt"), tmp_path)
    assert len(list(found.folder.glob("levels.*"))) == 3 * (len(SPARSITIES) - 1)
    assert not list(tmp_path.glob(".*.tmp"))


def test_bfloat16_evaluators_map_the_levels_and_copy_nothing(
    load: Callable[..., BaseModel], text_file: Path, model_folder: Callable[[str], Path]
) -> None:
    config = tiny.preparation_config(text_file, space=sparse_space("sparsegpt"))
    found = prepare(load("llama", "bfloat16"), tiny.tokenizer(), config)
    evaluator = Evaluator(str(model_folder("llama")), found.folder, EvaluatorConfig(dtype="bfloat16"))
    assert isinstance(evaluator.pruner, LevelPruner)
    evaluator.measure(found.space.shape(found.space.smallest))
    assert evaluator.pruner._cache.held_bytes == 0
