"""Who writes to a run at a URI: one process at a time, as far as a store without locks allows it.

A writer puts a claim beside the run and renews it every few seconds. Another one watches the claim before it takes
over: while it is renewed, its writer lives. No clock is compared with another machine's.

What that cannot promise: a writer that hangs, or is cut off, for longer than ``DEAD_SECONDS`` and then goes on has
been replaced; it notices at its next renewal, and can until then still add evaluations. Each of them is whole and
counts; if both measured under one id, every reader keeps the same one of the two.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable

from cluster.runs import RunError
from unicuco.errors import RemoteError
from unicuco.remote.documents import Document, latest, put_document, remove_document
from unicuco.remote.store import Store

LOG = logging.getLogger("unicuco.run")
SUBJECT = "writer"
BEAT_SECONDS = 8.0
DEAD_SECONDS = 40.0
"""A claim that has not been renewed for so long has no writer any more."""
LOOK_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""Who claims at the same moment has written by then, and the store's order decides."""


class LeaseError(RunError):
    """Another process writes to the run."""


class Lease:
    """One process's claim on the run at ``store``."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.owner = uuid.uuid4().hex
        self._place = ""
        self._lost: LeaseError | None = None
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self._also: Callable[[], None] = lambda: None

    def claim(self, place: str, tell: Callable[[str], None], beat: Callable[[], None]) -> None:
        """Takes the run, and renews the claim in a thread until ``release``.

        Args:
            place: names the working folder, which the caller has locked: an earlier writer in it is known to be gone.
            tell: is told when another writer must be watched first.
            beat: called at every renewal, and once at the end.

        Raises:
            LeaseError: another process writes to it. RemoteError: the store cannot be used.
        """
        self._place, self._lost, self._also = place, None, beat
        self._stop.clear()
        found = latest(self.store, SUBJECT)
        if found is not None and found.json().get("place") != place:
            self._watch(found, tell)
        self._put()
        self._stop.wait(SETTLE_SECONDS)
        self._refuse_other()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._beating.start()

    def check(self) -> None:
        """Raises LeaseError where another process has taken over."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Ends the claim; the next writer need not wait."""
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        if self._lost is None:
            try:
                self._also()
                remove_document(self.store, SUBJECT)
            except RemoteError as error:  # the claim runs out by itself
                LOG.warning("the claim stays: %s", error)

    def _watch(self, found: Document, tell: Callable[[str], None]) -> None:
        """Returns once the claim has not been renewed for DEAD_SECONDS, or is gone."""
        host = found.json().get("host", "another machine")
        tell(
            f"{self.store.uri} was last written by a process on {host}; waiting {DEAD_SECONDS:.0f} s for a sign of it."
        )
        end = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            now = latest(self.store, SUBJECT)
            if now is None:
                return
            if now.name != found.name:
                raise LeaseError(
                    f"Another process (on {now.json().get('host', '?')}) is training in {self.store.uri}; wait for "
                    "it, or stop it first."
                )

    def _put(self) -> None:
        about = {"owner": self.owner, "place": self._place, "host": socket.gethostname(), "time": time.time()}
        put_document(self.store, SUBJECT, json.dumps(about).encode())

    def _refuse_other(self) -> None:
        found = latest(self.store, SUBJECT)
        if found is None or found.json().get("owner") != self.owner:
            host = "another machine" if found is None else found.json().get("host", "another machine")
            raise LeaseError(
                f"Another process (on {host}) has taken over the run at {self.store.uri}; this one ends. What it "
                "measured until then is there."
            )

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._refuse_other()
                self._put()
                self._also()
            except LeaseError as error:
                self._lost = error
                return
            except RemoteError as error:  # what counts is written, and fails, elsewhere
                LOG.warning("the claim was not renewed: %s", error)
