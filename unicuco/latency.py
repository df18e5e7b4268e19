"""Measured latency: what is measured, and the additive table that comes of it (``unicuco profile``).

    latency(strategy) ≈ fixed + Σ over blocks of attention_ms[KV groups left] + mlp_ms[neurons left]

Costs are kept by width and not by level, so that one table serves every search space of its base model. Between
measured widths they are linear; a dropped sublayer costs nothing. A table depends on the base model's shape alone, not
on its weights. (Ours; measured in docs/decisions.md.)
"""

from __future__ import annotations

import json
import re
import statistics
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field, ValidationError, model_validator

from unicuco.errors import UniCuCoError
from unicuco.models.geometry import Geometry
from unicuco.request import TABLE_NAME, explain_validation
from unicuco.space import SearchSpace, Shape
from unicuco.storage import content_hash, write_json

FORMAT = 1
FOLDER = "latency"
"""Where a run or policy folder keeps its tables, ``latency/NAME.json``."""
NANOSECONDS = 1_000_000
"""In a millisecond: tables are summed in whole nanoseconds, so that no bound is passed by a rounding."""


class LatencyError(UniCuCoError):
    """A latency table is missing, damaged, or of another base model; or this device cannot measure what is asked."""


class LatencyConfig(Config):
    """What is measured, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    threads: int | None = Field(default=None, ge=1)
    """Torch threads on a CPU; None leaves torch's own choice."""
    mode: Literal["prefill", "decode"] = "decode"
    """``prefill``: a text is read at once, up to its next token. ``decode``: one more token of a text that was read."""
    batch: int = Field(default=1, ge=1)
    """Sequences at once."""
    tokens: int = Field(default=512, ge=1)
    """Prefill: tokens of every sequence."""
    context: int = Field(default=512, ge=1)
    """Decode: tokens of every sequence in the KV cache."""
    clock: Literal["wall", "processor"] = "wall"
    """``processor``: time that the processor spent on this thread. On a busy machine it says what an idle one takes."""

    @model_validator(mode="after")
    def _one_thread_has_a_clock(self) -> LatencyConfig:
        if self.clock == "processor" and (self.device != "cpu" or self.threads != 1):
            raise ValueError("the processor's clock is of one thread: it needs device 'cpu' and threads 1")
        return self

    def describe(self) -> str:
        """In a few words."""
        what = f"prefill of {self.tokens}" if self.mode == "prefill" else f"decode after {self.context}"
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{what} tokens, batch {self.batch}, {self.dtype} on {self.device}{threads}"


class SublayerTimes(Config):
    """Milliseconds of one kind of sublayer by what is left of it: KV groups, or neurons."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] = Field(min_length=1)
    ms: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _grows(self) -> SublayerTimes:
        if len(self.widths) != len(self.ms) or self.widths[0] < 1 or (np.diff(self.widths) < 1).any():
            raise ValueError("widths ascend from 1 on, and each has its milliseconds")
        if not (np.isfinite(self.ms).all() and self.ms[0] > 0 and (np.diff(self.ms) >= 0).all()):
            raise ValueError("milliseconds are positive and do not fall with the width")
        return self

    def at(self, width: int) -> float:
        """Linear between measured widths; 0: dropped, and costs nothing."""
        return float(np.interp(width, self.widths, self.ms)) if width else 0.0


class BlockTimes(Config):
    """Of all blocks of one shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attention: SublayerTimes
    mlp: SublayerTimes


