"""Schemathesis against the running service: what it answers to calls that its OpenAPI allows, and to those it does not.

    python -m benchmarks.fuzz [--url URL] [--cases 5000] [--seed 0] [--json FILE]

Without ``--url`` the service runs on a small random model behind Ray Serve, so that checkpoints are built, listed,
cancelled and fetched in seconds. Figures: ``cases`` that were generated (goal 5,000), ``failures`` among them: any
server error, undocumented status, content type, header or shape of a reply, accepted call that the schema forbids, or
method that is answered and not described (goal 0).

Not checked: that every call the schema allows is accepted (whether a request can be met depends on the policy); that
calls without a key are refused (a service without keys has none to refuse; tests/cluster/service/test_keys.py); that a
deleted checkpoint is gone (DELETE cancels it, and what became of it stays to be read, as documented).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import console, finish, parser, surroundings

NOT_CHECKED = ("positive_data_acceptance", "ignored_auth", "use_after_free")
PHASES = {"examples,coverage,fuzzing": 1.0, "stateful": 0.1}
"""Phases that run together, and their part of the examples: sequences of calls wait for checkpoints to be built."""
PER_EXAMPLE = 7
"""Cases that one example comes to over the operations: fewer than were seen."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--url", help="a running service without keys, as http://127.0.0.1:8000")
    options.add_argument("--cases", type=int, default=5000, help="at least about this many")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    examples = -(-given.cases // PER_EXAMPLE)
    if given.url:
        reports = fuzz(given.url, examples, given.seed)
    else:
        from benchmarks.serve import served
        from tests.cluster.service.tiny_run import make_run

        with tempfile.TemporaryDirectory(prefix="unicuco-fuzz-") as scratch:
            run = make_run(Path(scratch))
            with served(run, Path(scratch)) as url:
                reports = fuzz(url, examples, given.seed)
    version = reports[0]["schemathesis_version"]
    figures = {
        "cases": sum(report["test_cases"]["generated"] for report in reports),
        "failures": sum(r["test_cases"]["unique_failures"] + r["test_cases"]["errored"] for r in reports),
        "operations": max(report["operations"]["tested"] for report in reports),
        "seconds": sum(report["running_time"] for report in reports),
        "found": [found for report in reports for found in report["failures"] + report["errors"]],
        "surroundings": surroundings(seed=given.seed, schemathesis=version, examples=examples),
    }
    rows = [
        ("cases", f"{figures['cases']:,} on {figures['operations']} operations", "5,000"),
        ("failures", str(figures["failures"]), "0"),
        ("seconds", f"{figures['seconds']:.0f}", ""),
    ]
    finish("The service, fuzzed from its own description", rows, figures, given.json)


def fuzz(url: str, examples: int, seed: int) -> list[dict[str, Any]]:
    """Schemathesis' reports on the service at ``url``, up to ``examples`` per operation, phases as in ``PHASES``.

    Raises:
        RuntimeError: it did not come to an end.
    """
    return [run(url, phases, max(1, round(part * examples)), seed) for phases, part in PHASES.items()]


def run(url: str, phases: str, examples: int, seed: int) -> dict[str, Any]:
    """One run of Schemathesis; its report."""
    with tempfile.TemporaryDirectory(prefix="unicuco-fuzz-") as scratch:
        path = Path(scratch) / "report.json"
        command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/v1/openapi.json", "--no-color"]
        command += ["--checks", "all", "--exclude-checks", ",".join(NOT_CHECKED), "--phases", phases]
        command += ["--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"]
        command += ["--report", "json", "--report-json-path", str(path)]
        with console.status(f"schemathesis: {phases}"):
            done = subprocess.run(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        report = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    if not report.get("complete"):
        raise RuntimeError(f"Schemathesis did not finish:\n{done.stdout[-4000:]}")
    if done.returncode:
        console.print(done.stdout, markup=False)
    return report


if __name__ == "__main__":
    main()
