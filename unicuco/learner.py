"""The learner: ask for candidates, tell evaluations, train surrogate and StratNet. Plain Python, no Ray.

``ask`` and ``tell`` take milliseconds and may be called from one thread while ``train`` runs for seconds in another:
training works on a snapshot and swaps its results in at the end.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field

from unicuco.allocation import allocate
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog
from unicuco.objectives import Scale, front, hypervolume, site_shares
from unicuco.policy import Policy
from unicuco.policy_parts import PolicyParts
from unicuco.proposals import (
    Proposal,
    first_design,
    improvise,
    make_pool,
    make_teachers,
    pick,
    strategy_key,
)
from unicuco.space import SearchSpace, budgets_of
from unicuco.stratnet import StratNet, StratNetConfig, train_stratnet
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig


class LearnerConfig(Config):
    """Budget and habits of the learner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluations: int = Field(default=150, ge=4)
    """The budget, failed candidates included."""
    first: int | None = Field(default=None, ge=2)
    """Evaluations before the first training; None: a fifth of the budget, 8 to 60."""
    batch: int = Field(default=8, ge=1)
    """New evaluations between two trainings."""
    kept_low: float = Field(default=0.4, gt=0, lt=0.97)
    """The smallest share of the blocks' parameters that the search covers."""
    optimism: float = Field(default=1.0, ge=0)
    """β of μ − βσ for proposing."""
    seed: int = Field(default=0, ge=0)
    surrogate: SurrogateConfig = SurrogateConfig()
    stratnet: StratNetConfig = StratNetConfig()

    @property
    def first_count(self) -> int:
        wanted = self.first if self.first is not None else min(max(self.evaluations // 5, 8), 60)
        return min(wanted, self.evaluations)


@dataclass(frozen=True)
class TrainReport:
    """One training: its policy version, evaluations used, and the final loss of StratNet."""

    version: int
    evaluations: int
    loss: float
    noise: float


@dataclass(frozen=True)
class LearnerStatus:
    """Counts, always ``submitted == done + failed + running``, and how far the search is.

    Attributes:
        front: (kept, KL) of the measured non-dominated strategies, by size.
        hypervolume: of (kept, log KL), reference (1, log KL of uniform at kept 0.5); 0 before that is known.
    """

    submitted: int
    done: int
    failed: int
    running: int
    version: int
    hypervolume: float
    front: list[tuple[float, float]]


class Learner:
    """Surrogate and StratNet around a log of evaluations.

    Building a learner on a log that holds evaluations counts each as done and goes on from there.
    """

    def __init__(
        self,
        space: SearchSpace,
        damage: np.ndarray | None,
        config: LearnerConfig,
        log: EvaluationLog,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            damage: the preparation's table (``num_sites x max_levels``); unused by the plain surrogate.
            provenance: what the policy says of its origin (model, preparation, calibration, versions).
        """
        plain = config.surrogate.mean == "plain"
        if plain and config.stratnet.teaching:
            config = config.model_copy(update={"stratnet": config.stratnet.model_copy(update={"teaching": 0.0})})
        self.space, self.config, self.log = space, config, log
        # A small space may hold fewer strategies than the budget; none is proposed twice.
        self._budget = min(config.evaluations, math.prod(int(n) for n in space.num_levels))
        self.provenance = provenance or {}
        self._damage = None if plain else damage
        self._lock = threading.RLock()
        self._done: dict[str, Evaluation] = {e.eval_id: e for e in log.read()}
        self._running: dict[str, Candidate] = {}
        self._failed: dict[str, str] = {}
        self._again: deque[Candidate] = deque()
        self._taken = {strategy_key(e.levels_array()) for e in self._done.values()}
        self._next_id = 1 + max((_number(eval_id) for eval_id in self._done), default=-1)
        self._version = max((e.policy_version for e in self._done.values()), default=0)
        self._trained_on = 0
        self._parts: PolicyParts | None = None
        rng = np.random.default_rng(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self._net = StratNet(2, space.num_sites, config.stratnet.width)
        design = first_design(space, self._damage, config.first_count, config.kept_low, rng)
        self._queue: deque[tuple[Proposal, float, float]] = deque((p, math.nan, math.nan) for p in design)
        self._spare = rng

    # -- ask and tell: milliseconds -------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Candidate]:
        """Up to ``n`` candidates, none of them measured or running; [] once the budget has been handed out."""
        with self._lock:
            given: list[Candidate] = []
            while len(given) < n:
                candidate = self._again.popleft() if self._again else self._new_candidate()
                if candidate is None:
                    break
                self._running[candidate.eval_id] = candidate
                given.append(candidate)
            return given

    def tell(self, evaluation: Evaluation) -> bool:
        """Puts an evaluation on disk, then counts it; false when it was counted before.

        Raises:
            DiskFullError: it is neither on disk nor counted.
        """
        with self._lock:
            if evaluation.eval_id in self._done:
                return False
            self.log.append(evaluation)
            self._done[evaluation.eval_id] = evaluation
            self._taken.add(strategy_key(evaluation.levels_array()))
            self._running.pop(evaluation.eval_id, None)
            self._failed.pop(evaluation.eval_id, None)
            self._drop_waiting(evaluation.eval_id)
            return True

    def requeue(self, candidate: Candidate) -> None:
        """Hands ``candidate`` out again first: its evaluator died."""
        with self._lock:
            if self._running.pop(candidate.eval_id, None) is not None:
                self._again.append(candidate)

    def give_up(self, candidate: Candidate, reason: str) -> None:
        """Counts ``candidate`` as failed for good; its strategy is never proposed again."""
        with self._lock:
            if candidate.eval_id not in self._done:
                self._running.pop(candidate.eval_id, None)
                self._drop_waiting(candidate.eval_id)
                self._failed[candidate.eval_id] = reason

    def needs_training(self) -> bool:
        """Whether enough is new since the last training, or everything is done and not all of it was used."""
        with self._lock:
            done, fresh = len(self._done), len(self._done) - self._trained_on
            if done < 2 or fresh == 0:
                return False
            enough = fresh >= self.config.batch and done >= self.config.first_count * 0.75
            return enough or self._exhausted()

    def finished(self) -> bool:
        """Whether the budget is spent and the policy has seen all of it."""
        with self._lock:
            return self._exhausted() and (self._trained_on == len(self._done) or len(self._done) < 2)

    def status(self) -> LearnerStatus:
        with self._lock:
            done = list(self._done.values())
            running = len(self._running) + len(self._again)
            counts = (len(done) + len(self._failed) + running, len(done), len(self._failed), running, self._version)
        points = np.array([(e.kept, e.kl) for e in done if e.kl > 0]).reshape(-1, 2)
        best = points[front(points)] if len(points) else points
        return LearnerStatus(*counts, self._hypervolume(done), [(float(k), float(v)) for k, v in best])

    def evaluations(self) -> list[Evaluation]:
        """Everything done, in the order in which it was counted."""
        with self._lock:
            return list(self._done.values())

    def _drop_waiting(self, eval_id: str) -> None:
        self._again = deque(c for c in self._again if c.eval_id != eval_id)

    def _exhausted(self) -> bool:
        spent = len(self._done) + len(self._failed) >= self._budget
        return spent and not self._running and not self._again

    def _new_candidate(self) -> Candidate | None:
        handed_out = len(self._done) + len(self._failed) + len(self._running) + len(self._again)
        if handed_out >= self._budget:
            return None
        (levels, origin), mean, deviation = self._next_proposal()
        self._taken.add(strategy_key(levels))
        candidate = Candidate(
            f"{self._next_id:06d}", tuple(int(v) for v in levels), origin, mean, deviation, self._version
        )
        self._next_id += 1
        return candidate

    def _next_proposal(self) -> tuple[Proposal, float, float]:
        while self._queue:
            entry = self._queue.popleft()
            if strategy_key(entry[0][0]) not in self._taken:
                return entry
        levels = improvise(self.space, self._damage, self.config.kept_low, self._taken, self._spare)
        return (levels, "improvised"), math.nan, math.nan

    def _hypervolume(self, done: list[Evaluation]) -> float:
        uniform = [e.kl for e in done if e.origin == "uniform" and e.kept <= 0.5]  # the ladder ends at bound 0.5
        if not uniform:
            return 0.0
        points = np.array([(e.kept, math.log(max(e.kl, NOISE_FLOOR))) for e in done])
        return hypervolume(points, (1.0, math.log(min(uniform))))

    # -- train: seconds, in one worker thread ---------------------------------------------------------------------

    def train(self) -> TrainReport:
        """Fits the surrogate, trains StratNet on it, and refills the queue of proposals."""
        with self._lock:
            done = list(self._done.values())
            pending = [*self._running.values(), *self._again]
            taken = set(self._taken)
            final = self._exhausted()
        levels = np.array([e.levels for e in done])
        kl = np.array([e.kl for e in done])
        usable = self._usable(levels, kl)
        surrogate = Surrogate(self.space, self._damage, self.config.surrogate).fit(levels[usable], kl[usable])
        scale = self._scale(surrogate, levels[usable], kl[usable])
        teachers = make_teachers(self.space, surrogate, scale)
        settings = self.config.stratnet
        if final:
            settings = settings.model_copy(update={"steps": settings.steps * 3})
        shares = torch.as_tensor(site_shares(self.space))
        net, loss = train_stratnet(self._net, surrogate, shares, scale, teachers, settings, self._generator)
        queue = deque() if final else self._proposals(surrogate, net, scale, levels, kl, pending, taken)
        with self._lock:
            self._net = net
            self._version += 1
            self._trained_on = len(done)
            first = [entry for entry in self._queue if math.isnan(entry[1])] if not final else []
            self._queue = deque(first) + queue  # what is left of the first design still goes first
            self._parts = PolicyParts(self.space, self._damage, surrogate, net, scale, tuple(done), self._version)
            return TrainReport(self._version, len(done), loss, surrogate.noise_std)

    def policy(self) -> Policy:
        """What training has left behind so far; trains first if it never has."""
        if self._parts is None:
            self.train()
        assert self._parts is not None
        return Policy(replace(self._parts, provenance=self.provenance))

    def save_policy(self, folder: Path) -> None:
        """Writes the policy of the last training, replacing the one there (atomic)."""
        self.policy().save(folder)

    def _usable(self, levels: np.ndarray, kl: np.ndarray) -> np.ndarray:
        """Indices that the surrogate sees: all but the dense strategy, bounded in number."""
        indices = np.flatnonzero(np.isfinite(kl) & (levels.sum(axis=1) > 0))
        most = self.config.surrogate.max_points
        if len(indices) <= most:
            return indices
        # The best quality per size says where the front is; the newest say what was asked last.
        rank = np.argsort(np.log(kl[indices] + NOISE_FLOOR) + 4 * self.space.kept(levels[indices]))
        chosen = set(indices[rank[: most // 2]]) | set(indices[-most // 2 :])
        return np.array(sorted(chosen))

    def _scale(self, surrogate: Surrogate, levels: np.ndarray, kl: np.ndarray) -> Scale:
        low = self.config.kept_low
        shared = surrogate.damage_model
        if shared is None:
            logs = np.log(kl + NOISE_FLOOR)
            return Scale(low, float(logs.min()), float(max(logs.max(), logs.min() + 0.1)))
        with torch.no_grad():
            ends = allocate(self.space, shared.additive_table().numpy(), budgets_of(self.space, np.array([0.97, low])))
            mean, _ = surrogate.predict(torch.as_tensor(self.space.sparsities(ends)))
        return Scale(low, float(mean[0]), float(max(mean[1], mean[0] + 0.1)))

    def _proposals(
        self,
        surrogate: Surrogate,
        net: StratNet,
        scale: Scale,
        levels: np.ndarray,
        kl: np.ndarray,
        pending: list[Candidate],
        taken: set[bytes],
    ) -> deque[tuple[Proposal, float, float]]:
        pool = make_pool(self.space, surrogate, net, self.config.kept_low, taken, self._generator)
        known = np.column_stack([self.space.kept(levels), np.log(kl + NOISE_FLOOR)])
        if pending:
            waiting = np.array([c.levels for c in pending])
            with torch.no_grad():
                mean, _ = surrogate.predict(torch.as_tensor(self.space.sparsities(waiting)))
            known = np.vstack([known, np.column_stack([self.space.kept(waiting), mean.numpy()])])
        chosen = pick(pool, known, scale, self.config.optimism, 3 * self.config.batch)
        return deque(((pool.levels[i], pool.origins[i]), float(pool.mean[i]), float(pool.deviation[i])) for i in chosen)


def _number(eval_id: str) -> int:
    return int(eval_id) if eval_id.isdigit() else -1
