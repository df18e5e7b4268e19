"""The policy: what training leaves behind. It answers preferences and bounds, many at once, in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from unicuco.errors import PolicyError
from unicuco.objectives import front, site_shares, tchebycheff
from unicuco.policy_parts import PolicyParts, load_parts, save_parts
from unicuco.request import Answer, Request
from unicuco.sampling import Z90, Sampling, sampling
from unicuco.space import Size, budgets_of
from unicuco.surrogate import NOISE_FLOOR

GRID = 256
"""Preferences at which StratNet's front is laid out once, to answer bounds by look-up."""
BYTES_PER_PARAM = 2


class Policy:
    """Answers requests. Thread-safe: nothing changes after construction."""

    def __init__(self, parts: PolicyParts) -> None:
        self.parts = parts
        self.space, self.scale = parts.space, parts.scale
        self._shares = torch.as_tensor(site_shares(self.space))

    # -- answering ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], bytes_per_param: int = BYTES_PER_PARAM) -> list[Answer]:
        """Answers ``requests`` in one batch, in order.

        Args:
            bytes_per_param: of the checkpoints that the answers would become: 2 for bfloat16, 4 for float32.

        Every feasible answer is within all size bounds. A request that no strategy can meet comes back with
        ``feasible`` false and the nearest strategy there is.
        """
        if not requests:
            return []
        budgets = np.array([self._budget(request, bytes_per_param) for request in requests])
        floor = int(self.space.total(self.space.smallest))
        reachable = np.maximum(budgets, floor)
        preference = self._preferences(requests, reachable)
        wishes = self.parts.net(torch.as_tensor(preference)).numpy()
        own = self.space.project(wishes, {"params": self._own_budgets(requests, wishes, reachable)})
        levels, origins = self._better_measured(requests, preference, own, reachable)
        mean, deviation = self._predict(levels)
        sizes = [self.space.size(row, bytes_per_param) for row in levels]
        return [
            self._compose(
                request, levels[i], sizes[i], origins[i], preference[i], mean[i], deviation[i], budgets[i], floor
            )
            for i, request in enumerate(requests)
        ]

    def predict(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted KL on fresh text and its 90 % interval (``n`` each) for level indices ``n x num_sites``."""
        mean, deviation = self._predict(levels)
        return _kl(mean), _kl(mean - Z90 * deviation), _kl(mean + Z90 * deviation)

    def _predict(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean of log KL on fresh windows, and the deviation of a measurement there."""
        with torch.no_grad():
            mean, deviation = self.parts.surrogate.predict(torch.as_tensor(self.space.sparsities(levels)))
        kept, (grid, fresh) = self.space.kept(levels), self._sampling
        noise = self.parts.surrogate.noise_std**2 + np.interp(kept, grid, fresh.variance)
        return mean.numpy() + np.interp(kept, grid, fresh.shift), np.sqrt(deviation.numpy() ** 2 + noise)

    @cached_property
    def _sampling(self) -> tuple[np.ndarray, Sampling]:
        """Kept shares (ascending), and how fresh windows differ from the search windows at each."""
        kept = np.linspace(0.0, 1.0, 101)
        return kept, sampling(self.parts.evaluations, kept)

    def _budget(self, request: Request, bytes_per_param: int) -> float:
        """The smallest of the request's size bounds, in parameters."""
        geometry = self.space.geometry
        bounds = [float(geometry.params)]
        if request.params is not None:
            bounds.append(float(request.params))
        if request.bytes is not None:
            bounds.append(request.bytes // bytes_per_param)
        if request.ratio is not None:
            bounds.append(request.ratio * geometry.params)
        if request.kept is not None:
            bounds.append(float(budgets_of(self.space, np.array([request.kept]))[0]))
        return math.floor(min(bounds) + 1e-6)

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """StratNet's front: weight of size (``GRID``, ascending) and kept share, made monotone."""
        weight = torch.linspace(0.002, 0.998, GRID, dtype=torch.float64)
        with torch.no_grad():
            kept = 1 - self.parts.net(torch.stack([weight, 1 - weight], dim=-1)) @ self._shares
        return weight.numpy(), np.minimum.accumulate(kept.numpy())

    @cached_property
    def _ladder(self) -> tuple[np.ndarray, np.ndarray]:
        """Parameter budgets from small to dense, and the upper end of the KL interval of StratNet's answer to each."""
        budgets = budgets_of(self.space, np.linspace(self.scale.kept_low, 1.0, GRID))
        requests = [Request(params=int(b)) for b in budgets]
        preference = self._preferences(requests, budgets)
        with torch.no_grad():
            wishes = self.parts.net(torch.as_tensor(preference)).numpy()
        own = self.space.project(wishes, {"params": budgets})
        levels, _ = self._better_measured(requests, preference, own, budgets)
        upper = self.predict(levels)[2]
        upper[levels.sum(axis=1) == 0] = 0.0  # dense
        return budgets, np.minimum.accumulate(upper)

    def _preferences(self, requests: Sequence[Request], budgets: np.ndarray) -> np.ndarray:
        """The preference to ask StratNet at (``n x 2``): the request's own, or the one whose answer fits its size."""
        weight, kept = self._grid
        wanted = (budgets - self.space.fixed["params"]) / self.space.geometry.block_params
        # The grid's kept share falls with the weight of size; np.interp wants ascending abscissae.
        found = np.interp(wanted, kept[::-1], weight[::-1])
        for i, request in enumerate(requests):
            if request.preference is not None:
                own = request.preference[0] / sum(request.preference)
                found[i] = max(own, found[i]) if self._has_bound(request) else own
            elif request.max_kl is not None:
                ladder, upper = self._ladder
                enough = np.flatnonzero(upper <= request.max_kl)
                smallest = ladder[enough[0]] if len(enough) else float(self.space.geometry.params)
                budgets[i] = min(budgets[i], smallest)
                share = (budgets[i] - self.space.fixed["params"]) / self.space.geometry.block_params
                found[i] = np.interp(share, kept[::-1], weight[::-1])
        return np.column_stack([found, 1 - found])

    @staticmethod
    def _has_bound(request: Request) -> bool:
        return any(bound is not None for bound in (request.kept, request.ratio, request.params, request.bytes))

    def _own_budgets(self, requests: Sequence[Request], wishes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """For preferences, the size that StratNet chose itself (rounded up to a level); else the bound."""
        own = budgets.astype(np.float64).copy()
        snapped = self.space.total(self.space.snap(wishes))
        for i, request in enumerate(requests):
            if request.preference is not None:
                own[i] = min(own[i], float(snapped[i]))
        return own

    @cached_property
    def _measured(self) -> np.ndarray:
        """Level indices of the measured front, by size (``m x num_sites``)."""
        done = self.parts.evaluations
        points = np.array([(e.kept, e.kl) for e in done]).reshape(-1, 2)
        return np.array([done[i].levels for i in front(points)], dtype=np.int64).reshape(-1, self.space.num_sites)

    def _better_measured(
        self, requests: Sequence[Request], preference: np.ndarray, own: np.ndarray, budgets: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """StratNet's strategies, each replaced by a measured one where that is predicted to serve better."""
        origins = ["stratnet"] * len(own)
        measured = self._measured
        if not len(measured):
            return own, origins
        both = np.vstack([own, measured])
        mean, _ = self._predict(both)
        n = len(own)
        sizes, levels = self.space.total(measured), own.copy()
        size_share = torch.as_tensor(self.space.kept(both))
        values = torch.stack([self.scale.size(size_share), self.scale.quality(torch.as_tensor(mean))], dim=-1)
        for i, request in enumerate(requests):
            if request.preference is not None:
                weights = torch.as_tensor(preference[i]).expand(len(both), 2)
                score = tchebycheff(weights, values.clamp_min(0), 0.01).numpy()
            else:
                score = mean
            fits = np.flatnonzero(sizes <= budgets[i])
            if len(fits):
                best = fits[np.argmin(score[n + fits])]
                if score[n + best] < score[i]:
                    levels[i], origins[i] = measured[best], "measured"
        return levels, origins

    def _compose(
        self,
        request: Request,
        levels: np.ndarray,
        size: Size,
        origin: str,
        preference: np.ndarray,
        mean: float,
        deviation: float,
        budget: float,
        floor: int,
    ) -> Answer:
        dense = not levels.any()
        kl, low, high = (
            (0.0, 0.0, 0.0)
            if dense
            else (float(v) for v in _kl(np.array([mean, mean - Z90 * deviation, mean + Z90 * deviation])))
        )
        feasible, note = True, ""
        if budget < floor:
            feasible = False
            note = (
                f"Impossible: in the smallest strategy {floor:,} parameters are left, over the bound of "
                f"{int(budget):,}; this is the nearest."
            )
        elif request.max_kl is not None and high > request.max_kl:
            feasible = False
            note = (
                f"No strategy this small is expected to stay within KL {request.max_kl:g}; the nearest has "
                f"{kl:.3g} ({low:.3g} to {high:.3g})."
            )
        elif size.kept < self.scale.kept_low - 0.02:
            note = f"Smaller than what was trained on (kept {self.scale.kept_low:g}): the predicted KL is a guess."
        shape = self.space.shape(levels)
        return Answer(
            id=request.id,
            request=request,
            feasible=feasible,
            note=note,
            levels=levels.tolist(),
            strategy=self.space.sparsities(levels).tolist(),
            groups=list(shape.groups),
            neurons=list(shape.neurons),
            kl=kl,
            kl_low=low,
            kl_high=high,
            preference=(float(preference[0]), float(preference[1])),
            origin=origin,
            **asdict(size),
        )

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
