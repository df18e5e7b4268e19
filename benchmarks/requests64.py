"""What 64 different requests cost: one trained policy against a search per request, and against one dynamic program.

    python -m benchmarks.requests64 [--rivals 4] [--evaluations 300] [--seed 0] [--json FILE]

64 random requests, half of them bounds on the kept share, half preferences (a rival is then asked for the size that our
answer has). The rival is evolution with ``--evaluations`` for each request; its time for a request ends when it first
holds a strategy as good as ours on held-out windows, else with its budget. Evolution runs for ``--rivals`` of the
requests, spread evenly over the sizes, and is extrapolated linearly to 64.

- ``speedup_equal_quality``: time of 64 searches ÷ ours, training counted (goal 10);
- ``speedup_equal_budget``: the same with every search running to its end (goal 28, the paper's figure);
- ``answers_vs_knapsack``: our wall time for 64 answers ÷ one all-budgets dynamic program for them (goal 1.0), and
  ``kl_vs_knapsack``: the held-out KL of both, at the requests that evolution ran for.

A search's time is the sum of what its evaluations took when they were measured, ours the wall time of its training;
held-out measurements are free for everybody. Uses the cache of ``benchmarks.search`` (``--runs``).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import Race, ours
from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.baselines.cached import CachedOracle, EvaluationCache
from unicuco.baselines.evolution import evolution
from unicuco.baselines.knapsack import replacement_scores, solve_all
from unicuco.evaluations import Candidate, EvaluationLog
from unicuco.evaluator import Evaluator
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.policy import Policy
from unicuco.request import Request
from unicuco.space import budgets_of
from unicuco.storage import write_json

COUNT = 64
REPEATS = 20
"""Of both answers, in turns; medians."""


class Traced(CachedOracle):
    """An oracle that remembers when it knew what.

    Attributes:
        clock: seconds that its evaluations took when they were measured.
        trace: (clock, level indices) each time that a strategy on all windows was better than all before.
    """

    def __init__(self, cache: EvaluationCache, budget: float) -> None:
        super().__init__(cache, budget)
        self.cache, self.clock, self.best = cache, 0.0, np.inf
        self.trace: list[tuple[float, np.ndarray]] = []

    def kl(self, levels: np.ndarray, windows: int | None = None) -> float:
        found = super().kl(levels, windows)
        share = min(windows or self.num_windows, self.num_windows) / self.num_windows
        whole = self.cache.evaluate(Candidate("", tuple(int(v) for v in levels), "oracle")) if share == 1 else None
        self.clock += whole.seconds if whole else share * self.cache.typical_seconds
        if whole and found < self.best:
            self.best = found
            self.trace.append((self.clock, np.array(levels)))
        return found


def make_requests(seed: int) -> list[Request]:
    """Half bounds, half preferences, drawn uniformly."""
    rng = np.random.default_rng(seed)
    bounds = [Request(kept=float(kept)) for kept in rng.uniform(0.45, 0.95, COUNT // 2)]
    weights = rng.uniform(0.1, 0.9, COUNT - len(bounds))
    return bounds + [Request(preference=(float(w), float(1 - w))) for w in weights]


def run(given: Any) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    evaluator = open_evaluator("width", given.seed)
    space, heldout = evaluator.space, open_heldout(evaluator, WINDOWS)
    cache = EvaluationCache(evaluator, given.runs / "cache" / evaluator.preparation.digest[:16])
    folder = given.runs / f"requests64-{given.evaluations}-seed-{given.seed}"
    race = Race(cache, (0.7,), given.evaluations, given.seed, folder)
    began = time.perf_counter()
    if not (folder / "training.json").is_file():
        ours(race)
        log = EvaluationLog(folder / "ours").read()
        training = {
            "wall": time.perf_counter() - began,
            "evaluations": sum(e.seconds for e in log),
            "anew": cache.misses,
        }
        write_json(folder / "training.json", training)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    policy, requests = Policy.load(folder / "ours-policy"), make_requests(given.seed)
    answers = policy.answer(requests)
    table = replacement_scores(
        CachedOracle(cache, given.evaluations), given.evaluations, np.random.default_rng(given.seed)
    )
    budgets = np.array([float(a.params) for a in answers])
    pairs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        policy.answer(requests)
        middle = time.perf_counter()
        knapsacks = solve_all(space, table, budgets)
        pairs.append((middle - start, time.perf_counter() - middle))
    ours_ms, theirs_ms = (1000 * float(np.median([p[i] for p in pairs])) for i in (0, 1))
    order = np.argsort([a.kept for a in answers])
    chosen = order[np.linspace(0, COUNT - 1, given.rivals + 2).round().astype(int)[1:-1]]
    searched = [one(cache, heldout, answers[i], given, knapsacks[i]) for i in chosen]
    mean_equal, mean_whole = (float(np.mean([row[k] for row in searched])) for k in ("seconds_to_ours", "seconds"))
    own = training["wall"] + ours_ms / 1000
    ratio = [row["ours"] / row["knapsack"] for row in searched]
    figures = {
        "speedup_equal_quality": COUNT * mean_equal / own,
        "speedup_equal_budget": COUNT * mean_whole / own,
        "reached": float(np.mean([row["reached"] for row in searched])),
        "answers_vs_knapsack": ours_ms / theirs_ms,
        "answers_ms": ours_ms,
        "knapsack_ms": theirs_ms,
        "kl_vs_knapsack": float(np.exp(np.mean(np.log(ratio)))),
        "training": training,
        "searched": searched,
        "surroundings": surroundings(
            model=MODEL,
            seed=given.seed,
            requests=COUNT,
            rivals_run=given.rivals,
            extrapolated=given.rivals < COUNT,
            evaluations=given.evaluations,
            tokens=evaluator.num_tokens,
            dtype=evaluator.config.dtype,
        ),
    }
    rows = [
        ("speedup_equal_quality", f"{figures['speedup_equal_quality']:.1f}", "10"),
        ("speedup_equal_budget", f"{figures['speedup_equal_budget']:.1f}", "28"),
        ("searches that reached our KL", f"{figures['reached']:.2f}", ""),
        ("answers_vs_knapsack", f"{figures['answers_vs_knapsack']:.2f} ({ours_ms:.0f} ms ÷ {theirs_ms:.0f} ms)", "1.0"),
        ("kl_vs_knapsack, held out", f"{figures['kl_vs_knapsack']:.3f}", "1.0"),
        ("our training, s", f"{training['wall']:.0f}", ""),
        ("a search to its end, s", f"{mean_whole:.0f}", ""),
    ]
    return rows, figures


def one(cache: EvaluationCache, heldout: Evaluator, answer: Any, given: Any, knapsack: np.ndarray) -> dict[str, Any]:
    """Evolution for one request, and what it held when."""
    space, target = cache.evaluator.space, cache.kl(np.array(answer.levels), heldout)
    oracle = Traced(cache, given.evaluations)
    kept = (answer.params - space.fixed["params"]) / space.geometry.block_params
    assert budgets_of(space, np.array([kept]))[0] <= answer.params + 1
    evolution(oracle, float(kept), given.evaluations, np.random.default_rng([given.seed, round(1e4 * kept)]))
    reached = next((when for when, levels in oracle.trace if cache.kl(levels, heldout) <= target), None)
    row = {
        "kept": float(kept),
        "ours": target,
        "evolution": cache.kl(oracle.trace[-1][1], heldout),
        "knapsack": cache.kl(knapsack, heldout),
        "seconds": oracle.clock,
        "seconds_to_ours": oracle.clock if reached is None else reached,
        "reached": reached is not None,
    }
    console.print(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return row


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rivals", type=int, default=4, help="requests that evolution runs for; 64: all")
    options.add_argument("--evaluations", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--runs", type=Path, default=Path("runs/search"))
    given = options.parse_args()
    rows, figures = run(given)
    finish("64 requests: one policy, or a search for each", rows, figures, given.json)


if __name__ == "__main__":
    main()
