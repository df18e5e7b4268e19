"""``unicuco verify``: is a checkpoint still what was written, does it load, and what is it like to use?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from unicuco.checkpoint.card import FORMAT, PROVENANCE
from unicuco.checkpoint.recorded import read_logits
from unicuco.checkpoint.verify import TOLERANCE, ReloadError, Verification, reload
from unicuco.errors import CheckpointError
from unicuco.storage import file_digest

CODE = Path(__file__).parents[1] / "models" / "hetero"
"""Where the code lies that ``hetero`` checkpoints carry along."""


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        record: the checkpoint's own ``unicuco.json``.
        bytes: of all files that it lists.
        logits: the fresh process's against those recorded; ``None`` where none were, or nothing was loaded.
        loaded: what the fresh process says: class, dtype, parameters, widths of every stored layer, seconds to load,
            tokens per second, and its peak memory in bytes. ``None``: the files are damaged, and nothing was loaded.
        problems: one sentence each; none when the checkpoint is good.
    """

    folder: Path
    record: dict[str, Any]
    bytes: int
    logits: Verification | None
    loaded: dict[str, Any] | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def audit(folder: Path, trust_remote_code: bool = False) -> Audit:
    """Checks every file's digest, loads ``folder`` with plain transformers in a fresh process, and compares logits.

    Of the code in the folder none runs but a copy of our own, unless ``trust_remote_code``; and no code, and no
    weights, of a folder whose files are not those that were written.

    Raises:
        CheckpointError: it is no checkpoint of ours, or carries code that nobody has allowed to run.
    """
    folder = Path(folder)
    record = read_record(folder)
    files: dict[str, dict[str, Any]] = record["files"]
    total = sum(int(about["bytes"]) for about in files.values())
    problems = changed_files(folder, files)
    if problems:
        return Audit(folder, record, total, None, None, tuple(problems))
    foreign = foreign_code(folder)
    if foreign and not trust_remote_code:
        raise CheckpointError(
            f"{folder} carries code that is not this version's own ({', '.join(foreign)}): read it, and allow it with "
            "--trust-remote-code."
        )
    try:
        probe = read_logits(folder)
    except FileNotFoundError:
        probe = {"tokens": torch.zeros(1, 1, dtype=torch.long)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The logits recorded in {folder} cannot be read: {error}.") from error
    try:
        loaded = reload(folder, probe, bool(list(folder.glob("*.py"))), measure=True)
    except ReloadError as error:
        return Audit(folder, record, total, None, None, (f"A fresh process could not load it ({error}).",))
    logits = None
    if "logits" in probe:
        largest = max(float(probe["logits"].abs().max()), float(probe["logsumexp"].abs().max()))
        allowed = TOLERANCE * max(1.0, largest)
        logits = Verification(loaded.pop("max_abs_diff"), largest, allowed, probe["tokens"].numel())
        if not logits.passed:
            problems.append(
                f"Its logits differ from those recorded by up to {logits.max_abs_diff:.3g} (allowed {allowed:.3g})."
            )
    stated = record["size"]["params_stored"]
    if loaded["params"] != stated:
        problems.append(f"It loads with {loaded['params']:,} parameters, not the {stated:,} stated in {PROVENANCE}.")
    return Audit(folder, record, total, logits, loaded, tuple(problems))


def read_record(folder: Path) -> dict[str, Any]:
    """The content of ``unicuco.json``.

    Raises:
        CheckpointError: there is none that we can read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"No folder at {folder}.")
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no checkpoint of UniCuCo: it holds no {PROVENANCE}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / PROVENANCE} is damaged: {error}.") from error
    try:
        if record["format"] != FORMAT:
            raise CheckpointError(f"{folder} is a checkpoint of format {record['format']}, not {FORMAT}.")
        int(record["size"]["params_stored"])
        names = [str(about["sha256"]) and int(about["bytes"]) and name for name, about in record["files"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / PROVENANCE} is damaged: it does not describe a checkpoint.") from error
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in map(str, names)):
        raise CheckpointError(f"{folder / PROVENANCE} is damaged: it names files outside the folder.")
    return dict(record)


def changed_files(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it was written: missing, changed, or weights and code that nobody listed."""
    found = []
    for name, about in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing.")
        elif path.stat().st_size != about["bytes"]:
            found.append(f"{name} has {path.stat().st_size:,} bytes, not {about['bytes']:,}.")
        elif file_digest(path) != about["sha256"]:
            found.append(f"{name} is damaged: its SHA-256 is not the one recorded.")
    strange = [p.name for pattern in ("*.py", "*.safetensors") for p in folder.glob(pattern) if p.name not in files]
    return found + [f"{name} was not written with the checkpoint." for name in sorted(strange)]


def foreign_code(folder: Path) -> list[str]:
    """Python files in ``folder`` that are not copies of our own."""
    ours = {path.name: path for path in CODE.glob("*_unicuco.py")}
    return sorted(
        path.name
        for path in folder.glob("*.py")
        if path.name not in ours or path.read_bytes() != ours[path.name].read_bytes()
    )
