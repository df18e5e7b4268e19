"""Model folding (arXiv 2502.10216): similar neurons become one, by the weights alone.

Neurons are clustered by what they read, their rows of the gate and up matrices (and biases). A cluster becomes one
neuron with the mean of the rows and the sum of the columns of the down matrix; were the rows equal, that is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unicuco.models.sites import Block
from unicuco.pruners.neurons import neurons_left

STEPS = 20
"""Lloyd's steps at most; with nearly as many clusters as neurons they end after a few."""
_INCOMING = ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias")


def fold_blocks(blocks: Sequence[Block], sparsity: float, seed: int = 0) -> list[dict[str, Tensor]]:
    """The state dict of every block's MLP with ``⌊(1 − sparsity) f⌋`` neurons, in the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [_fold_block(block, sparsity, generator) for block in blocks]


def _fold_block(block: Block, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in block.mlp.state_dict().items()}
    down = state["down_proj.weight"]
    rows = torch.cat([state[n].reshape(down.shape[1], -1).float().cpu() for n in _INCOMING if n in state], dim=1)
    count = neurons_left(len(rows), sparsity)
    clusters = k_means(rows, count, generator).to(down.device)
    for name in _INCOMING:
        if name in state:
            state[name] = fold_rows(state[name].float(), clusters, count).to(state[name].dtype)
    state["down_proj.weight"] = fold_columns(down.float(), clusters, count).to(down.dtype)
    return state


def fold_rows(rows: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Mean of the rows (``f x ...``) of each of ``count`` clusters."""
    sums = torch.zeros((count, *rows.shape[1:]), dtype=rows.dtype, device=rows.device).index_add_(0, clusters, rows)
    sizes = clusters.bincount(minlength=count).to(rows.dtype)
    return sums / sizes.view(-1, *(1,) * (rows.dim() - 1))


def fold_columns(columns: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Sum of the columns (``d x f``) of each of ``count`` clusters."""
    sums = torch.zeros((columns.shape[0], count), dtype=columns.dtype, device=columns.device)
    return sums.index_add_(1, clusters, columns)


@torch.no_grad()
def k_means(points: Tensor, count: int, generator: torch.Generator, steps: int = STEPS) -> Tensor:
    """The cluster (0 to ``count - 1``) of every point (``n``); no cluster is empty.

    Starts from k-means++ (Arthur & Vassilvitskii 2007). A centre that nobody is nearest to takes the point that lies
    farthest from its own centre, of those that share theirs.
    """
    points = points.double()
    centres, clusters = points[_spread(points, count, generator)], None
    for _ in range(steps):
        gaps = _squares(points, centres)
        nearest = gaps.argmin(dim=1)
        found = _filled(nearest, gaps.gather(1, nearest[:, None])[:, 0], count)
        if clusters is not None and torch.equal(found, clusters):
            break
        clusters = found
        centres = fold_rows(points, clusters, count)
    assert clusters is not None
    return clusters


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of ``count`` points, each drawn in proportion to its squared distance from those before it."""
    products = points @ points.T
    norms = products.diagonal()
    chosen = torch.empty(count, dtype=torch.long)
    gaps = torch.ones(len(points), dtype=points.dtype)
    for i in range(count):
        if gaps.max() <= 0:  # only duplicates are left: any of them
            gaps = torch.ones_like(gaps)
            gaps[chosen[:i]] = 0
        chosen[i] = torch.multinomial(gaps, 1, generator=generator)[0]
        gap = (norms + norms[chosen[i]] - 2 * products[chosen[i]]).clamp_min(0)
        gap[gap <= 1e-12 * norms[chosen[i]]] = 0  # a duplicate, but for rounding
        gaps = gap if i == 0 else torch.minimum(gaps, gap)
    return chosen


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (``n x count``)."""
    return points.square().sum(1)[:, None] + centres.square().sum(1) - 2 * points @ centres.T


def _filled(clusters: Tensor, gaps: Tensor, count: int) -> Tensor:
    clusters, sizes = clusters.clone(), clusters.bincount(minlength=count)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    for point in gaps.argsort(descending=True, stable=True).tolist() if empty else ():
        if sizes[clusters[point]] > 1:
            sizes[clusters[point]] -= 1
            clusters[point] = empty.pop()
            sizes[clusters[point]] = 1
            if not empty:
                break
    return clusters
