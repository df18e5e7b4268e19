"""What a fitted damage surrogate says of strategies on whole levels, laid out for many small calls.

Answers are made of levels, so every site's term is looked up, and what is left are a few products of small arrays. The
same numbers as ``Surrogate.predict``, which has to take any sparsities and their gradients, in a sixth (one strategy)
to half (64 strategies) of its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.damage import DRIFT, SPAN, DamageModel


@dataclass(frozen=True)
class LevelPosterior:
    """A Gaussian process on log KL, conditioned on all data.

    Attributes:
        levels: sparsity of every level (``num_sites x max_levels``, infinite where a site has fewer).
        terms: what each adds to the damage, weight included (``num_sites x max_levels``).
        floor, slope, offset: of the mean; log_weight: around which it is linear (``num_sites``).
        size_shares: each site's share of the blocks' parameters (``num_sites``).
        neighbours: correlation of the sites' weights (``num_sites x num_sites``), variance: their variance.
        pulls: how the data pull at the weights (``num_data x num_sites``), at: their kept shares (``num_data``).
        x: sparsities of the evaluations, the first of the data (``num_evaluations x num_sites``).
        lengthscale, scale: of the residual Matérn-5/2 kernel between evaluations.
        factor: Cholesky factor of the data's covariance (``num_data x num_data``), alpha: its inverse times their gap.
    """

    levels: np.ndarray
    terms: np.ndarray
    floor: float
    slope: float
    offset: float
    log_weight: np.ndarray
    size_shares: np.ndarray
    neighbours: np.ndarray
    variance: float
    pulls: np.ndarray
    at: np.ndarray
    x: np.ndarray
    lengthscale: float
    scale: float
    factor: Tensor
    alpha: np.ndarray

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Mean and deviation of log KL (``2 x n``) for level indices ``n x num_sites``, without observation noise."""
        sites = np.arange(len(self.terms))
        x, terms = self.levels[sites, index], self.terms[sites, index]
        total = terms.sum(axis=1) + self.floor
        shares = self.slope * terms / total[:, None]
        ahead = self.offset + self.slope * np.log(total) - shares @ self.log_weight
        prior = self.variance * ((shares @ self.neighbours) * shares).sum(axis=1) + self.scale
        kept = 1 - x @ self.size_shares
        drift = 1 - DRIFT + DRIFT * np.exp(-(((kept[:, None] - self.at) / SPAN) ** 2) / 2)
        cross = self.variance * drift * (shares @ self.pulls.T)
        cross[:, : len(self.x)] += self._residual(x)
        mean = ahead + cross @ self.alpha
        reduced = torch.linalg.solve_triangular(self.factor, torch.as_tensor(cross).mT, upper=False).numpy()
        variance = np.maximum(prior - (reduced**2).sum(axis=0), 1e-10)
        return np.stack([mean, np.sqrt(variance)])

    def _residual(self, x: np.ndarray) -> np.ndarray:
        squares = (x**2).sum(axis=1)[:, None] + (self.x**2).sum(axis=1) - 2 * x @ self.x.T
        d = np.sqrt(5 * np.maximum(squares, 0.0)) / self.lengthscale
        return self.scale * (1 + d + d**2 / 3) * np.exp(-d)


def level_terms(model: DamageModel, levels: np.ndarray) -> np.ndarray:
    """wᵢ Dᵢ^p of every level (``num_sites x max_levels``); what a site does not have repeats its last one."""
    last = np.where(np.isinf(levels), -np.inf, levels).max(axis=1, keepdims=True)
    with torch.no_grad():
        return model.terms(torch.as_tensor(np.where(np.isinf(levels), last, levels).T.copy())).T.numpy()
