"""OWL (Yin et al., ICML 2024): blocks with more outliers keep more.

An outlier is a weight whose |w| · ‖x‖ is many times the mean of its matrix. Shares of outliers, block by block on dense
activations, are stretched to an interval around the sparsity asked for; the mean over the blocks stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unicuco.calibration import Windows
from unicuco.errors import StrategyError
from unicuco.models.sites import find_blocks
from unicuco.pruners.sequential import READERS, enter, gather, matrices

MULTIPLE = 5.0
"""How many times the mean makes an outlier (M in the paper)."""
REACH = 0.08
"""How far a block's sparsity may be from the mean (λ in the paper)."""


@torch.no_grad()
def outlier_shares(model: Any, windows: Windows, multiple: float = MULTIPLE) -> np.ndarray:
    """Share of outliers among the weights of every block of the dense ``model`` (``num_blocks``)."""
    blocks = find_blocks(model)
    hidden, calls = enter(model, blocks, windows)
    shares = []
    for block, call in zip(blocks, calls, strict=True):
        energies = gather(block, hidden, call, "wanda", keep=True).squares
        own, outliers, count = matrices(block), 0, 0
        for names, energy in zip(READERS, energies, strict=True):
            for name in names:
                scores = own[name].weight.abs().float() * energy.sqrt()
                outliers += int((scores > multiple * scores.mean()).sum())
                count += scores.numel()
        shares.append(outliers / count)
    return np.array(shares)


def owl_allocation(shares: np.ndarray, sparsity: float, reach: float = REACH) -> list[float]:
    """Sparsity of every block, ``sparsity`` on average.

    Raises:
        StrategyError: the interval reaches below 0 or to 1.
    """
    span = float(shares.max() - shares.min())
    above = (shares - shares.min()) * (2 * reach / span) if span > 0 else np.zeros(len(shares))
    found = sparsity - (above - above.mean())
    if found.min() < 0 or found.max() >= 1:
        raise StrategyError(
            f"OWL would prune blocks by {found.min():.2f} to {found.max():.2f}; choose one further from the ends."
        )
    return [float(value) for value in found]
