"""SparseLLM: exact steps never raise the objective, the gate's steps backtrack, and the best epoch is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from unicuco.pruners.ffn_steps import Penalties, newton_gate
from unicuco.pruners.masks import Pattern
from unicuco.pruners.sparsegpt import inverse_factor, sparsegpt
from unicuco.pruners.sparsellm import GatedFfn, ReluFfn, sparsellm

TOKENS, WIDTH, HIDDEN = 300, 24, 64


def gated(seed: int, dtype: torch.dtype = torch.float64, of: Penalties | None = None) -> tuple[GatedFfn, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = draw(TOKENS, WIDTH) @ draw(WIDTH, WIDTH) / WIDTH**0.5
    up, gate, down = draw(HIDDEN, WIDTH) / 4, draw(HIDDEN, WIDTH) / 4, draw(WIDTH, HIDDEN) / 8
    targets = run_gated(inputs, [up, gate, down])
    return GatedFfn([up, gate, down], inputs, targets, functional.silu, of), targets


def run_gated(inputs: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    up, gate, down = weights
    return (functional.silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T


def relu(seed: int) -> tuple[ReluFfn, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(TOKENS, WIDTH) @ draw(WIDTH, WIDTH) / WIDTH**0.5
    first, second, biases = draw(HIDDEN, WIDTH) / 4, draw(WIDTH, HIDDEN) / 8, [draw(HIDDEN) / 4, draw(WIDTH) / 4]
    targets = (inputs @ first.T + biases[0]).relu() @ second.T + biases[1]
    return ReluFfn([first, second], biases, inputs, targets), targets


@pytest.mark.parametrize("make", [gated, relu])
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_no_step_of_an_auxiliary_raises_the_objective(make: Any, sparsity: float) -> None:
    ffn, targets = make(0)
    _, trace = sparsellm(ffn, targets, sparsity)
    for (_, before), (name, after) in zip(trace.steps, trace.steps[1:], strict=False):
        if name in ("p", "z", "s", "solve"):
            # Re-solved weights have a ridge, so their step may stand still but for its share.
            assert after <= before * (1 + (0.01 if name == "solve" else 1e-9)), name


@pytest.mark.parametrize("make", [gated, relu])
def test_the_best_epoch_is_kept_and_none_is_worse_than_sparsegpt(make: Any) -> None:
    ffn, targets = make(1)
    weights, trace = sparsellm(ffn, targets, 0.8)
    assert trace.errors[trace.best] == min(trace.errors)
    assert trace.errors[trace.best] < 0.9 * trace.errors[0], "the first epoch is SparseGPT"
    if make is gated:
        found = run_gated(ffn._x, weights)
    else:
        found = (ffn._x @ weights[0].T + ffn._bias[0]).relu() @ weights[1].T + ffn._bias[1]
    error = float((targets - found).square().sum() / targets.square().sum())
    assert error == pytest.approx(trace.errors[trace.best])
    for weight in weights:
        assert (weight == 0).double().mean() == pytest.approx(0.8, abs=1 / weight.numel())


def test_the_first_epoch_is_sparsegpt() -> None:
    ffn, targets = gated(2)
    up, gate, down = ffn.weights
    inputs = ffn._x
    hidden = functional.silu(inputs @ gate.T) * (inputs @ up.T)
    weights, _ = sparsellm(ffn, targets, 0.5, Pattern(2, 4), epochs=1)
    wanted = [
        *sparsegpt([up, gate], *inverse_factor(inputs.T @ inputs), 0.5, Pattern(2, 4)),
        *sparsegpt([down], *inverse_factor(hidden.T @ hidden), 0.5, Pattern(2, 4)),
    ]
    for found, own in zip(weights, wanted, strict=True):
        torch.testing.assert_close(found, own)


def test_p_is_the_exact_minimum() -> None:
    """A textbook solve, token by token."""
    of = Penalties(alpha=0.3, beta=2.0, gamma=0.7)
    ffn, targets = gated(3, of=of)
    ffn.prune(0.6, None)
    down = ffn.weights[2].numpy()
    activated = (functional.silu(ffn._s) * ffn._z).numpy()
    ffn._update_p()
    system = of.beta * down.T @ down + of.gamma * np.eye(HIDDEN)
    for t in range(0, TOKENS, 50):
        right = of.beta * down.T @ targets[t].numpy() + of.gamma * activated[t]
        np.testing.assert_allclose(ffn._p[t].numpy(), np.linalg.solve(system, right), atol=1e-10)


@pytest.mark.parametrize("make", [gated, relu])
def test_z_is_the_exact_minimum(make: Any) -> None:
    """No value on a fine grid around it has a lower objective."""
    ffn, _ = make(4)
    ffn.prune(0.6, None)
    ffn._update_p()
    ffn._update_z()
    best, least = ffn._z.clone(), ffn.objective()
    for delta in np.linspace(-2, 2, 41):
        moved = best + delta
        ffn._z = moved
        assert ffn.objective() >= least - 1e-9
        ffn._z = best


def test_the_gate_backtracks_where_a_full_step_overshoots() -> None:
    s = torch.linspace(-8, 8, 400, dtype=torch.float64)[None]
    wanted, z, p = torch.zeros_like(s), torch.full_like(s, 6.0), torch.full_like(s, -30.0)
    of = Penalties()

    def cost(s: torch.Tensor) -> torch.Tensor:
        return of.alpha * (s - wanted).square() + of.gamma * (p - functional.silu(s) * z).square()

    after = newton_gate(s, wanted, z, p, functional.silu, of)
    assert (cost(after) <= cost(s)).all()
    assert (cost(after) < cost(s)).double().mean() > 0.5


def test_float32_agrees_with_float64_to_its_precision() -> None:
    found, trace = sparsellm(*gated(5, torch.float32), 0.7)
    _, wanted = sparsellm(*gated(5), 0.7)
    assert all(weight.dtype == torch.float32 for weight in found)
    assert trace.errors == pytest.approx(wanted.errors, rel=0.02)
