"""Everything about sub-networks for a device in one command: latency, super-network, recovery, and exact task scores.

    python -m benchmarks.subnetworks --policy FOLDER [--only latency supernet recovery exactness] [--text WIKI]
                                     [--data FOLDER] [--json FILE]

Runs the four benchmarks one after the other, each as described in its own module, and joins what they found: the
figures of ``benchmarks.latency`` as they are, the others' under their names. ``--text`` is WikiText-2's raw test set;
``--data`` has ``TASK.jsonl`` of the five tasks (needs ``pip install -e '.[bench]'``), without which task scores and
``exactness`` are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import console, demo_policy, finish, parser, surroundings

PARTS = ("latency", "supernet", "recovery", "exactness")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--policy", type=Path, help="a policy or run folder instead of the demo's")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--text", type=Path, help="WikiText-2 raw test, rows joined by blank lines")
    options.add_argument("--data", type=Path, help="folder with one TASK.jsonl per task")
    given = options.parse_args()
    policy = given.policy or demo_policy()
    found: dict[str, Any] = {}
    with TemporaryDirectory(prefix="unicuco-subnetworks-") as scratch:
        for part in given.only:
            if part == "exactness" and not given.data:
                console.print("exactness: left out, it needs --data")
                continue
            file = Path(scratch) / f"{part}.json"
            command = [sys.executable, "-m", f"benchmarks.{part}", "--json", str(file)]
            command += [] if part == "exactness" else ["--policy", str(policy)]
            if part in ("supernet", "recovery") and given.text:
                command += ["--text", str(given.text)]
            if part in ("recovery", "exactness") and given.data:
                command += ["--data", str(given.data)]
            console.print(f"{part}: {' '.join(command[1:])}", highlight=False, soft_wrap=True)
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(f"benchmarks.{part} failed; nothing is joined.")
            found[part] = json.loads(file.read_text(encoding="utf-8"))
    shown = [
        (f"{part}: {name}", f"{value:.4g}", "")
        for part, figures in found.items()
        for name, value in figures.items()
        if isinstance(value, int | float)
    ]
    flat = {**found.get("latency", {}), **{part: figures for part, figures in found.items() if part != "latency"}}
    finish("Sub-networks", shown, flat | {"surroundings": surroundings(policy=str(policy))}, given.json)


if __name__ == "__main__":
    main()
