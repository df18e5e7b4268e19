"""The closed steps that SparseLLM is made of (unicuco/pruners/sparsellm.py); tokens are rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEWTON_STEPS = 4
ROWS_AT_ONCE = {"cpu": 128}
"""Tokens per element-wise step, by device: what one reads and writes stays in a core's cache."""
MOST_ROWS = 1 << 14
"""The same on other devices."""
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Penalties:
    """α, β and γ: how strictly inputs, outputs and the activation hold. Equal in the paper (0.1 or 5)."""

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0


def row_slices(rows: Tensor, times: int = 1) -> Iterator[slice]:
    """All rows, as many at a time as element-wise steps want, or ``times`` as many."""
    step = times * ROWS_AT_ONCE.get(rows.device.type, MOST_ROWS)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def newton_gate(s: Tensor, wanted: Tensor, z: Tensor, p: Tensor, act: Activation, of: Penalties) -> Tensor:
    """Lowers α(s − wanted)² + γ(p − act(s) z)², element by element (``n x f`` each).

    Gauss-Newton steps; an element whose step does not lower its cost keeps its value and halves its next step.
    """

    def cost(s: Tensor) -> Tensor:
        return of.alpha * (s - wanted).square() + of.gamma * (p - act(s) * z).square()

    length, now = torch.ones_like(s), cost(s)
    for _ in range(NEWTON_STEPS):
        with torch.enable_grad():
            leaf = s.detach().requires_grad_(True)
            opened = act(leaf)
            (slope,) = torch.autograd.grad(opened.sum(), leaf)
        gradient = of.alpha * (s - wanted) - of.gamma * (p - opened.detach() * z) * z * slope
        curvature = of.alpha + of.gamma * (z * slope).square()
        tried = s - length * gradient / curvature
        then = cost(tried)
        better = then < now
        s, now = torch.where(better, tried, s), torch.where(better, then, now)
        length = torch.where(better, length, length / 2)
    return s


def fitting_hidden(down: Tensor, y: Tensor, activated: Tensor, of: Penalties) -> Tensor:
    """The P (``n x f``) that minimises β‖Y − P Wᵀ‖² + γ‖P − activated‖², exactly."""
    system = of.beta * (down.T @ down) + of.gamma * torch.eye(down.shape[1], dtype=down.dtype, device=down.device)
    right = of.beta * (y @ down) + of.gamma * activated
    # In float32 at least: half precision is unstable here.
    return torch.cholesky_solve(right.T, torch.linalg.cholesky(system)).T


def correction(missing: Tensor, inputs: Tensor, factor: Tensor) -> Tensor:
    """What to add to a matrix so that its outputs come nearest to ``missing`` more (``n x rows``), with the ridge."""
    return (((missing.T @ inputs).to(factor.dtype) @ factor.T) @ factor).to(missing.dtype)
