"""Evaluations and their log on disk: an evaluation counts only once it lies there.

The log is a folder of small Parquet parts, each written to a scratch file, flushed and renamed. A killed run leaves
whole parts or nothing, and an evaluation that was written twice (a retried call) is read once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unicuco.errors import EvaluationLogError
from unicuco.storage import atomic_file

MARGINS_COST = 3.0
"""Forwards that one measurement of margins is counted as (docs/protocol.md: a backward pass is two)."""


@dataclass(frozen=True)
class Candidate:
    """A strategy waiting to be evaluated.

    Attributes:
        eval_id: unique in its run; ``tell`` and the log know an evaluation by it.
        levels: ``num_sites`` level indices.
        origin: who proposed it (``uniform``, ``knapsack``, ``stratnet``, ``swap``, ...), for the report.
        predicted_log_kl, predicted_sigma: what the surrogate promised before it was measured; nan when there was none.
    """

    eval_id: str
    levels: tuple[int, ...]
    origin: str
    predicted_log_kl: float = math.nan
    predicted_sigma: float = math.nan
    policy_version: int = 0
    margin_group: int = -1
    """Group of margin windows to measure margins on as well; -1: none."""

    @property
    def cost(self) -> float:
        """What it costs, in standard evaluations."""
        return 1.0 if self.margin_group < 0 else 1.0 + MARGINS_COST


@dataclass(frozen=True)
class Evaluation:
    """A strategy, what was measured on it, and on what.

    Attributes:
        kl: KL(dense || pruned), nats per token, mean over the calibration domains.
        kl_reverse: KL(pruned || dense), likewise.
        perplexity: exp of the mean next-token loss over all windows.
        domains, domain_kl: the same ``kl``, one value per calibration domain.
        window_kl: ``kl`` of every window, to judge how far it holds on fresh text.
        tokens: how many positions were measured; ``cost``: full-forward-equivalent tokens spent.
        seconds: wall time on the evaluator.
        windows: hash of the token windows; ``preparation``: hash of the preparation.
        margins: first-order changes of KL, ``num_sites x max_levels`` row by row, on other windows of the same text,
            where the strategy's KL is ``margins_kl``; () when they were not asked for (unicuco/margins.py).
        finished: Unix time at which the measurement ended.
    """

    eval_id: str
    levels: tuple[int, ...]
    origin: str
    params: int
    kept: float
    kl: float
    kl_reverse: float
    perplexity: float
    domains: tuple[str, ...]
    domain_kl: tuple[float, ...]
    tokens: int
    cost: float
    seconds: float
    dtype: str
    device: str
    threads: int
    seed: int
    preparation: str
    windows: str
    window_kl: tuple[float, ...] = ()
    predicted_log_kl: float = math.nan
    predicted_sigma: float = math.nan
    policy_version: int = 0
    finished: float = field(default_factory=time.time)
    margin_group: int = -1
    margins_kl: float = math.nan
    margins: tuple[float, ...] = ()

    @property
    def evaluations(self) -> float:
        """``cost`` in standard evaluations."""
        return self.cost / self.tokens

    def levels_array(self) -> np.ndarray:
        return np.asarray(self.levels, dtype=np.int64)


_LISTS = {
    "levels": pa.list_(pa.int32()),
    "domains": pa.list_(pa.string()),
    "domain_kl": pa.list_(pa.float64()),
    "window_kl": pa.list_(pa.float64()),
    "margins": pa.list_(pa.float32()),
}
_SCALARS = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
SCHEMA = pa.schema(
    [(f.name, _LISTS[f.name] if f.name in _LISTS else _SCALARS[str(f.type)]) for f in dataclasses.fields(Evaluation)]
)


def write_evaluations(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Writes evaluations as one Parquet file, atomically."""
    rows = [vars(evaluation) for evaluation in evaluations]
    # A few at a time: each conversion holds the GIL, and margins are thousands of numbers a row.
    parts = [pa.Table.from_pylist(rows[i : i + 16], schema=SCHEMA) for i in range(0, len(rows), 16)]
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    with atomic_file(path) as scratch:
        pq.write_table(table, scratch)


def read_evaluations(path: Path) -> list[Evaluation]:
    """Reads one Parquet file of evaluations.

    Raises:
        EvaluationLogError: not a Parquet file of evaluations.
    """
    try:
        rows = pq.read_table(path).select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise EvaluationLogError(f"{path} is not a file of evaluations: {error}") from error
    for row in rows:
        for name in _LISTS:
            row[name] = tuple(row[name])
    return [Evaluation(**row) for row in rows]


def unseen(evaluations: Iterable[Evaluation], seen: Container[str]) -> dict[str, Evaluation]:
    """Those whose id is not in ``seen``, by id, in order; the first of an id counts."""
    new: dict[str, Evaluation] = {}
    for evaluation in evaluations:
        if evaluation.eval_id not in seen:
            new.setdefault(evaluation.eval_id, evaluation)
    return new


class EvaluationLog:
    """An append-only folder of evaluations.

    ``append`` returns once the evaluation is on disk. Several parts per run; ``compact`` merges them at the end.
    One writer per folder; any number of readers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._seen = {evaluation.eval_id for evaluation in self.read()}

    def __contains__(self, eval_id: str) -> bool:
        return eval_id in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def append(self, *evaluations: Evaluation) -> int:
        """Puts those whose id is not there yet on disk, all in one part, and returns how many that were.

        Raises:
            DiskFullError: nothing was written.
        """
        new = unseen(evaluations, self._seen)
        if new:
            self._write(f"part-{min(new)}", list(new.values()))
            self._seen |= new.keys()
        return len(new)

    def _write(self, name: str, evaluations: list[Evaluation]) -> None:
        """Puts a part where it counts."""
        write_evaluations(self.folder / f"{name}.parquet", evaluations)

    def read(self) -> list[Evaluation]:
        """Every evaluation on disk, once each, in the order in which they finished."""
        while True:
            paths = sorted(self.folder.glob("*.parquet"))
            try:
                found = [evaluation for path in paths for evaluation in read_evaluations(path)]
                break
            except EvaluationLogError:
                if all(path.exists() for path in paths):
                    raise
                # Another process merged the parts while we were reading them: look again.
        once = {evaluation.eval_id: evaluation for evaluation in reversed(found)}
        return sorted(once.values(), key=lambda evaluation: (evaluation.finished, evaluation.eval_id))

    def compact(self) -> None:
        """Merges all parts into one; a crash in between leaves duplicates that ``read`` drops."""
        parts = sorted(self.folder.glob("part-*.parquet"))
        if parts:
            write_evaluations(self.folder / "evaluations.parquet", self.read())
            for part in parts:
                part.unlink(missing_ok=True)  # another process may have merged the same parts
