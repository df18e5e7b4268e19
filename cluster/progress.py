"""Showing how a run goes: a live bar on a terminal, one plain line now and then elsewhere, and the record on disk."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.runs import ProgressLog, ProgressRecord

SHOWN_SIZES = (0.9, 0.7, 0.5)
RATE_WINDOW = 60.0
"""Seconds over which evaluations per second are averaged."""
LINE_EVERY = 10.0
"""Seconds between two lines when the output is no terminal."""
RECORD_EVERY = 2.0
WORSE = 1.03
"""KL ÷ uniform pruning's from which an answer is called worse; less is the draw of windows."""
SAY_WAITING = 15.0
"""Seconds without any evaluator in place after which the screen says what is waited for."""


class Rate:
    """Evaluations per second over the last minute; an earlier session's evaluations do not count."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def update(self, done: float, now: float) -> float:
        """Notes that ``done`` standard evaluations lie behind us at ``now`` (seconds); returns the rate."""
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[1][0] >= RATE_WINDOW:
            self._points.popleft()
        began, before = self._points[0]
        return (done - before) / (now - began) if now > began else 0.0


def best_at(front: Sequence[tuple[float, float]], size: float) -> float | None:
    """Lowest KL of the front's points (kept, KL) that are no larger than ``size``."""
    fitting = [kl for kept, kl in front if kept <= size + 1e-9]
    return min(fitting) if fitting else None


def best_points(front: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """``(size, lowest KL)`` at a few sizes, where anything is that small."""
    return tuple((size, kl) for size in SHOWN_SIZES if (kl := best_at(front, size)) is not None)


def front_text(best: Sequence[tuple[float, float]], hypervolume: float) -> str:
    """The best front in a few words: the lowest KL at a few sizes, and hypervolume."""
    parts = [f"{size:g}: {kl:.3f}" for size, kl in best]
    found = f"KL at kept {', '.join(parts)}" if parts else "no front yet"
    return f"{found} · hypervolume {hypervolume:.3f}"


def duration_text(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class RunDisplay:
    """Shows a run and records it in ``progress.jsonl``; a context manager.

    Args:
        budget: evaluations in all.
        log: where records go.
        clock: seconds; for tests.
    """

    def __init__(self, console: Console, budget: int, log: ProgressLog, clock: Any = time.monotonic) -> None:
        self._console, self._budget, self._log, self._clock = console, budget, log, clock
        self._began = clock()
        self._rate = Rate()
        self._recorded_at = self._said_at = float("-inf")
        self._recorded: tuple[int, int, int] | None = None
        self._failures = 0
        self._nowhere_since, self._said_waiting = self._began, False
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[stage]:<11}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("left {task.fields[left]}"),
                TimeElapsedColumn(),
                TextColumn("\n{task.fields[front]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._budget, stage="starting", rate="", left="?", front="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: Any, last: bool = False) -> None:
        """Shows ``progress`` (``actors.learner.Progress``) and records it; cheap enough for several times a second."""
        status, now = progress.status, self._clock()
        rate = self._rate.update(status.spent, now)
        self._say_failures(progress)
        self._say_waiting(progress, now)
        key = (status.done, status.failed, status.version)
        if last or (key != self._recorded and now - self._recorded_at >= RECORD_EVERY):
            self._recorded, self._recorded_at = key, now
            self._log.append(
                ProgressRecord(
                    time=time.time(),
                    elapsed=self._log.elapsed_before + now - self._began,
                    done=status.done,
                    failed=status.failed,
                    running=status.running,
                    version=status.version,
                    hypervolume=status.hypervolume,
                    evaluations_per_second=rate,
                    evaluators=progress.evaluators,
                    stage=_stage(progress),
                    budget=self._budget,
                    spent=status.spent,
                    waiting=status.waiting,
                    staleness=status.staleness,
                    best=best_points(status.front),
                )
            )
        over = round(status.spent)
        left = duration_text((self._budget - over) / rate) if rate > 0 else "?"
        front = front_text(best_points(status.front), status.hypervolume)
        if self._bar is not None:
            shown = f"{rate:.2f}/s" if rate else ""
            self._bar.update(self._task, completed=over, stage=_stage(progress), rate=shown, left=left, front=front)
        elif last or now - self._said_at >= LINE_EVERY:
            self._said_at = now
            self._console.print(
                f"{duration_text(now - self._began)}  {_stage(progress)}  {over}/{self._budget} evaluations"
                f"  {rate:.2f}/s  left {left}  policy {status.version}  {front}",
                highlight=False,
                soft_wrap=True,
            )

    def _say_failures(self, progress: Any) -> None:
        for eval_id, reason in progress.failures[self._failures :]:
            self._console.print(
                f"[yellow]Gave up evaluation {eval_id}:[/] {escape(reason)}.", highlight=False, soft_wrap=True
            )
        self._failures = len(progress.failures)

    def _say_waiting(self, progress: Any, now: float) -> None:
        """One sentence each time that for a while no node has had room for any evaluator."""
        if progress.placed or progress.finished:
            self._nowhere_since, self._said_waiting = now, False
        elif now - self._nowhere_since >= SAY_WAITING and not self._said_waiting:
            self._said_waiting = True
            self._console.print(
                f"Waiting for room for {progress.evaluators_wanted} evaluator(s): no node has it now. "
                "'ray status' on the cluster's head says what it has and what it starts.",
                highlight=False,
                soft_wrap=True,
            )


def heldout_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table at the end of a run, one row per size; ``rows`` as in ``heldout.json``. KL in nats per token."""
    table = Table(title="KL on fresh text, by size", title_justify="left")
    for name in ("kept", "predicted", "90 % interval", "measured", "uniform", "of uniform"):
        table.add_column(name, justify="right")
    for row in rows:
        uniform = row.get("kl_uniform_heldout")
        table.add_row(
            f"{row['kept']:.3f}",
            f"{row['kl_predicted']:.4f}",
            f"{row['kl_low']:.4f} – {row['kl_high']:.4f}",
            f"{row['kl_heldout']:.4f}",
            f"{uniform:.4f}" if uniform is not None else "",
            f"{row['kl_heldout'] / uniform:.2f}" if uniform else "",
        )
    return table


def print_heldout(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table, and what is wrong with it."""
    console.print(heldout_table(rows))
    if sentence := worse_than_uniform(rows):
        console.print(sentence, highlight=False, soft_wrap=True)


def worse_than_uniform(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where answers came out worse than uniform pruning; "" where none did."""
    worse = [row["kept"] for row in rows if row["kl_heldout"] > WORSE * (row.get("kl_uniform_heldout") or math.inf)]
    if not worse:
        return ""
    sizes = ", ".join(f"{kept:g}" for kept in worse)
    return (
        f"At kept {sizes} the answer is worse than uniform pruning: this run measured too little of this base model. "
        "Train again with more --evaluations, or with more calibration text."
    )


def _stage(progress: Any) -> str:
    if progress.finished:
        return "done"
    if progress.evaluators == 0:
        return "loading" if progress.placed else "waiting"
    return "training" if progress.training and not progress.status.running else "evaluating"


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A ``(stage, done, total)`` callback: one bar per stage on a terminal; elsewhere one line per finished stage.

    Stages that say that they begin (nothing is done yet) get a line for that, too.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
                if done == 0 and not console.is_terminal:
                    console.print(f"{stage} ...", highlight=False)
            bar.update(tasks[stage], completed=done, total=total)
            if done >= total and not console.is_terminal:
                console.print(f"{stage}: {total} of {total}", highlight=False)

        yield report
