"""The run folder: everything about one training run, written so that the run can be resumed and explained.

``run.json`` is written once, before the first evaluation, and never changes. One process at a time works in a
run folder. A run at a URI is a ``RemoteRun`` (cluster/remote_runs.py).
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicuco.errors import UniCuCoError
from unicuco.storage import clear_disk_errors, write_json

if TYPE_CHECKING:
    from unicuco.evaluations import EvaluationLog
    from unicuco.preparation import Preparation

FORMAT = 1
PACKAGES = ("torch", "transformers", "ray", "botorch", "gpytorch", "numpy", "pyarrow", "safetensors", "datasets")


class RunError(UniCuCoError):
    """A run folder is missing, taken, broken, or belongs to something else than what is being resumed."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and what is done to it."""

    path: Path

    @property
    def where(self) -> str:
        """As its user names it."""
        return str(self.path)

    @property
    def uri(self) -> str | None:
        """Where machines that do not see the folder find the run, if anywhere."""
        return None

    @property
    def about(self) -> Path:
        return self.path / "run.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def progress(self) -> Path:
        return self.path / "progress.jsonl"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout.json"

    def refuse_existing(self) -> None:
        """A new run needs a folder of its own.

        Raises:
            RunError: says how to go on with the run that is there.
        """
        if self.about.is_file():
            raise RunError(
                f"{self.path} already holds a run: go on with it by "
                f"'unicuco train --resume {shlex.quote(str(self.path))}', or choose another folder."
            )
        if self.path.exists() and (not self.path.is_dir() or any(not _is_scratch(p) for p in self.path.iterdir())):
            raise RunError(f"{self.path} exists and holds something else than a run; choose another folder.")

    def read(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            RunError: there is none, it is not JSON, or another version wrote it.
        """
        try:
            data = self.about.read_bytes()
        except FileNotFoundError as error:
            raise RunError(f"{self.path} holds no run (no run.json).") from error
        except OSError as error:
            raise RunError(f"{self.about} cannot be read: {error}") from error
        return check_about(data, str(self.about))

    def save(self, file: Path, value: Any) -> None:
        """Writes one of the run's JSON files where it counts."""
        write_json(file, value)

    def log(self) -> EvaluationLog:
        """The log of evaluations, to write to."""
        from unicuco.evaluations import EvaluationLog

        return EvaluationLog(self.evaluations)

    def progress_log(self) -> ProgressLog:
        return ProgressLog(self.progress)

    def share(self, preparation: Preparation) -> None:
        """Lets machines that do not see this one's disk have the preparation; here they see it, or cannot be helped."""

    def provenance(self) -> dict[str, Any]:
        """What the run's policy says of its origin."""
        about = self.read()
        facts = {
            name: about[name] for name in ("model", "preparation", "seed", "dtype", "tokens", "versions", "command")
        }
        return {**facts, "calibration": about["config"]["preparation"]["calibration"]}

    @contextmanager
    def locked(self, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Holds the folder for this process; a killed process lets go of it by itself.

        Args:
            tell: is told of what takes long.

        Raises:
            RunError: another process is training in it.
        """
        from filelock import FileLock, Timeout

        with clear_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(f"Another process is training in {self.where}; wait for it, or stop it first.") from error
        try:
            self._sweep()
            yield
        finally:
            lock.release()
            if not self.about.is_file():  # nothing came of it: leave nothing behind
                (self.path / ".lock").unlink(missing_ok=True)
                if not any(self.path.iterdir()):
                    self.path.rmdir()

    def _sweep(self) -> None:
        """Removes the scratch that a killed run left beside what it was writing."""
        for folder in (self.path, self.evaluations):
            for path in folder.glob(".*") if folder.is_dir() else ():
                if path.suffix in (".tmp", ".old"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_scratch(path: Path) -> bool:
    return path.name == ".lock" or (path.name.startswith(".") and path.suffix in (".tmp", ".old"))


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    from unicuco import __version__

    found = {"unicuco": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_run(config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The content of ``run.json``: the whole configuration, what it came to, versions, machine and command."""
    return {
        "format": FORMAT,
        "config": config,
        "versions": versions(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "created": time.time(),
        **facts,
    }


@dataclass(frozen=True)
class ProgressRecord:
    """One line of ``progress.jsonl``; what is not said here is as in ``unicuco.learner.LearnerStatus``.

    Attributes:
        time: Unix; elapsed: seconds of training, earlier sessions included.
        stage: in a word; budget: evaluations in all, of which ``spent``.
        best: the lowest KL measured at some sizes, ``(kept, KL)``.
    """

    time: float
    elapsed: float
    done: int
    failed: int
    running: int
    version: int
    hypervolume: float
    evaluations_per_second: float
    evaluators: int
    stage: str = ""
    budget: int = 0
    spent: float = 0.0
    waiting: int = 0
    staleness: float = 0.0
    best: tuple[tuple[float, float], ...] = ()


class ProgressLog:
    """Appends to ``progress.jsonl``; a line that a kill cut short is dropped when the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        last = self._mend()
        self.elapsed_before = float(last["elapsed"]) if last else 0.0

    def append(self, record: ProgressRecord) -> None:
        line = json.dumps(asdict(record))
        with clear_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _mend(self) -> dict[str, Any] | None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        lines = whole.splitlines()
        return json.loads(lines[-1]) if lines else None


def write_about(folder: RunFolder, about: dict[str, Any]) -> None:
    """Writes ``run.json``, once."""
    folder.save(folder.about, about)


def check_about(data: bytes, where: str) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        RunError: it is not JSON, or another version wrote it.
    """
    try:
        about = json.loads(data)
    except ValueError as error:
        raise RunError(f"{where} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RunError(f"{where} was written by another version of UniCuCo; start a new run.")
    return about
