"""The service under load, on loopback, from a second process.

    python -m benchmarks.serve [--policy FOLDER] [--seconds 10] [--minutes 10] [--modes plain fast] [--json FILE]

In each mode (``plain``: Ray's own proxy, ``fast``: HAProxy), eight connections, each with one request per call:

- ``echo_ratio``: answers per second ÷ those of a deployment of the same shape (routes, checks, batches) that returns an
  answer made beforehand, in turns within one run (goal 0.8);
- ``fast_calls_per_second`` (goal 300) with ``fast_p99_ms`` (goal 50);
- ``many_p50_ms``: a call with 64 requests, one connection, the better mode (goal 60).

Then ``--minutes`` at twice the rate that 64 connections sustain, on 512: ``other_5xx`` (any 5xx but 503; goal 0),
``memory_growth`` of the gateway (goal 0.05), calls shed, p99 of the accepted ones. 0 minutes: left out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import console, demo_policy, finish, parser, surroundings
from cluster.service.config import ServiceConfig, make_config
from cluster.serving import FAST, QUICK_STOP

CONNECTIONS, TURNS = 8, 3
SUSTAINED_CONNECTIONS, OVERLOAD_CONNECTIONS = 64, 512


def make_constant() -> type:
    """The gateway with its routes, checks and batches, and one answer made beforehand in the place of StratNet's."""
    from ray import serve

    from cluster.service.deployments import GatewayReplica

    class Constant(GatewayReplica):
        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
        async def answer_batch(self, calls: list[Any]) -> list[list[Any]]:
            if not hasattr(self, "_made"):
                self._made = await self.gateway.answer_all([calls[0]])
            return [self._made[0] for _ in calls]

    return Constant


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--policy", type=Path, help="a run or policy folder instead of the demo's")
    options.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options.add_argument("--minutes", type=float, default=10.0, help="of overload; 0: none")
    options.add_argument("--modes", nargs="+", choices=["plain", "fast"], default=["plain", "fast"])
    options.add_argument("--mode", choices=["plain", "fast"], help=argparse.SUPPRESS)
    given = options.parse_args()
    policy = (given.policy or demo_policy()).absolute()
    if given.mode:  # Serve reads its mode once per process
        print(json.dumps(measure(policy, given.seconds, given.minutes)))
        return
    figures: dict[str, Any] = {}
    for mode in given.modes:
        last = mode == given.modes[-1]
        figures[mode] = in_process(mode, policy, given.seconds, given.minutes if last else 0.0)
    finish("The service under load", rows(figures), summary(figures, given), given.json)


def in_process(mode: str, policy: Path, seconds: float, minutes: float) -> dict[str, Any]:
    """One mode in a process whose environment says so."""
    settings = {**QUICK_STOP, **(FAST if mode == "fast" else {})}
    command = [sys.executable, "-m", "benchmarks.serve", "--mode", mode, "--policy", str(policy)]
    command += ["--seconds", str(seconds), "--minutes", str(minutes)]
    with console.status(f"{mode} mode"):
        done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(policy: Path, seconds: float, minutes: float) -> dict[str, Any]:
    """All figures of the mode that the environment sets."""
    with tempfile.TemporaryDirectory(prefix="unicuco-bench-") as scratch, served(policy, Path(scratch)) as url:
        echo = deploy_echo(make_service(policy, Path(scratch)))
        for warm in (url, f"{url}{echo}"):
            load(warm, CONNECTIONS, 3, 1)
        pairs = [
            (load(url, CONNECTIONS, seconds, 1), load(f"{url}{echo}", CONNECTIONS, seconds, 1)) for _ in range(TURNS)
        ]
        ours, constant = (np.array([pair[i]["calls_per_second"] for pair in pairs]) for i in (0, 1))
        found: dict[str, Any] = {
            "calls_per_second": float(np.median(ours)),
            "echo_per_second": float(np.median(constant)),
            "echo_ratio": float(np.median(ours / constant)),
            "p50_ms": float(np.median([pair[0]["p50_ms"] for pair in pairs])),
            "p99_ms": float(np.median([pair[0]["p99_ms"] for pair in pairs])),
            "many_p50_ms": load(url, 1, seconds, 64)["p50_ms"],
        }
        if minutes:
            sustained = load(url, SUSTAINED_CONNECTIONS, seconds, 1)["calls_per_second"]
            found["overload"] = overload(url, 2 * sustained, 60 * minutes)
        return found


