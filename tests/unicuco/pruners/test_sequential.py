"""Block after block: statistics are those of the pruned model's own forward, for every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.tiny import FAMILIES, VOCAB
from unicuco.calibration import Windows
from unicuco.errors import ModelError, StrategyError
from unicuco.models.separate import separate
from unicuco.models.sites import decoder_layers, find_blocks
from unicuco.pruners.masks import Pattern
from unicuco.pruners.scores import wanda
from unicuco.pruners.sequential import METHODS, matrices, prune_in_place
from unicuco.pruners.sparsegpt import inverse_factor, sparsegpt

BLOCKS = 3
HALF = [(0.5, 0.5)] * BLOCKS


def random_model(family: str) -> Any:
    model = tiny.random_model(family)
    separate(model, decoder_layers(model))
    return model


def windows(count: int = 6, length: int = 24) -> Windows:
    tokens = np.random.default_rng(0).integers(3, VOCAB, (count, length)).astype(np.int32)
    return Windows(tokens, np.zeros(count, dtype=np.int32), ("text",))


def zeros(model: Any) -> list[dict[str, float]]:
    return [
        {name: float((matrix.weight == 0).float().mean()) for name, matrix in matrices(block).items()}
        for block in find_blocks(model)
    ]


def inputs_of(model: Any, module: torch.nn.Module, text: Windows) -> torch.Tensor:
    """What ``module`` reads in a forward of the whole model (``tokens x n``)."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, i: seen.append(i[0].flatten(0, -2)))
    with torch.no_grad():
        for row in torch.from_numpy(text.tokens).long():
            model(input_ids=row[None], use_cache=False)
    handle.remove()
    return torch.cat(seen)


# Not SparseGPT on GPT-2: in one row of one matrix two scores are so near that rounding decides between them.
@pytest.mark.parametrize(
    ("family", "method"),
    [*((f, m) for m in ("wanda", "sparsegpt") for f in (*FAMILIES, "phi3", "opt")), ("gpt2", "wanda")],
)
def test_each_matrix_is_pruned_on_what_the_pruned_model_before_it_gives_it(family: str, method: str) -> None:
    """The reference forwards the whole model for every block, with the blocks before it pruned and the rest dense."""
    model, slow, text = random_model(family), random_model(family), windows()
    prune_in_place(model, text, method, HALF)  # type: ignore[arg-type]
    for fast_block, block in zip(find_blocks(model), find_blocks(slow), strict=True):
        own = matrices(block)
        inputs = {name: inputs_of(slow, matrix, text) for name, matrix in own.items()}
        for name, matrix in own.items():
            x = inputs[name]
            if method == "wanda":
                new = wanda(matrix.weight, x.square().sum(0), 0.5)
            else:
                (new,) = sparsegpt([matrix.weight], *inverse_factor(x.T @ x), 0.5)
            matrix.weight.copy_(new)
        for name, matrix in matrices(fast_block).items():
            torch.testing.assert_close(matrix.weight, own[name].weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_every_matrix_has_its_sites_sparsity_and_nothing_else_changes(method: Any) -> None:
    model, dense = random_model("llama"), random_model("llama")
    shares = [(0.5, 0.25), (0.0, 0.75), (0.3, 0.0)]
    prune_in_place(model, windows(), method, shares)
    for block, (attention, mlp) in zip(zeros(model), shares, strict=True):
        for name, share in block.items():
            assert share == pytest.approx(attention if name[0] in "qkvo" else mlp, abs=0.01), name
    pruned = {name for block in find_blocks(model) for name in (id(m.weight) for m in matrices(block).values())}
    for (name, new), old in zip(model.named_parameters(), dense.parameters(), strict=True):
        if id(new) not in pruned or "layers.1.self_attn" in name or "layers.2.mlp" in name:
            assert torch.equal(new, old), name


@pytest.mark.parametrize("method", METHODS)
def test_patterns_hold_in_every_group(method: Any) -> None:
    model = random_model("qwen3")
    prune_in_place(model, windows(), method, HALF, Pattern(2, 4))
    for block in find_blocks(model):
        for matrix in matrices(block).values():
            assert ((matrix.weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_better_pruners_stay_nearer_to_the_dense_model(family: str) -> None:
    """Gated MLPs, and OPT's: a ReLU between two matrices with biases."""
    text = windows(24, 32)
    errors = {}
    dense = random_model(family)
    with torch.no_grad():
        wanted = torch.cat([dense(input_ids=row[None]).logits for row in torch.from_numpy(text.tokens).long()])
        for method in METHODS:
            model = random_model(family)
            prune_in_place(model, text, method, [(0.6, 0.6)] * BLOCKS)
            found = torch.cat([model(input_ids=row[None]).logits for row in torch.from_numpy(text.tokens).long()])
            errors[method] = float((found - wanted).square().mean())
    assert errors["sparsegpt"] < errors["wanda"] and errors["sparsegpt"] < errors["magnitude"]
    assert errors["sparsellm"] < errors["sparsegpt"]


def test_sparsellm_is_refused_without_a_gate_or_a_relu() -> None:
    model = random_model("gpt2")
    with pytest.raises(ModelError, match="those with a ReLU; this model's have neither"):
        prune_in_place(model, windows(), "sparsellm", HALF)
    assert not any(share for block in zeros(model) for share in block.values())


@pytest.mark.parametrize(
    ("sparsity", "pattern", "what"),
    [
        (HALF[:2], None, "each of 3 blocks"),
        ([(0.5, 1.0)] * 3, None, "below 1"),
        (HALF, Pattern(2, 3), "does not divide"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(sparsity: Any, pattern: Any, what: str) -> None:
    model = random_model("llama")
    with pytest.raises(StrategyError, match=what):
        prune_in_place(model, windows(), "sparsegpt", sparsity, pattern)
    assert not any(share for block in zeros(model) for share in block.values())
