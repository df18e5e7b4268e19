"""What a request comes to for one policy: a budget, shares of the domains, and how much size weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicuco.errors import RequestError
from unicuco.qualities import MEAN
from unicuco.request import SIZE, Request
from unicuco.space import SearchSpace


@dataclass(frozen=True)
class Wish:
    """A request in a policy's own terms.

    Attributes:
        size_weight: the weight of size among all objectives; ``None``: whatever the bounds ask for.
        shares: of the qualities among each other (``num_qualities``, adds up to 1).
        free: nobody asked for these shares, so that bounds on domains may choose others.
        max_kl: largest mean KL; inf: any. ``max_domain_kl``: largest KL of each quality (``num_qualities``).
    """

    size_weight: float | None
    shares: tuple[float, ...]
    free: bool
    max_kl: float
    max_domain_kl: tuple[float, ...]

    @property
    def bounds_quality(self) -> bool:
        return min(self.max_kl, *self.max_domain_kl) < math.inf


def read_wish(request: Request, names: Sequence[str], domains: Sequence[str]) -> Wish:
    """What ``request`` asks of a policy.

    Args:
        names: the policy's quality objectives; domains: its calibration domains, objectives or not.

    Raises:
        RequestError: it names an objective or a domain that the policy does not have.
    """
    count = len(names)
    alike = (1 / count,) * count
    size_weight, shares, free = None, alike, True
    if isinstance(request.preference, dict):
        allowed = [SIZE, *_aliases(names, domains)]
        _refuse_unknown(request, request.preference, allowed, names, domains)
        weights = [request.preference.get(name, 0.0) for name in allowed]
        total, rest = sum(weights), sum(weights[1:])
        if rest > 0:
            shares, free = tuple(weight / rest for weight in weights[1:]), False
        if SIZE in request.preference:
            size_weight = weights[0] / total
    elif request.preference is not None:
        size_weight = request.preference[0] / sum(request.preference)
    max_kl, bounds = math.inf, [math.inf] * count
    if isinstance(request.max_kl, dict):
        allowed = _aliases(names, domains)
        _refuse_unknown(request, request.max_kl, allowed, names, domains)
        bounds = [request.max_kl.get(name, math.inf) for name in allowed]
    elif request.max_kl is not None:
        max_kl = request.max_kl
    if count == 1:  # the one quality is the mean
        max_kl, bounds = min(max_kl, bounds[0]), [math.inf]
    return Wish(size_weight, shares, free, max_kl, tuple(bounds))


def _aliases(names: Sequence[str], domains: Sequence[str]) -> list[str]:
    """How requests name the qualities: a single domain by its own name."""
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
