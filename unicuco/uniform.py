"""Answers for the layout ``uniform``: the best strategy that keeps whole blocks, all of the same width.

Such a strategy is three choices: what every block keeps, how many blocks are dropped, and which. In every search space
where it is a legal strategy at all, the run's surrogate predicts it like any other; uniform widths are moreover what
every run measures first. So no search of its own is needed: all of them are laid out and the best one is picked.
Blocks are dropped in the order that is predicted to cost least, one after the other, on the dense model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from unicuco.answers import compose
from unicuco.errors import PolicyError, RequestError
from unicuco.objectives import tchebycheff
from unicuco.policy import BYTES_PER_PARAM, Policy
from unicuco.prospects import Prospect
from unicuco.request import Answer, Request
from unicuco.space import SearchSpace
from unicuco.wishes import budget_of


def answer_uniform(policy: Policy, request: Request, bytes_per_param: int = BYTES_PER_PARAM) -> Answer:
    """Answers ``request`` as ``Policy.answer`` does, with a uniform strategy.

    Raises:
        RequestError: it names an objective or a domain that this policy does not have, or bounds latency.
        PolicyError: no uniform strategy but the dense model is in the policy's search space.
    """
    if request.max_latency_ms is not None or request.weighs_latency:
        raise RequestError("The layout 'uniform' answers for size and quality, not for latency; use 'hetero'.")
    wish = policy.read(request)
    budget = budget_of(request, policy.space, bytes_per_param)
    found = uniform_prospects(policy, bytes_per_param)
    params = np.array([prospect.size.params for prospect in found])
    within = np.flatnonzero(params <= budget)
    weight = 0.0 if wish.cost_weight is None else wish.cost_weight
    preference = policy.fronts.joined(np.array([weight]), [wish])[0]
    objectives, k = np.array([prospect.objectives for prospect in found]), len(policy.costs)
    if not len(within):
        chosen = int(params.argmin())
    elif wish.cost_weight is not None:
        scores = tchebycheff(torch.as_tensor(preference), torch.as_tensor(objectives).clamp_min(0), 0.01, k).numpy()
        chosen = int(within[scores[within].argmin()])
    else:
        meets = [i for i in within if wish.bounds_quality and _meets(found[i], wish.max_kl, wish.max_domain_kl)]
        loss = objectives[:, k:] @ np.array(wish.shares)
        chosen = int(min(meets, key=lambda i: (params[i], loss[i])) if meets else within[loss[within].argmin()])
    floor, trained_to = int(params.min()), policy.scale.kept_low
    return compose(request, wish, found[chosen], "uniform", preference.tolist(), budget, floor, trained_to)


def uniform_prospects(policy: Policy, bytes_per_param: int = BYTES_PER_PARAM) -> list[Prospect]:
    """Every uniform strategy that is as large as what the policy was trained on, the dense model first.

    Raises:
        PolicyError: there is none but the dense model.
    """
    space = policy.space
    kept = _common_states(space)
    order = _drop_order(policy, bytes_per_param)
    rows: list[np.ndarray] = []
    for state in kept:
        levels = _levels(space, [state] * len(space.geometry.blocks))
        rows.append(levels)
        for block in order:
            levels = np.where(_of_block(space, block), space.num_levels - 1, levels)
            if float(space.kept(levels)) < policy.scale.kept_low:
                break
            rows.append(levels)
    if len(rows) == 1:
        raise PolicyError(
            "No uniform strategy but the dense model is in this policy's search space: its blocks neither drop whole "
            "nor share a width that models of this family can have; use the layout 'hetero'."
        )
    return policy.prospects(np.array(rows), bytes_per_param)


def _common_states(space: SearchSpace) -> list[tuple[int, int]]:
    """KV groups and neurons that every block can keep, neither of them none; the widest first."""
    each = [set(_states(space, block)) for block in range(len(space.geometry.blocks))]
    common = set.intersection(*each)
    heads = space.geometry.blocks[0].heads_per_group
    # Configurations of many families refuse numbers of heads that do not divide the hidden size.
    allowed = [s for s in common if all(s) and space.geometry.hidden_size % (s[0] * heads) == 0]
    dense = {(block.groups, block.neurons) for block in space.geometry.blocks}
    return sorted(set(allowed) | (dense & common), reverse=True)


def _states(space: SearchSpace, block: int) -> Iterator[tuple[int, int]]:
    sites = [site for site in space.sites if site.block == block]
    if len(sites) == 1:
        yield from ((level.groups or 0, level.neurons or 0) for level in sites[0].levels)
        return
    attention, mlp = sites
    yield from ((a.groups or 0, m.neurons or 0) for a in attention.levels for m in mlp.levels)


def _levels(space: SearchSpace, states: list[tuple[int, int]]) -> np.ndarray:
    """Level indices (``num_sites``) that leave ``states`` (one per block)."""
    found = []
    for site in space.sites:
        groups, neurons = states[site.block]
        wanted = [level.groups in (None, groups) and level.neurons in (None, neurons) for level in site.levels]
        found.append(wanted.index(True))
    return np.array(found)


def _drop_order(policy: Policy, bytes_per_param: int) -> list[int]:
    """Blocks that may be dropped whole, each the one whose loss is predicted to cost least after those before it."""
    space, levels, order = policy.space, np.zeros(policy.space.num_sites, dtype=np.int64), []
    droppable = [b for b in range(len(space.geometry.blocks)) if (space.deepest[_of_block(space, b)] >= 1).all()]
    while droppable:
        rows = np.array([np.where(_of_block(space, b), space.num_levels - 1, levels) for b in droppable])
        losses = [prospect.mean.kl for prospect in policy.prospects(rows, bytes_per_param)]
        best = int(np.argmin(losses))
        levels = rows[best]
        if float(space.kept(levels)) < policy.scale.kept_low:
            break
        order.append(droppable.pop(best))
    return order


def _of_block(space: SearchSpace, block: int) -> np.ndarray:
    return np.array([site.block == block for site in space.sites])


def _meets(prospect: Prospect, max_kl: float, max_domain_kl: tuple[float, ...]) -> bool:
    if prospect.mean.kl_high > max_kl:
        return False
    promises = prospect.domains.values()
    return all(promise.kl_high <= bound for promise, bound in zip(promises, max_domain_kl, strict=bool(promises)))
