"""The Dockerfile, and the wheel that machines and images install."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cluster.launch.definitions import LAUNCH, ROOT

PACKAGES = ("unicuco", "actors", "cluster")
NOT_IN_THE_WHEEL = {Path("cluster/service.yaml"), Path("cluster/grafana"), Path("cluster/launch")}
DOCKERFILE = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Pairs of instruction and its arguments; continued lines are joined."""
    lines = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines.splitlines() if line.strip()]


def _commands(arguments: str) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in shlex.split(arguments):
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def broken(text: str) -> list[str]:
    """What would not work, or not be pinned, in a Dockerfile that is built at the top level."""
    wrong = []
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for kind, arguments in instructions(text):
        if kind == "COPY" and "--from=" not in arguments:
            for source in arguments.split()[:-1]:
                if not (ROOT / source).exists():
                    wrong.append(f"{source} does not exist")
                if f"!{source.split('/')[0]}" not in ignored:
                    wrong.append(f"{source} is kept out by Dockerfile.dockerignore")
        for words in _commands(arguments) if kind == "RUN" else ():
            if {"pip", "install"} <= {*words} and not {"-c", "constraints.txt"} <= {*words}:
                wrong.append(f"not pinned: {shlex.join(words)}")
    return wrong


def test_the_dockerfile_copies_what_is_there_and_installs_what_is_pinned() -> None:
    assert broken(DOCKERFILE) == []
    found = [kind for kind, _ in instructions(DOCKERFILE)]
    assert found.count("FROM") == 2 and found[-1] == "CMD"
    assert "ARG TORCH=cuda" in DOCKERFILE and 'install.sh "$TORCH"' in DOCKERFILE
    assert DOCKERFILE.index("USER unicuco") > DOCKERFILE.rindex("RUN ")  # who runs Ray installs nothing


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("COPY unicuco unicuco", "COPY unicucu unicuco", "unicucu does not exist"),
        ("COPY actors actors", "COPY benchmarks actors", "benchmarks is kept out"),
        ("-c constraints.txt setuptools", "setuptools", "not pinned"),
    ],
)
def test_what_is_wrong_with_a_dockerfile_is_seen(old: str, new: str, expected: str) -> None:
    assert old in DOCKERFILE
    assert any(expected in line for line in broken(DOCKERFILE.replace(old, new)))


def test_the_image_holds_what_the_script_expects_beside_it() -> None:
    """``install.sh`` looks in the folder above its own."""
    copied = [arguments.split() for kind, arguments in instructions(DOCKERFILE) if kind == "COPY"]
    assert ["constraints.txt", "requirements-data.txt", "./"] in copied
    assert ["cluster/launch/install.sh", "launch/install.sh"] in copied
    assert ["--from=wheel", "/build/dist", "dist"] in copied


def test_the_wheel_holds_the_three_packages_and_the_page(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *command, "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("unicuco-*.whl")
    held = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    expected = {
        path.relative_to(ROOT)
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected -= {path for path in expected for left_out in NOT_IN_THE_WHEEL if path.is_relative_to(left_out)}
    assert {path for path in held if path.parts[0] in PACKAGES} == expected
    assert Path("cluster/service/page/index.html") in held
    entry = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("entry_points.txt"))
    assert b"unicuco = cluster.cli:main" in zipfile.ZipFile(wheel).read(entry)
