"""What runs on each machine: its preparation and installation, with stand-ins for pip, sudo and the system's tools."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.launch.definitions import LAUNCH, ROOT

PYTHON = """#!/bin/sh
# Makes environments that hold itself, and notes what pip is asked for.
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0 ;;
    "-m pip "*) echo "$*" >> "$NOTES"; exit 0 ;;
    *torch.version.cuda*) exit "${WITHOUT_CUDA:-0}" ;;
    *version_info*) exit "${OLD:-0}" ;;
    *ensurepip*) exit "${NO_VENV:-0}" ;;
esac
exit 99
"""
NOTE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$NOTES"
"""


class Machine:
    """A home folder with what the definitions copy there, and a PATH of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.home, self.tools, self.notes = folder / "home", folder / "tools", folder / "notes"
        self.shared = folder / "shared"
        root = self.home / "unicuco"
        (root / "dist").mkdir(parents=True)
        (root / "dist" / "unicuco-0.1.0-py3-none-any.whl").touch()
        for name in ("constraints.txt", "requirements-data.txt"):
            shutil.copy(ROOT / name, root / name)
        shutil.copytree(LAUNCH, root / "launch")
        (self.home / ".ray").mkdir()
        (self.home / ".ray" / "auth_token").write_text("token")
        self.tools.mkdir()
        self.notes.touch()
        self.tool("python3", PYTHON)

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        paths = {"HOME": str(self.home), "PATH": f"{self.tools}:{os.environ['PATH']}", "NOTES": str(self.notes)}
        return subprocess.run(
            ["bash", str(self.home / "unicuco" / "launch" / script), *arguments],
            env={**paths, "UNICUCO_SHARED": str(self.shared), **settings},
            capture_output=True,
            text=True,
        )

    def noted(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.notes.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_everything_is_installed_with_the_pinned_versions(build: str, machine: Machine) -> None:
    done = machine.run("install.sh", build)
    assert done.returncode == 0, done.stderr
    calls = machine.noted()
    assert len(calls) == 3 and not any("--index-url" in call for call in calls)
    for call in calls[:2]:
        assert call[call.index("-c") + 1] == str(machine.home / "unicuco" / "constraints.txt")
        assert call[-1].endswith(".whl")
    assert "--no-deps" not in calls[0]
    assert {"--no-deps", "--force-reinstall"} <= {*calls[1]}  # a new wheel of the same version
    assert calls[2][-3:] == ["--no-deps", "-r", str(machine.home / "unicuco" / "requirements-data.txt")]


def test_only_a_machine_without_a_gpu_takes_torch_from_the_other_index(machine: Machine) -> None:
    assert machine.run("install.sh", "cpu", UNICUCO_TORCH_INDEX="http://index.invalid/cpu").returncode == 0
    first = machine.noted()[0]
    assert first[-1] == "torch" and first[first.index("--index-url") + 1] == "http://index.invalid/cpu"
    assert "--no-deps" in first and str(machine.home / "unicuco" / "constraints.txt") in first
    machine.notes.write_text("")
    assert machine.run("install.sh", "cuda", UNICUCO_TORCH_INDEX="http://index.invalid/cpu").returncode == 0
    assert not any("--index-url" in call for call in machine.noted())


def test_torch_without_cuda_on_a_gpu_machine_is_told(machine: Machine) -> None:
    done = machine.run("install.sh", "cuda", WITHOUT_CUDA="1")
    assert done.returncode == 1 and "without CUDA" in done.stderr
    assert machine.run("install.sh", "cpu", WITHOUT_CUDA="1").returncode == 0


def test_mistakes_of_an_installation_are_one_sentence(machine: Machine) -> None:
    for arguments, settings, code, sentence in (
        ([], {}, 2, "say which torch"),
        (["gpu"], {}, 2, "say which torch"),
        (["cpu"], {"OLD": "1"}, 1, "3.11 or newer"),
    ):
        done = machine.run("install.sh", *arguments, **settings)
        assert done.returncode == code and sentence in done.stderr and done.stderr.count("\n") == 1
    (machine.home / "unicuco" / "dist" / "unicuco-0.0.9-py3-none-any.whl").touch()
    done = machine.run("install.sh", "cpu")
    assert done.returncode == 1 and "holds 2 wheels" in done.stderr
    assert machine.noted() == []


def test_a_machine_with_the_folder_is_prepared_without_rights(machine: Machine) -> None:
    for part in ("runs", "cache", "service"):
        (machine.shared / part).mkdir(parents=True)
    machine.tool("sudo", "#!/bin/sh\nexit 98\n")
    (machine.home / ".ray" / "auth_token").chmod(0o644)
    for _ in range(2):
        done = machine.run("prepare.sh")
        assert done.returncode == 0, done.stderr
    assert (machine.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    shell = (machine.home / ".bashrc").read_text()
    assert shell.count("RAY_AUTH_MODE=token") == 1 and 'PATH="$HOME/unicuco/venv/bin:$PATH"' in shell


def test_a_fresh_machine_gets_what_it_lacks(machine: Machine) -> None:
    machine.tool("sudo", NOTE + '[ "$1" != mkdir ] || exec "$@"\n')
    done = machine.run("prepare.sh", "files.example:/unicuco", NO_VENV="1")
    assert done.returncode == 0, done.stderr
    calls = machine.noted()
    (installed,) = [call for call in calls if "install" in call]
    assert "python3-venv" in installed
    (mounted,) = [call for call in calls if "mount" in call]
    assert mounted[-2:] == ["files.example:/unicuco", str(machine.shared)] and "nfs4" in mounted
    assert calls.index(installed) < calls.index(mounted)


def test_mistakes_of_a_preparation_are_one_sentence(machine: Machine) -> None:
    for arguments, code, sentence in (
        (["fs-EDIT.efs.us-west-2.amazonaws.com:/"], 2, "still the example"),
        (["files.example"], 2, "no file server"),
        ([], 1, "there is no"),
    ):
        done = machine.run("prepare.sh", *arguments)
        assert done.returncode == code and sentence in done.stderr and done.stderr.count("\n") == 1
    assert machine.noted() == []
