"""What 64 different requests cost: one trained policy against a search per request, and against one dynamic program.

    python -m benchmarks.requests64 [--rivals 4] [--evaluations 300] [--seed 0] [--policy-run FOLDER] [--json FILE]

64 random requests, half of them bounds on the kept share, half preferences (a rival is then asked for the size that our
answer has). The rival is evolution with ``--evaluations`` for each request; its time for a request ends when it first
holds a strategy as good as ours on held-out windows, else with its budget. Evolution runs for ``--rivals`` of the
requests, spread evenly over the sizes, and is extrapolated linearly to 64.

- ``speedup_equal_quality``: time of 64 searches ÷ ours, training counted (goal 10);
- ``speedup_equal_budget``: the same with every search running to its end (goal 28, the paper's figure);
- ``answers_vs_knapsack``: our wall time for 64 answers ÷ one all-budgets dynamic program for them (goal 1.0), and
  ``kl_vs_knapsack``: the held-out KL of both, at the requests that evolution ran for.

Time is what every evaluation took when it was measured (margins included), whether or not a cache had it, and for us
the wall time of every training and of 64 answers beside; what evolution does between evaluations is not counted.
Seconds are those of a machine that may have been busier on one day than on another: what a standard evaluation took
stands beside, and both ratios are also counted in standard evaluations, our trainings as many as fit into their time.
Held-out measurements are free for
everybody. The policy is that of ``--policy-run``, a folder of ``benchmarks.search``
whose contestant ``ours`` has finished (``runs/search/mixed/300-5-seed-0``), else one that is trained here.

Everything lies under ``--runs``, with a cache of its own; each finished rival in ``rival-REQUEST.json``. A benchmark
that is cut off, by ``--minutes`` or otherwise, goes on where it stopped; more ``--rivals`` keep those there are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import Race, ours, read_trainings
from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.baselines.cached import CachedOracle, EvaluationCache
from unicuco.baselines.evolution import evolution
from unicuco.baselines.knapsack import replacement_scores, solve_all
from unicuco.baselines.uniform import LADDER
from unicuco.evaluations import Candidate, EvaluationLog
from unicuco.evaluator import Evaluator
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.policy import Policy
from unicuco.request import Answer, Request
from unicuco.space import budgets_of
from unicuco.storage import content_hash, write_json

COUNT = 64
INTERRUPTED = 10
"""An evaluation that took so many times the median of its kind was not computing all the while (its process was
stopped, the machine slept) and counts as the median, on both sides."""
REPEATS = 20
"""Of both answers, in turns; medians."""


class Clock:
    """A cache that adds up what its evaluations took when they were measured, as far as an oracle looks at a cache.

    Attributes:
        seconds: so far; whole: of each evaluation on all windows; threads: torch's in any of them.
    """

    def __init__(self, cache: EvaluationCache) -> None:
        self.cache, self.evaluator = cache, cache.evaluator
        self.seconds, self.whole, self.threads = 0.0, list[float](), set[int]()
        self._kinds: dict[int, list[float]] = {}

    def kl(self, levels: np.ndarray, evaluator: Evaluator | None = None) -> float:
        found = self.cache.evaluate(Candidate("", tuple(int(v) for v in levels), "oracle"), evaluator)
        alike = self._kinds.setdefault(found.tokens, [])
        alike.append(found.seconds)
        seconds = without_interruptions(alike)[-1]
        self.seconds += seconds
        if evaluator is None:
            self.whole.append(seconds)
        self.threads.add(found.threads)
        return found.kl


def without_interruptions(seconds: list[float]) -> list[float]:
    """``seconds`` of evaluations of one kind, those that were interrupted replaced by the median."""
    median = float(np.median(seconds))
    return [median if value > INTERRUPTED * median else value for value in seconds]


class Traced(CachedOracle):
    """An oracle that remembers when it knew what.

    Attributes:
        trace: (seconds, evaluations, level indices) whenever a strategy on all windows was better than all before.
    """

    def __init__(self, clock: Clock, budget: float) -> None:
        super().__init__(clock, budget)  # type: ignore[arg-type]
        self.clock, self.best = clock, np.inf
        self.trace: list[tuple[float, float, np.ndarray]] = []

    def kl(self, levels: np.ndarray, windows: int | None = None) -> float:
        found = super().kl(levels, windows)
        if (windows is None or windows >= self.num_windows) and found < self.best:
            self.best = found
            self.trace.append((self.clock.seconds, self._budget - self.left, np.array(levels)))
        return found


def make_requests(seed: int) -> list[Request]:
    """Half bounds, half preferences, drawn uniformly."""
    rng = np.random.default_rng(seed)
    bounds = [Request(kept=float(kept)) for kept in rng.uniform(0.45, 0.95, COUNT // 2)]
    weights = rng.uniform(0.1, 0.9, COUNT - len(bounds))
    return bounds + [Request(preference=(float(w), float(1 - w))) for w in weights]


def rival_order(answers: list[Answer]) -> list[int]:
    """All requests, such that any first few are spread over the sizes: middle, quarters, eighths, ..."""
    by_size = np.argsort([answer.kept for answer in answers], kind="stable")
    bits = (COUNT - 1).bit_length()
    places = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1, 1 << bits)]
    return [int(by_size[place]) for place in [*places, 0] if place < COUNT]


def open_policy_run(given: Any, cache: EvaluationCache) -> tuple[Path, dict[str, Any]]:
    """The folder with our policy, and what its training took; trained here where none was given.

    Raises:
        SystemExit: the given folder does not hold what is needed.
    """
    folder = given.policy_run
    if folder is None:
        folder = given.runs / f"ours-{given.evaluations}-seed-{given.seed}"
        if not (folder / "ours-policy" / "policy.json").is_file():
            ours(Race(cache, LADDER, given.evaluations, given.seed, folder))
    trainings, log = read_trainings(folder, "ours"), EvaluationLog(folder / "ours").read()
    if not trainings["seconds"] or not (folder / "ours-policy" / "policy.json").is_file():
        raise SystemExit(f"{folder} needs a finished contestant `ours`: ours/, ours-policy/ and ours-trainings.json.")
    if {e.preparation for e in log} != {cache.evaluator.preparation.digest}:
        raise SystemExit(f"{folder} was measured on another preparation than seed {given.seed}'s.")
    kinds = [[e.seconds for e in log if (e.margin_group >= 0) == with_margins] for with_margins in (False, True)]
    evaluation_seconds = sum(sum(without_interruptions(kind)) for kind in kinds if kind)
    training_seconds = sum(without_interruptions(trainings["seconds"]))
    return folder, {
        "folder": str(folder),
        "evaluations": len(log),
        "budget": sum(e.evaluations for e in log),
        "with_margins": sum(e.margin_group >= 0 for e in log),
        "evaluation_seconds": evaluation_seconds,
        "median_seconds": float(np.median([e.seconds for e in log if e.margin_group < 0])),
        "trainings": len(trainings["seconds"]),
        "training_seconds": training_seconds,
        "seconds": evaluation_seconds + training_seconds,
        "threads": sorted({e.threads for e in log} | {trainings["threads"]}),
    }


def run(given: Any) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    until = time.monotonic() + 60 * given.minutes
    evaluator = open_evaluator("mixed", given.seed)
    space, heldout = evaluator.space, open_heldout(evaluator, WINDOWS)
    cache = EvaluationCache(evaluator, given.runs / "cache" / evaluator.preparation.digest[:16])
    policy_run, training = open_policy_run(given, cache)
    policy, requests = Policy.load(policy_run / "ours-policy"), make_requests(given.seed)
    answers = policy.answer(requests)
    scores_clock = Clock(cache)
    oracle = CachedOracle(scores_clock, given.evaluations)  # type: ignore[arg-type]
    table = replacement_scores(oracle, given.evaluations, np.random.default_rng(given.seed))
    budgets = np.array([float(a.params) for a in answers])
    pairs = []
    for _ in range(REPEATS):
        fresh = Policy(policy.parts)  # it has laid out its front, and remembers no strategy of these answers
        fresh.answer([Request(kept=1.0)])
        start = time.perf_counter()
        fresh.answer(requests)
        middle = time.perf_counter()
        knapsacks = solve_all(space, table, budgets)
        pairs.append((middle - start, time.perf_counter() - middle))
    ours_ms, theirs_ms = (1000 * float(np.median([p[i] for p in pairs])) for i in (0, 1))
    # Rivals of another policy have other targets: they lie in another folder.
    asked = content_hash([a.levels for a in answers])[:12]
    folder = given.runs / f"rivals-{given.evaluations}-seed-{given.seed}-{asked}"
    searched = []
    for i in rival_order(answers)[: given.rivals]:
        path = folder / f"rival-{i:02}.json"
        if not path.is_file():
            if time.monotonic() > until:
                continue
            write_json(path, one(cache, heldout, answers[i], given, knapsacks[i]))
        searched.append(json.loads(path.read_text(encoding="utf-8")))
        console.print(", ".join(f"{k} {v:.4g}" for k, v in searched[-1].items() if not isinstance(v, list)))
    if not searched:
        raise SystemExit("No rival has finished yet; run again to go on.")
    figures = summary(training, searched, ours_ms, theirs_ms)
    figures["knapsack_seconds"] = scores_clock.seconds + theirs_ms / 1000
    figures["surroundings"] = surroundings(
        model=MODEL,
        seed=given.seed,
        requests=COUNT,
        rivals_run=len(searched),
        rivals_extrapolated=COUNT - len(searched),
        evaluations=given.evaluations,
        tokens=evaluator.num_tokens,
        tokens_heldout=heldout.num_tokens,
        dtype=evaluator.config.dtype,
        threads_ours=training["threads"],
        threads_rival=figures["threads_rival"],
    )
    return rows(figures), figures


def one(cache: EvaluationCache, heldout: Evaluator, answer: Answer, given: Any, knapsack: np.ndarray) -> dict[str, Any]:
    """Evolution for one request, and what it held when."""
    space, target = cache.evaluator.space, cache.kl(np.array(answer.levels), heldout)
    clock = Clock(cache)
    oracle = Traced(clock, given.evaluations)
    kept = (answer.params - space.fixed["params"]) / space.geometry.block_params
    assert budgets_of(space, np.array([kept]))[0] <= answer.params + 1
    evolution(oracle, float(kept), given.evaluations, np.random.default_rng([given.seed, round(1e4 * kept)]))
    reached = next((step for step in oracle.trace if cache.kl(step[2], heldout) <= target), None)
    return {
        "kept": float(kept),
        "ours": target,
        "evolution": cache.kl(oracle.trace[-1][2], heldout),
        "knapsack": cache.kl(knapsack, heldout),
        "seconds": clock.seconds,
        "seconds_to_ours": clock.seconds if reached is None else reached[0],
        "evaluations": given.evaluations - oracle.left,
        "evaluations_to_ours": given.evaluations - oracle.left if reached is None else reached[1],
        "reached": reached is not None,
        "median_seconds": float(np.median(clock.whole)),
        "threads": sorted(clock.threads),
    }


def summary(
    training: dict[str, Any], searched: list[dict[str, Any]], ours_ms: float, theirs_ms: float
) -> dict[str, Any]:
    """The figures; times of 64 searches are those of the rivals that ran, times 64 ÷ their number."""
    own = training["seconds"] + ours_ms / 1000
    mean_equal, mean_whole = (float(np.mean([row[k] for row in searched])) for k in ("seconds_to_ours", "seconds"))
    counted_equal, counted_whole = (
        float(np.mean([row[k] for row in searched])) for k in ("evaluations_to_ours", "evaluations")
    )
    counted = training["budget"] + (training["training_seconds"] + ours_ms / 1000) / training["median_seconds"]

    def geomean(name: str) -> float:
        return float(np.exp(np.mean([np.log(row["ours"] / row[name]) for row in searched])))

    return {
        "speedup_equal_quality": COUNT * mean_equal / own,
        "speedup_equal_budget": COUNT * mean_whole / own,
        "speedup_equal_quality_counted": COUNT * counted_equal / counted,
        "speedup_equal_budget_counted": COUNT * counted_whole / counted,
        "ours_counted": counted,
        "reached": float(np.mean([row["reached"] for row in searched])),
        "answers_vs_knapsack": ours_ms / theirs_ms,
        "answers_ms": ours_ms,
        "knapsack_ms": theirs_ms,
        "kl_vs_knapsack": geomean("knapsack"),
        "kl_vs_evolution": geomean("evolution"),
        "ours_seconds": own,
        "search_seconds": mean_whole,
        "median_seconds_rival": float(np.median([row["median_seconds"] for row in searched])),
        "threads_rival": sorted({t for row in searched for t in row["threads"]}),
        "training": training,
        "searched": searched,
    }


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    training, ran = figures["training"], len(figures["searched"])
    same = training["threads"] == figures["threads_rival"]
    times = f"{figures['answers_ms']:.0f} ms ÷ {figures['knapsack_ms']:.0f} ms"
    parts = (
        f"{training['evaluation_seconds']:.0f} in {training['evaluations']} evaluations, {training['with_margins']} "
        f"with margins; {training['training_seconds']:.0f} in {training['trainings']} trainings"
    )
    threads = f"{training['threads']} and {figures['threads_rival']}" + ("" if same else ": not the same, no fair race")
    speeds = f"{training['median_seconds']:.2f} and {figures['median_seconds_rival']:.2f}"
    return [
        ("speedup_equal_quality", f"{figures['speedup_equal_quality']:.1f}", "10"),
        ("speedup_equal_budget", f"{figures['speedup_equal_budget']:.1f}", "28"),
        ("the same in standard evaluations", f"{figures['speedup_equal_quality_counted']:.1f}", "10"),
        ("", f"{figures['speedup_equal_budget_counted']:.1f}", "28"),
        ("rivals run", f"{ran} of {COUNT}" + (", the rest extrapolated linearly" if ran < COUNT else ""), ""),
        ("searches that reached our KL", f"{figures['reached']:.2f}", ""),
        ("answers_vs_knapsack", f"{figures['answers_vs_knapsack']:.2f} ({times})", "1.0"),
        ("kl_vs_knapsack, held out", f"{figures['kl_vs_knapsack']:.3f}", "1.0"),
        ("kl_vs_evolution at its end, held out", f"{figures['kl_vs_evolution']:.3f}", ""),
        ("our time, s", f"{figures['ours_seconds']:.0f}: {parts}", ""),
        ("a search to its end, s", f"{figures['search_seconds']:.0f}", ""),
        ("a standard evaluation of ours and of theirs, s", speeds, "alike"),
        ("torch threads of our evaluations and theirs", threads, ""),
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rivals", type=int, default=4, help="requests that evolution runs for; 64: all")
    options.add_argument("--evaluations", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--policy-run", type=Path, help="a folder of benchmarks.search with a finished `ours`")
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no rival after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/requests64"))
    given = options.parse_args()
    table, figures = run(given)
    finish("64 requests: one policy, or a search for each", table, figures, given.json)


if __name__ == "__main__":
    main()
