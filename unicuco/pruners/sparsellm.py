"""SparseLLM / AdaGP (Bai et al., NeurIPS 2024): prunes an FFN as a whole, through auxiliary variables.

The matrices of an FFN are decoupled by auxiliaries for what flows between them, with quadratic penalties; then each
part has a closed solution while the others rest. An epoch: weights that fit the auxiliaries best (from the second on),
pruned by SparseGPT; then the auxiliaries in turn. Tokens are rows here: X (``n x d``) inputs, Y (``n x d``) the dense
outputs.

- Gated: α‖Z − X Wᵤᵀ‖² + α‖S − X W_gᵀ‖² + γ‖P − act(S)∘Z‖² + β‖Y − P W_dᵀ‖².
- ReLU: α‖Z − X W₁ᵀ − b₁‖² + γ‖P − relu(Z)‖² + β‖Y − P W₂ᵀ − b₂‖².

Here and not in the paper: weights are re-solved as corrections of the dense ones (a ridge then draws to these, not to
zero); S takes damped Newton steps that backtrack element by element; and the epoch that reproduces Y best is kept. The
first epoch is SparseGPT itself, so the result is never worse than that on the calibration tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unicuco.errors import ModelError
from unicuco.pruners.ffn_steps import Activation, Penalties, correction, fitting_hidden, newton_gate, row_slices
from unicuco.pruners.masks import Pattern
from unicuco.pruners.sparsegpt import inverse_factor, sparsegpt

EPOCHS = 4


@dataclass
class Trace:
    """What happened.

    Attributes:
        steps: the objective after every step, by the step's name, all epochs in order.
        errors: ‖Y − FFN(X)‖² ÷ ‖Y‖² of the pruned FFN of every epoch.
        best: the epoch that was kept.
    """

    steps: list[tuple[str, float]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    best: int = 0


class Ffn(Protocol):
    """One FFN with its auxiliaries; ``weights`` are its matrices, in a fixed order."""

    weights: list[Tensor]

    def solve(self) -> None:
        """Sets ``weights`` to what fits the auxiliaries best."""

    def prune(self, sparsity: float, pattern: Pattern | None) -> None:
        """Prunes ``weights`` by SparseGPT, each on its own inputs."""

    def updates(self) -> list[tuple[str, Callable[[], None]]]:
        """The steps of the auxiliaries, none of which raises the objective, by name."""

    def objective(self) -> float: ...
    def outputs(self) -> Tensor: ...


def sparsellm(
    ffn: Ffn, targets: Tensor, sparsity: float, pattern: Pattern | None = None, epochs: int = EPOCHS
) -> tuple[list[Tensor], Trace]:
    """The pruned matrices of ``ffn``, in its order, and the trace.

    Args:
        targets: Y, ``n x d``.
    """
    trace, best = Trace(), list(ffn.weights)
    scale = targets.square().sum().clamp_min(torch.finfo(targets.dtype).tiny)
    for epoch in range(epochs):
        if epoch:
            ffn.solve()
            trace.steps.append(("solve", ffn.objective()))
        ffn.prune(sparsity, pattern)
        trace.steps.append(("prune", ffn.objective()))
        trace.errors.append(float((targets - ffn.outputs()).square().sum() / scale))
        if trace.errors[epoch] <= trace.errors[trace.best]:
            trace.best, best = epoch, list(ffn.weights)
        if epoch + 1 < epochs:
            for name, update in ffn.updates():
                update()
                trace.steps.append((name, ffn.objective()))
    return best, trace


class GatedFfn:
    """``down(act(gate(x)) * up(x))``; ``weights``: up, gate (``f x d``) and down (``d x f``).

    Args:
        inputs: X; targets: Y, both ``n x d``, float32 or wider.
    """

    def __init__(
        self,
        weights: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        act: Activation,
        penalties: Penalties | None = None,
    ) -> None:
        self.weights, self._x, self._y, self._act = list(weights), inputs, targets, act
        self._of = penalties or Penalties()
        up, gate, _ = weights
        self._up, self._gate = self._z, self._s = inputs @ up.T, inputs @ gate.T  # of the weights; the auxiliaries
        self._p = act(self._s) * self._z
        self._lost: float | None = None
        self._factor, self._silent = inverse_factor(inputs.T @ inputs)
        self._down_factor, self._down_silent = inverse_factor(self._p.T @ self._p)

    def solve(self) -> None:
        up, gate, down = self.weights
        up = up + correction(self._z - self._up, self._x, self._factor)
        gate = gate + correction(self._s - self._gate, self._x, self._factor)
        self._set(up, gate, down + correction(self._y - self._p @ down.T, self._p, self._down_factor))

    def prune(self, sparsity: float, pattern: Pattern | None) -> None:
        up, gate = sparsegpt(self.weights[:2], self._factor, self._silent, sparsity, pattern)
        (down,) = sparsegpt(self.weights[2:], self._down_factor, self._down_silent, sparsity, pattern)
        self._set(up, gate, down)

    def _set(self, up: Tensor, gate: Tensor, down: Tensor) -> None:
        self.weights, self._lost = [up, gate, down], None
        self._up, self._gate = self._x @ up.T, self._x @ gate.T

    def updates(self) -> list[tuple[str, Callable[[], None]]]:
        return [("p", self._update_p), ("z", self._update_z), ("s", self._update_s)]

    def objective(self) -> float:
        of, total = self._of, 0.0
        for rows in row_slices(self._x):
            z, s, p = self._z[rows], self._s[rows], self._p[rows]
            total += float(
                of.alpha * ((z - self._up[rows]).square().sum() + (s - self._gate[rows]).square().sum())
                + of.gamma * (p - self._act(s) * z).square().sum()
            )
        return total + of.beta * self._missing()

    def _missing(self) -> float:
        """‖Y − P W_dᵀ‖², kept until P or W_d change: two steps of five change neither."""
        if self._lost is None:
            down = self.weights[2].T
            self._lost = sum(float((self._y[r] - self._p[r] @ down).square().sum()) for r in row_slices(self._x, 8))
        return self._lost

    def outputs(self) -> Tensor:
        down = self.weights[2].T
        parts = [(self._act(self._gate[r]) * self._up[r]) @ down for r in row_slices(self._x, 8)]
        return torch.cat(parts)

    def _update_p(self) -> None:
        activated = torch.cat([self._act(self._s[r]) * self._z[r] for r in row_slices(self._x)])
        self._p, self._lost = fitting_hidden(self.weights[2], self._y, activated, self._of), None
        self._down_factor, self._down_silent = inverse_factor(self._p.T @ self._p)

    def _update_z(self) -> None:
        of, found = self._of, []
        for rows in row_slices(self._x):
            opened = self._act(self._s[rows])
            above = of.alpha * self._up[rows] + of.gamma * opened * self._p[rows]
            found.append(above / (of.alpha + of.gamma * opened.square()))
        self._z = torch.cat(found)

    def _update_s(self) -> None:
        found = []
        for rows in row_slices(self._x):
            s, wanted, z, p = self._s[rows], self._gate[rows], self._z[rows], self._p[rows]
            found.append(newton_gate(s, wanted, z, p, self._act, self._of))
        self._s = torch.cat(found)


class ReluFfn:
    """``second(relu(first(x)))`` with biases; ``weights``: first (``f x d``) and second (``d x f``)."""

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        penalties: Penalties | None = None,
    ) -> None:
        self.weights, self._bias = list(weights), biases
        self._x, self._y, self._of = inputs, targets - biases[1], penalties or Penalties()
        self._z = inputs @ weights[0].T + biases[0]
        self._p = self._z.relu()
        self._factor, self._silent = inverse_factor(inputs.T @ inputs)

    def solve(self) -> None:
        first, second = self.weights
        self.weights = [
            first + correction(self._z - self._first(), self._x, self._factor),
            second + correction(self._y - self._p @ second.T, self._p, inverse_factor(self._p.T @ self._p)[0]),
        ]

    def prune(self, sparsity: float, pattern: Pattern | None) -> None:
        (first,) = sparsegpt(self.weights[:1], self._factor, self._silent, sparsity, pattern)
        (second,) = sparsegpt(self.weights[1:], *inverse_factor(self._p.T @ self._p), sparsity, pattern)
        self.weights = [first, second]

    def updates(self) -> list[tuple[str, Callable[[], None]]]:
        return [("p", self._update_p), ("z", self._update_z)]

    def objective(self) -> float:
        of = self._of
        return float(
            of.alpha * (self._z - self._first()).square().sum()
            + of.gamma * (self._p - self._z.relu()).square().sum()
            + of.beta * (self._y - self._p @ self.weights[1].T).square().sum()
        )

    def outputs(self) -> Tensor:
        return self._first().relu() @ self.weights[1].T + self._bias[1]

    def _first(self) -> Tensor:
        return self._x @ self.weights[0].T + self._bias[0]

    def _update_p(self) -> None:
        self._p = fitting_hidden(self.weights[1], self._y, self._z.relu(), self._of)

    def _update_z(self) -> None:
        """Either side of zero has one minimum; the better of both."""
        alpha, gamma, m, p = self._of.alpha, self._of.gamma, self._first(), self._p
        above, below = ((gamma * p + alpha * m) / (gamma + alpha)).clamp_min(0), m.clamp_max(0)

        def cost(z: Tensor) -> Tensor:
            return alpha * (z - m).square() + gamma * (p - z.relu()).square()

        self._z = torch.where(cost(above) <= cost(below), above, below)


def ffn_matrices(mlp: Any) -> tuple[str, ...]:
    """The matrices of an MLP, in the order of its ``Ffn.weights``."""
    return ("up_proj", "gate_proj", "down_proj") if hasattr(mlp, "gate_proj") else ("up_proj", "down_proj")


def check_ffn(mlp: Any) -> None:
    """
    Raises:
        ModelError: an MLP for which there are no closed steps.
    """
    biased = any(getattr(mlp, name).bias is not None for name in ffn_matrices(mlp))
    if hasattr(mlp, "gate_proj") and biased:
        raise ModelError("SparseLLM is built for gated FFNs without biases; this model's have some.")
    if not hasattr(mlp, "gate_proj") and not isinstance(mlp.act_fn, nn.ReLU):
        raise ModelError("SparseLLM is built for gated FFNs and for those with a ReLU; this model's have neither.")


def open_ffn(mlp: Any, inputs: Tensor, targets: Tensor) -> Ffn:
    """The auxiliaries of an MLP at their dense values; ``inputs`` and dense ``targets`` are ``tokens x hidden``."""
    linears = [getattr(mlp, name) for name in ffn_matrices(mlp)]
    weights = [linear.weight.data.float() for linear in linears]
    if hasattr(mlp, "gate_proj"):
        return GatedFfn(weights, inputs, targets, mlp.act_fn)
    nothing = [weight.new_zeros(len(weight)) for weight in weights]
    biases = [none if li.bias is None else li.bias.data.float() for li, none in zip(linears, nothing, strict=True)]
    return ReluFfn(weights, biases, inputs, targets)
