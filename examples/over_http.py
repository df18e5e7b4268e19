"""The service from a caller's side: starts one on this machine, asks it, has a checkpoint built and fetches it.

    python examples/over_http.py runs/demo

A service that runs already is asked by its address: ``python examples/over_http.py http://127.0.0.1:8000``.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from unicuco.client import Client, ServiceCallError

START_SECONDS = 180.0


@contextlib.contextmanager
def service(run: str) -> Iterator[str]:
    """``unicuco serve`` on a free port for the length of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("unicuco")), "serve", f"demo={run}", "--port", str(port)]
    command += ["--storage", f"{run}/served", "--database", f"sqlite:///{Path(run).resolve()}/served.sqlite"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Usage: python examples/over_http.py RUN_FOLDER_OR_ADDRESS")
    where = sys.argv[1]
    there = contextlib.nullcontext(where) if where.startswith("http") else service(where)
    with there as address, Client(address, patience=START_SECONDS) as client:
        print(f"Serving {[policy.name for policy in client.policies()]} at {address}")
        began = time.perf_counter()
        (answer,) = client.answer([{"kept": 0.8}])
        took = 1000 * (time.perf_counter() - began)
        print(f"kept 0.8: {answer.bytes / 1e6:.0f} MB, predicted KL {answer.kl:.3f} ({took:.0f} ms)")
        made = client.wait(client.order({"kept": 0.8}).id, lambda event: print(f"  {event.state} {event.stage}"))
        target = Path("checkpoints/over-http" if where.startswith("http") else f"{where}/checkpoint-over-http")
        shutil.rmtree(target, ignore_errors=True)
        folder = client.download(made.id, target)
        assert made.result is not None
        measured = made.result.measured["kl_heldout"]
        print(f"fetched {made.result.bytes / 1e6:.0f} MB to {folder}; measured KL {measured:.3f}")


if __name__ == "__main__":
    try:
        main()
    except ServiceCallError as error:
        sys.exit(f"Error: {error}")
