"""What each choice of the learner is worth: searches on made-up models whose optimum is known, and recorded logs.

    python -m benchmarks.ablations [--seeds 4] [--log FOLDER ...] [--others FOLDER] [--parts ...] [--json FILE]

Searches (``benchmarks/made_up.py``: 24 sites, 64 evaluations, all variants on the same models; minutes per seed):

- ``regret``: KL of the answer ÷ KL of the best strategy within the size, per kept 0.9 to 0.5, geometric mean over
  seeds; ``all``: over sizes as well; ``change``: of log regret from the learner as it is, and its standard error.
- ``answers``: the same for other ways of answering from the same runs.

Logs (``--log``: run or policy folders, or folders of evaluations; default: the demo's run): the surrogate is fitted to
the first 20, 40 and 70 % and predicts the rest, as in ``benchmarks.surrogate``; with ``--others`` also what other
searches measured on the same windows (the cache of ``benchmarks.search``), which it did not choose.

- ``rmse``: of log KL.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation_logs import FORMS, SHARES, constants, log_errors
from benchmarks.harness import DEMO_RUN, console, demo_policy, finish, parser, surroundings
from benchmarks.made_up import MARGIN_GROUPS, MadeUp, make_space
from unicuco.allocation import allocate
from unicuco.baselines.uniform import LADDER, uniform
from unicuco.evaluations import EvaluationLog
from unicuco.learner import Learner, LearnerConfig
from unicuco.policy import Policy
from unicuco.request import Request
from unicuco.space import SearchSpace, budgets_of
from unicuco.storage import write_json
from unicuco.stratnet import StratNetConfig
from unicuco.surrogate import SurrogateConfig

SIZES = np.array(LADDER)
NET = StratNetConfig(width=128, steps=60)
BUDGET, BATCH, IN_FLIGHT = 64, 12, 2
AS_IT_IS = "as it is"

Settings = dict[str, Any]
VARIANTS: dict[str, tuple[Settings, Settings]] = {
    AS_IT_IS: ({}, {}),
    "plain GP": ({"surrogate": SurrogateConfig(mean="plain")}, {}),
    "margins: none": ({"margins": 0.0}, {}),
    "margins: 0.3 of the budget": ({"margins": 0.3}, {}),
    "margins: 0.5 of the budget": ({"margins": 0.5}, {}),
    "weights do not drift": ({}, {"DRIFT": 0.0}),
    "neighbours unlike": ({}, {"NEIGHBOURS": 0.0}),
    "no teachers": ({"stratnet": NET.model_copy(update={"teaching": 0.0})}, {}),
    "optimism 0": ({"optimism": 0.0}, {}),
    "optimism 2": ({"optimism": 2.0}, {}),
}
"""Name -> settings of the learner, and constants of ``unicuco.damage``."""


def search(model: MadeUp, seed: int, settings: Settings) -> Policy:
    """The policy of one run of the learner on ``model``."""
    config = LearnerConfig(evaluations=BUDGET, first=BATCH, batch=BATCH, seed=seed, stratnet=NET)
    config = config.model_copy(update=settings)
    with tempfile.TemporaryDirectory(prefix="unicuco-ablation-") as temporary:
        log = EvaluationLog(Path(temporary))
        learner = Learner(model.space, model.table, config, log, margin_groups=MARGIN_GROUPS)
        while not learner.finished():
            if learner.needs_training():
                learner.train()
            for candidate in learner.ask(IN_FLIGHT):
                learner.tell(model.evaluation(candidate))
        return learner.policy()


def answer(policy: Policy) -> np.ndarray:
    """Level indices for ``SIZES`` (``num_sizes x num_sites``)."""
    return np.array([found.levels for found in policy.answer([Request(kept=float(kept)) for kept in SIZES])])


def stratnet_alone(policy: Policy) -> np.ndarray:
    """What StratNet says where no measured strategy may stand in for it."""
    return answer(Policy(dataclasses.replace(policy.parts, evaluations=())))


def allocation(policy: Policy) -> np.ndarray:
    """The allocation by the surrogate's damages at each size, without StratNet."""
    return allocate(policy.space, policy.parts.surrogate.tables(SIZES), budgets_of(policy.space, SIZES))


def best_measured(policy: Policy) -> np.ndarray:
    """The measured strategy of least KL within each size, filled up evenly."""
    done, budgets = policy.parts.evaluations, budgets_of(policy.space, SIZES)
    best = [min((e for e in done if e.params <= budget), key=lambda e: e.kl).levels for budget in budgets]
    return policy.space.project(policy.space.sparsities(np.array(best)), {"params": budgets})


