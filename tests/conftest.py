"""One Ray for the whole pytest session, and an environment that tests leave as they found it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "RAY_memory_monitor_refresh_ms": "0",  # a full page cache in a container is no reason to kill a test
    "HF_HUB_OFFLINE": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests are for those who ask for them."""
    if os.environ.get("UNICUCO_TEST_SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: set UNICUCO_TEST_SLOW=1, or make test-slow"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A connected local Ray with 2 logical processors; nothing of it outlives the session."""
    before = dict(os.environ)
    # Not switched off: Ray listens on every interface, and who reaches it can run code.
    os.environ.update(SETTINGS, RAY_AUTH_TOKEN=secrets.token_hex(32))
    # Workers import the tests' own evaluators by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
    os.environ.pop("RAY_ADDRESS", None)
    try:
        from actors.runtime import RayConfig, start_or_attach

        with start_or_attach(RayConfig(num_cpus=2, num_gpus=0, object_store_mib=100)):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
