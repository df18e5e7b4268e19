"""What a policy promises for every calibration domain, and which shares of them it tries where nobody asked for any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from unicuco.evaluations import Evaluation
from unicuco.qualities import Qualities
from unicuco.sampling import sampling

TRIED = 9
"""Shares tried per domain beyond the first, where bounds on domains leave them open."""


class DomainPromises:
    """Predicted log KL of every domain on fresh text, with the deviation of a measurement around it."""

    def __init__(self, qualities: Qualities, evaluations: Sequence[Evaluation]) -> None:
        """Args: evaluations: to judge how much windows of one domain differ."""
        self._qualities = qualities
        self._kept = np.linspace(0.0, 1.0, 101)
        self._variances = [
            sampling(of_domain(evaluations, qualities.names, d), self._kept).variance for d in range(len(qualities))
        ]

    def __call__(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (``n x num_domains`` each) for level indices ``n x num_sites``."""
        space = self._qualities.space
        with torch.no_grad():
            mean, deviation = self._qualities.predict(torch.as_tensor(space.sparsities(levels)))
        kept = space.kept(levels)
        noise = [
            surrogate.noise_std**2 + np.interp(kept, self._kept, variance)
            for surrogate, variance in zip(self._qualities.surrogates, self._variances, strict=True)
        ]
        return mean.numpy(), np.sqrt(deviation.numpy() ** 2 + np.stack(noise, axis=-1))


def of_domain(evaluations: Sequence[Evaluation], names: tuple[str, ...], d: int) -> list[Evaluation]:
    """The same evaluations as if domain ``d`` were all they were measured on; margins, which mix domains, left out."""
    found = []
    for e in evaluations:
        each = len(e.window_kl) // max(len(names), 1)  # windows come domain by domain, as many of each
        if e.domains == names and len(e.window_kl) == each * len(names):
            own = e.window_kl[d * each : (d + 1) * each]
            found.append(replace(e, kl=e.domain_kl[d], window_kl=own, margin_group=-1))
    return found


def tried_shares(count: int) -> list[tuple[float, ...]]:
    """Shares of ``count`` qualities to try: all alike first, then evenly over two, or the corners and random ones."""
    alike = (1 / count,) * count
    if count == 1:
        return [alike]
    if count == 2:
        return [alike, *((float(a), float(1 - a)) for a in np.linspace(0.0, 1.0, TRIED) if a != 0.5)]
    corners = [tuple(float(v) for v in row) for row in np.eye(count)]
    drawn = np.random.default_rng(0).dirichlet(np.ones(count), TRIED * (count - 1) - count)
    return [alike, *corners, *(tuple(float(v) for v in row) for row in drawn)]
