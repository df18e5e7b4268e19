"""A run on a Ray cluster of its own, with one fault injected; prints what became of it as JSON.

    python -m tests.actors.cluster_run FAULT FOLDER

A process to itself, since Ray's settings and its clusters are one per process. The learner, its actor, the pool and
the log are the real ones; evaluators are stand-ins that sleep.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUDGET, EVALUATORS, SECONDS = 60, 2, 0.3
SETTINGS: dict[str, dict[str, str]] = {
    "node": {},
    "gcs": {"RAY_gcs_storage": "rocksdb"},
    "object-store": {},
    # All nodes are this machine and see the same memory, so that only the one that is meant to watch does: see main.
    "memory": {"RAY_memory_monitor_refresh_ms": "0"},
    "learner-memory": {"RAY_memory_monitor_refresh_ms": "100"},
    "slow-network": {"RAY_testing_asio_delay_us": "CoreWorkerService.grpc_server.PushTask=200000:200000"},
}
ENDED_SECONDS = 150.0


class Fault:
    """What goes wrong when a third of the run is done."""

    def __init__(self, cluster: Any, worker: Any) -> None:
        self.cluster, self.worker = cluster, worker
        self.held: list[Any] = []

    def node(self) -> None:
        """The machine with the evaluators is gone at once; another one joins a little later."""
        self.cluster.remove_node(self.worker, allow_graceful=False)
        time.sleep(3)
        self.cluster.add_node(num_cpus=EVALUATORS, object_store_memory=80 << 20)

    def gcs(self) -> None:
        """Ray's control service is killed and comes back three seconds later."""
        self.cluster.head_node.kill_gcs_server()
        time.sleep(3)
        self.cluster.head_node.start_gcs_server()

    def object_store(self) -> None:
        """Somebody else's objects fill the store of every node."""
        import numpy as np
        import ray

        @ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
        class Hoarder:
            def hoard(self) -> int:
                self.held = [ray.put(np.ones(20 << 20, dtype=np.uint8)) for _ in range(8)]
                return len(self.held)

        self.held = [Hoarder.remote() for _ in range(2)]
        ray.get([hoarder.hoard.remote() for hoarder in self.held])

    def memory(self) -> None:
        """Nothing: an evaluator that grows is part of the run (``heavy``)."""

    def learner_memory(self) -> None:
        """Nothing: a learner that grows is part of the run (``hoards``)."""

    def slow_network(self) -> None:
        """Nothing: every call takes 0.2 s longer from the start."""


def main() -> None:
    fault, folder = sys.argv[1], Path(sys.argv[2])
    settings = {"RAY_AUTH_MODE": "token", **SETTINGS[fault]}
    if fault == "gcs":
        settings["RAY_gcs_storage_path"] = str(folder / "gcs")
    if "memory" in fault:
        import psutil

        settings["RAY_memory_usage_threshold"] = f"{psutil.virtual_memory().percent / 100 + 0.10:.3f}"
    os.environ.update(settings)
    from ray.cluster_utils import Cluster

    from actors.factory import Factory
    from actors.learner import create_learner
    from actors.placement import PoolPlan
    from actors.pool import PoolSetup
    from actors.runtime import RayConfig, start_or_attach
    from unicuco.evaluations import EvaluationLog

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False},
    )
    if "memory" in fault:  # from here on for the nodes to come
        os.environ["RAY_memory_monitor_refresh_ms"] = "100" if fault == "memory" else "0"  # noqa: SIM112, Ray's own
    try:
        worker = cluster.add_node(num_cpus=EVALUATORS, object_store_memory=80 << 20)
        with start_or_attach(RayConfig(address=cluster.address)):
            (folder / "notes").mkdir()
            heavy = (20,) if fault == "memory" else ()
            hoards = folder / "hoarded" if fault == "learner-memory" else None
            evaluator = Factory(
                "tests.actors.standins:QuadraticEvaluator", {"notes": folder / "notes", "seconds": SECONDS}
            )
            log = folder / "evaluations"
            learner = Factory(
                "tests.actors.standins:CountingLearner",
                {"evaluations": log, "budget": BUDGET, "every": 20, "heavy": heavy, "hoards": hoards},
            )
            actor = create_learner(learner, PoolSetup(evaluator, PoolPlan(EVALUATORS, 1, 0, 1)), folder / "policy")
            inject = getattr(Fault(cluster, worker), fault.replace("-", "_"))
            print(json.dumps(follow(actor, inject) | {"ids": sorted(e.eval_id for e in EvaluationLog(log).read())}))
    finally:
        cluster.shutdown()


def follow(actor: Any, inject: Callable[[], None]) -> dict[str, Any]:
    """Watches the run, injects the fault at a third of it, and returns its end."""
    from cluster.following import answer

    began, injected, unbalanced, silent, status = time.monotonic(), False, 0, 0.0, None
    learners = set()
    while time.monotonic() - began < ENDED_SECONDS:
        asked = time.monotonic()
        progress = answer(actor.progress.remote)
        silent = max(silent, time.monotonic() - asked)
        learners.add(answer(actor.pid.remote))
        status = progress.status
        unbalanced += status.submitted != status.done + status.failed + status.running
        if not injected and status.done >= BUDGET // 3:
            injected = True
            inject()  # here: a node can only be started from the main thread
        if progress.finished:
            assert injected
            return {
                "done": status.done,
                "failed": status.failed,
                "reasons": [reason for _, reason in progress.failures],
                "returned": progress.returned,
                "learners": len(learners),
                "unbalanced": unbalanced,
                "silent": silent,
                "seconds": time.monotonic() - began,
            }
        time.sleep(0.1)
    raise SystemExit(f"the run did not end: {status}")


if __name__ == "__main__":
    main()
