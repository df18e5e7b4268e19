"""A run on a cluster that begins without any worker node; prints what became of it as JSON.

    python -m tests.actors.autoscaled_run VERSION FOLDER

The autoscaler (1 or 2), the learner, its actor, the pool and the log are the real ones; evaluators are stand-ins that
sleep. There is one more of them than the cluster can ever have room for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.actors.autoscaled import IDLE_SECONDS, MOST_NODES, autoscaled

BUDGET, EVALUATORS, SECONDS = 60, MOST_NODES + 1, 0.3
PATIENCE = 300.0


def main() -> None:
    version, folder = int(sys.argv[1]), Path(sys.argv[2])
    with autoscaled(folder, version) as cluster:
        time.sleep(3)  # nobody asks for anything: nothing comes
        before, began = cluster.nodes, time.monotonic()
        found = {"nodes_before": before} | run(cluster.address, folder)
        ended = time.monotonic()
        cluster.wait_for(0, IDLE_SECONDS + 60)
        found["nodes_after"] = cluster.nodes
        found["nodes_most"] = max(count for _, count in cluster.changes)
        found["seconds"] = cluster.seconds(began, ended)
        print(json.dumps(found))


def run(address: str, folder: Path) -> dict[str, Any]:
    """One run from its start to its end."""
    import ray

    from actors.factory import Factory
    from actors.learner import PoolSetup, create_learner
    from actors.placement import PoolConfig, plan_pool
    from actors.runtime import RayConfig, start_or_attach
    from unicuco.evaluations import EvaluationLog

    notes, log = folder / "notes", folder / "evaluations"
    notes.mkdir()
    with start_or_attach(RayConfig(address=address)):
        began = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes()]
        plan = plan_pool(PoolConfig(evaluators=EVALUATORS), "cpu", nodes, None)
        evaluator = Factory("tests.actors.standins:QuadraticEvaluator", {"notes": notes, "seconds": SECONDS})
        learner = Factory("tests.actors.standins:CountingLearner", {"evaluations": log, "budget": BUDGET, "every": 20})
        actor = create_learner(learner, PoolSetup(evaluator, plan), folder / "policy")
        ready = 0
        while not (progress := ray.get(actor.progress.remote(), timeout=30)).finished:
            ready = max(ready, progress.evaluators)
            if time.monotonic() - began > PATIENCE:
                raise SystemExit(f"the run did not end: {progress}")
            time.sleep(0.1)
        status = ray.get(actor.finish.remote())
        return {
            "done": status.done,
            "failed": status.failed,
            "returned": progress.returned,
            "ready_most": ready,
            "ids": sorted(evaluation.eval_id for evaluation in EvaluationLog(log).read()),
            "worked_on": sorted(note.name.split(".")[0] for note in notes.iterdir()),
        }


if __name__ == "__main__":
    main()
