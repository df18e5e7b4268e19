"""``unicuco serve``: the service on this machine, or on the cluster that is there, until it is told to stop."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.runtime import RayConfig, start_or_attach, usable_cpus
from cluster.service.config import ServiceConfig, ServiceError, refuse_open
from unicuco.remote import is_uri
from unicuco.remote.fetch import policy_folder

APPLICATION = "unicuco"
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""HAProxy in front of the replicas instead of Ray's Python proxy."""
QUICK_STOP = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}


def service_values(
    policies: list[str], config_file: Path | None, given: dict[str, Any], dtype: str | None
) -> dict[str, Any]:
    """The configuration that options say, over those of a JSON file.

    Raises:
        ServiceError: the file is none, or the same policy comes twice.
    """
    values: dict[str, Any] = {}
    if config_file:
        try:
            values = dict(json.loads(config_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ServiceError(f"{config_file} cannot be read as a JSON object: {error}.") from error
    offered = dict(values.get("policies") or {})
    for text in policies:
        name, path = _split_name(text)
        if not is_uri(path):
            path = str(Path(path).expanduser().absolute())
        name = name or _name_of(path)
        if name in offered:
            raise ServiceError(f"There are two policies '{name}'; name them: one=runs/first other=runs/second.")
        offered[name] = {"path": path} | ({"dtype": dtype} if dtype else {})
    values |= {name: value for name, value in given.items() if value is not None}
    return {**values, "policies": offered}


def _split_name(text: str) -> tuple[str, str]:
    """``[NAME=]FOLDER``; a URI may have a ``=`` of its own."""
    head, sign, rest = text.partition("://")
    name, _, path = head.rpartition("=")
    return name, path + sign + rest


def _name_of(path: str) -> str:
    last = path.rstrip("/").rpartition("/")[2].lower()
    words = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in last)
    return words.strip("._-")[:64] or "policy"


def run_serve(config: ServiceConfig, host: str, port: int, fast: bool, address: str | None) -> None:
    """Serves until SIGINT or SIGTERM; prints the address when it answers.

    Raises:
        ServiceError, RayStartError, PolicyError, RemoteError: before anything is served.
    """
    refuse_open(host, config.keys)
    if not (address or os.environ.get("RAY_ADDRESS")):  # elsewhere the port is that of another machine
        refuse_taken(host, port)
        for policy in config.policies.values():
            policy_folder(policy.path)
    for name, value in {**(FAST if fast else {}), **QUICK_STOP}.items():
        os.environ.setdefault(name, value)
    need = sum(policy.num_cpus * policy.replicas for policy in config.policies.values())
    most = config.gateways if isinstance(config.gateways, int) else config.gateways[1]
    console = Console()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_config = RayConfig(address=address, num_cpus=max(usable_cpus(), math.ceil(need + most)))
    with _told_to_stop() as stop, start_or_attach(ray_config):
        from ray import serve
        from ray.serve.exceptions import RayServeException

        from cluster.service.deployments import build

        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"encoding": "JSON", "enable_access_log": False},
            )
            serve.run(build(config), name=APPLICATION, route_prefix="/")
        except (RuntimeError, RayServeException) as error:
            serve.shutdown()
            lines = str(error).strip().splitlines()
            raise ServiceError(f"The service does not start: {lines[-1] if lines else error}") from error
        try:
            shown = f"[{host}]" if ":" in host else host
            console.print(f"Serving {', '.join(config.policies)} at http://{shown}:{port}", highlight=False)
            console.print(
                f"Try: curl -s http://{shown}:{port}/v1/answers -H 'content-type: application/json' "
                """-d '{"requests": [{"kept": 0.7}]}'; the page: the same address in a browser. Ctrl-C stops.""",
                highlight=False,
                soft_wrap=True,
            )
            while not stop.wait(0.5):  # a wait without end would not hear the signal
                pass
        finally:
            serve.shutdown()


def refuse_taken(host: str, port: int) -> None:
    """Finds out now, not after Ray has started, whether one can listen there.

    Raises:
        ServiceError: another program listens on the port, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections may linger
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"Port {port} of {host} is taken by another program; choose one with --port.") from error
        raise ServiceError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from error


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM; while the service starts they wait until it can be ended in order."""
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
