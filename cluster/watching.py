"""``unicuco watch``: a run seen from another terminal, or another machine that sees its folder or its URI.

It reads ``progress.jsonl`` and touches nothing, so that any number of people may watch, whether or not the run lives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cluster.progress import LINE_EVERY, duration_text, front_text, print_heldout
from cluster.runs import RunError, RunFolder
from unicuco.remote import is_uri

LOOK_SECONDS = 1.0
LOOK_SECONDS_AT_URI = 8.0
SILENT_SECONDS = 120.0
"""A run writes every few seconds while anything comes back; a training of a large run takes longer."""


def watch(
    run: str | Path,
    console: Console | None = None,
    once: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Shows the run in ``run`` until it has ended, and then its table; ``once``: as it is now.

    Raises:
        RunError: there is no run.
    """
    console = console or Console()
    look = opener(run)
    folder = look()
    about = folder.read()
    title = f"{about.get('model', {}).get('spec', '?')}, run {run if is_uri(run) else folder.path}"
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not once else None
    said_at = float("-inf")
    if live:
        live.start()
    try:
        while True:
            record, ended = last_record(folder.progress), folder.heldout.is_file()
            if live:
                live.update(picture(title, record, clock()), refresh=True)
            elif once or ended or clock() - said_at >= LINE_EVERY:
                said_at = clock()
                console.print(line(record, clock()), highlight=False, soft_wrap=True)
            if once or ended:
                break
            sleep(LOOK_SECONDS_AT_URI if is_uri(run) else LOOK_SECONDS)
            look()
    finally:
        if live:
            live.stop()
    if ended:
        print_heldout(read_heldout(folder), console)


def opener(run: str | Path) -> Callable[[], RunFolder]:
    """What returns the run's folder on this machine; a run at a URI is then as it is there now.

    Raises (the callable):
        RunError: there is no run. RemoteError: the store cannot be read.
    """
    if not is_uri(run):
        folder = RunFolder(Path(run).expanduser().absolute())
        return lambda: folder
    from unicuco.remote.fetch import watched_folder

    def fetch() -> RunFolder:
        found = watched_folder(str(run))
        if found is None:
            raise RunError(f"{run} holds no run (no run.json).")
        return RunFolder(found)

    return fetch


def last_record(path: Path) -> dict[str, Any] | None:
    """The newest whole line of ``progress.jsonl``; None before there is one."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - (1 << 16)))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line feed is being written
    except FileNotFoundError:
        return None
    for text in reversed(lines):
        try:
            return dict(json.loads(text))
        except ValueError:
            continue
    return None


def read_heldout(folder: RunFolder) -> list[dict[str, Any]]:
    """What ``heldout.json`` says.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return list(json.loads(folder.heldout.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder.heldout} cannot be read: {error}") from error


def silence(record: dict[str, Any] | None, now: float) -> str:
    """A sentence where nothing has been heard for long; "" else."""
    if record is None or record.get("stage") == "done":
        return ""
    seconds = now - record["time"]
    if seconds < SILENT_SECONDS:
        return ""
    return (
        f"No news for {duration_text(seconds)}: a long training, or the run was stopped "
        "(go on with unicuco train --resume)."
    )


def line(record: dict[str, Any] | None, now: float) -> str:
    """A run in one plain line."""
    if record is None:
        return "No evaluation has come back yet."
    best, volume = record.get("best", ()), record["hypervolume"]
    parts = [
        duration_text(record["elapsed"]),
        str(record.get("stage") or "running"),
        f"{record.get('spent', record['done']):.0f}/{record.get('budget') or '?'} evaluations",
        f"{record['evaluations_per_second']:.2f}/s",
        f"policy {record['version']}",
        front_text(best, volume),
        silence(record, now),
    ]
    return "  ".join(part for part in parts if part)


def picture(title: str, record: dict[str, Any] | None, now: float) -> Table:
    """A run on a terminal."""
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    if record is None:
        table.add_row("stage", "loading: no evaluation has come back yet")
        return table
    budget, spent = record.get("budget") or 0, record.get("spent", record["done"])
    rate = record["evaluations_per_second"]
    left = duration_text((budget - spent) / rate) if rate > 0 and budget else "?"
    table.add_row("stage", str(record.get("stage") or "running"))
    table.add_row("", ProgressBar(total=max(budget, 1), completed=spent, width=40))
    table.add_row("budget", f"{spent:.0f} of {budget or '?'} evaluations, {rate:.2f}/s, left {left}")
    counts = f"{record['done']} measured, {record['failed']} given up, {record['running']} under way"
    table.add_row("strategies", f"{counts}, {record.get('waiting', 0)} proposed and waiting")
    table.add_row("evaluators", str(record["evaluators"]))
    table.add_row(
        "policy", f"version {record['version']}, evaluations {record.get('staleness', 0):.1f} trainings behind"
    )
    table.add_row("front", front_text(record.get("best", ()), record["hypervolume"]))
    table.add_row("time", duration_text(record["elapsed"]))
    if told := silence(record, now):
        table.add_row("", f"[yellow]{told}[/]")
    return table
