"""Fixtures of the report's tests."""

from pathlib import Path

import pytest

from tests.unicuco.report.made_up import MadeUpRun


@pytest.fixture(scope="session")
def made_up() -> MadeUpRun:
    return MadeUpRun()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 blocks that ended well. Tests only read it."""
    return MadeUpRun().write(tmp_path_factory.mktemp("runs") / "finished")
