"""What a request comes to for one policy: a budget, shares of the domains, and how much costs weigh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicuco.errors import RequestError
from unicuco.qualities import MEAN
from unicuco.request import LATENCY, SIZE, Request
from unicuco.space import SearchSpace


@dataclass(frozen=True)
class Wish:
    """A request in a policy's own terms.

    Attributes:
        cost_weight: the weight of size and latency among all objectives; ``None``: whatever the bounds ask for.
        shares: of the qualities among each other (``num_qualities``, adds up to 1).
        free: nobody asked for these shares, so that bounds on domains may choose others.
        of_costs: shares of size and latency in it; of size alone where nobody asked.
        max_kl: largest mean KL; inf: any. ``max_domain_kl``: largest KL of each quality (``num_qualities``).
    """

    cost_weight: float | None
    shares: tuple[float, ...]
    free: bool
    max_kl: float
    max_domain_kl: tuple[float, ...]
    of_costs: tuple[float, float] = (1.0, 0.0)

    @property
    def bounds_quality(self) -> bool:
        return min(self.max_kl, *self.max_domain_kl) < math.inf


def read_wish(request: Request, names: Sequence[str], domains: Sequence[str], timed: bool = False) -> Wish:
    """What ``request`` asks of a policy.

    Args:
        names: the policy's quality objectives; domains: its calibration domains, objectives or not.
        timed: whether it has a latency table, so that latency may be preferred.

    Raises:
        RequestError: it names an objective or a domain that the policy does not have.
    """
    count = len(names)
    alike = (1 / count,) * count
    cost_weight, of_costs, shares, free = None, (1.0, 0.0), alike, True
    if isinstance(request.preference, dict):
        costs = [SIZE, LATENCY] if timed else [SIZE]
        allowed = [*costs, *_aliases(names, domains)]
        given = request.preference
        if MEAN in given and list(names) == [MEAN] and MEAN not in allowed and allowed[-1] not in given:
            given = {allowed[-1] if name == MEAN else name: weight for name, weight in given.items()}
        _refuse_unknown(request, given, allowed, names, domains)
        weights = [given.get(name, 0.0) for name in allowed]
        own = weights[len(costs) :]
        total, cost, rest = sum(weights), sum(weights[: len(costs)]), sum(own)
        if rest > 0:
            shares, free = tuple(weight / rest for weight in own), False
        if request.weighs_costs:
            cost_weight = cost / total
        if timed and cost > 0:
            of_costs = (weights[0] / cost, weights[1] / cost)
    elif request.preference is not None:
        cost_weight = request.preference[0] / sum(request.preference)
    max_kl, bounds = math.inf, [math.inf] * count
    if isinstance(request.max_kl, dict):
        allowed = _aliases(names, domains)
        _refuse_unknown(request, request.max_kl, allowed, names, domains)
        bounds = [request.max_kl.get(name, math.inf) for name in allowed]
    elif request.max_kl is not None:
        max_kl = request.max_kl
    if count == 1:  # the one quality is the mean
        max_kl, bounds = min(max_kl, bounds[0]), [math.inf]
    return Wish(cost_weight, shares, free, max_kl, tuple(bounds), of_costs)


def _aliases(names: Sequence[str], domains: Sequence[str]) -> list[str]:
    """How requests name the qualities: a single domain by its own name (a preference may say ``mean``, too)."""
    return list(domains) if len(domains) == 1 and SIZE not in domains else list(names)


def _refuse_unknown(
    request: Request, given: Mapping[str, float], allowed: Sequence[str], names: Sequence[str], domains: Sequence[str]
) -> None:
    unknown = [name for name in given if name not in allowed]
    if not unknown:
        return
    why = ""
    if list(names) == [MEAN] and unknown[0] in domains:
        why = ", which was trained on the mean over its domains (learner.objectives)"
    who = f"Request '{request.id}'" if request.id else "The request"
    raise RequestError(f"{who} names '{unknown[0]}'; this policy{why} knows {', '.join(allowed)}.")


def budget_of(request: Request, space: SearchSpace, bytes_per_param: int) -> float:
    """The smallest of the request's size bounds, in parameters; those set to zero do not count.

    Raises:
        RequestError: fewer bytes than dense are asked for where zeros are all that pruning makes.
    """
    check_bytes(request, space, bytes_per_param)
    geometry = space.geometry
    bounds = [float(geometry.params)]
    if request.params is not None:
        bounds.append(float(request.params))
    if request.bytes is not None and not space.is_sparse:
        bounds.append(request.bytes // bytes_per_param)
    if request.ratio is not None:
        bounds.append(request.ratio * geometry.params)
    if request.kept is not None:
        bounds.append(request.kept * geometry.block_params + space.fixed["params"])
    return math.floor(min(bounds) + 1e-6)


def check_bytes(request: Request, space: SearchSpace, bytes_per_param: int) -> None:
    """Refuses a bound on bytes that zeros in dense shapes cannot meet.

    Raises:
        RequestError: it says what can be bounded instead.
    """
    dense = space.geometry.params * bytes_per_param
    if space.is_sparse and request.bytes is not None and request.bytes < dense:
        raise RequestError(
            f"This policy's pruner ({space.config.pruner}) sets weights to zero in dense shapes, which makes no file "
            f"smaller than {dense:,} bytes: bound 'kept', 'ratio' or 'params', the weights that are left."
        )
