"""Starting a Ray of our own, or attaching to the one that is there.

Everything that Ray would otherwise decide by what it finds on the machine is said here: authentication, processors,
memory of the object store, usage statistics, where it writes. What the user set in the environment stays as it is.

A Ray that is started here asks for a token. Its processes listen on every interface whatever address Ray is given (seen
in 2.60), and who reaches Ray can run code, so nothing less will do. The token lies in the cache folder, readable by its
owner alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from unicuco.errors import UniCuCoError
from unicuco.storage import cache_dir

NAMESPACE = "unicuco"
MIB = 1 << 20
CONNECT_SECONDS = 5.0


class RayStartError(UniCuCoError):
    """Ray does not start, or the cluster at the given address does not answer."""


class RayConfig(BaseModel):
    """Which Ray a job runs on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    """``host:port`` or ``auto`` of a running cluster; else ``$RAY_ADDRESS`` (set in a Ray job), else a local Ray."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical processors of a local Ray; as many as this process may use when not given."""
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of a local Ray; all that Ray finds when not given."""
    object_store_mib: int = Field(default=200, ge=75)
    """Object store of a local Ray. Only candidates and evaluations travel through it; weights never do."""


@dataclass(frozen=True)
class Runtime:
    """The Ray in use. ``started_here``: it ends with us."""

    address: str
    started_here: bool
    temp_dir: Path | None = None


@contextmanager
def start_or_attach(config: RayConfig | None = None) -> Iterator[Runtime]:
    """A connected Ray for the length of the block; stops only what it started, and restores the environment.

    Raises:
        RayStartError: no cluster answers at the address, or a local Ray does not come up.
    """
    config = config or RayConfig()
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    if address and "://" in address:
        raise RayStartError(
            f"{address} is the address of a Ray client or of the Jobs API; a run lives inside the cluster: submit it "
            "by 'ray job submit -- python -m cluster.train ...', or give HOST:PORT of the cluster's head."
        )
    with environment(quiet_settings()):
        import ray

        if ray.is_initialized():  # a notebook, a test session, a caller with its own Ray
            yield Runtime(ray.get_runtime_context().gcs_address, started_here=False)
        elif address:
            with _attached(address) as runtime:
                yield runtime
        else:
            with environment(local_authentication()), _started(config) as runtime:
                yield runtime
            reread_ray_settings()


def quiet_settings() -> dict[str, str]:
    """Settings for any Ray we use: no usage statistics, and no second ``uv run`` in every worker."""
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def local_authentication() -> dict[str, str]:
    """Settings that make a local Ray ask for our token; empty when the user chose a mode, or brought a token."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    settings = {"RAY_AUTH_MODE": "token"}
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        settings["RAY_AUTH_TOKEN_PATH"] = str(token_file())
    return settings


def token_file() -> Path:
    """The token of our local Rays: ``<cache>/ray/auth_token``, mode 0600 in a folder of mode 0700; made on first use.

    One file for all runs of a user, since a process reads its token once and may start Ray several times.
    """
    folder = cache_dir() / "ray"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "auth_token"
    if path.is_file() and path.stat().st_size:
        path.chmod(0o600)
        return path
    handle, scratch = tempfile.mkstemp(prefix=".auth_token.", dir=folder)  # mkstemp makes it 0600
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    try:
        os.link(scratch, path)  # never over the token of a run that started at the same moment
    except FileExistsError:
        pass
    finally:
        Path(scratch).unlink()
    return path


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def original_error(error: BaseException) -> BaseException:
    """What an actor's method raised, without the remote traceback that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


@contextmanager
def _attached(address: str) -> Iterator[Runtime]:
    import ray

    _knock(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, **_quiet_driver())
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RayStartError(
            f"The Ray cluster at '{address}' does not take us in: {lines[0].rstrip('.')}. Check that it runs, and that "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) are the cluster's; without an address the run "
            "starts a Ray of its own."
        ) from error
    try:
        yield Runtime(address, started_here=False)
    finally:
        ray.shutdown()  # a driver that attached only disconnects


def _knock(address: str) -> None:
    """Finds out in seconds that nobody is there; Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RayStartError(
            f"Nobody answers at {address} ({error}): start the cluster (ray up, ray start --head), correct the "
            "address, or leave it out to run on this machine."
        ) from error


@contextmanager
def _started(config: RayConfig) -> Iterator[Runtime]:
    import ray

    temp_dir = Path(tempfile.mkdtemp(prefix="ucc-"))  # short: a Unix socket's path may have 107 characters
    reread_ray_settings()
    try:
        try:
            context = ray.init(
                address="local",
                namespace=NAMESPACE,
                num_cpus=config.num_cpus or usable_cpus(),
                num_gpus=config.num_gpus,
                object_store_memory=config.object_store_mib * MIB,
                include_dashboard=False,
                _temp_dir=str(temp_dir),
                **_quiet_driver(),
            )
        except Exception as error:  # of many types, and a plain one on a machine too busy to start a node
            raise RayStartError(f"Ray does not start on this machine: {error}") from error
        try:
            yield Runtime(context.address_info["address"], True, temp_dir)  # type: ignore[attr-defined]
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)


def _quiet_driver() -> dict[str, Any]:
    return {"logging_level": "ERROR", "log_to_driver": False}


def reread_ray_settings() -> None:
    """Makes a Ray that was imported before us see ``RAY_AUTH_MODE``, as its own ``ray.init`` does."""
    if "ray._raylet" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Sets what is not set, for the block; what the user set stays."""
    added = [name for name in settings if name not in os.environ]
    for name in added:
        os.environ[name] = settings[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
