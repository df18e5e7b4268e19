"""How far apart two matrices' spectra are: the two-sample Kolmogorov-Smirnov distance of their singular values."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(weight: Tensor) -> Tensor:
    """All singular values of ``weight`` (``rows x columns``), ascending, float32 or wider.

    From the smaller Gram matrix: twice as fast as an SVD. What that loses in precision, a few parts in ten thousand of
    the largest value, is lost among the smallest values of matrices that hardly have a spectrum.
    """
    weight = weight if weight.dtype == torch.float64 else weight.float()
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


def ks_distance(first: Tensor, second: Tensor) -> float:
    """The largest gap between the empirical distribution functions of two samples (any lengths), 0 to 1."""
    first, second = first.sort().values, second.sort().values
    both = torch.cat([first, second])
    below = torch.searchsorted(first, both, right=True).double() / len(first)
    gap = below - torch.searchsorted(second, both, right=True).double() / len(second)
    return float(gap.abs().max())
