"""The oracle on a real base model: evaluations are deterministic, so whatever was measured once is read from disk.

One cache for all searches on one preparation; what is cached costs the budget all the same (docs/protocol.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from unicuco.baselines.oracle import BudgetSpentError
from unicuco.calibration import Windows
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog
from unicuco.evaluator import Evaluator
from unicuco.space import SearchSpace

_ROUNDING = 1e-9


class EvaluationCache:
    """Evaluations of one evaluator, by content: strategy, windows and margins.

    Attributes:
        hits, misses: read from disk and measured, since it was opened.
    """

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        self.evaluator = evaluator
        self._log = EvaluationLog(folder)
        self._log.compact()
        self._known = {evaluation.eval_id: evaluation for evaluation in self._log.read()}
        self.hits = self.misses = 0

    def evaluate(self, candidate: Candidate, evaluator: Evaluator | None = None) -> Evaluation:
        """``candidate`` measured, or as it was measured before; on ``evaluator``'s windows if one is given."""
        evaluator = evaluator or self.evaluator
        key = _key(candidate, evaluator)
        if key in self._known:
            self.hits += 1
        else:
            self.misses += 1
            fresh = evaluator.evaluate(dataclasses.replace(candidate, eval_id=key))
            self._log.append(fresh)
            self._known[key] = fresh
        return dataclasses.replace(
            self._known[key],
            eval_id=candidate.eval_id,
            origin=candidate.origin,
            predicted_log_kl=candidate.predicted_log_kl,
            predicted_sigma=candidate.predicted_sigma,
            policy_version=candidate.policy_version,
        )

    @property
    def typical_seconds(self) -> float:
        """Median time of a standard evaluation without margins; nan before there is one."""
        own = self.evaluator.windows_digest
        seconds = [e.seconds for e in self._known.values() if e.windows == own and e.margin_group < 0]
        return float(np.median(seconds)) if seconds else float("nan")

    def kl(self, levels: np.ndarray, evaluator: Evaluator | None = None) -> float:
        """KL of one strategy (``num_sites`` level indices), nats per token."""
        return self.evaluate(Candidate("", tuple(int(v) for v in levels), "oracle"), evaluator).kl


class CachedOracle:
    """A budget on a cache; see ``unicuco.baselines.oracle.Oracle``.

    Args:
        budget: standard evaluations.
    """

    def __init__(self, cache: EvaluationCache, budget: float) -> None:
        self._cache = cache
        self._budget, self._spent = budget, 0.0
        self._fewer: dict[int, Evaluator] = {}

    @property
    def space(self) -> SearchSpace:
        return self._cache.evaluator.space

    @property
    def num_windows(self) -> int:
        """Windows per domain of one standard evaluation."""
        return self._cache.evaluator.preparation.config.calibration.search_windows

    @property
    def left(self) -> float:
        return self._budget - self._spent

    def kl(self, levels: np.ndarray, windows: int | None = None) -> float:
        """KL of one strategy on all search windows, or on the first ``windows`` of every domain.

        Raises:
            BudgetSpentError: nothing was measured or charged.
        """
        count = min(windows or self.num_windows, self.num_windows)
        cost = count / self.num_windows
        if cost > self.left + _ROUNDING:
            raise BudgetSpentError(f"{self.left:.3g} evaluations are left, {cost:.3g} were asked for.")
        found = self._cache.kl(levels, None if count == self.num_windows else self._on_first(count))
        self._spent += cost
        return found

    def _on_first(self, count: int) -> Evaluator:
        if count not in self._fewer:
            all_windows = self._cache.evaluator.windows
            place = np.arange(len(all_windows.tokens)) % self.num_windows  # within its domain
            rows = place < count
            first = Windows(all_windows.tokens[rows], all_windows.domain[rows], all_windows.domains)
            self._fewer[count] = self._cache.evaluator.on(first)
        return self._fewer[count]


def _key(candidate: Candidate, evaluator: Evaluator) -> str:
    content = repr((candidate.levels, candidate.margin_group, evaluator.windows_digest, evaluator.preparation.digest))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
