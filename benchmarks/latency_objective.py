"""What training on latency gains over looking for it afterwards, at equal predicted milliseconds.

    python -m benchmarks.latency_objective --seeds 4 --json FILE
    python -m benchmarks.latency_objective --policy RUN --table TABLE.json --seeds 2 --json FILE

The same budget is searched twice: for size and KL, and for size, latency and KL by the table. All are judged by the law
that the evaluations come from, which neither has seen: made-up models (``benchmarks.made_up``) whose attentions hold a
fifth of the blocks' parameters and take half of their time; or, with ``--policy``, what the surrogate of a run on a
real base model has learned of its sites (``benchmarks.simulated``), with a measured table.

Mean log KL within bounds of 0.5 to 0.95 of the blocks' milliseconds, against the run for size and the search at the
price of latency that answers its bounds, within the same milliseconds (below 0: better; 0.01 is one percent of KL), ±
the standard error over seeds:

- ``searched``: the run with latency, its answers to the same bounds;
- ``at_once``: its StratNet alone, at the preference for latency that comes down to the bound;
- ``retrained``, ``retrained_at_once``: both for a StratNet trained on latency on the evaluations of the run for size;
- ``cut``: the run for size, its best answer to a size within the bound: what there is without any of it;
- ``size``: the run with latency against the one for size, within bounds on size. What the third objective costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import finish, parser, surroundings
from benchmarks.made_up import MARGIN_GROUPS, MadeUp, make_space
from benchmarks.simulated import Oracle
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog
from unicuco.latency import NANOSECONDS, BlockTimes, LatencyConfig, LatencyTable, NamedTable, SublayerTimes, load_table
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.geometry import Geometry
from unicuco.policy import Policy
from unicuco.request import Answer, Request
from unicuco.space import SearchSpace

BATCH = 8
LEFT = np.linspace(0.5, 0.95, 10)
WEIGHTS = np.linspace(0.005, 0.995, 199)
ATTENTION_MS, MLP_MS, LEAST = 1.0, 0.85, 0.25
"""Of a made-up block when it is dense, and the share of it that the narrowest costs: SmolLM2 decoding, roughly."""


@dataclass(frozen=True)
class Law:
    """A base model that is only numbers."""

    space: SearchSpace
    damage: np.ndarray
    evaluate: Callable[[Candidate], Evaluation]
    log_kl: Callable[[list[Answer]], np.ndarray]
    table: NamedTable


def made_up(seed: int) -> Law:
    space = make_space()
    model = MadeUp(space, seed)
    table = NamedTable.of("box", made_up_table(space.geometry))
    return Law(space, model.table, model.evaluation, lambda found: np.log(model.kl(_levels(found)) + 1e-4), table)


def recorded(policy: Policy, table: LatencyTable) -> Law:
    oracle, sites = Oracle.of(policy), np.arange(policy.space.num_sites)

    def log_kl(answers: list[Answer]) -> np.ndarray:
        total = oracle.terms[sites, _levels(answers)].sum(axis=1) + oracle.floor
        return oracle.offset + oracle.slope * np.log(total)

    assert policy.parts.damage is not None
    box = NamedTable.of("box", table)
    return Law(policy.space, policy.parts.damage, lambda c: oracle.evaluation(c, 0.0), log_kl, box)


def made_up_table(geometry: Geometry) -> LatencyTable:
    """Blocks alike, milliseconds linear in the width above a part that only dropping saves."""

    def times(widths: np.ndarray, dense: float) -> SublayerTimes:
        ms = dense * (LEAST + (1 - LEAST) * widths / widths[-1])
        return SublayerTimes(widths=tuple(widths.tolist()), ms=tuple(ms.tolist()))

    block = geometry.blocks[0]
    own = BlockTimes(
        attention=times(np.arange(1, block.groups + 1), ATTENTION_MS),
        mlp=times(np.arange(32, block.neurons + 1, 32), MLP_MS),
    )
    model, places = {"spec": "made-up", "digest": "0" * 64}, (0,) * len(geometry.blocks)
    config = LatencyConfig(threads=1)
    return LatencyTable(config=config, model=model, geometry=geometry, fixed_ms=1.0, blocks=(own,), times_of=places)


def search(law: Law, config: LearnerConfig, latency: NamedTable | None, log: EvaluationLog) -> Policy:
    """One run of the learner; on a log that has all evaluations, its last training alone."""
    learner = Learner(law.space, law.damage, config, log, margin_groups=MARGIN_GROUPS, latency=latency)
    while not learner.finished():
        if learner.needs_training():
            learner.train()
        for candidate in learner.ask(BATCH):
            learner.tell(law.evaluate(candidate))
    return learner.policy()


def at_once(policy: Policy, bounds: np.ndarray) -> list[Answer]:
    """For each bound (``n`` milliseconds) the best of StratNet's answers to preferences for latency."""
    asked = [Request(preference={"latency": float(weight), "mean": float(1 - weight)}) for weight in WEIGHTS]
    return _best_within(policy.answer(asked), bounds)


