"""The learner: ask for candidates, tell evaluations, train surrogate and StratNet. Plain Python, no Ray.

``ask`` and ``tell`` take milliseconds and may be called from one thread while ``train`` runs for seconds in another:
training works on a snapshot and swaps its results in at the end.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unicuco.bases import Bases
from unicuco.costs import Costs
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog, unseen
from unicuco.latency import NamedTable
from unicuco.learner_config import LearnerConfig
from unicuco.learner_status import LearnerStatus, TrainReport
from unicuco.measured_front import MeasuredFront
from unicuco.policy import Policy
from unicuco.policy_parts import PolicyParts, save_parts, whole_is_reference
from unicuco.proposals import Proposal, first_design, improvise, strategy_key
from unicuco.qualities import objective_domains
from unicuco.refit import Queue, propose, refit
from unicuco.space import SearchSpace
from unicuco.stratnet import StratNet

__all__ = ["Learner", "LearnerConfig", "LearnerStatus", "TrainReport"]

RECENT = 32
"""Evaluations over which staleness is averaged."""
IMPROVISED = 16
"""Strategies that are improvised together: hundreds of evaluators may ask at once before the first training."""


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
        margin_groups: int = 0,
        domains: Sequence[str] = (),
        latency: NamedTable | None = None,
    ) -> None:
        """
        Args:
            domains: names of the calibration domains; the configuration says whether each is an objective.
            latency: a table by which latency is an objective beside size.
            margin_groups: groups of windows that margins take turns on; 0: none are asked for.
            damage: the preparation's table (``num_sites x max_levels``); unused by the plain surrogate.
            provenance: what the policy says of its origin (model, preparation, calibration, versions).

        Raises:
            SpaceError: the space cannot get as small, or as fast, as ``config.kept_low``. LatencyError: the table is
                of another base model.
        """
        self._latency, self._costs = latency, Costs(space, None if latency is None else latency.table)
        self._costs.check_reach(config.kept_low)
        plain = config.surrogate.mean == "plain"
        if plain and config.stratnet.teaching:
            config = config.model_copy(update={"stratnet": config.stratnet.model_copy(update={"teaching": 0.0})})
        self.space, self.config, self.log = space, config, log
        # A small space may hold fewer strategies than the budget; none is proposed twice.
        self._most = math.prod(int(n) for n in space.num_levels)
        self.domains = objective_domains(config.objectives, domains)
        """The domains that are objectives of their own."""
        # A site that is kept or dropped has a level on one side only: margins would teach nothing of it.
        useless = plain or space.is_binary or bool(self.domains) or config.margins == 0
        margin_groups = 0 if useless else margin_groups
        self.provenance = provenance or {}
        self._damage = None if plain else damage
        self._lock = threading.RLock()
        self._done: dict[str, Evaluation] = {e.eval_id: e for e in log.read()}
        self._front = MeasuredFront(self._done.values())
        self._spent_on_done = sum(e.evaluations for e in self._done.values())
        self._running: dict[str, Candidate] = {}
        self._failed: dict[str, Candidate] = {}
        self._again: deque[Candidate] = deque()
        known = [e.kept for e in self._done.values() if e.margin_group >= 0]
        self._bases = Bases(margin_groups, config.margins, config.evaluations, config.kept_low, known)
        self._taken = {strategy_key(e.levels_array()) for e in self._done.values()}
        self._next_id = 1 + max((_number(eval_id) for eval_id in self._done), default=-1)
        self._version = max((e.policy_version for e in self._done.values()), default=0)
        self._behind: deque[int] = deque(maxlen=RECENT)
        self._trained_on = 0
        self._taken_meanwhile = 0  # candidates handed out during the last training
        self._parts: PolicyParts | None = None
        rng = np.random.default_rng(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        deepest = torch.as_tensor(space.deepest)
        costs = len(self._costs)
        objectives = costs + max(len(self.domains), 1)
        self._net = StratNet(objectives, space.num_sites, config.stratnet.width, deepest, costs)
        self._first_count = config.first_count(margin_groups > 0)
        singles = space.num_sites + 2  # every drop alone, where that is affordable
        if space.is_binary and not plain and config.first is None and singles <= 0.85 * config.evaluations:
            self._first_count = max(self._first_count, singles)
        whole = not whole_is_reference(self.provenance)
        count, low = self._first_count, config.kept_low
        design = first_design(space, self._damage, count, low, rng, not margin_groups, self._costs, whole)
        self._queue: deque[tuple[Proposal, float, float]] = deque((p, math.nan, math.nan) for p in design)
        self._spare = rng
        self._improvised: deque[np.ndarray] = deque()

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

    def tell(self, *evaluations: Evaluation) -> int:
        """Puts evaluations on disk, together, then counts them; returns how many were not counted before.

        Raises:
            DiskFullError: they are neither on disk nor counted.
        """
        with self._lock:
            new = unseen(evaluations, self._done)
            self.log.append(*new.values())
            for evaluation in new.values():
                self._count(evaluation)
            return len(new)

    def _count(self, evaluation: Evaluation) -> None:
        self._behind.append(self._version - evaluation.policy_version)
        self._done[evaluation.eval_id] = evaluation
        self._front.add(evaluation)
        self._spent_on_done += evaluation.evaluations
        self._taken.add(strategy_key(evaluation.levels_array()))
        self._running.pop(evaluation.eval_id, None)
        self._failed.pop(evaluation.eval_id, None)
        self._drop_waiting(evaluation.eval_id)

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
                self._failed[candidate.eval_id] = candidate

    def needs_training(self) -> bool:
        """Whether enough is new since the last training, or everything is done and not all of it was used."""
        with self._lock:
            done, fresh = len(self._done), len(self._done) - self._trained_on
            if done < 2 or fresh == 0:
                return False
            enough = fresh >= self.config.batch and done >= self._first_count * 0.75
            return enough or self._exhausted()

    def finished(self) -> bool:
        """Whether the budget is spent and the policy has seen all of it."""
        with self._lock:
            return self._exhausted() and (self._trained_on == len(self._done) or len(self._done) < 2)

    def status(self) -> LearnerStatus:
        with self._lock:
            done, failed, running = len(self._done), len(self._failed), len(self._running) + len(self._again)
            counts = (done + failed + running, done, failed, running, self._version)
            spent = self._spent() - sum(c.cost for c in (*self._running.values(), *self._again))
            staleness = sum(self._behind) / max(len(self._behind), 1)
            front = (self._front.hypervolume(), self._front.points())
            return LearnerStatus(*counts, *front, spent, len(self._queue), staleness)

    def evaluations(self) -> list[Evaluation]:
        """Everything done, in the order in which it was counted."""
        with self._lock:
            return list(self._done.values())

    def _drop_waiting(self, eval_id: str) -> None:
        self._again = deque(c for c in self._again if c.eval_id != eval_id)

    def _exhausted(self) -> bool:
        return self._handed_out() and not self._running and not self._again

    def _spent(self) -> float:
        """Standard evaluations, those under way included."""
        under_way = [*self._failed.values(), *self._running.values(), *self._again]
        return self._spent_on_done + sum(c.cost for c in under_way)

    def _handed_out(self) -> bool:
        count = len(self._done) + len(self._failed) + len(self._running) + len(self._again)
        return count >= self._most or self._spent() > self.config.evaluations - 1

    def _new_candidate(self) -> Candidate | None:
        if self._handed_out():
            return None
        (levels, origin), mean, deviation = self._next_proposal()
        self._taken.add(strategy_key(levels))
        candidate = Candidate(
            f"{self._next_id:06d}",
            tuple(int(v) for v in levels),
            origin,
            mean,
            deviation,
            self._version,
            self._bases.choose(float(self.space.kept(levels)), origin, self._spent()),
        )
        self._next_id += 1
        return candidate

    def _next_proposal(self) -> tuple[Proposal, float, float]:
        while self._queue:
            entry = self._queue.popleft()
            if strategy_key(entry[0][0]) not in self._taken:
                return entry
        while self._improvised and strategy_key(self._improvised[0]) in self._taken:
            self._improvised.popleft()
        if not self._improvised:
            asked = (self.space, self._damage, self.config.kept_low, self._taken, self._spare, IMPROVISED)
            self._improvised.extend(improvise(*asked))
        return (self._improvised.popleft(), "improvised"), math.nan, math.nan

    # -- train: seconds, in one worker thread ---------------------------------------------------------------------

    def train(self) -> TrainReport:
        """Fits the surrogate, trains StratNet on it, and refills the queue of proposals."""
        with self._lock:
            done = list(self._done.values())
            pending = [*self._running.values(), *self._again]
            taken = set(self._taken)
            final, next_id = self._exhausted(), self._next_id
        settings = self.config.stratnet
        if final:
            settings = settings.model_copy(update={"steps": settings.steps * 3})
        config, low = self.config, self.config.kept_low
        found = refit(
            self._costs, self._damage, config.surrogate, settings, self._net, low, done, self._generator, self.domains
        )
        queue: Queue = deque()
        if not final:
            # Many evaluators take more than that while the next training runs, and would get improvised strategies.
            count = max(3 * config.batch, 2 * self._taken_meanwhile)
            queue = propose(found, config.optimism, count, done, pending, taken, self._generator)
        with self._lock:
            self._net = found.net
            self._version += 1
            self._trained_on, self._taken_meanwhile = len(done), self._next_id - next_id
            first = [entry for entry in self._queue if math.isnan(entry[1])] if not final else []
            self._queue = deque(first) + queue  # what is left of the first design still goes first
            self._parts = PolicyParts(
                self.space,
                self._damage,
                found.surrogate,
                found.net,
                found.scale,
                tuple(done),
                self._version,
                domains=found.qualities if self.domains else None,
                latency=self._latency,
            )
            return TrainReport(self._version, len(done), found.loss, found.surrogate.noise_std)

    def policy(self) -> Policy:
        """What training has left behind so far; trains first if it never has."""
        return Policy(self._trained())

    def save_policy(self, folder: Path) -> None:
        """Writes the policy of the last training, replacing the one there (atomic)."""
        save_parts(self._trained(), folder)

    def _trained(self) -> PolicyParts:
        if self._parts is None:
            self.train()
        assert self._parts is not None
        return replace(self._parts, provenance=self.provenance)


def _number(eval_id: str) -> int:
    return int(eval_id) if eval_id.isdigit() else -1
