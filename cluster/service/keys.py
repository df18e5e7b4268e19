"""API keys: made here, shown once, kept as hashes; and how much each may ask per second.

A key is 32 random bytes, so a plain SHA-256 of it is as hard to turn back as the key is to guess; slow hashes are for
passwords that people choose.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.service.config import ServiceError
from cluster.service.problems import ProblemError
from unicuco.storage import write_json
from unicuco.wire import NAME

PREFIX = "ucc_"
ANYBODY = "anybody"
"""Who asks where no keys are set."""


@dataclass(frozen=True)
class KeyFile:
    """Hashes of keys by name, in a JSON file that only its owner reads."""

    path: Path

    def read(self) -> dict[str, str]:
        """Hashes by name.

        Raises:
            ServiceError: there is no such file, or it is broken.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))["keys"]
            return {str(name): str(entry["sha256"]) for name, entry in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServiceError(f"{self.path} is no file of API keys; make one by 'unicuco keys add NAME'.") from error

    def add(self, name: str) -> str:
        """Makes a key for ``name`` and returns it; only its hash is kept.

        Raises:
            ServiceError: the name is taken or not allowed.
        """
        if not NAME.fullmatch(name):
            raise ServiceError(f"'{name}' is no name for a key: small letters, digits, '.', '_', '-', at most 64.")
        known = self._entries()
        if name in known:
            raise ServiceError(f"There is a key for '{name}' already; remove it first to make another.")
        key = PREFIX + secrets.token_urlsafe(32)
        known[name] = {"sha256": digest(key), "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self._write(known)
        return key

    def remove(self, name: str) -> None:
        """Raises ServiceError where there is none."""
        known = self._entries()
        if name not in known:
            raise ServiceError(f"There is no key for '{name}'; there are {', '.join(known) or 'none'}.")
        del known[name]
        self._write(known)

    def _entries(self) -> dict[str, dict[str, str]]:
        if not self.path.exists():
            return {}
        self.read()
        return dict(json.loads(self.path.read_text(encoding="utf-8"))["keys"])

    def _write(self, entries: dict[str, dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"keys": entries})
        self.path.chmod(0o600)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Who a key belongs to. A changed file counts within a second, without a restart."""

    def __init__(self, path: Path | None) -> None:
        self._file = KeyFile(path) if path else None
        self._hashes: dict[str, str] = self._file.read() if self._file else {}
        self._stamp, self._looked = self._changed(), time.monotonic()

    def owner(self, authorization: str | None) -> str:
        """The name of the key in an ``Authorization`` header.

        Raises:
            ProblemError: 401, the same for a missing and a wrong key.
        """
        if self._file is None:
            return ANYBODY
        self._reread()
        scheme, _, key = (authorization or "").partition(" ")
        found, given = "", digest(key.strip())
        for name, known in self._hashes.items():  # all of them: the time says nothing of which
            if hmac.compare_digest(known, given):
                found = name
        if scheme.lower() != "bearer" or not found:
            raise ProblemError(401, "no_key", "Send an API key of this service: 'Authorization: Bearer ucc_...'.")
        return found

    def _changed(self) -> float:
        try:
            return self._file.path.stat().st_mtime if self._file else 0.0
        except OSError:
            return 0.0

    def _reread(self) -> None:
        assert self._file is not None
        if time.monotonic() - self._looked < 1.0:
            return
        self._looked = time.monotonic()
        if (stamp := self._changed()) != self._stamp:
            with suppress(ServiceError):  # being written, or broken: those that were known stay
                self._hashes, self._stamp = self._file.read(), stamp


class RateLimit:
    """A token bucket per key: ``per_second`` calls on average, twice as many at once."""

    MOST_KEYS = 10_000

    def __init__(self, per_second: float) -> None:
        self._rate, self._burst = per_second, max(1.0, 2 * per_second)
        self._buckets: dict[str, tuple[float, float]] = {}

    def spend(self, owner: str, now: float | None = None) -> None:
        """One call of ``owner``.

        Raises:
            ProblemError: 429, with the seconds to wait.
        """
        now = time.monotonic() if now is None else now
        left, then = self._buckets.get(owner, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        if left < 1:
            wait = (1 - left) / self._rate
            raise ProblemError(429, "too_many_calls", f"More than {self._rate:g} calls a second with one key.", wait)
        if len(self._buckets) >= self.MOST_KEYS and owner not in self._buckets:
            self._buckets.clear()
        self._buckets[owner] = (left - 1, now)