def cut(policy: Policy, bounds: np.ndarray) -> list[Answer]:
    return _best_within(policy.answer([Request(kept=float(kept)) for kept in np.linspace(0.05, 1.0, 191)]), bounds)


def within(policy: Policy, bounds: np.ndarray) -> list[Answer]:
    return policy.answer([Request(max_latency_ms=float(bound)) for bound in bounds])


def by_size(policy: Policy) -> list[Answer]:
    return policy.answer([Request(kept=float(kept)) for kept in LEFT])


def compare(law: Law, config: LearnerConfig) -> dict[str, Any]:
    """Mean log KL of every contestant, against the search at the price of latency; and seconds of both runs."""
    with tempfile.TemporaryDirectory(prefix="unicuco-latency-") as folder:
        first, second = EvaluationLog(Path(folder) / "size"), EvaluationLog(Path(folder) / "latency")
        began = time.process_time()
        plain = search(law, config, None, first).with_table("box", law.table.table)
        middle = time.process_time()
        learned = search(law, config, law.table, second)
        ended = time.process_time()
        again = search(law, config, law.table, first)
    timed = learned.timed["box"]
    fixed = timed.fixed["latency"]
    bounds = (fixed + LEFT * (timed.dense - fixed)) / NANOSECONDS
    base = law.log_kl(within(plain, bounds))
    found = {
        "searched": within(learned, bounds),
        "at_once": at_once(learned, bounds),
        "retrained": within(again, bounds),
        "retrained_at_once": at_once(again, bounds),
        "cut": cut(plain, bounds),
    }
    against = {}
    for name, answers in found.items():  # at the milliseconds that each has come to
        rivals = within(plain, np.array([answer.latency_ms for answer in answers]))
        against[name] = (law.log_kl(answers) - law.log_kl(rivals)).tolist()
    against["size"] = (law.log_kl(by_size(learned)) - law.log_kl(by_size(plain))).tolist()
    return {"log_kl": base.tolist(), "against": against, "seconds": [middle - began, ended - middle]}


def _levels(answers: list[Answer]) -> np.ndarray:
    return np.array([answer.levels for answer in answers])


def _best_within(answers: list[Answer], bounds: np.ndarray) -> list[Answer]:
    """The best of ``answers`` within each bound; the fastest where none is, compared at its own milliseconds."""
    ms = np.array([answer.latency_ms for answer in answers])
    fits = [[answers[i] for i in np.flatnonzero(ms <= bound)] for bound in bounds]
    return [min(own, key=lambda a: a.kl) if own else answers[int(ms.argmin())] for own in fits]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--policy", type=Path, help="a run whose surrogate is the law")
    options.add_argument("--table", type=Path, help="a latency table of its base model")
    options.add_argument("--evaluations", type=int, default=48)
    options.add_argument("--seeds", type=int, default=4)
    given = options.parse_args()
    if (given.policy is None) != (given.table is None):
        options.error("--policy and --table go together")
    runs = []
    for seed in range(given.seeds):
        law = made_up(seed) if given.policy is None else recorded(Policy.load(given.policy), load_table(given.table))
        runs.append(compare(law, LearnerConfig(evaluations=given.evaluations, batch=BATCH, seed=seed)))
    names = list(runs[0]["against"])
    means = {name: [float(np.mean(run["against"][name])) for run in runs] for name in names}
    spread = {
        name: float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else float("nan") for name, v in means.items()
    }
    settings = {"law": str(given.policy or "made-up"), "evaluations": given.evaluations, "seeds": given.seeds}
    figures = {"runs": runs, "mean": {n: float(np.mean(v)) for n, v in means.items()}, "error": spread}
    rows = [(name, f"{np.mean(means[name]):+.3f} ± {spread[name]:.3f}", "") for name in names]
    seconds = np.mean([run["seconds"] for run in runs], axis=0)
    rows.append(("processor seconds of a run: for size, with latency", f"{seconds[0]:.0f}, {seconds[1]:.0f}", ""))
    finish("Training on latency", rows, {**figures, "surroundings": surroundings(**settings)}, given.json)


if __name__ == "__main__":
    main()
