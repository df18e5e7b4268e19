"""A Ray cluster on this machine that Ray's own autoscaler makes larger and smaller; its nodes are processes.

For a process of its own: Ray's settings and its clusters are one per process. ``ray.cluster_utils.AutoscalingCluster``
would do nearly the same, but ends every Ray on the machine first, and reads a file that is not in the wheel of 2.60.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

MOST_NODES = 2
"""Worker nodes at most, of one processor each; the head has none."""
IDLE_SECONDS = 6
STORE = 80 << 20
HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""What the fake provider calls the head, and its node type."""


def definition(gcs: str) -> dict[str, Any]:
    """``ray_cluster.yaml`` in small: no workers unless somebody asks for processors."""
    worker = {"CPU": 1, "object_store_memory": STORE}
    commands = ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands")
    starts = ("head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "autoscaled",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            # As fake_multinode, its own name, it would have to have an example.yaml that is not in Ray's wheel.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # all nodes have one address
            "disable_node_updaters": True,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
        },
        "head_node_type": HEAD_TYPE,
        "file_mounts": {},
        "cluster_synced_files": [],
        **{name: [] for name in (*commands, *starts)},
    }


class Autoscaled:
    """The running cluster.

    Attributes:
        address: of its GCS.
        changes: ``(monotonic seconds, worker nodes)`` at each change of their number, from the start on.
    """

    def __init__(self, cluster: Any) -> None:
        self.address: str = cluster.address
        self._state = cluster.global_state
        self.changes = [(time.monotonic(), self._count())]
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def nodes(self) -> int:
        """Worker nodes that live now."""
        return self.changes[-1][1]

    def wait_for(self, nodes: int, seconds: float) -> None:
        """Returns when there are ``nodes`` workers.

        Raises:
            SystemExit: there are not, ``seconds`` later.
        """
        until = time.monotonic() + seconds
        while self.nodes != nodes:
            if time.monotonic() > until:
                raise SystemExit(f"{self.nodes} nodes and not {nodes} after {seconds:g} s; all: {self.changes}")
            time.sleep(0.05)

    def seconds(self, began: float, ended: float) -> dict[str, float]:
        """How long a run took, when its nodes came, and how long after its end they were gone."""
        came: dict[str, float] = {}
        for when, count in self.changes:
            if when > began and count:
                came.setdefault(f"node {count}", when - began)
        found = came | {"run": ended - began, "gone after": self.changes[-1][0] - ended}
        return {name: round(seconds, 1) for name, seconds in found.items()}

    def stop(self) -> None:
        """Stops watching."""
        self._over.set()
        self._watcher.join()

    def _count(self) -> int:
        return sum(node["Alive"] and node["NodeID"] != HEAD for node in self._state.node_table())

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if (count := self._count()) != self.nodes:
                self.changes.append((time.monotonic(), count))


@contextmanager
def autoscaled(folder: Path, version: int) -> Iterator[Autoscaled]:
    """A head without processors, with Ray's autoscaler ``version`` (1 or 2) at work. Of its processes none is left."""
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": str(version - 1),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    import ray
    from ray.cluster_utils import Cluster

    port, path = _free_port(), folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(definition(f"{ray.util.get_node_ip_address()}:{port}")))
    identity = {
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    arguments = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "env_vars": identity}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**arguments, "gcs_server_port": port, "autoscaling_config": str(path)},
    )
    session = cluster.head_node.get_session_dir_path()
    try:
        running = Autoscaled(cluster)
        try:
            yield running
        finally:
            running.stop()
    finally:
        cluster.shutdown()
        _end_what_names(session)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _end_what_names(session: str) -> None:
    """Nodes that the autoscaler started outlive it by a minute."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(session in part for part in process.info["cmdline"] or []):
            process.kill()
