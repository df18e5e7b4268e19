"""A sweep of the learner's settings over a run's log: what it reads, runs on Ray Tune, and leaves behind.

The command is in ``cluster.tune``; what a trial does is in ``unicuco.tuning``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.runtime import RayConfig, start_or_attach
from cluster.progress import LINE_EVERY, duration_text
from cluster.runs import RunFolder
from cluster.tuned import TuneResult, best_table, summary, write_files
from unicuco.errors import PolicyError, TuningError
from unicuco.evaluations import Evaluation, EvaluationLog
from unicuco.latency import NamedTable
from unicuco.learner_config import LearnerConfig
from unicuco.policy_parts import load_parts
from unicuco.preparation import Preparation
from unicuco.space import SearchSpace
from unicuco.storage import cache_dir
from unicuco.tuning.halving import Halving
from unicuco.tuning.study import Study, log_digest
from unicuco.tuning.sweep import Sweep, draw_settings

MIXED_LOG = "holds evaluations on different windows or preparations: a sweep needs the log of one run."


class TuneConfig(BaseModel):
    """One sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path
    """A run folder, of a run that ended or still goes on, or a folder of evaluations alone."""
    sweep: Sweep = Sweep()
    output: Path | None = None
    """Folder for the results; ``RUN/tune`` if not given."""
    confirm: str | Path | None = None
    """Folder or URI for a real run with the winning settings; none is made if not given, or if the default stays."""
    ray: RayConfig = RayConfig()


@dataclass(frozen=True)
class Recorded:
    """A log and what is needed to learn from it.

    Attributes:
        done: in the order in which evaluations finished.
        learner: the run's own settings; where there is no run, the defaults.
        about: what ``run.json`` says; None without one.
        latency: the table by which latency is an objective of the run, if it is one.
    """

    space: SearchSpace
    damage: np.ndarray | None
    done: list[Evaluation]
    learner: LearnerConfig
    about: dict[str, Any] | None
    latency: NamedTable | None = None


def tune(config: TuneConfig, console: Console | None = None) -> TuneResult:
    """Sweeps, reports, writes the results, and confirms the winner by a real run where that was asked for.

    Raises:
        UniCuCoError: nothing to sweep, no usable log, no Ray, a full disk; before any trial where that is possible.
    """
    console = console or Console()
    began = time.monotonic()
    folder = Path(config.run).expanduser().absolute()
    recorded = read_recorded(folder)
    output = _output(config, folder, recorded)
    if config.confirm is not None:
        from cluster.confirming import check_confirmable

        check_confirmable(folder, recorded.about, config.confirm)
    settings = draw_settings(config.sweep, recorded.learner)
    study = Study.of_log(
        recorded.space, recorded.damage, recorded.done, recorded.learner, settings, config.sweep.cuts, recorded.latency
    )
    halving = Halving(len(settings), config.sweep.finalists, config.sweep.seeds, config.sweep.seed)
    with start_or_attach(config.ray):
        from actors.tuning import processors, run_sweep

        console.print(
            f"{folder}: {len(study.done)} evaluations, {len(settings)} settings, {halving.total} trials, "
            f"{processors()} at a time",
            highlight=False,
            soft_wrap=True,
        )
        with _trials(console, halving.total) as report:
            run_sweep(study, halving, report)
    seconds = time.monotonic() - began
    result = TuneResult(study, halving, config.sweep, output, log_digest(recorded.done), seconds)
    write_files(result, folder)
    console.print(best_table(result))
    console.print(summary(result), highlight=False, soft_wrap=True)
    if config.confirm is not None and result.winner:
        from cluster.confirming import confirm

        assert recorded.about is not None
        confirm(result, folder, recorded.about, config.confirm, config.ray, console)
    return result


def read_recorded(folder: Path) -> Recorded:
    """The log of a run, or of a folder of evaluations, whose preparation is then looked for in the cache.

    Raises:
        UniCuCoError: there is no such log, it is of several runs, or its search space cannot be found.
    """
    run = RunFolder(folder)
    about = run.read() if run.about.is_file() else None
    done = EvaluationLog(run.evaluations if about is not None else folder).read()
    if not done:
        raise TuningError(f"{folder} holds no evaluations; give the folder of a run that has begun to measure.")
    if len({(e.windows, e.preparation) for e in done}) > 1:
        raise TuningError(f"{folder} {MIXED_LOG}")
    space, damage = _space(run, about, done)
    return Recorded(space, damage, done, _settings(run, about), about, _table(run, about))


def _space(
    run: RunFolder, about: dict[str, Any] | None, done: Sequence[Evaluation]
) -> tuple[SearchSpace, np.ndarray | None]:
    """From the policy, which a run has after its first training; else from the preparation."""
    if about is not None:
        try:
            parts = load_parts(run.policy)
            return parts.space, parts.damage
        except PolicyError:
            pass
    place = cache_dir() / "preparations" / done[0].preparation[:24]
    if about is not None and not place.is_dir():
        place = Path(about["preparation"]["folder"])
    if not place.is_dir():
        raise TuningError(
            f"The preparation of {run.path} is not in {cache_dir()}, and there is no policy that has its search space."
        )
    preparation = Preparation.open(place)
    return preparation.space, preparation.damage


def _settings(run: RunFolder, about: dict[str, Any] | None) -> LearnerConfig:
    if about is None:
        return LearnerConfig()
    try:
        return LearnerConfig.model_validate(about["config"]["learner"])
    except (KeyError, TypeError, ValidationError) as error:
        raise TuningError(f"{run.about} does not say the run's settings in a form that is known here.") from error


def _table(run: RunFolder, about: dict[str, Any] | None) -> NamedTable | None:
    """By which latency is an objective of the run."""
    own = about["config"].get("latency") if about is not None else None
    try:
        return None if own is None else NamedTable.model_validate(own)
    except ValidationError as error:
        raise TuningError(f"{run.about} holds a latency table that cannot be read: {error}") from error


def _output(config: TuneConfig, folder: Path, recorded: Recorded) -> Path:
    if config.output is not None:
        return Path(config.output).expanduser().absolute()
    if recorded.about is None:
        raise TuningError(f"{folder} is a log without a run: say where the results go with --output.")
    return folder / "tune"


@contextmanager
def _trials(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A callback for the number of trials done: a bar on a terminal, a line now and then elsewhere."""
    columns = (TextColumn("trials"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("trials", total=total)
        began = said = time.monotonic()

        def report(done: int) -> None:
            nonlocal said
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and (now - said >= LINE_EVERY or done == total):
                said = now
                console.print(f"{duration_text(now - began)}  {done}/{total} trials", highlight=False)

        yield report
