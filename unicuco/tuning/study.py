"""The score of a setting on a recorded log: how it predicts what came later, and the front that its StratNet answers.

A trial sees the first part of the log alone. Two figures judge what it makes of that:

- *density*: mean log density, in nats, of every later evaluation as it was measured. It depends on the surrogate's
  settings only, and on nothing but measurements.
- *front*: mean log KL of StratNet's answers for sizes over the whole range, as an oracle says: the surrogates of the
  run's own settings, fitted once to the whole log. Lower is better; a difference of 0.01 is one percent of KL. The
  oracle is of the family that it judges, so it favours surrogates that err as it does: ``halving`` therefore lets
  density decide whether a front counts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.costs import Costs
from unicuco.errors import TuningError
from unicuco.evaluations import Evaluation
from unicuco.latency import NamedTable
from unicuco.learner_config import LearnerConfig
from unicuco.policy import Policy
from unicuco.policy_parts import PolicyParts
from unicuco.proposals import make_teachers
from unicuco.qualities import Qualities, objective_domains
from unicuco.refit import Fitted, fit
from unicuco.request import Request
from unicuco.space import SearchSpace
from unicuco.storage import content_hash
from unicuco.stratnet import StratNet, Teachers, train_stratnet
from unicuco.tuning.sweep import Setting, apply

FIRST, LATER = 8, 4
"""Strategies, dense apart, that a trial learns from at least, and that it is judged by at least."""
SIZES, LARGEST = 11, 0.95
"""How many sizes a front is judged at, and the largest; the smallest is what the search covers."""
MOST_FITS = 32
"""Fits that a scorer remembers."""


@dataclass(frozen=True)
class Rung:
    """How much a trial costs.

    Attributes:
        steps: share of the setting's training steps.
        every_cut: train at all cuts, each warm-started from the one before as in a run; else at the middle one alone.
    """

    steps: float
    every_cut: bool


RUNGS = (Rung(0.25, False), Rung(1.0, True))
"""The first, which all settings run at, and the finals."""


@dataclass(frozen=True)
class Job:
    """One trial: a setting's number, the rung it runs at, and its seed."""

    setting: int
    rung: int
    seed: int


