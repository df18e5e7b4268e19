"""How the learner scales: latency of ask and tell while it trains, and how long fits and trainings take.

    python -m benchmarks.scale_learner --json FILE [--sites 60 160 320] [--evaluations 100 500 2000]

No base model: damages are made up, evaluations cost nothing, and each has margins, as it is with 0.75 of the budget for
them (an evaluation costs one, its margins three).
Training and saving the policy run in one worker thread, as in the learner actor, while the main thread asks and tells
as if evaluations came back. Per cell:

- ``ask_p99_ms`` (goal 50), ``ask_p50_ms``, and the same for ``tell`` (a file is written and synced) and ``status``;
- ``ask_idle_p99_ms``: of ask with no training running, on the same machine: what is left when nothing competes;
- ``fit_s``: the surrogate alone; ``train_s``: a whole training in the middle of a run; ``save_s``: its policy; and each
  as processor time of its thread (``fit_cpu_s``, ...), which other work on the machine does not stretch.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.harness import console, finish, parser, surroundings
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog, write_evaluations
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.geometry import BlockGeometry, Geometry
from unicuco.slopes import read_slopes
from unicuco.space import SearchSpace, budgets_of
from unicuco.surrogate import Surrogate

T = TypeVar("T")
SITES, EVALUATIONS = (60, 160, 320), (100, 500, 2000)
IDLE_TURNS = 100
MARGIN_GROUPS = 24


class MadeUpModel:
    """KL = Σᵢ wᵢ Dᵢ(levelᵢ) over blocks of SmolLM2's shape; the learner knows D and not w."""

    def __init__(self, sites: int, seed: int = 0) -> None:
        block = BlockGeometry(
            groups=3, heads_per_group=3, head_dim=64, neurons=1536, attention_fixed=576, params_per_group=294912,
            macs_per_group=294912, mlp_fixed=576, params_per_neuron=1728, macs_per_neuron=1728,
        )  # fmt: skip
        shape = {"family": "llama", "hidden_size": 576, "vocab_size": 49152, "fixed_params": 28312704}
        geometry = Geometry.model_validate({**shape, "fixed_macs": 28311552, "blocks": (block,) * (sites // 2)})
        self.space = SearchSpace(geometry)
        self._rng = rng = np.random.default_rng(seed)
        sparsity = np.where(np.isinf(self.space.levels), 1.0, self.space.levels)
        size, bend = np.exp(rng.normal(-3.5, 0.7, sites)), rng.uniform(2.0, 4.0, sites)
        self.damage = size[:, None] * np.expm1(bend[:, None] * sparsity) / np.expm1(bend)[:, None]
        self._truth = self.damage * np.exp(rng.normal(0, 0.8, sites))[:, None]

    def history(self, count: int) -> list[Evaluation]:
        """``count`` evaluations of random strategies, as a run leaves them."""
        kept = self._rng.uniform(0.4, 0.97, count)
        wish = self._rng.random((count, self.space.num_sites))
        wish *= (1 - kept)[:, None] / wish.mean(axis=1, keepdims=True)
        levels = self.space.project(wish.clip(0, 1), {"params": budgets_of(self.space, kept)})
        return [
            self.evaluate(Candidate(f"{i:06d}", tuple(row.tolist()), "disturbed", margin_group=i % MARGIN_GROUPS))
            for i, row in enumerate(levels)
        ]

    def evaluate(self, candidate: Candidate) -> Evaluation:
        levels = np.array(candidate.levels)
        own = self._truth[np.arange(len(levels)), levels]
        kl, with_margins = float(own.sum() * np.exp(self._rng.normal(0, 0.01))), candidate.margin_group >= 0
        margins = np.minimum(2 * (self._truth - own[:, None]), 0)  # giving back undoes; pruning more has no first order
        return Evaluation(
            eval_id=candidate.eval_id, levels=candidate.levels, origin=candidate.origin,
            params=int(self.space.total(levels)), kept=float(self.space.kept(levels)), kl=kl, kl_reverse=kl,
            perplexity=10.0, domains=("made-up",), domain_kl=(kl,), tokens=2048, cost=2048 * candidate.cost,
            seconds=1.0, dtype="bfloat16", device="cpu", threads=1, seed=0, preparation="p", windows="w",
            window_kl=(0.95 * kl, 0.98 * kl, 1.02 * kl, 1.05 * kl), margin_group=candidate.margin_group,
            margins_kl=kl if with_margins else float("nan"),
            margins=tuple(margins.flatten().tolist()) if with_margins else (),
            finished=float(candidate.eval_id),
        )  # fmt: skip


@dataclasses.dataclass
class Latencies:
    """Milliseconds of every call."""

    ask: list[float] = dataclasses.field(default_factory=list)
    tell: list[float] = dataclasses.field(default_factory=list)
    status: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sites", type=int, nargs="+", default=SITES)
    options.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    given = options.parse_args()
    cells = [measure(sites, count) for sites in given.sites for count in given.evaluations]
    rows = [
        (
            f"{cell['sites']:.0f} sites, {cell['evaluations']:.0f} evaluations",
            f"ask p50 {cell['ask_p50_ms']:.1f}, p99 {cell['ask_p99_ms']:.1f} ms ({cell['ask_idle_p99_ms']:.1f} idle); "
            f"tell p99 {cell['tell_p99_ms']:.1f}; status p99 {cell['status_p99_ms']:.1f}; fit {cell['fit_s']:.1f} s "
            f"({cell['fit_cpu_s']:.1f} of processor), training {cell['train_s']:.1f} ({cell['train_cpu_s']:.1f})",
            "ask p99 50",
        )
        for cell in cells
    ]
    about = surroundings(threads=torch.get_num_threads(), margins="with every evaluation")
    worst = max(cell["ask_p99_ms"] for cell in cells)
    finish("The learner's scale", rows, {"cells": cells, "ask_p99_ms": worst, "surroundings": about}, given.json)


def measure(sites: int, count: int) -> dict[str, float]:
    """One cell of the table."""
    model = MadeUpModel(sites)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_evaluations(folder / "log" / "evaluations.parquet", model.history(count))
        config = LearnerConfig(evaluations=10 * count)  # far from its end: a final training is not what evaluators meet
        learner = Learner(model.space, model.damage, config, EvaluationLog(folder / "log"), {}, MARGIN_GROUPS)
        seconds = _seconds("fit", lambda: fit(model, learner.evaluations()))

        def work() -> None:
            seconds.update(_seconds("train", learner.train))
            seconds.update(_seconds("save", lambda: learner.save_policy(folder / "policy")))

        idle, busy = Latencies(), Latencies()
        with ThreadPoolExecutor(1, thread_name_prefix="train") as worker:
            _turns(model, learner, busy, worker.submit(work))
        _turns(model, learner, idle, None)
    cell: dict[str, float] = {"sites": sites, "evaluations": count, "turns": len(busy.ask), **seconds}
    for name in ("ask", "tell", "status"):
        cell |= {f"{name}_p{p}_ms": float(np.percentile(getattr(busy, name), p)) for p in (50, 99)}
        cell[f"{name}_max_ms"] = max(getattr(busy, name))
        cell[f"{name}_idle_p99_ms"] = float(np.percentile(getattr(idle, name), 99))
    console.print({key: round(value, 3) for key, value in cell.items()})
    return cell


def fit(model: MadeUpModel, done: list[Evaluation]) -> Surrogate:
    levels, kl = np.array([e.levels_array() for e in done]), np.array([e.kl for e in done])
    return Surrogate(model.space, model.damage).fit(levels, kl, read_slopes(model.space, done))


def _turns(model: MadeUpModel, learner: Learner, into: Latencies, training: Future[None] | None) -> None:
    """Asks and tells until ``training`` is done; else ``IDLE_TURNS`` times."""
    pause, began = threading.Event(), time.perf_counter()
    while not (training.done() if training else len(into.ask) >= IDLE_TURNS):
        (candidate,), ms = _timed(lambda: learner.ask(1))
        into.ask.append(ms)
        into.status.append(_timed(learner.status)[1])
        evaluation = model.evaluate(candidate)
        into.tell.append(_timed(lambda told=evaluation: learner.tell(told))[1])  # type: ignore[misc]
        # Often at first, so that short trainings have turns to count; then rarely, so that the log stays what it was.
        pause.wait(max(0.01, (time.perf_counter() - began) / 150))
    if training:
        training.result()


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - began)


def _seconds(name: str, call: Callable[[], object]) -> dict[str, float]:
    """Wall and processor time of ``call`` in this thread."""
    wall, processor = time.perf_counter(), time.thread_time()
    call()
    return {f"{name}_s": time.perf_counter() - wall, f"{name}_cpu_s": time.thread_time() - processor}


if __name__ == "__main__":
    main()
