"""Every command in docs/cluster.md, and in the heads of the definitions, is one that its program takes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi.routing import APIRoute

from tests.cluster.launch.commands import check_training
from tests.cluster.launch.definitions import KUBERAY, LAUNCH, RAY_UP, ROOT
from unicuco.request import Request

GUIDE = ROOT / "docs" / "cluster.md"


def guide_commands(text: str) -> Iterator[str]:
    """Lines of the fenced blocks, without comments; a backslash joins two, and ``a && b`` is two."""
    for block in re.findall(r"(?ms)^```\n(.*?)^```$", text):
        for line in block.replace("\\\n", "").splitlines():
            command = re.split(r"\s{2,}#", line)[0].strip()
            yield from (part.strip() for part in command.split("&&") if part.strip())


def header_commands(path: Path) -> Iterator[str]:
    """Indented lines of the first comment; a backslash joins two."""
    header = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for line in re.sub(r"\\\n#\s*", "", header).splitlines():
        if match := re.match(r"#   ((?:RAY_\w+=\w+ )?(?:ray|curl|kubectl|docker|unicuco|serve) .*)", line):
            yield re.split(r"\s{2,}#", match[1])[0]


COMMANDS = [*guide_commands(GUIDE.read_text(encoding="utf-8"))]
FILES = [*RAY_UP.values(), *KUBERAY.values(), LAUNCH / "Dockerfile"]
HEADERS = [command for path in FILES for command in header_commands(path)]
ALL = sorted({*COMMANDS, *HEADERS})


def check(command: str) -> None:
    """Raises when a program, an option or a file in ``command`` does not exist."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_a-z0-9]+=.*", words[0]):
        del words[0]
    for word in words:
        if re.match(r"(cluster/|docs/|ray_cluster)", word):
            assert (ROOT / word).exists(), word
    program, *rest = words
    if program == "ray":
        from ray.scripts.scripts import cli

        if "--" in rest:
            check_training(rest[rest.index("--") + 1 :])
            rest = [*rest[: rest.index("--")], "--", "python"]
        parse(cli, rest)
    elif program == "serve":
        from ray.serve.scripts import cli as serve_cli

        parse(serve_cli, rest)
    elif program == "unicuco":
        from cluster.cli import app

        parse(typer.main.get_command(app), rest)
    elif program == "python":
        check_training(words)
    elif program == "curl":
        check_call(rest)
    else:
        assert program in ("aws", "kubectl", "docker", "pip", "make", "source", "export", "chmod"), program


def check_call(words: list[str]) -> None:
    """A call for answers, at the port of the tunnel."""
    from cluster.service.answer_routes import router

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("address")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    call = parser.parse_args(words)
    base, _, path = call.address.partition("8000")
    (route,) = [route for route in router.routes if isinstance(route, APIRoute) and route.path == path]
    assert (
        base == "http://127.0.0.1:" and "POST" in (route.methods or ()) and "content-type: application/json" in call.H
    )
    for request in json.loads(call.d)["requests"]:
        Request.model_validate(request)


def parse(command: Any, words: list[str]) -> None:
    """Follows click's groups to the command that ``words`` name and parses its options; nothing is run."""
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    if words and words[0] not in ("--help",):
        command.make_context("test", list(words)).close()


@pytest.mark.parametrize("command", ALL)
def test_its_program_takes_it(command: str) -> None:
    check(command)


def test_the_three_commands_are_in_the_guide_and_in_every_definition() -> None:
    for starts in ("ray up ray_cluster.yaml", "ray up cluster/launch/gcp.yaml", "ray job submit ", "curl "):
        assert any(command.startswith(starts) for command in COMMANDS)
    for path in RAY_UP.values():
        heads = [re.sub(r"^RAY_\w+=0 ", "", command) for command in header_commands(path)]
        assert [" ".join(command.split()[:2]) for command in heads][:2] == ["ray up", "ray job"]
        assert heads[2].startswith("curl ") and str(path.relative_to(ROOT)) in heads[0]


def test_every_file_of_the_folder_is_in_the_guide() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for path in FILES:
        assert str(path.relative_to(ROOT)) in text or path.name in text, path


SUBMIT = "ray job submit --address http://127.0.0.1:8265 -- python -m"
JSON = "-H 'content-type: application/json'"
CALL = f'curl http://127.0.0.1:8000/v1/answers {JSON} -d \'{{"requests": [{{"kept": 0.7}}]}}\''
WRONG = {
    "ray upp ray_cluster.yaml": "upp",
    "ray up ray_clusters.yaml": "ray_clusters.yaml",
    "ray attach ray_cluster.yaml --forward 8265": "No such option",
    f"{SUBMIT} cluster.train smollm2 --run /shared/runs/first".replace("--address", "--adress"): "No such option",
    f"{SUBMIT} cluster.train smollm2 --runs /shared/runs/first": "No such option",
    f"{SUBMIT} cluster.trains smollm2 --run /shared/runs/first": "cluster.trains",
    "serve deploy --port 8 cluster/service.yaml": "No such option",
    "unicuco watches /shared/runs/first": "watches",
    CALL.replace("answers", "answer"): "not enough values",
    CALL.replace("kept", "keep"): "keep",
    CALL.replace(JSON, ""): "content-type",
    "rya up": "rya",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_is_seen(wrong: str) -> None:
    check(CALL)
    with pytest.raises(Exception, match=WRONG[wrong]):
        check(wrong)