@dataclass(frozen=True)
class Score:
    """What came of a trial; front and density are nan where ``error`` says why.

    Attributes:
        fronts: ``front`` at every cut that the rung trains at; densities: ``density`` at every cut.
        later: density of every later evaluation, in the order of the log, over the cuts that it comes after.
        seconds: of processor, fits included where this trial was the first to need them.
    """

    front: float
    density: float
    fronts: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    later: tuple[float, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @classmethod
    def failed(cls, error: str, seconds: float = 0.0) -> Score:
        return cls(float("nan"), float("nan"), seconds=seconds, error=error)


@dataclass(frozen=True)
class Study:
    """What all trials share; small enough to send to each process once.

    Attributes:
        done: the log without the dense strategy, in the order in which evaluations finished.
        base: the run's own settings: the default that all are compared with.
        domains: those that are objectives of their own.
        cuts: how many evaluations each part of the log has (ascending).
        oracle: the oracle's state, one array per tensor.
        latency: the table by which latency is an objective, if it is one. Fronts are judged by size all the same.
    """

    space: SearchSpace
    damage: np.ndarray | None
    done: tuple[Evaluation, ...]
    base: LearnerConfig
    domains: tuple[str, ...]
    settings: tuple[Setting, ...]
    cuts: tuple[int, ...]
    oracle: dict[str, np.ndarray]
    latency: NamedTable | None = None

    @property
    def costs(self) -> Costs:
        return Costs(self.space, None if self.latency is None else self.latency.table)

    @classmethod
    def of_log(
        cls,
        space: SearchSpace,
        damage: np.ndarray | None,
        evaluations: Sequence[Evaluation],
        base: LearnerConfig,
        settings: Sequence[Setting],
        cuts: Sequence[float],
        latency: NamedTable | None = None,
    ) -> Study:
        """Fits the oracle to all of ``evaluations``.

        Raises:
            TuningError: there are too few of them to hold any back.
        """
        done = tuple(e for e in evaluations if any(e.levels) and np.isfinite(e.kl))
        if len(done) < FIRST + LATER:
            raise TuningError(
                f"The log holds {len(done)} evaluations, and a sweep needs {FIRST + LATER} or more: it learns from the "
                "first of them and is judged by the others."
            )
        at = {min(max(round(cut * len(done)), FIRST), len(done) - LATER) for cut in cuts}
        domains = objective_domains(base.objectives, done[0].domains)
        costs = Costs(space, None if latency is None else latency.table)
        fitted = fit(costs, damage, base.surrogate, base.kept_low, done, domains)
        oracle = {name: tensor.numpy() for name, tensor in fitted.qualities.state().items()}
        return cls(space, damage, done, base, domains, tuple(settings), tuple(sorted(at)), oracle, latency)

    def config(self, setting: int) -> LearnerConfig:
        """The learner's settings of a trial, as the learner itself would use them."""
        config = apply(self.base, self.settings[setting])
        if config.surrogate.mean == "plain":  # it has no teachers
            config = config.model_copy(update={"stratnet": config.stratnet.model_copy(update={"teaching": 0.0})})
        return config


def log_digest(evaluations: Sequence[Evaluation]) -> str:
    """SHA-256 of all that a log says, in hex."""
    return content_hash([asdict(evaluation) for evaluation in evaluations])


@dataclass(frozen=True)
class _Part:
    """What one part of the log taught a surrogate: its fit, teachers, and the density of each later evaluation."""

    fitted: Fitted
    teachers: Teachers | None
    later: np.ndarray


class Scorer:
    """Runs trials of a study; fits are shared by all trials with the same surrogate."""

    def __init__(self, study: Study) -> None:
        self.study = study
        state = {name: torch.as_tensor(array) for name, array in study.oracle.items()}
        names = study.domains or ("mean",)
        self._costs = study.costs
        self._oracle = Qualities.from_state(study.space, study.damage, study.base.surrogate, names, state)
        self._parts: OrderedDict[tuple[str, int], _Part] = OrderedDict()
        self._requests, self._weights = _requests(study)

    def score(self, job: Job) -> Score:
        """Runs one trial. What goes wrong in it is its score, not an error of the sweep."""
        began = time.process_time()
        try:
            found = self._score(job)
        except Exception as error:  # a setting may break anything: a factorisation, memory, a bound of the space
            text = str(error).strip().split("\n")[0] or "no message"
            return Score.failed(f"{type(error).__name__}: {text}", time.process_time() - began)
        return Score(**{**vars(found), "seconds": time.process_time() - began})

    def _score(self, job: Job) -> Score:
        study, rung = self.study, RUNGS[job.rung]
        config = study.config(job.setting)
        parts = [self._part(config, cut) for cut in study.cuts]
        trained = parts if rung.every_cut else [parts[len(parts) // 2]]
        generator = torch.Generator().manual_seed(job.seed)
        settings = config.stratnet.model_copy(update={"steps": max(1, round(rung.steps * config.stratnet.steps))})
        net, fronts = self._new_net(config.stratnet.width, job.seed), []
        for part in trained:
            fitted = part.fitted
            net, _ = train_stratnet(
                net, fitted.qualities, self._costs, fitted.scale, part.teachers, settings, generator
            )
            fronts.append(self._front(fitted, net))
        # An evaluation after several cuts is predicted from each; it counts once.
        later = np.full((len(parts), len(study.done)), np.nan)
        for row, part in zip(later, parts, strict=True):
            row[len(row) - len(part.later) :] = part.later
        later = np.nanmean(later[:, study.cuts[0] :], axis=0)
        front, density = float(np.mean(fronts)), float(later.mean())
        if not np.isfinite([front, density]).all():
            return Score.failed(f"its front is {front} and its density {density}")
        densities = tuple(float(part.later.mean()) for part in parts)
        return Score(front, density, tuple(fronts), densities, tuple(later.tolist()))

    def _new_net(self, width: int, seed: int) -> StratNet:
        space = self.study.space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            costs = len(self._costs)
            objectives = costs + max(len(self.study.domains), 1)
            return StratNet(objectives, space.num_sites, width, torch.as_tensor(space.deepest), costs)

    def _part(self, config: LearnerConfig, cut: int) -> _Part:
        key = (config.surrogate.model_dump_json(), cut)
        if key not in self._parts:
            self._parts[key] = self._learn(config, cut)
            if len(self._parts) > MOST_FITS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key]

    def _learn(self, config: LearnerConfig, cut: int) -> _Part:
        study = self.study
        first, later = study.done[:cut], study.done[cut:]
        fitted = fit(self._costs, study.damage, config.surrogate, config.kept_low, first, study.domains)
        # Teachers of several domains are drawn; one draw for all trials, so that seeds differ in StratNet alone.
        drawn = torch.Generator().manual_seed(config.seed)
        teachers = make_teachers(self._costs, fitted.qualities, fitted.scale, drawn)
        return _Part(fitted, teachers, later_density(study.space, fitted.qualities, later))

    @torch.no_grad()
    def _front(self, fitted: Fitted, net: StratNet) -> float:
        study = self.study
        domains = fitted.qualities if study.domains else None
        # Without measured strategies, so that the answers are StratNet's own.
        parts = PolicyParts(
            study.space,
            study.damage,
            fitted.surrogate,
            net,
            fitted.scale,
            (),
            1,
            domains=domains,
            latency=study.latency,
        )
        answers = Policy(parts).answer(self._requests)
        levels = np.array([answer.levels for answer in answers])
        mean, _ = self._oracle.predict(torch.as_tensor(study.space.sparsities(levels)))
        return float((mean * self._weights).sum(-1).mean())


@torch.no_grad()
def later_density(space: SearchSpace, qualities: Qualities, later: Sequence[Evaluation]) -> np.ndarray:
    """Log density of each evaluation under what the surrogates promise of it, in nats (``n``); mean over qualities.

    On the search windows, for there they were measured; with the noise of a measurement.
    """
    levels = np.array([e.levels for e in later])
    mean, deviation = qualities.predict(torch.as_tensor(space.sparsities(levels)), on_search_windows=True)
    noise = torch.tensor([surrogate.noise_std for surrogate in qualities.surrogates], dtype=torch.float64)
    promised = torch.distributions.Normal(mean, (deviation.square() + noise.square()).sqrt())
    return promised.log_prob(torch.as_tensor(qualities.measured(later))).mean(-1).numpy()


def _requests(study: Study) -> tuple[list[Request], Tensor]:
    """What a front is asked for, and how each answer's log KLs count (``n x num_qualities``).

    Sizes over the range of the search; where domains are objectives, for all alike and for each alone.
    """
    space = study.space
    smallest = max(study.base.kept_low, float(space.kept(space.smallest)))
    sizes = np.linspace(smallest, max(LARGEST, smallest), SIZES).tolist()
    names = study.domains
    if not names:
        return [Request(kept=kept) for kept in sizes], torch.ones(len(sizes), 1, dtype=torch.float64)
    shares = [dict.fromkeys(names, 1.0)] + [{name: float(name == own) for name in names} for own in names]
    requests = [Request(kept=kept, preference=own) for kept in sizes for own in shares]
    weights = torch.tensor([list(own.values()) for own in shares], dtype=torch.float64)
    return requests, (weights / weights.sum(-1, keepdim=True)).repeat(len(sizes), 1)
