"""The definitions for ``ray up``: the launcher's own validation takes them, and they keep what the guide says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from tests.cluster.launch.definitions import RAY_UP, ROOT, Definition, broken_promises, read

CLOUDS = [name for name in RAY_UP if name != "on_premise"]


def checked(config: Definition) -> Definition:
    """As ``ray up`` does before it calls a cloud: fill in defaults, then validate."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Definition = prepare_config(config)
    validate_config(prepared)
    return prepared


@pytest.fixture(params=RAY_UP)
def definition(request: pytest.FixtureRequest) -> Definition:
    return read(RAY_UP[request.param])


def test_the_launcher_takes_it_and_it_keeps_its_promises(definition: Definition) -> None:
    assert broken_promises(checked(definition)) == []


def test_nothing_is_left_to_the_defaults_that_the_launcher_would_fill_in(definition: Definition) -> None:
    """The defaults install another Ray and open the dashboard to every interface."""
    for kind in ("head", "worker"):
        assert definition[f"{kind}_start_ray_commands"] and definition[f"{kind}_setup_commands"]
    assert definition["setup_commands"]
    text = str(checked(definition))
    assert "0.0.0.0" not in text and "ray-wheels" not in text


def test_a_mistyped_key_is_refused(definition: Definition) -> None:
    definition["head_setup_command"] = definition.pop("head_setup_commands")
    with pytest.raises(ValidationError, match="head_setup_command"):
        checked(definition)


@pytest.mark.parametrize("name", CLOUDS)
def test_node_types_that_make_no_sense_are_refused(name: str) -> None:
    unknown_head = read(RAY_UP[name])
    unknown_head["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        checked(unknown_head)
    too_many = read(RAY_UP[name])
    too_many["available_node_types"]["gpu_worker"]["min_workers"] = too_many["max_workers"] + 1
    with pytest.raises(ValueError, match="max_workers"):
        checked(too_many)
    typed = read(RAY_UP[name])
    typed["available_node_types"]["gpu_worker"]["minworkers"] = 0
    with pytest.raises(ValidationError, match="minworkers"):
        checked(typed)


def _replace(kind: str, old: str, new: str) -> Callable[[Definition], None]:
    def change(config: Definition) -> None:
        key = f"{kind}_start_ray_commands"
        assert any(old in command for command in config[key])
        config[key] = [command.replace(old, new) for command in config[key]]

    return change


def _set(*path_and_value: Any) -> Callable[[Definition], None]:
    *path, last, value = path_and_value

    def change(config: Definition) -> None:
        for key in path:
            config = config[key]
        config[last] = value

    return change


BREAKS: dict[str, tuple[Callable[[Definition], None], str]] = {
    "head without token": (_replace("head", " RAY_AUTH_MODE=token", ""), "head: RAY_AUTH_MODE=token"),
    "worker without token": (_replace("worker", " RAY_AUTH_MODE=token", ""), "worker: RAY_AUTH_MODE=token"),
    "a mode that is not exported": (_replace("head", "export ", ""), "head: RAY_AUTH_MODE=token"),
    "no authentication": (_replace("head", "=token", "=disabled"), "head: RAY_AUTH_MODE=token"),
    "usage statistics": (_replace("worker", "STATS_ENABLED=0", "STATS_ENABLED=1"), "worker: RAY_USAGE_STATS"),
    "open dashboard": (_replace("head", "-host=127.0.0.1", "-host=0.0.0.0"), "head: dashboard"),
    "token not copied": (_set("file_mounts", {}), "the token is copied"),
    "workers with a CPU torch": (
        _set("worker_setup_commands", ["bash launch/prepare.sh", "bash launch/install.sh cpu"]),
        "worker: prepared",
    ),
    "head not prepared": (_set("head_setup_commands", ["bash launch/install.sh cpu"]), "head: prepared"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_broken_promise_is_seen(name: str, definition: Definition) -> None:
    change, expected = BREAKS[name]
    prepared = checked(definition)
    change(prepared)
    assert any(line.startswith(expected) for line in broken_promises(prepared))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_that_always_run_and_a_working_head_are_seen(name: str) -> None:
    prepared = checked(read(RAY_UP[name]))
    prepared["available_node_types"]["gpu_worker"]["min_workers"] = 1
    prepared["available_node_types"]["head"]["resources"]["CPU"] = 4
    del prepared["available_node_types"]["cpu_worker"]["worker_setup_commands"]
    wrong = broken_promises(prepared)
    assert any(line.startswith("gpu_worker: from zero") for line in wrong)
    assert any(line.startswith("head: nothing is scheduled") for line in wrong)
    assert any(line.startswith("cpu_worker: prepared") for line in wrong)


def test_heads_in_a_cloud_get_what_starts_workers_there() -> None:
    for name, package in (("ray_cluster", "boto3"), ("gcp", "google-api-python-client")):
        (command,) = [line for line in read(RAY_UP[name])["head_setup_commands"] if "pip install" in line]
        assert package in command and "~/unicuco/constraints.txt" in command
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    # boto3 needs python-dateutil below 3; when the pin is that old, the exception can go.
    assert any(line.startswith("python-dateutil==") and int(line.split("==")[1][0]) >= 3 for line in pinned)


def test_on_premise_has_as_many_workers_as_addresses() -> None:
    definition = read(RAY_UP["on_premise"])
    addresses = len(definition["provider"]["worker_ips"])
    assert definition["min_workers"] == definition["max_workers"] == addresses
    assert "RAY_UP_enable_autoscaler_v2=0 ray up" in RAY_UP["on_premise"].read_text(encoding="utf-8")


def test_what_is_copied_exists_or_is_made_by_the_documented_commands(definition: Definition) -> None:
    made = {"~/.ray/auth_token": "ray get-auth-token --generate", "dist": "pip wheel"}
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    for remote, local in definition["file_mounts"].items():
        assert remote.startswith("~/")
        if local in made:
            assert made[local] in guide
        else:
            assert (ROOT / local).exists() and not Path(local).is_absolute()
    # The launcher reads every byte of what it copies to see whether it changed: the whole tree would be gigabytes.
    assert "." not in definition["file_mounts"].values()


def test_scripts_in_the_commands_are_copied_there(definition: Definition) -> None:
    prepared = checked(definition)
    commands = [*prepared["head_setup_commands"], *prepared["worker_setup_commands"]]
    scripts = {word for command in commands for word in command.split() if word.endswith(".sh")}
    assert scripts
    for script in scripts:
        folder, name = script.rsplit("/", 1)
        assert (ROOT / definition["file_mounts"][folder] / name).is_file()
