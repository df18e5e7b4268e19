"""How fast a policy answers, and whether any answer is over its budget.

    python -m benchmarks.answers --json FILE

64 mixed requests (``examples/requests.jsonl``: preferences, every kind of bound, bounds together) in one batch.

- ``p50_ms``: median time for the whole batch (goal 30), by a policy that has laid out its front and seen no such
  request; ``p99_ms`` beside it; ``again_ms``: when it has, as in a service that runs for a while;
- ``over_budget``: feasible answers larger than any of their bounds (goal 0).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.harness import demo_policy, finish, parser, surroundings
from unicuco.policy import Policy
from unicuco.request import Answer, Request, read_requests

REQUESTS = Path(__file__).parent.parent / "examples" / "requests.jsonl"
REPEATS = 50


def over_budget(answer: Answer) -> bool:
    """Whether a feasible answer breaks one of its size bounds."""
    names = ("kept", "ratio", "params", "bytes")
    bounds = ((getattr(answer, name), getattr(answer.request, name)) for name in names)
    return answer.feasible and any(bound is not None and size > bound + 1e-12 for size, bound in bounds)


def main() -> None:
    options = parser(__doc__).parse_args()
    folder = demo_policy()
    began = time.perf_counter()
    policy = Policy.load(folder)
    load = time.perf_counter() - began
    requests = read_requests(REQUESTS)
    first = time.perf_counter()
    policy.answer(requests)
    first_ms = (time.perf_counter() - first) * 1000
    times, again = [], []
    for _ in range(REPEATS):
        fresh = Policy(policy.parts)
        fresh.answer([Request(kept=1.0)])
        began = time.perf_counter()
        answers = fresh.answer(requests)
        middle = time.perf_counter()
        fresh.answer(requests)
        times.append((middle - began) * 1000)
        again.append((time.perf_counter() - middle) * 1000)
    figures = {
        "p50_ms": statistics.median(times),
        "p99_ms": sorted(times)[int(0.99 * len(times))],
        "again_ms": statistics.median(again),
        "first_ms": first_ms,
        "load_s": load,
        "over_budget": sum(over_budget(answer) for answer in answers),
        "feasible": sum(answer.feasible for answer in answers),
        "requests": len(requests),
        "from_stratnet": sum(answer.origin == "stratnet" for answer in answers),
        "surroundings": surroundings(
            model=policy.parts.provenance.get("model", {}).get("spec"),
            evaluations=len(policy.parts.evaluations),
            repeats=REPEATS,
            threads=torch.get_num_threads(),
        ),
    }
    rows = [
        ("p50_ms (64 requests in one batch)", f"{figures['p50_ms']:.1f}", "30"),
        ("p99_ms", f"{figures['p99_ms']:.1f}", ""),
        ("again_ms (the same ones again)", f"{figures['again_ms']:.1f}", ""),
        ("first_ms (tables built)", f"{first_ms:.1f}", ""),
        ("over_budget", str(figures["over_budget"]), "0"),
        ("feasible", f"{figures['feasible']} of {len(requests)}", ""),
        ("answered by StratNet itself", f"{figures['from_stratnet']} of {len(requests)}", ""),
    ]
    finish("Answers", rows, figures, options.json)


if __name__ == "__main__":
    main()
