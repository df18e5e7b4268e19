"""The first rival: every site pruned alike."""

from __future__ import annotations

import numpy as np

from unicuco.space import SearchSpace, budgets_of

LADDER = (0.9, 0.8, 0.7, 0.6, 0.5)
"""The sizes that every table prints (docs/protocol.md)."""
SPARSE_LADDER = (0.7, 0.6, 0.5, 0.4, 0.3)
"""The same for sparsity pruners, which begin to tell where width pruning ends."""


def ladder(space: SearchSpace) -> tuple[float, ...]:
    """The sizes that are looked at in ``space``."""
    return SPARSE_LADDER if space.is_sparse else LADDER


def uniform(space: SearchSpace, kept: float, mlp_only: bool) -> np.ndarray:
    """The uniform strategy at ``kept``: all sites alike, or MLPs alone alike, filled up to the budget.

    Where the MLPs alone cannot get that small, attention is pruned as well, alike in all blocks.
    """
    wish = np.full((1, space.num_sites), 1.0 - kept)
    if mlp_only and any(site.kind == "mlp" for site in space.sites):
        is_mlp = np.array([site.kind == "mlp" for site in space.sites])
        share = space.tables["params"][is_mlp, 0].sum() / space.geometry.block_params
        wish = np.where(is_mlp, min((1 - kept) / share, 1.0), 0.0)[None]
    return space.project(wish, {"params": budgets_of(space, np.array([kept]))})[0]