def make_service(policy: Path, scratch: Path) -> ServiceConfig:
    """One policy, without limits per key."""
    return make_config(
        {
            "policies": {"bench": {"path": policy}},
            "storage": scratch / "checkpoints",
            "database": f"sqlite:///{scratch / 'jobs.sqlite'}",
            "limits": {"calls_per_second": 1e6},
        }
    )


@contextmanager
def served(policy: Path, scratch: Path) -> Iterator[str]:
    """The service on a free port."""
    from actors.runtime import RayConfig, start_or_attach

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start_or_attach(RayConfig(num_cpus=4)):
        from ray import serve

        from cluster.service.deployments import build

        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"encoding": "JSON", "enable_access_log": False},
        )
        serve.run(build(make_service(policy, scratch)), name="unicuco", route_prefix="/")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


def deploy_echo(config: ServiceConfig) -> str:
    """The constant deployment; returns its prefix."""
    from ray import serve

    from cluster.service.deployments import GATEWAY_CPUS, QUEUED, STREAMS

    replica = serve.deployment(serve.ingress()(make_constant())).options(  # type: ignore[attr-defined]
        name="echo",
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        max_ongoing_requests=config.limits.calls_at_once + STREAMS,
        max_queued_requests=QUEUED,
    )
    serve.run(replica.bind(config, None), name="echo", route_prefix="/echo")
    return "/echo"


def load(url: str, connections: int, seconds: float, requests: int, rate: float | None = None) -> dict[str, Any]:
    """``benchmarks.load`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds), str(requests)]
    done = subprocess.run([*command, *([str(rate)] if rate else [])], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def overload(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """Twice what can be answered, for long: what is refused how, and what memory does."""
    load(url, OVERLOAD_CONNECTIONS, 20, 1, rate)  # caches are full, pools are grown
    before = gateway_bytes()
    found = load(url, OVERLOAD_CONNECTIONS, seconds, 1, rate)
    statuses = found["statuses"]
    total = sum(statuses.values())
    other = sum(count for status, count in statuses.items() if status not in ("200", "503", "429"))
    return {
        **found,
        "rate": rate,
        "seconds": seconds,
        "shed": sum(statuses.get(status, 0) for status in ("503", "429")) / max(total, 1),
        "other_5xx": other,
        "memory_growth": gateway_bytes() / before - 1,
    }


def gateway_bytes() -> int:
    """Resident memory of the gateway's replicas."""
    titles = [(p, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline"])]
    return sum(p.memory_info().rss for p, title in titles if title.startswith("ray::ServeReplica:unicuco:gateway"))


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for mode, values in figures.items():
        rates = f"{values['calls_per_second']:.0f} ÷ {values['echo_per_second']:.0f} calls/s"
        found.append((f"echo_ratio, {mode}", f"{values['echo_ratio']:.2f} ({rates})", "0.8"))
        latency = f"p50 {values['p50_ms']:.0f}, p99 {values['p99_ms']:.0f} ms"
        goal = "300/s, p99 50" if mode == "fast" else ""
        found.append((f"8 connections, {mode}", f"{values['calls_per_second']:.0f}/s, {latency}", goal))
        found.append((f"64 requests in a call, {mode}", f"p50 {values['many_p50_ms']:.0f} ms", "60"))
        if over := values.get("overload"):
            shown = (
                f"{over['rate']:.0f}/s for {over['seconds']:.0f} s: {over['calls_per_second']:.0f}/s answered, "
                f"{over['shed']:.0%} shed, p99 {over['p99_ms']:.0f} ms, statuses {over['statuses']}"
            )
            found.append((f"overload, {mode}", shown, ""))
            found.append((f"other_5xx, {mode}", str(over["other_5xx"]), "0"))
            found.append((f"memory_growth, {mode}", f"{over['memory_growth']:+.1%}", "5 %"))
    return found


def summary(figures: dict[str, Any], given: Any) -> dict[str, Any]:
    fast = figures.get("fast", {})
    return {
        "echo_ratio": min(values["echo_ratio"] for values in figures.values()),
        "fast_calls_per_second": fast.get("calls_per_second"),
        "fast_p99_ms": fast.get("p99_ms"),
        "many_p50_ms": min(values["many_p50_ms"] for values in figures.values()),
        "modes": figures,
        "surroundings": surroundings(connections=CONNECTIONS, seconds=given.seconds, minutes=given.minutes),
    }


if __name__ == "__main__":
    main()
