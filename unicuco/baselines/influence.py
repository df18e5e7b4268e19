"""ShortGPT: drop the blocks that change their input least (Men et al. 2024, arXiv 2403.03853)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unicuco.errors import InfeasibleRequestError
from unicuco.models.sites import find_blocks
from unicuco.space import SearchSpace, budgets_of


@torch.no_grad()
def block_influence(model: Any, tokens: np.ndarray) -> np.ndarray:
    """1 − mean cosine similarity between a block's input and output, over all positions of all windows.

    Hooks read the residual stream itself: the last of a model's ``output_hidden_states`` has the final norm applied.

    Args:
        model: a transformers causal language model.
        tokens: ``num_windows x window_length`` token ids.

    Returns:
        ``num_blocks`` influences, 0 for a block that does nothing, at most 2.
    """
    blocks = find_blocks(model)
    similarity = torch.zeros(len(blocks), dtype=torch.float64)

    def hook(block: int) -> Callable[..., None]:
        def forward(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            before: Tensor = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            cosine = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            similarity[block] += cosine.sum().cpu()

        return forward

    handles = [block.layer.register_forward_hook(hook(b), with_kwargs=True) for b, block in enumerate(blocks)]
    device = next(model.parameters()).device
    try:
        for window in torch.as_tensor(np.asarray(tokens)).long():
            model.get_decoder()(input_ids=window[None].to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return 1 - similarity.numpy() / np.asarray(tokens).size


def shortgpt(space: SearchSpace, influence: np.ndarray, kept: float) -> np.ndarray:
    """Drops whole blocks, least influence first, until within ``kept``; what room is left goes back.

    It goes to the dropped blocks of most influence, MLP before attention (neurons are the finer grid): the last block
    is then pruned in part wherever the space has levels for that.

    Args:
        influence: ``num_blocks``, from ``block_influence``.

    Returns:
        ``num_sites`` level indices.

    Raises:
        InfeasibleRequestError: even with every block dropped more is left.
    """
    budget = float(budgets_of(space, np.array(kept)))
    smallest = int(space.total(space.smallest))
    if budget < smallest:
        raise InfeasibleRequestError(
            f"In the smallest strategy {smallest:,} parameters are left, over {int(budget):,}."
        )
    levels = np.zeros(space.num_sites, dtype=np.int64)
    block_of = np.array([site.block for site in space.sites])
    dropped: list[int] = []
    for block in np.argsort(influence, kind="stable"):
        if space.total(levels) <= budget:
            break
        levels = np.where(block_of == block, space.num_levels - 1, levels)
        dropped.append(int(block))
    cost = space.tables["params"]
    for block in reversed(dropped):
        for site in sorted(np.flatnonzero(block_of == block), key=lambda i: space.sites[i].kind != "mlp"):
            extra = cost[site, : levels[site] + 1] - cost[site, levels[site]]
            levels[site] = int(np.argmax(extra <= budget - space.total(levels)))  # the largest that fits
    return levels
