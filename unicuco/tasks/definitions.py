"""Which tasks there are: the five of the papers from local files, a user's own definitions, and lm-eval's by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicuco.errors import TaskError

OFFLINE = ("piqa", "arc_easy", "arc_challenge", "winogrande", "hellaswag")
"""Tasks whose definition lies in ``unicuco/tasks/yaml`` and reads ``TASK.jsonl`` of a folder."""
DEFINITIONS = Path(__file__).parent / "yaml"

Task = str | dict[str, Any]
"""A name that lm-eval knows, or a whole definition."""


def find_tasks(names: Sequence[str], data: Path | None = None) -> list[Task]:
    """What lm-eval is to be given for every name.

    Args:
        names: a task, or a ``.yaml`` file with lm-eval's definition of one; the files that it names are found
            beside it.
        data: folder in which a task of ``OFFLINE`` finds ``TASK.jsonl``, and any other its ``TASK.yaml``. ``None``
            leaves names to lm-eval, which fetches their data from the hub.

    Raises:
        TaskError: a name twice, a missing file, or a definition that cannot be read or would run code.
    """
    if not names or len(set(names)) != len(names):
        raise TaskError("Name at least one task, and each of them once.")
    if data is not None and not data.is_dir():
        raise TaskError(f"No folder of task data at {data}.")
    return [_find(name, data) for name in names]


def _find(name: str, data: Path | None) -> Task:
    if name.endswith((".yaml", ".yml")):
        return _definition(Path(name).expanduser(), Path(name).expanduser().parent)
    if data is None:
        return name
    if (data / f"{name}.yaml").is_file():
        return _definition(data / f"{name}.yaml", data)
    if name in OFFLINE:
        return _definition(DEFINITIONS / f"{name}.yaml", data)
    raise TaskError(
        f"{data} has no {name}.yaml that defines the task '{name}'; known without one: {', '.join(OFFLINE)}."
    )


def _definition(path: Path, data: Path) -> dict[str, Any]:
    """lm-eval's definition at ``path`` with the files that it names looked up in ``data``."""
    import yaml

    if not path.is_file():
        raise TaskError(f"No definition of a task at {path}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0]
        raise TaskError(
            f"{path} is no definition that can be used ({what}); those that call Python code are refused."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise TaskError(f"{path} defines no task: lm-eval wants a mapping with 'task' in it.")
    arguments = found.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        files = arguments["data_files"]
        if isinstance(files, dict):
            arguments["data_files"] = {split: str(_data_file(path, data, file)) for split, file in files.items()}
        else:
            arguments["data_files"] = str(_data_file(path, data, files))
    return found


def _data_file(path: Path, data: Path, file: Any) -> Path:
    found = (data / str(file)).resolve()
    if not found.is_file():
        raise TaskError(f"{path.stem} needs {found}, and there is no such file.")
    return found
