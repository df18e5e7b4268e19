"""The policy: what training leaves behind. It answers preferences and bounds, many at once, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from botorch.utils.multi_objective.pareto import is_non_dominated

from unicuco.answers import compose
from unicuco.domains import DomainPromises, tried_shares
from unicuco.errors import PolicyError
from unicuco.level_posterior import LevelPosterior
from unicuco.objectives import front, join_preferences, site_shares, tchebycheff
from unicuco.policy_parts import PolicyParts, load_parts, save_parts
from unicuco.request import Answer, Promise, Request
from unicuco.sampling import Z90, Sampling, sampling
from unicuco.space import budgets_of
from unicuco.surrogate import NOISE_FLOOR
from unicuco.wishes import Wish, budget_of, read_wish

GRID, COARSE = 256, 64
"""Preferences at which StratNet's front is laid out, to answer bounds by look-up: once, or once for each shares of the
domains that somebody asks for."""
REMEMBERED = 64
"""Shares of the domains whose fronts are remembered."""
BYTES_PER_PARAM = 2


class Policy:
    """Answers requests. Thread-safe: nothing changes after construction."""

    def __init__(self, parts: PolicyParts) -> None:
        self.parts = parts
        self.space, self.scale = parts.space, parts.scale
        self.qualities = parts.qualities
        self._shares = torch.as_tensor(site_shares(self.space))
        self._front = lru_cache(REMEMBERED)(self._lay_front)
        self._ladder = lru_cache(REMEMBERED)(self._lay_ladder)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The calibration domains, whether or not each is an objective."""
        return next((e.domains for e in self.parts.evaluations if e.domains), ())

    # -- answering ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], bytes_per_param: int = BYTES_PER_PARAM) -> list[Answer]:
        """Answers ``requests`` in one batch, in order.

        Args:
            bytes_per_param: of the checkpoints that the answers would become: 2 for bfloat16, 4 for float32.

        Every feasible answer is within all size bounds. A request that no strategy can meet comes back with
        ``feasible`` false and the nearest strategy there is.

        Raises:
            RequestError: a request names an objective or a domain that this policy does not have.
        """
        if not requests:
            return []
        wanted = [read_wish(request, self.qualities.names, self.domains) for request in requests]
        budgets = np.array([budget_of(request, self.space, bytes_per_param) for request in requests])
        floor = int(self.space.total(self.space.smallest))
        reachable = np.maximum(budgets, floor)
        preference = self._preferences(requests, wanted, reachable)
        wishes = self.parts.net(torch.as_tensor(preference)).numpy()
        own = self.space.project(wishes, {"params": self._own_budgets(wanted, wishes, reachable)})
        levels, raw, origins = self._better_measured(wanted, preference, own, reachable)
        chosen = zip(requests, wanted, levels, origins, preference, self._promises(levels, raw), budgets, strict=True)
        return [
            compose(self.space, self.scale, r, w, row, origin, asked, promised, budget, floor, bytes_per_param)
            for r, w, row, origin, asked, promised, budget in chosen
        ]

    def check_request(self, request: Request) -> None:
        """Raises RequestError where a request names an objective or a domain that this policy does not have."""
        read_wish(request, self.qualities.names, self.domains)

    def predict(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted KL on fresh text and its 90 % interval (``n`` each) for level indices ``n x num_sites``."""
        return self._on_fresh_text(levels, self._raw(levels))

    def predict_domains(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for every domain that is an objective of its own (``n x num_domains`` each)."""
        if self._domain_promises is None:
            return (np.empty((len(levels), 0)),) * 3
        mean, deviation = self._domain_promises(levels)
        return _kl(mean), _kl(mean - Z90 * deviation), _kl(mean + Z90 * deviation)

    @cached_property
    def _domain_promises(self) -> DomainPromises | None:
        return DomainPromises(self.parts.domains, self.parts.evaluations) if self.parts.domains else None

    def _promises(self, levels: np.ndarray, raw: np.ndarray) -> list[tuple[Promise, dict[str, Promise]]]:
        """What is promised for each strategy: for the mean, and for each domain that is an objective."""
        mean = np.stack(self._on_fresh_text(levels, raw), axis=-1)
        own = np.stack(self.predict_domains(levels), axis=-1)
        dense = levels.sum(axis=1) == 0
        mean[dense], own[dense] = 0.0, 0.0

        def promise(row: np.ndarray) -> Promise:
            return Promise(kl=float(row[0]), kl_low=float(row[1]), kl_high=float(row[2]))

        names = self.qualities.names if own.shape[1] else ()
        return [
            (promise(mean[i]), {name: promise(own[i, d]) for d, name in enumerate(names)}) for i in range(len(levels))
        ]

    def _raw(self, levels: np.ndarray) -> np.ndarray:
        """The surrogate's mean and deviation of log KL (``2 x n``), for the search windows."""
        if self._on_levels is not None:
            return self._on_levels(levels)
        with torch.no_grad():
            return torch.stack(self.parts.surrogate.predict(torch.as_tensor(self.space.sparsities(levels)))).numpy()

    @cached_property
    def _on_levels(self) -> LevelPosterior | None:
        return self.parts.surrogate.on_levels()

    def _on_fresh_text(self, levels: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """KL and its 90 % interval (``n`` each): ``raw`` moved to fresh windows, with a measurement's own scatter."""
        kept, (grid, fresh) = self.space.kept(levels), self._sampling
        mean = raw[0] + np.interp(kept, grid, fresh.shift)
        noise = self.parts.surrogate.noise_std**2 + np.interp(kept, grid, fresh.variance)
        reach = Z90 * np.sqrt(raw[1] ** 2 + noise)
        return _kl(mean), _kl(mean - reach), _kl(mean + reach)

    @cached_property
    def _sampling(self) -> tuple[np.ndarray, Sampling]:
        """Kept shares (ascending), and how fresh windows differ from the search windows at each."""
        kept = np.linspace(0.0, 1.0, 101)
        return kept, sampling(self.parts.evaluations, kept)

    def _lay_front(self, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """StratNet's front for shares of the qualities: weight of size (ascending) and kept share, made monotone."""
        weight = torch.linspace(0.002, 0.998, GRID if len(shares) == 1 else COARSE, dtype=torch.float64)
        with torch.no_grad():
            kept = 1 - self.parts.net(self._joined(weight, [shares] * len(weight))) @ self._shares
        return weight.numpy(), np.minimum.accumulate(kept.numpy())

    @staticmethod
    def _joined(weight: torch.Tensor, shares: Sequence[tuple[float, ...]]) -> torch.Tensor:
        return join_preferences(weight, torch.tensor(shares, dtype=torch.float64))

    def _size_weight(self, budgets: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
        """The weights of size (``n``) at which StratNet's answers for these shares have as many parameters."""
        weight, kept = self._front(shares)
        wanted = (budgets - self.space.fixed["params"]) / self.space.geometry.block_params
        # The grid's kept share falls with the weight of size; np.interp wants ascending abscissae.
        return np.interp(wanted, kept[::-1], weight[::-1])

    def _lay_ladder(self, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameter budgets from small to dense, and the upper ends of the KL intervals of StratNet's answer to each.

        Returns:
            budgets (``n``), of the mean KL (``n``) and of every domain that is an objective (``n x num_domains``).
        """
        budgets = budgets_of(self.space, np.linspace(self.scale.kept_low, 1.0, GRID if len(shares) == 1 else COARSE))
        wish = Wish(None, shares, False, np.inf, (np.inf,) * len(shares))
        preference = self._joined(torch.as_tensor(self._size_weight(budgets, shares)), [shares] * len(budgets))
        with torch.no_grad():
            wishes = self.parts.net(preference).numpy()
        own = self.space.project(wishes, {"params": budgets})
        levels, raw, _ = self._better_measured([wish] * len(budgets), preference.numpy(), own, budgets)
        upper, of_domains = self._on_fresh_text(levels, raw)[2], self.predict_domains(levels)[2]
        dense = levels.sum(axis=1) == 0
        upper[dense], of_domains[dense] = 0.0, 0.0
        return budgets, upper, of_domains

    def _smallest(self, wish: Wish) -> tuple[float, tuple[float, ...]]:
        """The smallest budget at which the wish's bounds on quality are met, and the shares at which they are.

        Shares that nobody asked for are tried where a single domain is bounded: the best are those that prune most.
        """
        bounded = min(wish.max_domain_kl) < np.inf
        found, best = float(self.space.geometry.params), wish.shares
        for shares in tried_shares(len(wish.shares)) if wish.free and bounded else [wish.shares]:
            budgets, upper, of_domains = self._ladder(shares)
            met = upper <= wish.max_kl
            if of_domains.shape[1]:
                met &= (of_domains <= np.array(wish.max_domain_kl)).all(axis=1)
            if met.any() and budgets[met.argmax()] < found:
                found, best = float(budgets[met.argmax()]), shares
        return found, best

    def _preferences(self, requests: Sequence[Request], wishes: Sequence[Wish], budgets: np.ndarray) -> np.ndarray:
        """The preference to ask StratNet at (``n x num_objectives``): the request's own, or the one that fits its size.

        Lowers ``budgets`` to the smallest that meets a bound on quality.
        """
        weights, shares = np.empty(len(requests)), [wish.shares for wish in wishes]
        for i, (request, wish) in enumerate(zip(requests, wishes, strict=True)):
            if wish.bounds_quality:
                smallest, shares[i] = self._smallest(wish)
                budgets[i] = min(budgets[i], smallest)
            weights[i] = self._size_weight(budgets[i : i + 1], shares[i])[0]
            if wish.size_weight is not None:
                weights[i] = max(wish.size_weight, weights[i]) if request.bounds_size else wish.size_weight
        return self._joined(torch.as_tensor(weights), shares).numpy()

    def _own_budgets(self, wanted: Sequence[Wish], wishes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """For preferences, the size that StratNet chose itself (rounded up to a level); else the bound."""
        own = budgets.astype(np.float64).copy()
        snapped = self.space.total(self.space.snap(wishes))
        for i, wish in enumerate(wanted):
            if wish.size_weight is not None:
                own[i] = min(own[i], float(snapped[i]))
        return own

    @cached_property
    def _measured(self) -> np.ndarray:
        """Level indices of the measured front of all objectives (``m x num_sites``)."""
        done = self.parts.evaluations
        points = np.column_stack([np.array([e.kept for e in done]), self.qualities.measured(done)])
        if points.shape[1] == 2:
            best = front(points)
        else:
            best = np.flatnonzero(np.isfinite(points).all(axis=1))
            best = best[is_non_dominated(torch.as_tensor(-points[best])).numpy()]
        return np.array([done[i].levels for i in best], dtype=np.int64).reshape(-1, self.space.num_sites)

    @cached_property
    def _measured_raw(self) -> np.ndarray:
        """What the surrogate says of the measured front (``2 x m``)."""
        return self._raw(self._measured)

    @cached_property
    def _measured_values(self) -> torch.Tensor:
        """Scaled objectives that are predicted for the measured front (``m x num_objectives``)."""
        return self._values(self._measured, self._measured_raw)

    def _values(self, levels: np.ndarray, raw: np.ndarray) -> torch.Tensor:
        """Scaled objectives that are predicted for strategies (``n x num_objectives``)."""
        if self.parts.domains is None:  # the one quality is the mean, whose prediction there is
            mean = torch.as_tensor(raw[0])[:, None]
        else:
            with torch.no_grad():
                mean, _ = self.qualities.predict(torch.as_tensor(self.space.sparsities(levels)))
        return self.scale.values(torch.as_tensor(self.space.kept(levels)), mean)

    def _better_measured(
        self, wanted: Sequence[Wish], preference: np.ndarray, own: np.ndarray, budgets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """StratNet's strategies, each replaced by a measured one where that is predicted to serve better.

        Returns:
            level indices (``n x num_sites``), what the surrogate says of them (``2 x n``), where each came from.
        """
        raw, chosen = self._raw(own), np.arange(len(own))
        sizes, values, own_values = self.space.total(self._measured), self._measured_values, self._values(own, raw)
        for i, wish in enumerate(wanted):
            fits = np.flatnonzero(sizes <= budgets[i])
            if not len(fits):
                continue
            both = torch.cat([own_values[i : i + 1], values[fits]])
            if wish.size_weight is not None:
                score = tchebycheff(torch.as_tensor(preference[i]).expand(both.shape), both.clamp_min(0), 0.01).numpy()
            else:
                score = both[:, 1:].numpy() @ (preference[i, 1:] / preference[i, 1:].sum())
            best = int(np.argmin(score[1:]))
            if score[1 + best] < score[0] - 1e-9:  # the same strategy may differ by rounding
                chosen[i] = len(own) + fits[best]
        origins = ["stratnet" if i < len(own) else "measured" for i in chosen]
        return np.vstack([own, self._measured])[chosen], np.hstack([raw, self._measured_raw])[:, chosen], origins

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the policy to ``folder``, replacing the one there.

        Raises:
            DiskFullError: the old one is still there, nothing is half-written.
        """
        save_parts(self.parts, folder)

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """Reads a policy folder; needs neither the base model nor the preparation.

        Raises:
            PolicyError: there is none, or it is broken or of another format.
        """
        return cls(load_parts(folder))

    def check_model(self, digest: str, spec: str) -> None:
        """Refuses a base model with other content than the policy was trained for.

        Raises:
            PolicyError: naming both.
        """
        model = self.parts.provenance.get("model", {})
        if model.get("digest") != digest:
            raise PolicyError(
                f"The policy was trained for {model.get('spec', 'another base model')} (content "
                f"{str(model.get('digest'))[:12]}), not for {spec} (content {digest[:12]})."
            )


def _kl(log_kl: np.ndarray) -> np.ndarray:
    return np.maximum(np.exp(log_kl) - NOISE_FLOOR, 0.0)
