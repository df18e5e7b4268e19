"""Requests: what can be asked, and errors that name file, line and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicuco.errors import RequestError
from unicuco.request import Request, parse_request, read_requests

BOUNDS = {
    "kept": st.floats(0, 1, exclude_min=True),
    "ratio": st.floats(0, 1, exclude_min=True),
    "params": st.integers(1, 10**12),
    "bytes": st.integers(1, 10**12),
}


@given(st.dictionaries(st.sampled_from(sorted(BOUNDS)), st.none(), min_size=1).flatmap(
    lambda keys: st.fixed_dictionaries({key: BOUNDS[key] for key in keys})
))  # fmt: skip
def test_a_request_survives_json(bounds: dict[str, Any]) -> None:
    request = Request(id="a", **bounds)
    assert parse_request(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "dictionary"),
        ("{}", "give at least one of"),
        ('{"id": "a"}', "give at least one of"),
        ('{"kept": 1.5}', "kept: .*less than or equal to 1"),
        ('{"kept": 0}', "kept: .*greater than 0"),
        ('{"ratio": "small"}', "ratio: "),
        ('{"ratio": NaN}', "ratio: "),
        ('{"params": -5}', "params: .*greater than 0"),
        ('{"bytes": 0.5}', "bytes: "),
        ('{"max_kl": 0}', "max_kl: .*greater than 0"),
        ('{"latency": 5}', "latency: "),
        ('{"preference": [0, 0]}', "not both zero"),
        ('{"preference": [-1, 2]}', "non-negative"),
        ('{"preference": [1, Infinity]}', "non-negative weights"),
        ('{"preference": [1, 1, 1]}', "preference"),
        ('{"preference": [1, 1], "max_kl": 0.1}', "not both"),
        ('{"preference": {}, "kept": 0.5}', "non-negative weights, not all zero"),
        ('{"preference": {"code": -1, "size": 2}}', "non-negative weights, not all zero"),
        ('{"preference": {"code": "much"}, "kept": 0.5}', "preference.code: "),
        ('{"preference": {"code": 1}}', "needs a bound on size, or max_kl"),
        ('{"preference": {"code": 1, "size": 1}, "max_kl": 0.1}', "not both"),
        ('{"max_kl": {}}', "max_kl: .*at least 1"),
        ('{"max_kl": {"code": 0}}', "max_kl.code: .*greater than 0"),
        ('{"max_kl": "small"}', "max_kl: .*number"),
    ],
)
def test_errors_name_the_place_and_the_field_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(text)
    file = tmp_path / "requests.jsonl"
    file.write_text('{"kept": 0.5}\n\n' + text + "\n")
    with pytest.raises(RequestError, match=message) as caught:
        read_requests(file)
    assert str(caught.value).startswith(f"{file}, line 3: ") and "\n" not in str(caught.value)


NAMES = st.sampled_from(["size", "code", "prose"])


@given(
    st.dictionaries(NAMES, st.floats(1e-3, 1e6), min_size=1),
    st.dictionaries(NAMES, st.floats(1e-6, 10), min_size=1),
    st.booleans(),
)
def test_preferences_and_bounds_by_name_survive_json(
    weights: dict[str, float], bounds: dict[str, float], bounded: bool
) -> None:
    request = Request(preference=weights, kept=0.5)
    assert parse_request(request.model_dump_json()) == request and request.weighs_costs == ("size" in weights)
    request = Request(max_kl=bounds, kept=0.5 if bounded else None)
    assert parse_request(request.model_dump_json()) == request and request.bounds_size == bounded


def test_a_file_is_read_in_order_without_its_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"id": "a\u2028b", "kept": 0.5}\r\n\n{"preference": [3, 1]}\n', encoding="utf-8")
    first, second = read_requests(file)
    assert first == Request(id="a\u2028b", kept=0.5) and second.preference == (3, 1)


def test_files_without_requests_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_requests(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RequestError, match="holds no request"):
        read_requests(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read"):
        read_requests(tmp_path / "binary.jsonl")
