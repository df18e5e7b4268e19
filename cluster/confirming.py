"""The end of ``unicuco tune --confirm``: one real run with the winning settings, compared with the run of the log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from actors.runtime import RayConfig
from cluster.remote_runs import open_run
from cluster.runs import RunFolder
from cluster.training import TrainConfig, train
from cluster.tuned import TuneResult
from cluster.watching import read_heldout
from unicuco.errors import TuningError
from unicuco.storage import write_json
from unicuco.tuning.sweep import apply


def check_confirmable(run: Path, about: dict[str, Any] | None, new: str | Path) -> None:
    """Refuses before any trial what could not be confirmed after them.

    Raises:
        TuningError: there is no run to compare with, or it has not ended.
        RunError: ``new`` holds something already.
    """
    if about is None:
        raise TuningError(f"{run} is a log without a run: there is nothing to confirm against.")
    if not RunFolder(run).heldout.is_file():
        raise TuningError(f"The run in {run} has not ended (no heldout.json): there is nothing to confirm against yet.")
    open_run(new).refuse_existing()


def confirm(
    result: TuneResult, run: Path, about: dict[str, Any], new: str | Path, ray: RayConfig, console: Console
) -> list[dict[str, float]]:
    """Trains with the winning settings, on the same base model, preparation, budget and seed, and compares.

    Returns:
        one row per size that both runs measured; also in ``confirmed.json`` beside the sweep's files.

    Raises:
        UniCuCoError: as ``cluster.training.train``.
    """
    try:
        config = TrainConfig.model_validate({**about["config"], "run": new, "ray": ray})
    except ValidationError as error:
        raise TuningError(f"{run} was started with a configuration that is not known here: {error}") from error
    config = config.model_copy(update={"learner": apply(config.learner, result.winner)})
    trained = train(config, console)
    rows = compare(read_heldout(RunFolder(run)), trained.heldout)
    write_json(result.output / "confirmed.json", {"run": str(trained.run), "against": str(run), "sizes": rows})
    console.print(_table(rows))
    console.print(_sentence(rows), highlight=False, soft_wrap=True)
    return rows


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, float]]:
    """KL on fresh text by size, before and after (rows of ``heldout.json``), where both have the size."""
    known = {json.dumps(row["kept"]): row["kl_heldout"] for row in before}
    return [
        {"kept": row["kept"], "before": known[json.dumps(row["kept"])], "after": row["kl_heldout"]}
        for row in after
        if json.dumps(row["kept"]) in known
    ]


def _table(rows: list[dict[str, float]]) -> Table:
    table = Table(title="KL on fresh text: the run of the log, and the new run", title_justify="left")
    for name in ("kept", "before", "after", "after ÷ before"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = row["after"] / row["before"] if row["before"] > 0 else math.nan
        table.add_row(f"{row['kept']:.3f}", f"{row['before']:.4f}", f"{row['after']:.4f}", f"{ratio:.3f}")
    return table


def _sentence(rows: list[dict[str, float]]) -> str:
    ratios = [row["after"] / row["before"] for row in rows if row["before"] > 0 and row["after"] > 0]
    if not ratios:
        return "The two runs have no size in common."
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    better = "lower" if mean < 1 else "higher"
    return (
        f"On average KL is {100 * abs(mean - 1):.1f} % {better} than before. One run each: two runs that differ in "
        "their seed alone differ by a few percent too."
    )
