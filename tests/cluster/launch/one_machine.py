"""A machine of one's own on this one, and everything a user does on it: up, train, serve, ask, down. As root.

    unshare -n -m -p --fork --mount-proc python -m tests.cluster.launch.one_machine FOLDER

The process finds itself alone in a network with nothing but loopback, with its own mounts and processes: what it
writes under ``/root`` and ``/tmp/ray`` nobody else sees, and no Ray but its own can be stopped. An SSH server listens
on the loopback address; the cluster is ``cluster/launch/on_premise.yaml`` with this machine as its only one. Packages
are not installed anew: the machine finds the environment that runs this. Prints what each step took, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.tiny import make_model, make_text, options
from tests.conftest import ROOT

DEFINITION = ROOT / "cluster" / "launch" / "on_premise.yaml"
DASHBOARD, SERVICE = "http://127.0.0.1:8265", "http://127.0.0.1:8000"
SSHD = """
Port 22
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


def sh(command: str, seconds: float = 120, **environment: str) -> str:
    """Runs a shell command and returns what it printed.

    Raises:
        SystemExit: it failed; the message has its end.
    """
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def isolate(folder: Path) -> None:
    """Loopback, and folders of our own where a machine would have its own."""
    sh("ip link set lo up && mount --make-rprivate /")
    for name in ("upper", "work"):
        (folder / name).mkdir()
    sh(f"mount -t overlay overlay -o lowerdir=/root,upperdir={folder}/upper,workdir={folder}/work /root")
    sh("mkdir -p /tmp/ray /run/sshd && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm")


def open_to_ssh(folder: Path) -> None:
    """Keys, a server, and shells that find this environment."""
    sh(f"mkdir -p /root/.ssh && rm -f /root/.ssh/id_unicuco && ssh-keygen -q -t ed25519 -N '' -f {folder}/host_key")
    sh("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_unicuco")
    sh("cp /root/.ssh/id_unicuco.pub /root/.ssh/authorized_keys && chmod 600 /root/.ssh/*")
    settings = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
    }
    lines = "".join(f'export {name}="{value}"\n' for name, value in settings.items())
    for name in (".bash_profile", ".bashrc"):  # the launcher reads both, the second one last
        Path("/root", name).write_text(lines)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    sh(f"/usr/sbin/sshd -f {folder}/sshd_config")


def definition(folder: Path) -> Path:
    """Our on-premise definition with this machine as the head and nothing to install."""
    cluster = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))
    cluster["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    cluster |= {"min_workers": 0, "max_workers": 0, "setup_commands": [], "head_setup_commands": []}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": "/root/.ssh/id_unicuco"}
    cluster["file_mounts"] = {"~/.ray/auth_token": "/root/.ray/auth_token"}
    # A head that computes nothing needs workers; here is one machine.
    stop, start = cluster["head_start_ray_commands"]
    changed = start.replace("--num-cpus=0", "--num-cpus=4 --object-store-memory=104857600").replace(
        "/shared", str(folder)
    )
    assert changed != start
    cluster["head_start_ray_commands"] = [stop, changed]
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


def service(folder: Path) -> Path:
    """``cluster/service.yaml`` for the run that was trained."""
    config = yaml.safe_load((ROOT / "cluster" / "service.yaml").read_text(encoding="utf-8"))
    arguments = config["applications"][0]["args"]
    arguments["policies"] = {"tiny": {"path": str(folder / "runs" / "first"), "dtype": "float32"}}
    arguments |= {"storage": str(folder / "checkpoints"), "database": f"sqlite:///{folder}/jobs.sqlite", "gateways": 1}
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def ask() -> dict[str, Any]:
    """One answer over HTTP, from when the service is there."""
    body = json.dumps({"requests": [{"kept": 0.7}]}).encode()
    until = time.monotonic() + 120
    while True:
        try:
            call = urllib.request.Request(f"{SERVICE}/v1/answers", body, {"content-type": "application/json"})
            with urllib.request.urlopen(call, timeout=10) as reply:
                return dict(json.load(reply))
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def refused(path: str) -> int:
    """The status of Ray's dashboard without the token."""
    try:
        with urllib.request.urlopen(f"{DASHBOARD}{path}", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    folder = Path(sys.argv[1])
    isolate(folder)
    open_to_ssh(folder)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
    }
    sh("rm -f /root/.ray/auth_token; ray get-auth-token --generate > /dev/null && chmod 600 /root/.ray/auth_token")
    model, text, run = make_model(folder / "model"), make_text(folder / "words.txt"), folder / "runs" / "first"
    cluster, took = definition(folder), dict[str, float]()
    found: dict[str, Any] = {"seconds": took}

    def step(name: str, command: str, **environment: str) -> str:
        began = time.monotonic()
        out = sh(command, 300, **environment)
        took[name] = round(time.monotonic() - began, 1)
        return out

    try:
        step("up", f"ray up -y --no-config-cache {cluster}", RAY_UP_enable_autoscaler_v2="0")
        found["dashboard_without_token"] = refused("/api/jobs/")
        arguments = " ".join(options(model, text, run, 8))
        found["job"] = step("job", f"ray job submit --address {DASHBOARD} -- python -m cluster.train {arguments}")[
            -500:
        ]
        found["heldout"] = len(json.loads((run / "heldout.json").read_text(encoding="utf-8")))
        step("deploy", f"serve deploy --address {DASHBOARD} {service(folder)}")
        began = time.monotonic()
        found["answer"] = ask()["answers"][0]
        took["answer"] = round(time.monotonic() - began, 1)
    finally:
        step("down", f"ray down -y {cluster}", RAY_UP_enable_autoscaler_v2="0")
    # Nobody reaps in this namespace: what has ended stays as a zombie.
    living = [p for p in psutil.process_iter(["name", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
    found["left"] = [p.info["name"] for p in living if p.info["name"] in ("raylet", "gcs_server")]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
