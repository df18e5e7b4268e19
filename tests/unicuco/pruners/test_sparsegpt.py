"""SparseGPT, Wanda and magnitude against slow references in float64, written from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unicuco.pruners.masks import Pattern
from unicuco.pruners.scores import magnitude, wanda
from unicuco.pruners.sparsegpt import BLOCK, DAMPING, inverse_factor, sparsegpt


def problem(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and correlated inputs of which one is always zero (``tokens x columns``)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    inputs[:, 3] = 0
    return torch.randn(rows, columns, generator=generator), inputs


def by_hand(weight: np.ndarray, gram: np.ndarray, sparsity: float, pattern: Pattern | None) -> np.ndarray:
    """Column by column: what goes by OBS's saliency, the columns after it corrected by the inverse of what is left."""
    w, h = weight.astype(np.float64).copy(), gram.astype(np.float64).copy()
    silent = np.diag(h) == 0
    h[np.diag_indices_from(h)] += DAMPING * np.diag(h).mean() + silent
    w[:, silent] = 0
    n = len(h)
    corner = [np.linalg.inv(h[j:, j:])[0, 0] for j in range(n)]  # [H⁻¹]_jj once the columns before are settled
    step = pattern.m if pattern else BLOCK
    mask = np.zeros(w.shape, dtype=bool)
    for j in range(n):
        if j % step == 0:
            end = min(j + step, n)
            scores = w[:, j:end] ** 2 / np.array(corner[j:end])
            if pattern:
                for row in range(len(w)):
                    mask[row, j + np.argsort(scores[row], kind="stable")[: pattern.m - pattern.n]] = True
            else:
                count = round(sparsity * len(w) * end) - round(sparsity * len(w) * j)
                order = np.argsort(scores.T.reshape(-1), kind="stable")[:count]
                mask[order % len(w), j + order // len(w)] = True
        inverse = np.linalg.inv(h[j:, j:])
        removed = np.where(mask[:, j], w[:, j], 0)
        w[:, j:] -= np.outer(removed / inverse[0, 0], inverse[0])
        w[mask[:, j], j] = 0
    return w


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_sparsegpt_is_the_textbook(sparsity: float, pattern: Pattern | None) -> None:
    weight, inputs = problem(12, 2 * BLOCK + 16, 0)
    gram = inputs.T @ inputs
    (found,) = sparsegpt([weight], *inverse_factor(gram), sparsity, pattern)
    wanted = by_hand(weight.numpy(), gram.numpy(), sparsity, pattern)
    assert ((found == 0).numpy() == (wanted == 0)).all()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_matrices_on_the_same_inputs_are_pruned_as_if_alone_each_to_its_own_sparsity() -> None:
    first, inputs = problem(12, 144, 1)
    second = torch.randn(5, 144)
    prepared = inverse_factor(inputs.T @ inputs)
    together = sparsegpt([first, second], *prepared, [0.5, 0.75])
    for weight, sparsity, found in zip((first, second), (0.5, 0.75), together, strict=True):
        torch.testing.assert_close(found, sparsegpt([weight], *prepared, sparsity)[0])
        assert (found == 0).float().mean() == pytest.approx(sparsity, abs=1 / weight.numel())


def test_corrections_beat_the_same_mask_without_them() -> None:
    weight, inputs = problem(32, 160, 2)
    (found,) = sparsegpt([weight], *inverse_factor(inputs.T @ inputs), 0.5)
    plain = weight * (found != 0)

    def error(pruned: torch.Tensor) -> float:
        return float((inputs @ (weight - pruned).T).square().sum())

    assert error(found) < 0.7 * error(plain)


def test_nothing_to_prune_changes_nothing_that_is_heard() -> None:
    weight, inputs = problem(8, 144, 3)
    (found,) = sparsegpt([weight], *inverse_factor(inputs.T @ inputs), 0.0)
    heard = torch.arange(144) != 3
    assert torch.equal(found[:, heard], weight[:, heard])


def test_half_precision_comes_back_as_half_precision() -> None:
    weight, inputs = problem(8, 144, 4)
    (found,) = sparsegpt([weight.bfloat16()], *inverse_factor(inputs.T @ inputs), 0.5)
    assert found.dtype == torch.bfloat16 and (found == 0).float().mean() >= 0.5


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)], ids=str)
def test_wanda_is_the_textbook(pattern: Pattern | None) -> None:
    weight, inputs = problem(7, 24, 5)
    found = wanda(weight, inputs.square().sum(0), 0.5, pattern).numpy()
    scores = np.abs(weight.double().numpy()) * np.linalg.norm(inputs.double().numpy(), axis=0)
    wanted = weight.numpy().copy()
    for row in range(7):
        for begin in range(0, 24, 4 if pattern else 24):
            group = scores[row, begin : begin + (4 if pattern else 24)]
            wanted[row, begin + np.argsort(group, kind="stable")[: len(group) // 2]] = 0
    assert (found == wanted).all()


def test_magnitude_takes_the_smallest_of_the_whole_matrix() -> None:
    weight, _ = problem(7, 24, 6)
    found = magnitude(weight, 0.4)
    assert int((found == 0).sum()) == round(0.4 * 7 * 24)
    assert weight[found == 0].abs().max() <= found[found != 0].abs().min()
