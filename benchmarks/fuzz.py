"""Schemathesis against the running service: what it answers to calls that its OpenAPI allows, and to those it does not.

    python -m benchmarks.fuzz [--url URL] [--cases 5000] [--seed 0] [--json FILE]

Without ``--url`` the service runs on a small random model behind Ray Serve, so that checkpoints are built, listed,
cancelled and fetched in seconds. Figures: ``cases`` that were generated (goal 5,000), ``failures`` among them: any
server error, undocumented status, content type, header or shape of a reply, accepted call that the schema forbids, or
method that is answered and not described (goal 0).

Not checked: that every call the schema allows is accepted (whether a request can be met depends on the policy), and
that calls without a key are refused (a service without keys has none to refuse; tests/cluster/service/test_keys.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import console, finish, parser, surroundings

NOT_CHECKED = ("positive_data_acceptance", "ignored_auth")
PER_EXAMPLE = 14
"""Cases that one example per operation comes to, over all phases: fewer than were seen (18 with 60 examples)."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--url", help="a running service without keys, as http://127.0.0.1:8000")
    options.add_argument("--cases", type=int, default=5000, help="at least about this many")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    examples = -(-given.cases // PER_EXAMPLE)
    if given.url:
        report = fuzz(given.url, examples, given.seed)
    else:
        from benchmarks.serve import served
        from tests.cluster.service.tiny_run import make_run

        with tempfile.TemporaryDirectory(prefix="unicuco-fuzz-") as scratch:
            run = make_run(Path(scratch))
            with served(run, Path(scratch)) as url:
                report = fuzz(url, examples, given.seed)
    counts = report["test_cases"]
    figures = {
        "cases": counts["generated"],
        "failures": counts["unique_failures"] + counts["errored"],
        "operations": report["operations"]["tested"],
        "seconds": report["running_time"],
        "found": report["failures"] + report["errors"],
        "surroundings": surroundings(seed=given.seed, schemathesis=report["schemathesis_version"], examples=examples),
    }
    rows = [
        ("cases", f"{figures['cases']:,} on {figures['operations']} operations", "5,000"),
        ("failures", str(figures["failures"]), "0"),
        ("seconds", f"{figures['seconds']:.0f}", ""),
    ]
    finish("The service, fuzzed from its own description", rows, figures, given.json)


def fuzz(url: str, examples: int, seed: int) -> dict[str, Any]:
    """Schemathesis' report on the service at ``url``, up to ``examples`` per operation and phase.

    Raises:
        RuntimeError: it did not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="unicuco-fuzz-") as scratch:
        path = Path(scratch) / "report.json"
        command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/v1/openapi.json", "--no-color"]
        command += ["--checks", "all", "--exclude-checks", ",".join(NOT_CHECKED), "--max-examples", str(examples)]
        command += ["--seed", str(seed), "--generation-database", "none"]
        command += ["--report", "json", "--report-json-path", str(path)]
        with console.status("schemathesis"):
            done = subprocess.run(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        report = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    if not report.get("complete"):
        raise RuntimeError(f"Schemathesis did not finish:\n{done.stdout[-4000:]}")
    if done.returncode:
        console.print(done.stdout, markup=False)
    return report


if __name__ == "__main__":
    main()