ANSWERS: dict[str, Callable[[Policy], np.ndarray]] = {
    "StratNet, never a measured strategy": stratnet_alone,
    "pure allocation": allocation,
    "best measured": best_measured,
}


def without_search(model: MadeUp) -> dict[str, np.ndarray]:
    """Strategies that need no evaluation: where every search begins."""
    forms = [np.array([uniform(model.space, float(k), only)[None] for k in SIZES])[:, 0] for only in (True, False)]
    better = np.argmin([model.kl(form) for form in forms], axis=0)
    return {
        "predicted damages alone": allocate(model.space, model.table, budgets_of(model.space, SIZES)),
        "better uniform form": np.array([forms[form][i] for i, form in enumerate(better)]),
    }


def searches(space: SearchSpace, seeds: int, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Log regret of every variant and way of answering; ``save`` gets what there is after each seed."""
    regret: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(seeds):
        model = MadeUp(space, seed)
        best = np.log(model.kl(model.optimum(SIZES)))
        found: dict[str, np.ndarray] = {}
        for name, (settings, changed) in VARIANTS.items():
            began = time.perf_counter()
            with constants(changed):
                policy = search(model, seed, settings)
                found[name] = answer(policy)
                if name == AS_IT_IS:
                    found |= {f"answers: {way}": make(policy) for way, make in ANSWERS.items()}
            seconds.setdefault(name, []).append(time.perf_counter() - began)
        for name, levels in (found | without_search(model)).items():
            assert (space.kept(levels) <= SIZES + 1e-9).all(), name
            regret.setdefault(name, []).append((np.log(model.kl(levels)) - best).tolist())
        mean = float(np.exp(np.mean(regret[AS_IT_IS])))
        console.print(f"seed {seed}: {sum(s[-1] for s in seconds.values()):.0f} s, regret so far {mean:.3f}")
        figures = {"log_regret": regret, "seconds": seconds, "summary": summaries(regret)}
        save(figures)
    return figures


def summaries(regret: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Per name: geometric means, and the change from the learner as it is, paired over seeds."""
    base = np.array(regret[AS_IT_IS])
    found = {}
    for name, rows in regret.items():
        values = np.array(rows)  # seeds x sizes
        change = (values - base).mean(axis=1)
        found[name] = {
            "regret": np.exp(values.mean(axis=0)).tolist(),
            "all": float(np.exp(values.mean())),
            "change": float(change.mean()),
            "change_error": float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("nan"),
        }
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=4, help="made-up models (default 4)")
    options.add_argument("--log", type=Path, nargs="+", help="run, policy or evaluation folders instead of the demo's")
    options.add_argument("--others", type=Path, help="a folder of evaluations that other searches chose")
    options.add_argument("--parts", nargs="+", choices=["searches", "logs"], default=["searches", "logs"])
    given = options.parse_args()
    figures: dict[str, Any] = {
        "surroundings": surroundings(
            seeds=given.seeds,
            evaluations=BUDGET,
            sites=make_space().num_sites,
            sizes=SIZES.tolist(),
            threads=torch.get_num_threads(),
        )
    }
    rows: list[tuple[str, str, str]] = []

    def save(found: dict[str, Any]) -> None:
        if given.json:
            write_json(given.json, figures | {"searches": found})

    if "searches" in given.parts:
        figures["searches"] = searches(make_space(), given.seeds, save)
        for name, row in figures["searches"]["summary"].items():
            change = "" if name == AS_IT_IS else f"{row['change']:+.3f} ± {row['change_error']:.3f}"
            shown = f"{row['all']:.3f}  ({' '.join(f'{value:.3f}' for value in row['regret'])})"
            rows.append((f"regret, {name}", shown, change))
    if "logs" in given.parts:
        if not given.log:
            demo_policy()
        figures["logs"] = {str(log): log_errors(log, given.others) for log in given.log or [DEMO_RUN]}
        for log, found in figures["logs"].items():
            for form in FORMS:
                for kind, errors in found[form].items():
                    shown = "  ".join(f"{error:.3f}" for error in errors)
                    at = " / ".join(f"{round(100 * share)} %" for share in SHARES)
                    rows.append((f"rmse of log KL, {Path(log).name}, {form}, {kind}", shown, f"after {at}"))
    finish(
        "Ablations: regret (all sizes, then each), log-KL error; last column: change of log regret",
        rows,
        figures,
        given.json,
    )


if __name__ == "__main__":
    main()
