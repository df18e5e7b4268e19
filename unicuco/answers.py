"""From a chosen strategy to the answer that a user gets: sizes, promises, and a sentence where a bound cannot hold."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from unicuco.objectives import Scale
from unicuco.request import Answer, Promise, Request
from unicuco.space import SearchSpace
from unicuco.wishes import Wish


def compose(
    space: SearchSpace,
    scale: Scale,
    request: Request,
    wish: Wish,
    levels: np.ndarray,
    origin: str,
    preference: np.ndarray,
    promised: tuple[Promise, dict[str, Promise]],
    budget: float,
    floor: int,
    bytes_per_param: int,
) -> Answer:
    """The answer to ``request``.

    Args:
        levels: ``num_sites``; preference: ``num_objectives``, at which StratNet was asked.
        promised: for the mean KL, and for each domain that is an objective.
        budget: what the request allows, ``floor``: what no strategy goes below, in parameters.
    """
    size = space.size(levels, bytes_per_param)
    mean, domains = promised
    broken = _broken_bound(wish, mean, domains)
    feasible, note = True, ""
    if budget < floor:
        feasible = False
        note = (
            f"Impossible: in the smallest strategy {floor:,} parameters are left, over the bound of "
            f"{int(budget):,}; this is the nearest."
        )
    elif broken:
        feasible, note = False, broken
    elif size.kept < scale.kept_low - 0.02:
        note = f"Smaller than what was trained on (kept {scale.kept_low:g}): the predicted KL is a guess."
    shape = space.shape(levels)
    return Answer(
        id=request.id,
        request=request,
        feasible=feasible,
        note=note,
        levels=levels.tolist(),
        strategy=space.sparsities(levels).tolist(),
        groups=list(shape.groups),
        neurons=list(shape.neurons),
        kl=mean.kl,
        kl_low=mean.kl_low,
        kl_high=mean.kl_high,
        preference=tuple(preference.tolist()),
        origin=origin,
        domains=domains,
        **asdict(size),
    )


def _broken_bound(wish: Wish, mean: Promise, domains: dict[str, Promise]) -> str:
    """The first bound on quality that is not expected to hold, as a sentence; "" where all are."""
    bounds = [("KL", wish.max_kl, mean)]
    bounds += [
        (f"KL on {name}", bound, promise)
        for (name, promise), bound in zip(domains.items(), wish.max_domain_kl, strict=bool(domains))
    ]
    for what, bound, promise in bounds:
        if promise.kl_high > bound:
            return (
                f"No strategy this small is expected to stay within {what} {bound:g}; the nearest has "
                f"{promise.kl:.3g} ({promise.kl_low:.3g} to {promise.kl_high:.3g})."
            )
    return ""
