"""Evaluators that compute nothing: they take as long as a base model on a GPU would, and answer from an oracle.

The oracle is what the surrogate of a recorded run says: additive damages per site and level, and noise. Nothing here
imports torch, so that hundreds of such evaluators fit on one machine and cost it little but their place in Ray.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.factory import Factory
from actors.pool import EvaluatorPool
from unicuco.evaluations import Candidate, Evaluation
from unicuco.storage import write_json

if TYPE_CHECKING:
    from unicuco.policy import Policy

NOISE = 0.02
"""Of a measured log KL around the oracle's, at random."""
TOKENS = 2048


@dataclass(frozen=True)
class Oracle:
    """log KL = offset + slope · log(floor + Σ terms), and exact sizes.

    Attributes:
        terms: what every level adds (``num_sites x max_levels``); params: what it keeps.
    """

    terms: np.ndarray
    params: np.ndarray
    fixed_params: int
    block_params: int
    floor: float
    slope: float
    offset: float

    @classmethod
    def of(cls, policy: Policy) -> Oracle:
        """What the surrogate of ``policy`` has learned of its sites."""
        import torch

        space, model = policy.space, policy.parts.surrogate.damage_model
        if model is None:
            raise ValueError("A plain surrogate has learned nothing of single sites.")
        last = np.where(np.isinf(space.levels), -np.inf, space.levels).max(axis=1, keepdims=True)
        levels = np.where(np.isinf(space.levels), last, space.levels)
        with torch.no_grad():
            return cls(
                terms=model.terms(torch.as_tensor(levels.T.copy())).T.numpy(),
                params=space.tables["params"],
                fixed_params=space.fixed["params"],
                block_params=space.geometry.block_params,
                floor=float(model.log_floor.exp()),
                slope=float(model.slope),
                offset=float(model.offset),
            )

    def save(self, path: Path) -> None:
        write_json(path, {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> Oracle:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**{k: np.array(v) if isinstance(v, list) else v for k, v in values.items()})

    def evaluation(self, candidate: Candidate, seconds: float) -> Evaluation:
        """What an evaluator would have measured in ``seconds`` of wall time; noise is the candidate's own."""
        levels = np.array(candidate.levels)
        own = self.terms[np.arange(len(levels)), levels]
        total = own.sum() + self.floor
        noise = np.random.default_rng(int(candidate.eval_id)).normal(0, NOISE)
        kl = float(np.exp(self.offset + self.slope * np.log(total) + noise))
        params = self.fixed_params + int(self.params[np.arange(len(levels)), levels].sum())
        with_margins = candidate.margin_group >= 0
        # What is given back changes KL to first order; what is pruned on top does not (unicuco/margins.py).
        margins = np.minimum(kl * self.slope / total * (self.terms - own[:, None]), 0)
        return Evaluation(
            eval_id=candidate.eval_id, levels=candidate.levels, origin=candidate.origin, params=params,
            kept=(params - self.fixed_params) / self.block_params, kl=kl, kl_reverse=kl, perplexity=10.0,
            domains=("simulated",), domain_kl=(kl,), tokens=TOKENS, cost=TOKENS * candidate.cost, seconds=seconds,
            dtype="none", device="none", threads=1, seed=0, preparation="simulated", windows="simulated",
            window_kl=(0.95 * kl, 0.98 * kl, 1.02 * kl, 1.05 * kl),
            predicted_log_kl=candidate.predicted_log_kl, predicted_sigma=candidate.predicted_sigma,
            policy_version=candidate.policy_version, margin_group=candidate.margin_group,
            margins_kl=kl if with_margins else float("nan"),
            margins=tuple(margins.flatten().tolist()) if with_margins else (),
        )  # fmt: skip


class SimulatedEvaluator:
    """One evaluator in a process of its own (``actors.evaluator.EvaluatorActor`` wraps it)."""

    def __init__(self, oracle: Path, seconds: float) -> None:
        self._oracle, self._seconds = Oracle.load(oracle), seconds

    def evaluate(self, candidate: Candidate) -> Evaluation:
        began = time.perf_counter()
        time.sleep(self._seconds)
        return self._oracle.evaluation(candidate, time.perf_counter() - began)


class EvaluatorGroup:
    """Several simulated evaluators in one process; each works off its own candidates one after the other."""

    def __init__(self, oracle: Path, seconds: float, count: int) -> None:
        self._oracle, self._seconds = Oracle.load(oracle), seconds
        self._busy = [asyncio.Lock() for _ in range(count)]

    async def hello(self) -> None: ...

    async def ready(self) -> None: ...

    async def evaluate(self, member: int, candidate: Candidate) -> Evaluation:
        async with self._busy[member]:
            began = time.perf_counter()
            await asyncio.sleep(self._seconds)
            return self._oracle.evaluation(candidate, time.perf_counter() - began)


class _Bound:
    """``member.evaluate.remote(candidate)`` for one member of a group."""

    def __init__(self, method: Any, member: int) -> None:
        self._method, self._member = method, member

    def remote(self, candidate: Candidate) -> Any:
        return self._method.remote(self._member, candidate)


class _Member:
    """One evaluator of a group, with the methods that the pool calls on an actor."""

    def __init__(self, group: Any, member: int) -> None:
        self.hello, self.ready = group.hello, group.ready
        self.evaluate = _Bound(group.evaluate, member)


class GroupedPool(EvaluatorPool):
    """The pool over groups: ``factory`` has the arguments of ``EvaluatorGroup``, as many members a group as it says."""

    def __init__(self, factory: Factory, *args: Any, **options: Any) -> None:
        super().__init__(factory, *args, **options)
        self._groups: list[Any] = []
        self._members = 0

    def _create(self) -> Any:
        import ray

        arguments = dict(self._factory.arguments)
        member = self._members % arguments["count"]
        if member == 0:
            self._groups.append(ray.remote(EvaluatorGroup).options(num_cpus=0).remote(**arguments))
        self._members += 1
        return _Member(self._groups[-1], member)

    def close(self) -> None:
        import ray

        for task in self._tasks:
            task.cancel()
        for group in self._groups:
            ray.kill(group)
        self._groups.clear()
        self._workers.clear()
