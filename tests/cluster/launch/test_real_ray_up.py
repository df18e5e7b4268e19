"""A real ``ray up`` on one machine: up, a short training as a job, a service, an answer over HTTP, down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOOLS = ("unshare", "ip", "rsync", "ssh", "ssh-keygen")


def missing() -> str:
    """What this machine lacks for the test; "" where nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)] + ["sshd"] * (not Path("/usr/sbin/sshd").exists())
    return f"needs {', '.join(lacking)} (Debian: openssh-server openssh-client rsync iproute2)" if lacking else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]


def test_up_train_serve_ask_down(tmp_path: Path) -> None:
    command = ["unshare", "-n", "-m", "-p", "--fork", "--mount-proc", sys.executable]
    done = subprocess.run(
        [*command, "-m", "tests.cluster.launch.one_machine", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(found["seconds"])
    assert found["dashboard_without_token"] == 401
    assert found["heldout"] > 0 and "succeeded" in found["job"].lower()
    assert found["answer"]["feasible"] and found["answer"]["kept"] <= 0.7
    assert found["left"] == [], "ray down left nothing running"
