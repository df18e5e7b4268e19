"""A client of a UniCuCo service: answers, checkpoints from the order to the files on this disk.

    from unicuco.client import Client

    with Client("http://127.0.0.1:8000") as service:
        answer, = service.answer([{"kept": 0.7}])
        made = service.wait(service.order({"kept": 0.7}).id)
        service.download(made.id, Path("checkpoints/small"))

What can be repeated is repeated: calls that were refused for load (429, 503, after the time that the service says) or
whose connection broke; an order carries a key of its own, so that a repeated one is entered once.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from unicuco.errors import UniCuCoError
from unicuco.request import Answer, Request
from unicuco.storage import atomic_folder
from unicuco.wire import (
    ENDED,
    AnswersReply,
    Checkpoint,
    CheckpointFile,
    CheckpointList,
    Event,
    Front,
    PolicyDescription,
    PolicyList,
    Problem,
)

Model = TypeVar("Model", bound=BaseModel)
Asked = Request | Mapping[str, Any]
KEY_VARIABLE = "UNICUCO_KEY"
_AGAIN = (429, 503)
_LONGEST_PAUSE = 30.0


class ServiceCallError(UniCuCoError):
    """The service refused a call, or does not answer. ``status`` 0: it does not answer."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Client:
    """Calls one service. Not shared between threads.

    Args:
        url: where it listens, e.g. ``http://127.0.0.1:8000``.
        key: API key; else that of the environment (``UNICUCO_KEY``), if any.
        policy: which of its policies to ask, where it has several.
        patience: seconds over which a call is repeated before it counts as failed.
    """

    def __init__(
        self, url: str, key: str | None = None, policy: str | None = None, timeout: float = 30.0, patience: float = 60.0
    ) -> None:
        key = key or os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.policy, self._patience = policy, patience
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("it should be http://HOST:PORT")
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServiceCallError(0, "bad_address", f"'{url}' is no address of a service: {error}") from error
        self.url = url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # -- answers --------------------------------------------------------------------------------------------------

    def policies(self) -> list[PolicyDescription]:
        return self._get("/v1/policies", PolicyList).policies

    def front(self, policy: str) -> Front:
        return self._get(f"/v1/policies/{policy}/front", Front)

    def answer(self, requests: Sequence[Asked]) -> list[Answer]:
        """An answer to every request, in order.

        Raises:
            ServiceCallError: the service refuses them, or does not answer.
        """
        return self.reply(requests).answers

    def reply(self, requests: Sequence[Asked]) -> AnswersReply:
        """The same, with the policy and the version that answered."""
        body = {"policy": self.policy, "requests": [_plain(request) for request in requests]}
        return self._read(self._call("POST", "/v1/answers", json=body), AnswersReply)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def order(self, request: Asked, layout: str = "hetero", key: str | None = None) -> Checkpoint:
        """Enters a checkpoint to be built.

        Args:
            key: the order's own name; an order that is repeated with it, by whoever, is entered once.
        """
        body = {"policy": self.policy, "request": _plain(request), "layout": layout}
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        return self._read(self._call("POST", "/v1/checkpoints", json=body, headers=headers), Checkpoint)

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        return self._get(f"/v1/checkpoints/{checkpoint_id}", Checkpoint)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """All of yours, newest first."""
        after: str | None = None
        while True:
            query = {"after": after} if after else {}
            page = self._read(self._call("GET", "/v1/checkpoints", params=query), CheckpointList)
            yield from page.checkpoints
            if (after := page.next) is None:
                return

    def cancel(self, checkpoint_id: str) -> Checkpoint:
        return self._read(self._call("DELETE", f"/v1/checkpoints/{checkpoint_id}"), Checkpoint)

    def events(self, checkpoint_id: str) -> Iterator[Event]:
        """Its steps as they happen, each once, until it has ended; lost connections are taken up again."""
        seen, until = 0, time.monotonic() + self._patience
        while True:
            try:
                headers = {"Last-Event-ID": str(seen)}
                with self._http.stream("GET", f"/v1/checkpoints/{checkpoint_id}/events", headers=headers) as stream:
                    if stream.status_code != 200:
                        stream.read()
                        raise _refusal(stream)
                    for line in stream.iter_lines():
                        until = time.monotonic() + self._patience
                        if line.startswith("data: "):
                            event = Event.model_validate_json(line[6:])
                            seen = event.seq
                            yield event
                            if event.state in ENDED:
                                return
                if self.checkpoint(checkpoint_id).state in ENDED:
                    return
            except httpx.TransportError as error:
                if time.monotonic() > until:
                    raise self._silent(error) from error
            except ServiceCallError as error:
                if error.status not in _AGAIN or time.monotonic() > until:
                    raise
            time.sleep(0.5)

    def wait(self, checkpoint_id: str, told: Callable[[Event], None] = lambda event: None) -> Checkpoint:
        """The checkpoint when it has ended, ``told`` its steps on the way.

        Raises:
            ServiceCallError: it could not be built, or was cancelled.
        """
        for event in self.events(checkpoint_id):
            told(event)
        ended = self.checkpoint(checkpoint_id)
        if ended.state != "done":
            raise ServiceCallError(409, ended.state, f"The checkpoint is {ended.state}. {ended.error or ''}".strip())
        return ended

    def download(
        self, checkpoint_id: str, folder: Path, told: Callable[[int, int], None] = lambda done, all_: None
    ) -> Path:
        """Fetches all files into ``folder``, which must not exist; it appears when all of them are there and right.

        Args:
            told: bytes so far, and of all files.

        Raises:
            ServiceCallError: it is not done, or a file arrives different from what was built.
            DiskFullError: nothing is left behind.
        """
        result = self.checkpoint(checkpoint_id).result
        if result is None:
            raise ServiceCallError(409, "not_done", "The checkpoint is not done; there are no files.")
        done = 0

        def count(received: int) -> None:
            nonlocal done
            done += received
            told(done, result.bytes)

        if Path(folder).exists():
            raise ServiceCallError(0, "exists", f"{folder} exists already; choose another folder.")
        with atomic_folder(Path(folder)) as scratch:
            for file in result.files:
                if Path(file.name).name != file.name:
                    raise ServiceCallError(0, "bad_file", f"The service names a file '{file.name}'.")
                self._fetch(checkpoint_id, file, scratch / file.name, count)
        return Path(folder)

    def _fetch(self, checkpoint_id: str, file: CheckpointFile, target: Path, count: Callable[[int], None]) -> None:
        digest, size, until = hashlib.sha256(), 0, time.monotonic() + self._patience
        with open(target, "wb") as out:
            while size < file.bytes:
                try:
                    headers = {"Range": f"bytes={size}-"} if size else {}
                    path = f"/v1/checkpoints/{checkpoint_id}/files/{file.name}"
                    with self._http.stream("GET", path, headers=headers) as stream:
                        if stream.status_code != (206 if size else 200):
                            stream.read()
                            raise _refusal(stream)
                        for part in stream.iter_bytes(1 << 20):
                            out.write(part)
                            digest.update(part)
                            size += len(part)
                            count(len(part))
                            until = time.monotonic() + self._patience
                except httpx.TransportError as error:
                    if time.monotonic() > until:
                        raise self._silent(error) from error
                    time.sleep(0.5)
        if size != file.bytes or digest.hexdigest() != file.sha256:
            raise ServiceCallError(0, "bad_file", f"{file.name} arrived different from what was built; fetch it again.")

    # -- calls ----------------------------------------------------------------------------------------------------

    def _get(self, path: str, model: type[Model]) -> Model:
        return self._read(self._call("GET", path), model)

    def _call(self, method: str, path: str, **given: Any) -> httpx.Response:
        """One call, repeated while the service is busy or cannot be reached, within the client's patience."""
        until, pause = time.monotonic() + self._patience, 0.2
        while True:
            try:
                reply = self._http.request(method, path, **given)
                if reply.status_code not in _AGAIN:
                    break
                asked = reply.headers.get("retry-after", "")
                wait = max(pause, float(asked) if asked.isdigit() else 0.0)
                if time.monotonic() + wait > until:
                    break
            except httpx.TransportError as error:
                wait = pause
                if time.monotonic() + wait > until:
                    raise self._silent(error) from error
            time.sleep(min(wait, _LONGEST_PAUSE) * random.uniform(1.0, 1.2))  # not all callers at once again
            pause = min(2 * pause, _LONGEST_PAUSE)
        if reply.status_code >= 400:
            raise _refusal(reply)
        return reply

    def _read(self, reply: httpx.Response, model: type[Model]) -> Model:
        try:
            return model.model_validate_json(reply.content)
        except ValidationError as error:
            raise ServiceCallError(0, "not_ours", f"{self.url} answers, but not as a UniCuCo service.") from error

    def _silent(self, error: Exception) -> ServiceCallError:
        return ServiceCallError(0, "no_answer", f"The service at {self.url} does not answer: {error}.")


def _plain(request: Asked) -> dict[str, Any]:
    if isinstance(request, Request):
        return request.model_dump(mode="json", exclude_none=True)
    return dict(request)


def _refusal(reply: httpx.Response) -> ServiceCallError:
    try:
        told = Problem.model_validate_json(reply.content)
        return ServiceCallError(told.status, told.code, told.detail)
    except ValidationError:
        return ServiceCallError(reply.status_code, "error", f"The service answers {reply.status_code}.")
