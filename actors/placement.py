"""How many evaluators, and how much of the machine each gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

from unicuco.errors import UniCuCoError

SMALL_MACHINE = 4
"""Up to this many processors in a cluster, an evaluator gets one; beyond, four: more do little for a short forward."""


class PlacementError(UniCuCoError):
    """The cluster cannot hold the evaluators asked for."""


class PoolConfig(BaseModel):
    """The pool of evaluators. What is not given follows from the cluster: see ``plan_pool``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluators: int | None = Field(default=None, ge=1)
    cpus: float | None = Field(default=None, ge=0)
    """Processors that Ray sets aside for each evaluator."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs for each; a fraction shares one GPU between evaluators (Ray does not divide its memory), a whole number
    above 1 spreads the base model over so many."""
    in_flight: int = Field(default=2, ge=1, le=8)
    """Candidates handed to one evaluator at a time: 2 hide the way there and back, 1 keeps proposals freshest."""
    attempts: int = Field(default=3, ge=1)
    """A candidate under which this many evaluators died or failed is given up."""

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError("an evaluator gets a share of one GPU (up to 1) or several whole ones (2, 3, ...)")
        return gpus


@dataclass(frozen=True)
class PoolPlan:
    """What ``PoolConfig`` comes to on a given cluster; ``threads`` per evaluator."""

    evaluators: int
    cpus: float
    gpus: float
    threads: int


def plan_pool(config: PoolConfig, device: str, nodes: Sequence[Mapping[str, float]], threads: int | None) -> PoolPlan:
    """Evaluators and their shares, for nodes with the given resources (``CPU``, ``GPU``).

    On GPUs one evaluator each; on processors as many as fit. A number of evaluators given explicitly is taken as it is,
    since a cluster that scales itself may have no room for them yet.

    Raises:
        PlacementError: nothing fits.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu and "," in device:
        raise PlacementError("Ray chooses the GPUs of an evaluator; say how many with --evaluator-gpus, and 'cuda'.")
    total_cpus = sum(node.get("CPU", 0) for node in nodes)
    total_gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus = config.gpus if config.gpus is not None else (1.0 if on_gpu else 0.0)
    if on_gpu and gpus == 0:
        raise PlacementError("Evaluators on 'cuda' need a share of a GPU: give more than 0 GPUs per evaluator.")
    cpus = config.cpus
    if cpus is None and threads is not None and not on_gpu:
        cpus = float(threads)
    if cpus is None:
        cpus = 1.0 if on_gpu or total_cpus <= SMALL_MACHINE else float(SMALL_MACHINE)
    count = config.evaluators or sum(_fitting(node, cpus, gpus) for node in nodes)
    if count == 0:
        raise PlacementError(
            f"No node of the cluster has room for an evaluator with {cpus:g} CPUs and {gpus:g} GPUs; it has "
            f"{total_cpus:g} CPUs and {total_gpus:g} GPUs on {len(nodes)} node(s). "
            + ("Use --device cpu, or start Ray where it sees the GPUs. " if on_gpu and not total_gpus else "")
            + "Of a cluster that starts machines when they are asked for, say how many evaluators it is to hold: "
            "--evaluators N."
        )
    return PoolPlan(count, cpus, gpus, threads or max(1, int(cpus)))


def _fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    if not cpus and not gpus:
        return 1
    limits = [int(node.get(name, 0) / share + 1e-9) for name, share in (("CPU", cpus), ("GPU", gpus)) if share]
    return min(limits)
