"""What a base model's sublayers see and how much their outputs matter, gathered through its own forward.

- Gram matrix of the inputs of each output projection (``o_proj``, ``down_proj``): mean of x xᵀ over tokens.
- Output metric of each sublayer: mean of g gᵀ over tokens, g the gradient of −log p(y) at the projection's output, y
  sampled from the dense model. Their pairing is the Kronecker-factored Fisher (K-FAC, Martens & Grosse 2015): for a
  small error E of an output projection, KL(dense || changed) ≈ ½ tr(G E H Eᵀ), which is how a preparation predicts
  damage before anything is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unicuco.calibration import Windows
from unicuco.models.sites import Block, find_blocks


@dataclass
class BlockStatistics:
    """Per block: ``grams`` (n x n) and ``metrics`` (d x d) under ``attention`` and ``mlp``, float32, token means."""

    grams: dict[str, Tensor]
    metrics: dict[str, Tensor]


def collect_statistics(
    model: Any, windows: Windows, gradient_windows: int, report: Callable[[str, int, int], None]
) -> list[BlockStatistics]:
    """One forward over ``windows`` and one forward and backward over the first ``gradient_windows`` of each domain."""
    blocks = find_blocks(model)
    statistics = [BlockStatistics({}, {}) for _ in blocks]
    device = next(model.parameters()).device
    tokens = torch.from_numpy(windows.tokens).long().to(device)
    with _watching_inputs(blocks, statistics), torch.no_grad():
        for i, window in enumerate(tokens):
            model.get_decoder()(input_ids=window[None], use_cache=False)
            report("reading activations", i + 1, len(tokens))
    chosen = first_of_each(windows, gradient_windows)

    def accumulate(b: int, kind: str, gradient: Tensor) -> None:
        _accumulate(statistics[b].metrics, kind, gradient)

    _read_gradients(model, windows, chosen, accumulate, report)
    for found in statistics:
        for kind in ("attention", "mlp"):
            found.grams[kind] /= tokens.numel()
            found.metrics[kind] /= len(chosen) * tokens.shape[1]
    return statistics


def output_gradients(
    model: Any, windows: Windows, chosen: list[int], report: Callable[[str, int, int], None]
) -> list[dict[str, Tensor]]:
    """Per block, g of every token of the ``chosen`` windows at the outputs of ``attention`` and ``mlp``.

    Returns:
        ``tokens x d`` each, in the model's dtype and the windows' order.
    """
    parts: list[dict[str, list[Tensor]]] = [{"attention": [], "mlp": []} for _ in find_blocks(model)]

    def keep(b: int, kind: str, gradient: Tensor) -> None:
        parts[b][kind].append(gradient.flatten(0, -2))

    _read_gradients(model, windows, chosen, keep, report)
    return [{kind: torch.cat(rows) for kind, rows in found.items()} for found in parts]


def _read_gradients(
    model: Any,
    windows: Windows,
    chosen: list[int],
    take: Callable[[int, str, Tensor], None],
    report: Callable[[str, int, int], None],
) -> None:
    """Hands ``take`` block, kind and gradient (``1 x tokens x d``) of every output projection, window by window."""
    tokens = torch.from_numpy(windows.tokens).long().to(next(model.parameters()).device)
    generator = torch.Generator(device="cpu").manual_seed(0)
    with _watching_outputs(find_blocks(model), take):
        for n, i in enumerate(chosen):
            _backward(model, tokens[i][None], generator)
            report("reading gradients", n + 1, len(chosen))


def first_of_each(windows: Windows, count: int) -> list[int]:
    """Rows of the first ``count`` windows of each domain."""
    return [i for d in range(len(windows.domains)) for i in np.flatnonzero(windows.domain == d)[:count].tolist()]


def _projections(blocks: list[Block]) -> Iterator[tuple[int, str, nn.Linear]]:
    for b, block in enumerate(blocks):
        yield b, "attention", block.attention.o_proj
        yield b, "mlp", block.mlp.down_proj


def _accumulate(store: dict[str, Tensor], kind: str, rows: Tensor) -> None:
    rows = rows.flatten(0, -2).float()
    if kind in store:
        store[kind].addmm_(rows.T, rows)
    else:
        store[kind] = rows.T @ rows


@contextmanager
def _watching_inputs(blocks: list[Block], statistics: list[BlockStatistics]) -> Iterator[None]:
    def hook(store: dict[str, Tensor], kind: str) -> Callable[..., None]:
        return lambda module, inputs: _accumulate(store, kind, inputs[0].detach())

    handles = [p.register_forward_pre_hook(hook(statistics[b].grams, k)) for b, k, p in _projections(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watching_outputs(blocks: list[Block], take: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    def hook(b: int, kind: str) -> Callable[..., None]:
        def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.register_hook(lambda gradient: take(b, kind, gradient))

        return forward

    handles = [p.register_forward_hook(hook(b, k)) for b, k, p in _projections(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _backward(model: Any, ids: Tensor, generator: torch.Generator) -> None:
    """Gradients of Σ −log p(y), y ~ p, down to the first block; no gradient for any weight."""
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=embeddings, use_cache=False).logits[0].float()
        log_probs = logits.log_softmax(-1)
        with torch.no_grad():
            # Inverse transform with a CPU generator: the same draws on every device.
            uniform = torch.rand(len(log_probs), 1, generator=generator).to(log_probs.device)
            sampled = torch.searchsorted(log_probs.exp().cumsum(-1), uniform).clamp_max(log_probs.shape[-1] - 1)
        loss = -log_probs.gather(-1, sampled).sum()
        torch.autograd.grad(loss, embeddings)
