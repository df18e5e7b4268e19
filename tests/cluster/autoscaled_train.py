"""``unicuco train`` on a cluster that has no worker nodes when it begins; prints what became of it as JSON.

    python -m tests.cluster.autoscaled_train FOLDER

Everything is real but the machines, which are processes of this one: see ``tests.actors.autoscaled``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.actors.autoscaled import IDLE_SECONDS, MOST_NODES, autoscaled
from tests.cluster.tiny import make_model, make_text, options
from unicuco.evaluations import EvaluationLog

BUDGET = 16


def main() -> None:
    folder = Path(sys.argv[1])
    model, text, run = make_model(folder / "model"), make_text(folder / "words.txt"), folder / "run"
    command = options(model, text, run, BUDGET)
    with autoscaled(folder, version=2) as cluster:
        at = ["--address", cluster.address]
        refused = train(*command, *at)
        found: dict[str, Any] = {
            "refused": [refused.returncode, refused.stderr.strip()],
            "left": run.exists(),
            "nodes_before": max(count for _, count in cluster.changes),
        }
        began = time.monotonic()
        trained = train(*command, *at, "--evaluators", str(MOST_NODES))
        ended = time.monotonic()
        if trained.returncode:
            raise SystemExit(trained.stdout[-3000:] + trained.stderr[-3000:])
        cluster.wait_for(0, IDLE_SECONDS + 60)
        found |= {
            "nodes_after": cluster.nodes,
            "nodes_most": max(count for _, count in cluster.changes),
            "seconds": cluster.seconds(began, ended),
            "ids": [evaluation.eval_id for evaluation in EvaluationLog(run / "evaluations").read()],
            "policy": (run / "policy" / "policy.json").is_file(),
            "waited": f"  waiting  0/{BUDGET} evaluations" in trained.stdout,
        }
        print(json.dumps(found))


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user of the head's shell gives it."""
    command = [sys.executable, "-m", "cluster.train", *arguments]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=400, check=False)


if __name__ == "__main__":
    main()
