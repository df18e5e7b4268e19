"""A run with hundreds of evaluators, simulated: how much of their time they work, and what the learner needs for that.

    python -m benchmarks.scale [--policy FOLDER] [--minutes 2] [--only 64 256 nodes] [--json FILE]

Pool, learner actor, log and trainings are the real ones; evaluators sleep 5 s a candidate, as a 7B model on a GPU
would take, and answer from an oracle fitted to a recorded run (``benchmarks/simulated.py``). Every evaluation of the
log of ``--policy`` is known to it.

- ``utilisation_64``: 64 evaluators, a process each (goal 0.95); ``utilisation_256``: 16 processes of 16 (goal 0.9):
  the share of all evaluators' time in which they had a candidate, from when all are ready, for ``--minutes``;
- ``ask_p99_ms``, ``tell_p99_ms``: of the learner in that time, while it trains (goal 50); ``told_p99``: how many
  evaluations a tell had; ``tell_p99_starting_ms``: before, while this machine starts all the evaluators' processes;
- ``learner_cpu_s``: processor time of the learner per evaluation, trainings included; ``improvised``: the share of
  candidates that were not proposed by a training because none had come in time;
- ``nodes_loss``: evaluations per second of 8 evaluators of 0.5 s on two nodes ÷ on one with as many processors,
  subtracted from 1 (goal 0.05).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from actors.factory import Factory
from actors.learner import LearnerActor, create_learner
from actors.placement import PoolPlan
from actors.pool import PoolSetup
from actors.runtime import (
    RayConfig,
    environment,
    local_authentication,
    quiet_settings,
    reread_ray_settings,
    start_or_attach,
)
from benchmarks.harness import console, demo_policy, finish, parser, surroundings
from benchmarks.simulated import GroupedPool, Oracle
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog

SECONDS, GROUP = 5.0, 16
NODE_SECONDS, NODE_EVALUATORS = 0.5, 8
Figures = dict[str, float]


class TimedLearner:
    """The learner, with when every ask and tell ended and how many milliseconds it took."""

    def __init__(self, policy: Path, evaluations: Path, config: dict[str, Any]) -> None:
        from unicuco.learner import Learner, LearnerConfig
        from unicuco.policy import Policy

        parts = Policy.load(policy).parts
        log = EvaluationLog(evaluations)
        self._learner = Learner(parts.space, parts.damage, LearnerConfig(**config), log, margin_groups=GROUP)
        self.ask_ms, self.tell_ms = list[tuple[float, float]](), list[tuple[float, float]]()
        self.told = list[tuple[float, float]]()
        self.trainings = list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def ask(self, n: int) -> list[Candidate]:
        began = time.perf_counter()
        found = self._learner.ask(n)
        if found:
            self.ask_ms.append((time.time(), 1e3 * (time.perf_counter() - began)))
        return found

    def tell(self, *evaluations: Evaluation) -> int:
        began = time.perf_counter()
        new = self._learner.tell(*evaluations)
        self.tell_ms.append((time.time(), 1e3 * (time.perf_counter() - began)))
        self.told.append((time.time(), len(evaluations)))
        return new

    def train(self) -> None:
        began = time.perf_counter()
        self._learner.train()
        self.trainings.append(time.perf_counter() - began)


class TimedActor(LearnerActor):
    """The learner actor, asked for what ``TimedLearner`` saw."""

    async def timings(self) -> dict[str, list[Any]]:
        learner: Any = await self._built()
        return {name: list(getattr(learner, name)) for name in ("ask_ms", "tell_ms", "told", "trainings")}


class GroupedActor(TimedActor):
    """The same over groups of evaluators."""

    POOL = GroupedPool


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--policy", type=Path, help="a run or policy folder instead of the demo's")
    options.add_argument("--minutes", type=float, default=2.0, help="of each measurement")
    options.add_argument("--only", nargs="+", choices=["64", "256", "nodes"], default=["64", "256", "nodes"])
    given = options.parse_args()
    policy = (given.policy or demo_policy()).absolute()
    figures: dict[str, Any] = {}
    with TemporaryDirectory(prefix="unicuco-scale-") as scratch:
        oracle = write_oracle(policy, Path(scratch))
        for count in (int(name) for name in given.only if name != "nodes"):
            with start_or_attach(RayConfig(num_cpus=4)):
                folder = Path(scratch) / str(count)
                figures[str(count)] = run(policy, oracle, folder, count, 60 * given.minutes)
            console.print({name: round(value, 4) for name, value in figures[str(count)].items()})
        if "nodes" in given.only:
            figures["nodes"] = nodes(policy, oracle, Path(scratch), 30 * given.minutes)
    flat = {f"{name}_{count}": value for count, cell in figures.items() for name, value in cell.items()}
    about = surroundings(policy=str(policy), seconds=SECONDS, minutes=given.minutes)
    finish("Many evaluators, simulated", rows(figures), {**flat, "surroundings": about}, given.json)


def write_oracle(policy: Path, scratch: Path) -> Path:
    from unicuco.policy import Policy

    path = scratch / "oracle.json"
    Oracle.of(Policy.load(policy)).save(path)
    return path


def run(policy: Path, oracle: Path, folder: Path, count: int, seconds: float) -> Figures:
    """``count`` evaluators for ``seconds`` after all of them are ready."""
    grouped = count > 64
    arguments: dict[str, Any] = {"oracle": oracle, "seconds": SECONDS}
    path = "benchmarks.simulated:EvaluatorGroup" if grouped else "benchmarks.simulated:SimulatedEvaluator"
    evaluator = Factory(path, {**arguments, "count": GROUP} if grouped else arguments)
    budget = int(
        40 * count * (1 + seconds / SECONDS)
    )  # more than there is time for: the end of a run is another matter
    with started(policy, folder, evaluator, PoolPlan(count, 0, 0, 1), budget, grouped) as (actor, process):
        ready = await_ready(actor, count)
        cpu, before = sum(process.cpu_times()[:2]), time.time()
        while time.time() < before + seconds:
            answer(actor.progress.remote())
            time.sleep(1)
        until, cpu = time.time(), sum(process.cpu_times()[:2]) - cpu
        timings = answer(actor.timings.remote())
    log = EvaluationLog(folder / "evaluations").read()
    inside = [e for e in log if before <= e.finished <= until]
    # Those that were under way at the end have entries too: ``started`` lets them end. Their part up to then counts.
    busy = sum(max(0.0, min(e.finished, until) - max(e.finished - e.seconds, before)) for e in log)
    return {
        "utilisation": busy / (count * (until - before)),
        "evaluations_per_second": len(inside) / (until - before),
        "evaluations": len(log),
        "ask_p99_ms": p99(timings["ask_ms"], before, until),
        "tell_p99_ms": p99(timings["tell_ms"], before, until),
        "told_p99": p99(timings["told"], before, until),
        "tell_p99_starting_ms": p99(timings["tell_ms"], 0, before),
        "learner_cpu_s": cpu / len(inside),
        "trainings": len(timings["trainings"]),
        "training_s": float(np.median(timings["trainings"][-3:])) if timings["trainings"] else float("nan"),
        "improvised": float(np.mean([e.origin == "improvised" for e in inside])),
        "ready_s": ready,
    }


def p99(timed: list[tuple[float, float]], since: float, until: float) -> float:
    """99th percentile of what was measured at a time between two; nan when nothing was."""
    found = [value for ended, value in timed if since <= ended <= until]
    return float(np.percentile(found, 99)) if found else float("nan")


@contextmanager
def started(
    policy: Path, folder: Path, evaluator: Factory, plan: PoolPlan, budget: int, grouped: bool
) -> Iterator[tuple[Any, psutil.Process]]:
    """A learner actor with its pool, and its process."""
    import ray

    arguments = {"policy": policy, "evaluations": folder / "evaluations", "config": {"evaluations": budget}}
    learner = Factory("benchmarks.scale:TimedLearner", arguments)
    setup = PoolSetup(evaluator, plan)
    actor = create_learner(learner, setup, folder / "policy", actor=GroupedActor if grouped else TimedActor)
    try:
        yield actor, psutil.Process(answer(actor.pid.remote()))
        # What is under way counts as far as it got: give it the time to end.
        time.sleep(0 if plan.cpus else SECONDS + 1)
        answer(actor.stop.remote())
    finally:
        ray.kill(actor)


def await_ready(actor: Any, count: int) -> float:
    """Waits until all evaluators are there; seconds that took."""
    began = time.monotonic()
    with console.status("evaluators start"):
        while answer(actor.progress.remote()).evaluators < count:
            time.sleep(0.5)
    return time.monotonic() - began


def nodes(policy: Path, oracle: Path, scratch: Path, seconds: float) -> Figures:
    """The same evaluators on one node and on two."""
    rates = {}
    for count in (1, 2):
        with cluster(count) as address, start_or_attach(RayConfig(address=address)):
            evaluator = Factory("benchmarks.simulated:SimulatedEvaluator", {"oracle": oracle, "seconds": NODE_SECONDS})
            plan, folder = PoolPlan(NODE_EVALUATORS, 1, 0, 1), scratch / f"nodes-{count}"
            with started(policy, folder, evaluator, plan, 100_000, False) as (actor, _):
                await_ready(actor, NODE_EVALUATORS)
                time.sleep(seconds / 4)
                first = answer(actor.status.remote()).done, time.monotonic()
                time.sleep(seconds)
                rates[count] = (answer(actor.status.remote()).done - first[0]) / (time.monotonic() - first[1])
    return {"one_per_second": rates[1], "two_per_second": rates[2], "loss": 1 - rates[2] / rates[1]}


@contextmanager
def cluster(count: int) -> Iterator[str]:
    """A Ray of ``count`` nodes on this machine with ``NODE_EVALUATORS`` processors in all; its address."""
    with environment(quiet_settings()), environment(local_authentication()):
        from ray.cluster_utils import Cluster

        reread_ray_settings()
        share = {"num_cpus": NODE_EVALUATORS // count, "object_store_memory": 100 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=share)
        try:
            for _ in range(count - 1):
                made.add_node(**share)
            yield made.address
        finally:
            made.shutdown()


def answer(ref: Any) -> Any:
    import ray

    return ray.get(ref)


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for count, cell in figures.items():
        if count == "nodes":
            shown = f"{cell['loss']:+.1%} ({cell['one_per_second']:.2f} and {cell['two_per_second']:.2f}/s)"
            found.append(("nodes_loss, one node to two", shown, "5 %"))
            continue
        goal = "0.95" if count == "64" else "0.9"
        rate = f"{cell['evaluations_per_second']:.1f}/s, {cell['evaluations']:.0f} in all"
        found.append((f"utilisation_{count}", f"{cell['utilisation']:.3f} ({rate})", goal))
        found.append(("  ask, tell p99", f"{cell['ask_p99_ms']:.1f}, {cell['tell_p99_ms']:.1f} ms", "50"))
        training = f"{cell['trainings']:.0f} trainings, the last {cell['training_s']:.1f} s"
        found.append(("  learner's processor", f"{cell['learner_cpu_s']:.3f} s per evaluation; {training}", ""))
        found.append(("  improvised", f"{cell['improvised']:.0%}", ""))
    return found


if __name__ == "__main__":
    main()
