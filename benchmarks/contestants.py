"""Who takes part in a race: our learner, the paper's form of it, and the rivals, each on the same budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unicuco.baselines.bayesian import bayesian
from unicuco.baselines.cached import CachedOracle, EvaluationCache
from unicuco.baselines.evolution import evolution
from unicuco.baselines.influence import block_influence, shortgpt
from unicuco.baselines.knapsack import knapsack
from unicuco.baselines.nsga2 import nsga2
from unicuco.baselines.random_search import random_search
from unicuco.baselines.seernet import seernet
from unicuco.baselines.uniform import uniform
from unicuco.evaluations import EvaluationLog
from unicuco.learner import Learner, LearnerConfig
from unicuco.request import Request
from unicuco.storage import write_json
from unicuco.surrogate import SurrogateConfig


@dataclass(frozen=True)
class Race:
    """One seed of a race: the cache that all contestants share, sizes, budget, and a folder to resume from."""

    cache: EvaluationCache
    sizes: tuple[float, ...]
    evaluations: int
    seed: int
    folder: Path


Contestant = Callable[[Race], np.ndarray]
"""Runs a search and returns ``num_sizes x num_sites`` level indices, each within its size."""

IN_FLIGHT = 2
"""Candidates that our learner hands out before it hears of any: as with two evaluators."""


def ours(race: Race) -> np.ndarray:
    return run_learner(race, "ours", LearnerConfig(evaluations=race.evaluations, seed=race.seed))


def without_margins(race: Race) -> np.ndarray:
    config = LearnerConfig(evaluations=race.evaluations, seed=race.seed, margins=0.0)
    return run_learner(race, "without-margins", config)


def paper(race: Race) -> np.ndarray:
    """UniCuCo as published: a plain Gaussian process, StratNet trained on its gradient alone."""
    plain = SurrogateConfig(mean="plain")
    return run_learner(race, "paper", LearnerConfig(evaluations=race.evaluations, seed=race.seed, surrogate=plain))


def run_learner(race: Race, name: str, config: LearnerConfig) -> np.ndarray:
    preparation = race.cache.evaluator.preparation
    groups = preparation.margin_groups
    log = EvaluationLog(race.folder / name)
    learner = Learner(preparation.space, preparation.damage, config, log, margin_groups=groups)
    seconds = read_trainings(race.folder, name)["seconds"] if len(log) else []
    while not learner.finished():
        if learner.needs_training():
            began = time.perf_counter()
            learner.train()
            seconds.append(time.perf_counter() - began)
            record = {"seconds": seconds, "threads": torch.get_num_threads()}
            write_json(race.folder / f"{name}-trainings.json", record)
        for candidate in learner.ask(IN_FLIGHT):
            learner.tell(race.cache.evaluate(candidate))
    learner.save_policy(race.folder / f"{name}-policy")
    return np.array([a.levels for a in learner.policy().answer([Request(kept=kept) for kept in race.sizes])])


def read_trainings(folder: Path, name: str) -> dict[str, Any]:
    """Wall ``seconds`` of every training of one of our contestants so far, and torch's ``threads``.

    A contestant that went on after a kill trains once more than one that was not interrupted, and that counts.
    """
    path = folder / f"{name}-trainings.json"
    if not path.is_file():
        return {"seconds": [], "threads": None}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _for_all(search: Callable[..., np.ndarray]) -> Contestant:
    """A search that answers all sizes from one budget."""

    def run(race: Race) -> np.ndarray:
        oracle = CachedOracle(race.cache, race.evaluations)
        return search(oracle, race.sizes, race.evaluations, np.random.default_rng(race.seed))

    return run


def _per_size(search: Callable[..., np.ndarray], sizes: Sequence[float] | None = None) -> Contestant:
    """A search per size: the budget shared out equally, or the whole of it for each of ``sizes``."""

    def run(race: Race) -> np.ndarray:
        whole = sizes is not None
        budget = race.evaluations if whole else race.evaluations / len(race.sizes)
        found = []
        for kept in race.sizes:
            if whole and kept not in (sizes or ()):
                found.append(np.full(race.cache.evaluator.space.num_sites, -1))  # not asked
                continue
            rng = np.random.default_rng([race.seed, round(1000 * kept)])
            found.append(search(CachedOracle(race.cache, budget), kept, budget, rng))
        return np.array(found)

    return run


def _uniform(mlp_only: bool) -> Contestant:
    return lambda race: np.array([uniform(race.cache.evaluator.space, kept, mlp_only) for kept in race.sizes])


def shortgpt_drops(race: Race) -> np.ndarray:
    evaluator = race.cache.evaluator
    influence = block_influence(evaluator.base.model, evaluator.windows.tokens)
    return np.array([shortgpt(evaluator.space, influence, kept) for kept in race.sizes])


LONG_SIZES = (0.7, 0.5)
"""Sizes at which evolution gets the whole budget for one size."""

CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "uniform-mlp": _uniform(True),
    "uniform-all": _uniform(False),
    "evolution": _per_size(evolution),
    "knapsack": _for_all(knapsack),
    "seernet": _per_size(seernet),
    "random": _for_all(random_search),
    "nsga2": _for_all(nsga2),
    "bayesian": _for_all(bayesian),
    "paper": paper,
    "evolution-5x": _per_size(evolution, LONG_SIZES),
    "without-margins": without_margins,
}
DEPTH_CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "shortgpt": shortgpt_drops,
    "evolution": _per_size(evolution),
    "knapsack": _for_all(knapsack),
    "random": _for_all(random_search),
}