class Check(Config):
    """One whole strategy that the table did not see."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept: float
    predicted_ms: float = Field(gt=0, allow_inf_nan=False)
    measured_ms: float = Field(gt=0, allow_inf_nan=False)

    @property
    def error(self) -> float:
        """Relative; above 0: predicted too slow."""
        return self.predicted_ms / self.measured_ms - 1


class LatencyTable(Config):
    """What every width of every block costs on one device, for one workload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    config: LatencyConfig
    model: dict[str, str]
    """``spec`` and ``digest`` of the base model that was measured."""
    geometry: Geometry
    fixed_ms: float = Field(gt=0, allow_inf_nan=False)
    """Embeddings, final norm, head and whatever else no strategy touches."""
    blocks: tuple[BlockTimes, ...] = Field(min_length=1)
    """Blocks of equal shape share their measurements."""
    times_of: tuple[int, ...]
    """For each block of the model, which of ``blocks`` it is."""
    checks: tuple[Check, ...] = ()
    surroundings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _complete(self) -> LatencyTable:
        if len(self.times_of) != len(self.geometry.blocks) or not set(self.times_of) <= set(range(len(self.blocks))):
            raise ValueError("every block of the base model has its times")
        for index, shape in zip(self.times_of, self.geometry.blocks, strict=True):
            found = self.blocks[index]
            if (found.attention.widths[-1], found.mlp.widths[-1]) != (shape.groups, shape.neurons):
                raise ValueError("the widest of each kind is the dense block's")
        return self

    @cached_property
    def digest(self) -> str:
        """The table's name: a hash over its content."""
        return content_hash(self.model_dump(mode="json"))

    @property
    def error(self) -> float:
        """The largest relative error on whole strategies that the table did not see; nan where none was measured."""
        return max((abs(check.error) for check in self.checks), default=float("nan"))

    @property
    def median_error(self) -> float:
        return statistics.median(abs(check.error) for check in self.checks) if self.checks else float("nan")

    def predict(self, shape: Shape) -> float:
        """Milliseconds of the model at ``shape``."""
        times = [self.blocks[index] for index in self.times_of]
        attention = sum(t.attention.at(groups) for t, groups in zip(times, shape.groups, strict=True))
        return self.fixed_ms + attention + sum(t.mlp.at(n) for t, n in zip(times, shape.neurons, strict=True))

    def check_space(self, space: SearchSpace) -> None:
        """Refuses a space of a base model of another shape.

        Raises:
            LatencyError: naming the model that was measured.
        """
        if self.geometry != space.geometry:
            raise LatencyError(
                f"The latency table was measured on {self.model.get('spec', 'another base model')}, whose blocks "
                "differ from those of the base model here; make one by 'unicuco profile'."
            )

    def nanoseconds(self, space: SearchSpace) -> tuple[np.ndarray, int]:
        """What a site costs at each level (``num_sites x max_levels``, the last one repeated), and the fixed part.

        Raises:
            LatencyError: the space is of another base model.
        """
        self.check_space(space)
        found: np.ndarray = np.zeros(space.levels.shape, dtype=np.int64)
        for i, site in enumerate(space.sites):
            times = self.blocks[self.times_of[site.block]]
            for j in range(found.shape[1]):
                level = site.levels[min(j, len(site.levels) - 1)]
                ms = times.attention.at(level.groups or 0) + times.mlp.at(level.neurons or 0)
                found[i, j] = round(ms * NANOSECONDS)
        return found, round(self.fixed_ms * NANOSECONDS)

    def save(self, path: Path) -> None:
        """Writes the table with its digest, atomically."""
        write_json(path, {**self.model_dump(mode="json"), "digest": self.digest})


class NamedTable(Config):
    """A table that a run learns by, under the name that requests know it by; as ``run.json`` and policies keep it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{TABLE_NAME}$")
    digest: str
    table: LatencyTable

    @model_validator(mode="after")
    def _whole(self) -> NamedTable:
        if self.digest != self.table.digest:
            raise ValueError("the table's content is not what its digest says")
        return self

    @classmethod
    def of(cls, name: str, table: LatencyTable) -> NamedTable:
        return cls(name=name, digest=table.digest, table=table)

    @classmethod
    def read(cls, path: Path) -> NamedTable:
        """The table at ``path``, under the name of its file.

        Raises:
            LatencyError: there is none, it is damaged, or of another format.
        """
        return cls.of(name_of(path), load_table(path))


def name_of(path: Path) -> str:
    """A table's name, from that of its file."""
    return re.sub(r"[^a-z0-9._-]", "-", Path(path).stem.lower()).lstrip("._-")[:64] or "given"


def read_tables(folder: Path) -> dict[str, LatencyTable]:
    """The tables, by name, of a policy folder and of the run that holds it: ``latency/NAME.json``.

    Raises:
        LatencyError: one is damaged, or its name cannot be asked for.
    """
    found = {}
    for path in _table_files(folder):
        if not re.fullmatch(TABLE_NAME, path.stem):
            raise LatencyError(f"{path}: a latency table's name is of lower-case letters, digits, '.', '_' and '-'.")
        found[path.stem] = load_table(path)
    return found


def tables_signature(folder: Path) -> str:
    """Changes whenever a table of ``read_tables`` comes, goes or is written anew."""
    return content_hash([[str(path), path.stat().st_mtime_ns] for path in _table_files(folder)])[:16]


def _table_files(folder: Path) -> list[Path]:
    folder = Path(folder)
    places = [folder, folder / "policy"]  # a run's, and those of the policy in it
    if (folder.parent / "run.json").is_file():
        places = [folder.parent, folder]
    return sorted(path for place in places for path in (place / FOLDER).glob("*.json"))


def load_table(path: Path) -> LatencyTable:
    """Reads a table.

    Raises:
        LatencyError: there is none, it is damaged, or of another format.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LatencyError(f"No latency table at {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise LatencyError(f"{path} is no latency table: it is not JSON.") from error
    if not isinstance(values, dict) or "times_of" not in values:
        raise LatencyError(f"{path} is no latency table; make one by 'unicuco profile'.")
    if values.get("format") != FORMAT:
        raise LatencyError(
            f"The latency table {path} has format {values.get('format')}; this version reads {FORMAT}: profile again."
        )
    digest = values.pop("digest", None)
    try:
        table = LatencyTable.model_validate(values)
    except ValidationError as error:
        raise LatencyError(f"The latency table {path} is damaged: {explain_validation(error)}.") from error
    if table.digest != digest:
        raise LatencyError(f"The latency table {path} is damaged: its content is not what its digest says.")
    return table
