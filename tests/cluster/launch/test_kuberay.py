"""The manifests for Kubernetes: KubeRay knows their fields and takes them, and they keep what the guide says."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.service.config import make_config, refuse_open
from tests.cluster.launch.commands import check_training
from tests.cluster.launch.crd_schema import KINDS
from tests.cluster.launch.definitions import KUBERAY, RAY_VERSION, Definition, read

RESOURCES = {name: read(path) for name, path in KUBERAY.items()}
CLUSTERS = [name for name in RESOURCES if name != "shared"]


def validate(resource: Definition) -> None:
    jsonschema.validate(resource, KINDS[resource["kind"]])


def cluster_of(resource: Definition) -> Definition:
    """The cluster within a RayCluster, a RayJob or a RayService."""
    spec = resource["spec"]
    found: Definition = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def broken_rules(resource: Definition) -> list[str]:
    """What the operator would refuse though the schema allows it, and what we promise of every cluster."""
    cluster = cluster_of(resource)
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods = {"head": head, **{group["groupName"]: group for group in groups}}
    wrong = []
    if cluster["authOptions"] != {"mode": "token", "secretName": "unicuco-token"}:
        wrong.append("token authentication with our own secret")
    if cluster["rayVersion"] != RAY_VERSION:
        wrong.append("rayVersion is the pinned one")
    if head["rayStartParams"].get("num-cpus") != "0":
        wrong.append("head: nothing is scheduled there")
    if not cluster.get("enableInTreeAutoscaling") or cluster["autoscalerOptions"]["version"] != "v2":
        wrong.append("workers come and go by themselves")
    for group in groups:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            wrong.append(f"{group['groupName']}: fewest, now, most")
        if group["groupName"] == "gpu" and group["minReplicas"] != 0:
            wrong.append("gpu: from zero upwards")
    for name, group in pods.items():
        wrong += [f"{name}: {line}" for line in _broken_pod(group["template"]["spec"], gpu=name == "gpu")]
    return wrong


def _broken_pod(pod: dict[str, Any], gpu: bool) -> list[str]:
    (container,) = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    limits = container["resources"]["limits"]
    wrong = []
    if pod.get("restartPolicy") != "Never":
        wrong.append("never restarted in place, as autoscaler v2 demands")
    if env.get("RAY_USAGE_STATS_ENABLED") != "0":
        wrong.append("no usage statistics")
    if any(name.startswith("RAY_AUTH") for name in env):
        wrong.append("the operator sets the token")
    if limits != container["resources"]["requests"]:
        wrong.append("gets what it may use")
    if ("nvidia.com/gpu" in limits) != gpu or not container["image"].endswith(":cuda" if gpu else ":cpu"):
        wrong.append("a GPU and torch for CUDA go together")
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    if mounted != {"shared": "/shared"} or claims != {"shared": RESOURCES["shared"]["metadata"]["name"]}:
        wrong.append("the shared folder")
    if not env.get("UNICUCO_CACHE", "").startswith("/shared/"):
        wrong.append("the cache is shared")
    return wrong


def test_there_is_one_of_each_kind() -> None:
    assert {resource["kind"] for resource in RESOURCES.values()} == set(KINDS)
    assert RESOURCES["shared"]["spec"]["accessModes"] == ["ReadWriteMany"]
    names = [(resource["kind"], resource["metadata"]["name"]) for resource in RESOURCES.values()]
    # A RayCluster and a RayService of one name would both own the service NAME-head-svc.
    assert len({name for _, name in names}) == len(names)


@pytest.mark.parametrize("name", RESOURCES)
def test_fields_are_those_of_the_resource(name: str) -> None:
    validate(RESOURCES[name])


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_operator_takes_it_and_it_keeps_its_promises(name: str) -> None:
    assert broken_rules(RESOURCES[name]) == []


def test_the_job_trains_and_cleans_up() -> None:
    spec = RESOURCES["job"]["spec"]
    check_training(shlex.split(spec["entrypoint"]))
    assert "--device cuda" in spec["entrypoint"]
    asked = int(spec["entrypoint"].split("--evaluators ")[1].split()[0])
    assert asked <= cluster_of(RESOURCES["job"])["workerGroupSpecs"][0]["maxReplicas"]
    # The operator refuses a time to live without the shutdown.
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0 and spec["backoffLimit"] == 0


def serve_config() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(RESOURCES["service"]["spec"]["serveConfigV2"])
    return parsed


def test_the_service_is_one_that_serve_and_unicuco_take(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    checked = ServeDeploySchema.model_validate(serve_config())
    (application,) = checked.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.json").touch()
    arguments = copy.deepcopy(application.args)
    arguments["policies"]["small"]["path"] = str(tmp_path)
    config = make_config(arguments)
    refuse_open(checked.http_options.host, config.keys)  # beyond its pod only with keys
    assert checked.proxy_location == "EveryNode"
    # One that serves without a GPU must not ask for one.
    assert config.policies["small"].device == "cpu" and config.policies["small"].num_gpus == 0


@pytest.mark.parametrize("without_keys", [False, True])
def test_a_service_without_keys_would_be_refused(without_keys: bool) -> None:
    arguments = serve_config()["applications"][0]["args"]
    keys = None if without_keys else Path(arguments["keys"])
    if without_keys:
        with pytest.raises(Exception, match="without API keys"):
            refuse_open(serve_config()["http_options"]["host"], keys)
    else:
        refuse_open(serve_config()["http_options"]["host"], keys)


def _rename(old: str, new: str, *path: str) -> Callable[[Definition], None]:
    def change(resource: Definition) -> None:
        level: Any = cluster_of(resource)
        for key in path:
            level = level[0] if key == "0" else level[key]
        level[new] = level.pop(old)

    return change


def _set(value: Any, *path: str) -> Callable[[Definition], None]:
    def change(resource: Definition) -> None:
        *most, last = path
        level: Any = cluster_of(resource)
        for key in most:
            level = level[0] if key == "0" else level[key]
        level[last] = value

    return change


POD = ("template", "spec")
TYPOS = {
    "authOption": _rename("authOptions", "authOption"),
    "mod": _rename("mode", "mod", "authOptions"),
    "tokens": _set("tokens", "authOptions", "mode"),
    "idleTimeoutMinutes": _rename("idleTimeoutSeconds", "idleTimeoutMinutes", "autoscalerOptions"),
    "minReplica": _rename("minReplicas", "minReplica", "workerGroupSpecs", "0"),
    "0 is not of type": _set(0, "headGroupSpec", "rayStartParams", "num-cpus"),
    "volumeMount": _rename("volumeMounts", "volumeMount", "headGroupSpec", *POD, "containers", "0"),
    "Sometimes": _set("Sometimes", "headGroupSpec", *POD, "restartPolicy"),
    "32GB": _set("32GB", "headGroupSpec", *POD, "containers", "0", "resources", "limits", "memory"),
}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_refused(typo: str, name: str) -> None:
    resource = copy.deepcopy(RESOURCES[name])
    TYPOS[typo](resource)
    with pytest.raises(jsonschema.ValidationError, match=typo):
        validate(resource)


BREAKS: dict[str, Callable[[Definition], None]] = {
    "token authentication": _set({"mode": "disabled"}, "authOptions"),
    "rayVersion": _set("2.59.0", "rayVersion"),
    "head: nothing is scheduled": _set({}, "headGroupSpec", "rayStartParams"),
    "workers come and go": _set(False, "enableInTreeAutoscaling"),
    "head: never restarted": _set("Always", "headGroupSpec", *POD, "restartPolicy"),
    "head: no usage statistics": _set([], "headGroupSpec", *POD, "containers", "0", "env"),
    "head: the shared folder": _set([], "headGroupSpec", *POD, "volumes"),
    "head: a GPU and torch": _set("unicuco:cuda", "headGroupSpec", *POD, "containers", "0", "image"),
    "head: gets what": _set({"cpu": 1, "memory": 1}, "headGroupSpec", *POD, "containers", "0", "resources", "requests"),
}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("rule", BREAKS)
def test_every_broken_rule_is_seen(rule: str, name: str) -> None:
    resource = copy.deepcopy(RESOURCES[name])
    BREAKS[rule](resource)
    assert any(line.startswith(rule) for line in broken_rules(resource))


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_gpus_that_always_run_are_seen(name: str) -> None:
    resource = copy.deepcopy(RESOURCES[name])
    _set(1, "workerGroupSpecs", "0", "minReplicas")(resource)
    assert {"gpu: from zero upwards", "gpu: fewest, now, most"} <= set(broken_rules(resource))
