"""What a policy promises for strategies, worked out once for each.

Levels are coarse: over all sizes a policy answers with some hundred different strategies, however many requests come.
What they cost and what is predicted for them is therefore remembered by strategy, and an answer is mostly a look-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unicuco.domains import DomainPromises
from unicuco.doubt import Doubt
from unicuco.objectives import Scale
from unicuco.policy_parts import PolicyParts
from unicuco.request import Answer, Promise
from unicuco.sampling import Z90, sampling
from unicuco.space import SearchSpace, Size
from unicuco.surrogate import NOISE_FLOOR

REMEMBERED = 4096
"""Strategies; the oldest are forgotten first."""
DIGITS = 9
"""Significant digits of what is promised."""
CAUTION = 2.0
"""Reaches of the 90 % interval that a doubted prediction is judged above itself."""


@dataclass(frozen=True)
class Prospect:
    """One strategy: its size and what is predicted for it.

    Attributes:
        objectives: predicted, scaled (``num_objectives``, costs first), for the search windows; where the surrogate is
            in doubt (``unicuco.doubt``), what they may be at worst.
        mean: promise on fresh text for the mean over the domains; domains: for each that is an objective.
        answer: what every answer with this strategy says. What a request adds to it is not set (``answers.compose``).
    """

    size: Size
    objectives: np.ndarray
    mean: Promise
    domains: dict[str, Promise]
    answer: Answer


class Prospects:
    """Prospects by strategy. Thread-safe: two threads may work the same one out, and both find the same."""

    def __init__(self, parts: PolicyParts) -> None:
        self._parts = parts
        self._space: SearchSpace = parts.space
        self._scale: Scale = parts.scale
        self._kept = np.linspace(0.0, 1.0, 101)
        self._sampling = sampling(parts.evaluations, self._kept)
        self._domains = DomainPromises(parts.domains, parts.evaluations) if parts.domains else None
        self._doubt = Doubt.of(parts.surrogate, parts.qualities, parts.evaluations)
        self._known: dict[tuple[int, bytes], Prospect] = {}

    def __call__(self, levels: np.ndarray, bytes_per_param: int) -> list[Prospect]:
        """Prospects of ``n x num_sites`` level indices, in order; sizes as stored at ``bytes_per_param``."""
        known = self._known
        keys = [(bytes_per_param, row.tobytes()) for row in levels]
        found = [known.get(key) for key in keys]
        missing = {keys[i]: i for i, prospect in enumerate(found) if prospect is None}
        if not missing:
            return found  # type: ignore[return-value]
        new = dict(zip(missing, self._work_out(levels[list(missing.values())], bytes_per_param), strict=True))
        if len(known) + len(new) > REMEMBERED:
            known = dict(list(known.items())[REMEMBERED // 2 :])
        self._known = {**known, **new}  # in one step: other threads see the old or the new
        return [prospect or new[key] for prospect, key in zip(found, keys, strict=True)]

    @torch.no_grad()
    def _work_out(self, levels: np.ndarray, bytes_per_param: int) -> list[Prospect]:
        space = self._space
        strategies, sizes = space.sparsities(levels), space.sizes(levels, bytes_per_param)
        groups, neurons = space.widths(levels)
        mean, deviation = (v.numpy() for v in self._parts.surrogate.predict(torch.as_tensor(strategies)))
        kept = np.array([size.kept for size in sizes])
        sampled = np.interp(kept, self._kept, self._sampling.variance)
        spread = np.sqrt(deviation**2 + self._parts.surrogate.noise_std**2 + sampled)
        if self._doubt:
            mean, spread = self._doubt.on_mean(levels, mean, spread, np.sqrt(sampled))
        # Moved from the search windows to fresh ones.
        promises = _intervals(mean + np.interp(kept, self._kept, self._sampling.shift), Z90 * spread)
        if self._domains is None:  # the one quality is the mean
            qualities, of_domains, spreads = mean[:, None], np.empty((len(levels), 0, 3)), spread[:, None]
        else:
            qualities, spreads = self._domains(levels)
            if self._doubt:
                qualities, spreads = self._doubt.on_qualities(levels, qualities, spreads, np.sqrt(sampled))
            of_domains = _intervals(qualities, Z90 * spreads)
        if self._parts.whole_is_reference:
            dense = levels.sum(axis=1) == 0
            promises[dense], of_domains[dense] = 0.0, 0.0
        if self._doubt:
            qualities = qualities + CAUTION * Z90 * spreads
        objectives = self._scale.values(torch.as_tensor(self._parts.costs(levels)), torch.as_tensor(qualities)).numpy()
        names = self._parts.qualities.names[: of_domains.shape[1]]
        rows = zip(levels.tolist(), strategies.tolist(), groups.tolist(), neurons.tolist(), strict=True)
        found = []
        for i, (row, strategy, own_groups, own_neurons) in enumerate(rows):
            size, own_mean = sizes[i], _promise(promises[i])
            own = dict(zip(names, map(_promise, of_domains[i]), strict=True))
            shape = {"levels": row, "strategy": strategy, "groups": own_groups, "neurons": own_neurons}
            said = {**shape, **vars(size), **dict(own_mean), "domains": own}
            found.append(Prospect(size, objectives[i], own_mean, own, Answer.model_construct(**said)))
        return found


def _intervals(log_kl: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """KL, its lower and its upper end (along a new last axis)."""
    ends = np.stack([log_kl, log_kl - reach, log_kl + reach], axis=-1)
    return np.maximum(np.exp(ends) - NOISE_FLOOR, 0.0)


def _promise(row: np.ndarray) -> Promise:
    # Sums run in another order when other strategies are worked out beside this one, and differ by 1e-14. What is
    # promised for a strategy must not depend on that, or two replicas would contradict each other.
    kl, low, high = (float(f"{value:.{DIGITS}g}") for value in row)
    return Promise(kl=kl, kl_low=low, kl_high=high)
