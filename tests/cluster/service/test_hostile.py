"""Calls that nobody with good intentions makes, beside those of test_answers: each gets its documented refusal."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.cluster.service.conftest import config_of, serving

JSON = {"content-type": "application/json"}
ZIPPED = JSON | {"content-encoding": "gzip"}
XML, PICKLE = {"content-type": "text/xml"}, {"content-type": "application/x-python-pickle"}
NOBODY = f"/v1/checkpoints/c-{'0' * 24}"
ORDER = '{"request": {"kept": 0.7}}'


@pytest.fixture(scope="module")
def client(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(config_of(tiny_run, tmp_path_factory.mktemp("hostile"))) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        ("POST", "/v1/checkpoints", JSON, '{"request": {"kept": 0.7}, "layout": "../../x"}', 422, "invalid"),
        ("POST", "/v1/checkpoints", JSON, '{"request": {"kept": NaN}}', 422, "invalid"),
        ("POST", "/v1/checkpoints", JSON, '{"request": {"kept": 0.7}, "output": "/etc"}', 422, "invalid"),
        ("POST", "/v1/checkpoints", JSON, '{"request": {"kept": 0.7}, "policy": {"$ne": null}}', 422, "invalid"),
        ("POST", "/v1/checkpoints", JSON, '{"request": ' * 5000 + "1" + "}" * 5000, 400, "bad_request"),
        ("POST", "/v1/checkpoints", JSON | {"idempotency-key": "k" * 201}, ORDER, 422, "invalid"),
        ("POST", "/v1/checkpoints", JSON | {"idempotency-key": "a b"}, ORDER, 422, "invalid"),
        ("POST", "/v1/checkpoints", XML, "<!DOCTYPE x SYSTEM '/etc/passwd'>", 415, "wrong_content_type"),
        ("POST", "/v1/checkpoints", PICKLE, b"\x80\x04.", 415, "wrong_content_type"),
        ("POST", "/v1/answers", ZIPPED, gzip.compress(b" " * 100_000_000), 400, "bad_request"),
        ("POST", "/v1/answers", JSON, b'{"requests": [{"id": "\xff"}]}', 400, "bad_request"),
        ("POST", "/v1/answers", JSON, b"\x00" * 1000, 400, "not_json"),
        ("GET", f"{NOBODY}/files/..%2f..%2fjobs.sqlite", {}, None, 404, "not_found"),
        ("GET", f"{NOBODY}/files/%2e%2e", {}, None, 404, "unknown_checkpoint"),
        ("GET", f"{NOBODY}/files/{'a' * 300}", {}, None, 422, "invalid"),
        ("GET", "/v1/checkpoints/..%2f..%2fetc%2fpasswd", {}, None, 404, "not_found"),
        ("GET", "/v1/checkpoints/c-' OR 1=1 --", {}, None, 422, "invalid"),
        ("GET", "/v1/checkpoints?limit=1000000000", {}, None, 422, "invalid"),
        ("GET", "/v1/checkpoints?after=c-0'; DROP TABLE checkpoints", {}, None, 422, "invalid"),
        ("GET", f"{NOBODY}/events", {"last-event-id": "-1"}, None, 422, "invalid"),
        ("GET", f"{NOBODY}/events", {"last-event-id": "9" * 30}, None, 422, "invalid"),
        ("DELETE", NOBODY, {}, None, 404, "unknown_checkpoint"),
        ("GET", "/v1/policies/%00/front", {}, None, 422, "invalid"),
        ("TRACE", "/v1/answers", {}, None, 405, "method_not_allowed"),
    ],
)  # fmt: skip
def test_it_is_refused_as_documented(
    client: TestClient,
    method: str,
    path: str,
    headers: dict[str, str],
    body: str | bytes | None,
    status: int,
    code: str,
) -> None:
    reply = client.request(method, path, headers=headers, content=body)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/problem+json" and "Traceback" not in reply.text
    assert client.get("/v1/checkpoints").json()["checkpoints"] == [], "nothing was entered"
