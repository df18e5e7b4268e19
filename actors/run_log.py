"""The log of a run: ``log.jsonl`` in its folder, one JSON object a line, for people and for log collectors.

Every line has ``time`` (UTC), ``level``, ``event`` and the ``pid`` that wrote it; the rest belongs to the event:

- ``began``: ``evaluators`` wanted, ``done`` before; ``ended``: ``done``, ``failed``, ``policy_version``;
- ``evaluator_ready``: ``evaluators`` that are;
- ``trained``: ``policy_version``, ``done``, ``seconds``;
- ``returned`` (warning): ``eval_id`` handed out once more, ``reason``; ``given_up`` (error): the same, for good;
- ``failed`` (error): ``error``, what ended the run.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

NAME = "log.jsonl"


class RunLog:
    """Appends whole lines, so that several processes may write. A log that cannot be written ends no run."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / NAME

    def write(self, event: str, level: Literal["info", "warning", "error"] = "info", **fields: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "event": event, "pid": os.getpid(), **fields}, default=str)
        with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
