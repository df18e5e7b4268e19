"""Evaluations against a slow reference that masks an untouched model, and what an evaluator promises besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.reference import SlowReference, divergence, input_grams, perplexity
from tests.unicuco.tiny import FLOAT32, measured, some_strategies
from unicuco.calibration import draw_windows
from unicuco.errors import ModelError, PreparationError, StrategyError
from unicuco.evaluations import Candidate
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import BaseModel
from unicuco.preparation import Preparation, prepare
from unicuco.space import SpaceConfig

Load = Callable[..., BaseModel]
Prepared = Callable[..., Preparation]


def close(found: float, expected: float) -> bool:
    return abs(found - expected) <= max(1e-3 * abs(expected), 1e-5)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_every_measure_agrees_with_masked_weights_in_the_untouched_model(
    family: str, load: Load, prepared: Prepared, model_folder: Callable[[str], Path]
) -> None:
    preparation = prepared(family)
    evaluator = Evaluator(str(model_folder(family)), preparation.folder, FLOAT32)
    untouched = load(family).model
    calibration = draw_windows(preparation.config.calibration, tiny.tokenizer(), "calibration")
    grams = input_grams(untouched, calibration.tokens)
    slow = SlowReference(untouched.double(), grams, preparation.orders, preparation.config.ridge)
    tokens = preparation.search_windows.tokens
    dense = slow.log_probs(None, tokens)
    assert abs(measured(evaluator, np.zeros(evaluator.space.num_sites, dtype=int)).kl) <= 1e-5
    for levels in some_strategies(evaluator.space, 6 if family in tiny.FAMILIES else 2):
        pruned = slow.log_probs(evaluator.space.shape(levels), tokens)
        found = measured(evaluator, levels)
        forward = divergence(dense, pruned)
        assert forward.mean() > 0.005, "too small to tell anything"
        assert close(found.kl, float(forward.mean()))
        assert close(found.kl_reverse, float(divergence(pruned, dense).mean()))
        assert close(found.perplexity, perplexity(pruned, tokens))
        assert all(close(a, b) for a, b in zip(found.window_kl, forward.mean(1).tolist(), strict=True))


@pytest.mark.parametrize(
    "space",
    [
        SpaceConfig(sites="block", neuron_multiple=32),
        SpaceConfig(pruner="depth"),
        SpaceConfig(drop=False, neuron_multiple=32),
    ],
)
def test_other_spaces_agree_with_masked_weights_too(
    space: SpaceConfig, load: Load, prepared: Prepared, model_folder: Callable[[str], Path]
) -> None:
    preparation = prepared("llama", space)
    evaluator = Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32)
    untouched = load("llama").model
    calibration = draw_windows(preparation.config.calibration, tiny.tokenizer(), "calibration")
    slow = SlowReference(
        untouched.double(), input_grams(untouched, calibration.tokens), preparation.orders, preparation.config.ridge
    )
    tokens = preparation.search_windows.tokens
    dense = slow.log_probs(None, tokens)
    for levels in np.random.default_rng(0).integers(0, evaluator.space.num_levels, (5, evaluator.space.num_sites)):
        pruned = slow.log_probs(evaluator.space.shape(levels), tokens)
        assert close(measured(evaluator, levels).kl, float(divergence(dense, pruned).mean()))


def test_the_model_is_dense_again_afterwards_module_for_module(
    model_folder: Callable[[str], Path], prepared: Prepared
) -> None:
    evaluator = Evaluator(str(model_folder("gemma3")), prepared("gemma3").folder, FLOAT32)
    model = evaluator.base.model
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    tensors = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    for levels in some_strategies(evaluator.space, 2):
        measured(evaluator, levels)
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
    after = dict(model.named_parameters())
    assert after.keys() == tensors.keys()
    assert all(p.data_ptr() == tensors[n][0] and torch.equal(p, tensors[n][1]) for n, p in after.items())


def test_the_model_is_dense_again_after_a_failure(llama: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    last = llama.space.num_levels - 1

    def fail(*args: Any) -> None:
        raise RuntimeError("the forward broke")

    handle = llama.base.model.get_decoder().norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the forward broke"):
        measured(llama, last)
    handle.remove()
    assert abs(measured(llama, 0 * last).kl) <= 1e-5


def test_the_same_strategy_gives_the_same_numbers(
    llama: Evaluator, model_folder: Callable[[str], Path], prepared: Prepared
) -> None:
    strategies = some_strategies(llama.space, 3)
    first = [measured(llama, levels) for levels in strategies]
    again = [measured(llama, levels) for levels in reversed(strategies)][::-1]
    other = Evaluator(str(model_folder("llama")), prepared("llama").folder, FLOAT32)
    for one, two, levels in zip(first, again, strategies, strict=True):
        three = measured(other, levels)
        assert (one.kl, one.kl_reverse, one.perplexity) == (two.kl, two.kl_reverse, two.perplexity)
        assert (one.kl, one.kl_reverse, one.perplexity) == (three.kl, three.kl_reverse, three.perplexity)


def test_an_evaluation_says_what_was_measured_on_what(llama: Evaluator) -> None:
    levels = some_strategies(llama.space, 1)[-1]
    candidate = Candidate("000007", tuple(levels.tolist()), "swap", -1.5, 0.25, 3)
    found = llama.evaluate(candidate)
    assert (found.eval_id, found.levels, found.origin) == ("000007", candidate.levels, "swap")
    assert (found.predicted_log_kl, found.predicted_sigma, found.policy_version) == (-1.5, 0.25, 3)
    assert found.params == llama.space.total(levels) and found.kept == llama.space.kept(levels)
    assert found.kl == measured(llama, levels).kl
    assert found.tokens == 4 * 32 and found.cost == found.tokens and found.seconds > 0
    assert found.dtype == "float32" and found.device == "cpu"
    assert found.preparation == llama.preparation.digest and found.windows == llama.preparation.search_windows.digest


def test_levels_that_no_site_has_are_refused(llama: Evaluator) -> None:
    with pytest.raises(StrategyError):
        llama.evaluate(Candidate("0", (99,) * llama.space.num_sites, "user"))


def test_hidden_states_and_log_probabilities_are_the_same_reference(
    model_folder: Callable[[str], Path], load: Load, text_file: Path, tmp_path: Path
) -> None:
    config = tiny.preparation_config(text_file)
    found = []
    for budget in (0, 1 << 30):
        preparation = prepare(load("gemma3"), tiny.tokenizer(), config, root=tmp_path / str(budget))
        settings = EvaluatorConfig(dtype="float32", reference_bytes=budget)
        evaluator = Evaluator(str(model_folder("gemma3")), preparation.folder, settings)
        found.append([measured(evaluator, levels) for levels in some_strategies(evaluator.space, 3)])
        sizes = [path.stat().st_size for path in (preparation.folder / "reference").glob("*.safetensors")]
        assert len(sizes) == 1
        width = 64 if budget == 0 else tiny.VOCAB
        assert sizes[0] == pytest.approx(4 * 32 * width * 4, rel=0.05)
    for hidden, log_probs in zip(*found, strict=True):
        assert hidden.kl == pytest.approx(log_probs.kl, rel=1e-4)
        assert hidden.kl_reverse == pytest.approx(log_probs.kl_reverse, rel=1e-4)


def test_small_batches_change_nothing(
    model_folder: Callable[[str], Path], prepared: Prepared, llama: Evaluator
) -> None:
    small = EvaluatorConfig(dtype="float32", batch_tokens=1)
    evaluator = Evaluator(str(model_folder("llama")), prepared("llama").folder, small)
    for levels in some_strategies(llama.space, 2):
        assert measured(evaluator, levels).kl == pytest.approx(measured(llama, levels).kl, rel=1e-4)


def test_a_soft_cap_on_the_logits_is_part_of_the_measure(tmp_path: Path, text_file: Path) -> None:
    from unicuco.models.load import load_base_model

    folder = tiny.save_model(tmp_path / "capped", "gemma3", final_logit_softcapping=2.0)
    base = load_base_model(str(folder))
    preparation = prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file))
    evaluator = Evaluator(str(folder), preparation.folder, FLOAT32)
    untouched = load_base_model(str(folder)).model
    tokens = preparation.search_windows.tokens
    slow = SlowReference(untouched.double(), [], preparation.orders, 0.01)
    last = evaluator.space.num_levels - 1
    dense, pruned = slow.log_probs(None, tokens), slow.log_probs(evaluator.space.shape(last), tokens)
    assert close(measured(evaluator, last).kl, float(divergence(dense, pruned).mean()))


def test_a_model_that_does_more_to_its_logits_is_refused(
    model_folder: Callable[[str], Path], prepared: Prepared, load: Load
) -> None:
    base = load("llama")
    forward = base.model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        found.logits = found.logits * 3
        return found

    base.model.forward = scaled  # as Granite or Cohere do
    with pytest.raises(ModelError, match="logits"):
        Evaluator("tiny", prepared("llama").folder, FLOAT32, base=base)


def test_several_domains_are_averaged_each_as_much_as_the_other(
    model_folder: Callable[[str], Path], load: Load, text_file: Path, tmp_path: Path
) -> None:
    other = tiny.write_text(tmp_path / "other.txt", seed=5)
    preparation = prepare(load("llama"), tiny.tokenizer(), tiny.preparation_config(text_file, other))
    evaluator = Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32)
    assert evaluator.windows.domains == ("words", "other") and evaluator.num_tokens == 2 * 4 * 32
    levels = some_strategies(evaluator.space, 1)[-1]
    found = measured(evaluator, levels)
    assert found.domain_kl == pytest.approx((found.window_kl[:4].mean(), found.window_kl[4:].mean()))
    assert found.kl == pytest.approx(np.mean(found.domain_kl)) and found.domain_kl[0] != found.domain_kl[1]
    # Three windows of one domain and one of the other still count half and half.
    uneven = draw_windows(preparation.config.calibration, tiny.tokenizer(), "search")
    keep = [0, 1, 2, 4]
    uneven = type(uneven)(uneven.tokens[keep], uneven.domain[keep], uneven.domains)
    some = Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32, windows=uneven)
    three = measured(some, levels)
    assert three.kl == pytest.approx((found.window_kl[:3].mean() + found.window_kl[4]) / 2, rel=1e-4)


def test_fresh_windows_get_their_own_reference(
    model_folder: Callable[[str], Path], prepared: Prepared, llama: Evaluator
) -> None:
    preparation = prepared("llama")
    fresh = draw_windows(preparation.config.calibration, tiny.tokenizer(), "heldout", 4)
    evaluator = Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32, windows=fresh)
    dense = np.zeros(evaluator.space.num_sites, dtype=int)
    assert abs(measured(evaluator, dense).kl) <= 1e-5
    levels = some_strategies(evaluator.space, 1)[-1]
    assert measured(evaluator, levels).kl != measured(llama, levels).kl


def test_bfloat16_ranks_strategies_as_float32_does(
    model_folder: Callable[[str], Path], prepared: Prepared, llama: Evaluator
) -> None:
    from scipy.stats import spearmanr

    evaluator = Evaluator(str(model_folder("llama")), prepared("llama").folder, EvaluatorConfig(dtype="bfloat16"))
    assert evaluator.base.model.dtype == torch.bfloat16
    pairs = [(measured(evaluator, v).kl, measured(llama, v).kl) for v in some_strategies(llama.space, 14)]
    half, full = np.array(pairs).T
    assert spearmanr(half, full).statistic >= 0.97
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.01)


def test_another_model_than_the_prepared_one_is_refused(
    model_folder: Callable[[str], Path], prepared: Prepared
) -> None:
    with pytest.raises(PreparationError, match="another base model"):
        Evaluator(str(model_folder("qwen3")), prepared("llama").folder, FLOAT32)


def test_no_such_device_is_a_clear_error(model_folder: Callable[[str], Path], prepared: Prepared) -> None:
    with pytest.raises(ModelError, match="device"):
        Evaluator(str(model_folder("llama")), prepared("llama").folder, EvaluatorConfig(device="abacus"))


def test_a_broken_reference_names_its_file(
    model_folder: Callable[[str], Path], load: Load, text_file: Path, tmp_path: Path
) -> None:
    preparation = prepare(load("llama"), tiny.tokenizer(), tiny.preparation_config(text_file), root=tmp_path)
    Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32)
    (file,) = (preparation.folder / "reference").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PreparationError, match=file.name):
        Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32)


def test_a_model_is_ordered_once(load: Callable[..., BaseModel], prepared: Callable[..., Preparation]) -> None:
    base, preparation = load("llama"), prepared("llama")
    shape = preparation.space.shape(np.ones(preparation.space.num_sites, dtype=np.int64))
    first = Evaluator("", preparation.folder, EvaluatorConfig(dtype="float32"), base=base).measure(shape)
    again = Evaluator("", preparation.folder, EvaluatorConfig(dtype="float32"), base=base).measure(shape)
    assert again.kl == first.kl
    base.ordered_by = "another preparation"
    with pytest.raises(PreparationError, match="anew"):
        Evaluator("", preparation.folder, EvaluatorConfig(dtype="float32"), base=base)
