"""What a sweep leaves: a table, a file with every trial, and a configuration that ``unicuco train --config`` takes."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.progress import duration_text
from cluster.runs import versions
from unicuco.storage import write_json
from unicuco.tuning.halving import DEFAULT, FINALS, TOLERANCE, WORTH, Halving, Standing
from unicuco.tuning.study import RUNGS, Job, Score, Study
from unicuco.tuning.sweep import Setting, Sweep, apply

FORMAT = 1


@dataclass(frozen=True)
class TuneResult:
    """A finished sweep.

    Attributes:
        output: folder of its files; log_digest: SHA-256 of the log; seconds: wall time, Ray's start included.
    """

    study: Study
    halving: Halving
    sweep: Sweep
    output: Path
    log_digest: str
    seconds: float

    @property
    def winner(self) -> Setting:
        """The settings to use instead of the run's own; {}: none are better."""
        return self.study.settings[self.halving.winner()]

    @property
    def config_file(self) -> Path:
        return self.output / "config.json"

    @property
    def trials_file(self) -> Path:
        return self.output / "trials.json"


def write_files(result: TuneResult, run: Path) -> None:
    """Writes ``config.json`` and ``trials.json``, each atomically, over those of an earlier sweep.

    Raises:
        DiskFullError: nothing half-written is left.
    """
    study, halving = result.study, result.halving
    trials = [{**asdict(job), **_plain(score)} for job, score in sorted(halving.scores.items(), key=_by_job)]
    about = {
        "format": FORMAT,
        "run": str(run),
        "log": {"digest": result.log_digest, "strategies": len(study.done), "cuts": list(study.cuts)},
        "versions": versions(),
        "created": time.time(),
        "seconds": result.seconds,
        "sweep": result.sweep.model_dump(mode="json"),
        "default": study.base.model_dump(mode="json"),
        "settings": list(study.settings),
        "rungs": [asdict(rung) for rung in RUNGS],
        "trials": trials,
        "standings": [asdict(standing) for standing in halving.standings()],
        "winner": halving.winner(),
        "rule": {"worth": WORTH, "tolerance": TOLERANCE},
    }
    write_json(result.trials_file, about)
    write_json(result.config_file, config_of(result))


def config_of(result: TuneResult) -> dict[str, Any]:
    """The winning settings for ``unicuco train --config``: whole, so that later defaults do not change them."""
    config = apply(result.study.base, result.winner)
    return {"learner": config.model_dump(mode="json", include={"surrogate", "stratnet"})}


def best_table(result: TuneResult) -> Table:
    """The finals: each finalist against the default."""
    halving, settings = result.halving, result.study.settings
    table = Table(title=f"Finals: the default and the best, {result.sweep.seeds} seeds", title_justify="left")
    table.add_column("setting", no_wrap=True)
    for name in ("front", "gain, %", "density", "gain, nats"):
        table.add_column(name, justify="right", no_wrap=True)
    winner = halving.winner()
    front, density = _of_setting(result, DEFAULT)
    table.add_row("default", front, "", density, "", style="bold" if winner == DEFAULT else "")
    for standing in halving.standings():
        front, density = _of_setting(result, standing.setting)
        table.add_row(
            "\n".join(f"{name.split('.')[-1]} {value}" for name, value in settings[standing.setting].items()),
            front,
            f"{100 * standing.gain:+.2f} ± {100 * standing.error:.2f}",
            density,
            f"{standing.density:+.3f} ± {standing.density_error:.3f}",
            style="bold" if standing.setting == winner else "",
        )
    return table


def summary(result: TuneResult) -> str:
    """The verdict, failures, speed and files, in plain sentences."""
    halving = result.halving
    lines = [_verdict(result)]
    for job, error in halving.failures.items():
        setting = json.dumps(result.study.settings[job.setting])
        lines.append(f"Failed: {setting}, seed {job.seed}: {error}.")
    done, minutes = len(halving.scores), result.seconds / 60
    lines.append(
        f"{done} trials of {len(result.study.settings)} settings in {duration_text(result.seconds)}: "
        f"{done / minutes:.0f} trials a minute."
    )
    lines.append(f"Settings for 'unicuco train --config': {result.config_file}. Every trial: {result.trials_file}.")
    return "\n".join(lines)


def _verdict(result: TuneResult) -> str:
    standings: list[Standing] = result.halving.standings()
    if result.winner:
        best = next(standing for standing in standings if standing.beats)
        return (
            f"The winner's front is {100 * best.gain:.1f} % of KL below the default's by the oracle, which is a kin of "
            "what it judges: see for yourself with --confirm."
        )
    if not standings:
        return "No finalist got through: the default stays."
    best = standings[0]
    if not best.predicts:
        why = "and it predicts what was measured later worse than the default"
    elif best.gain <= WORTH:
        why = f"and less than {100 * WORTH:g} % is not worth a change"
    else:
        why = "which is within the noise between seeds"
    return (
        f"Nothing beats the default: the best finalist gains {100 * best.gain:.2f} % of KL, {why}. The default stays."
    )


def _of_setting(result: TuneResult, setting: int) -> tuple[str, str]:
    """Its front, on average over the seeds of the finals, and its density, which seeds leave alone."""
    scores = [score for job, score in result.halving.scores.items() if (job.setting, job.rung) == (setting, FINALS)]
    return f"{sum(score.front for score in scores) / len(scores):.4f}", f"{scores[0].density:.3f}"


def _plain(score: Score) -> dict[str, Any]:
    """As JSON: what is not a number becomes null. Single evaluations are left out, but for their mean."""
    values = {name: value for name, value in vars(score).items() if name != "later"}
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}


def _by_job(item: tuple[Job, Score]) -> tuple[int, int, int]:
    job, _ = item
    return job.rung, job.setting, job.seed
