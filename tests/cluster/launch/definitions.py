"""The cluster definitions, and what all of them promise."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "cluster" / "launch"
RAY_UP = {path.stem: path for path in (ROOT / "ray_cluster.yaml", LAUNCH / "gcp.yaml", LAUNCH / "on_premise.yaml")}
KUBERAY = {path.stem: path for path in sorted((LAUNCH / "kuberay").glob("*.yaml"))}
RAY_VERSION = re.findall(r"(?m)^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))[0]

Definition = dict[str, Any]


def read(path: Path) -> Definition:
    """A definition as YAML says it; aliases become copies, so that a test may change one place alone."""
    return copy.deepcopy(_without_aliases(yaml.safe_load(path.read_text(encoding="utf-8"))))


def _without_aliases(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_aliases(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_aliases(inner) for inner in value]
    return value


def broken_promises(config: Definition) -> list[str]:
    """What a definition for ``ray up`` does not keep of what docs/cluster.md says of all of them; empty if it does.

    Takes a definition as ``prepare_config`` leaves it: with Ray's defaults in place of what is not said.
    """
    head, worker = (" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    wrong = []
    for kind, commands in (("head", head), ("worker", worker)):
        if commands.count("ray start") != 1:
            wrong.append(f"{kind}: Ray is started once")
        before = commands.partition("ray start")[0]
        for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "UNICUCO_CACHE=/shared/cache"):
            if not re.search(rf"export[^;]* {re.escape(setting)}[ ;]", before):
                wrong.append(f"{kind}: {setting} before Ray starts")
    if "--dashboard-host=127.0.0.1" not in head:
        wrong.append("head: dashboard on this machine alone")
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head:
        wrong.append("head: workers are started by it")
    if "--address=$RAY_HEAD_IP:6379" not in worker or "--port=6379" not in head:
        wrong.append("worker: joins the head")
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        wrong.append("the token is copied to every machine")
    if config["provider"]["type"] == "local":
        wrong += [f"head: {option}" for option in ("--num-cpus=0", "--num-gpus=0") if option not in head]
    else:
        wrong += _broken_by_node_types(config)
    return wrong + _broken_by_setup(config)


def _broken_by_node_types(config: Definition) -> list[str]:
    wrong = []
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    if head["resources"] != {"CPU": 0, "GPU": 0} or head["max_workers"] != 0:
        wrong.append("head: nothing is scheduled there, and there is one")
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    if not any(node["resources"].get("GPU") for node in workers.values()):
        wrong.append("there are GPU workers")
    for name, node in workers.items():
        if node["min_workers"] != 0 or node["max_workers"] < 1:
            wrong.append(f"{name}: from zero upwards")
    return wrong


def _broken_by_setup(config: Definition) -> list[str]:
    """Every kind of machine is prepared, then gets its torch."""
    setups = {"head": (config["head_setup_commands"], "cpu"), "worker": (config["worker_setup_commands"], "cuda")}
    if config["provider"]["type"] != "local":
        for name, node in config["available_node_types"].items():
            if name != config["head_node_type"]:
                commands = node.get("worker_setup_commands", config["worker_setup_commands"])
                setups[name] = (commands, "cuda" if node["resources"].get("GPU") else "cpu")
    wrong = []
    for name, (commands, kind) in setups.items():
        text = "\n".join(commands)
        prepared, installed = text.find("launch/prepare.sh"), text.find(f"launch/install.sh {kind}")
        if not 0 <= prepared < installed or text.count("install.sh") != 1:
            wrong.append(f"{name}: prepared, then UniCuCo with torch for {kind}")
    return wrong
