"""One writer at a time at a URI, as far as a store without locks allows it."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from cluster import lease as module
from cluster.lease import Lease, LeaseError
from unicuco.remote.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.1), ("DEAD", 0.8), ("LOOK", 0.05), ("SETTLE", 0.05)):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)


@pytest.fixture
def uri() -> str:
    return f"memory://{uuid.uuid4().hex}/run"


def claimed(uri: str, place: str, told: list[str] | None = None) -> Lease:
    lease = Lease(Store(uri))
    lease.claim(place, (told if told is not None else []).append, lambda: None)
    return lease


def die(lease: Lease) -> None:
    """As a killed process: nothing is renewed or released any more."""
    lease._stop.set()
    assert lease._beating is not None
    lease._beating.join()


def test_a_second_writer_is_refused_while_the_first_lives(uri: str) -> None:
    told: list[str] = []
    first = claimed(uri, "here", told)
    assert told == []
    with pytest.raises(LeaseError, match=r"Another process .* is training in memory://"):
        claimed(uri, "there", told)
    assert "was last written by a process on" in told[0]
    first.check()
    first.release()
    claimed(uri, "there").release()
    assert Store(uri).names(module.SUBJECT) == {}


def test_a_dead_writer_is_replaced_after_a_while_and_at_once_in_its_own_folder(uri: str) -> None:
    die(claimed(uri, "here"))
    began = time.monotonic()
    again = claimed(uri, "here")
    assert time.monotonic() - began < 0.6
    die(again)
    began = time.monotonic()
    claimed(uri, "there").release()
    assert time.monotonic() - began > 0.8


def test_a_writer_that_was_cut_off_learns_that_it_has_been_replaced(uri: str) -> None:
    first = claimed(uri, "here")
    die(first)
    second = claimed(uri, "there")
    first._stop.clear()  # the network is back
    first._beat()
    with pytest.raises(LeaseError, match="has taken over the run"):
        first.check()
    first.release()
    second.check()
    assert Store(uri).names(module.SUBJECT), "the claim of the new writer stays"
    second.release()


def test_of_many_at_the_same_moment_one_stays(uri: str) -> None:
    for _ in range(10):
        place = f"{uri}/{uuid.uuid4().hex}"
        leases = [Lease(Store(place)) for _ in range(6)]
        winners = []

        def claim(lease: Lease, place: str = place, winners: list[Lease] = winners) -> None:
            try:
                lease.claim(uuid.uuid4().hex, lambda text: None, lambda: None)
                winners.append(lease)
            except LeaseError:
                pass

        threads = [threading.Thread(target=claim, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.3)
        assert sum(lease._lost is None for lease in winners) == 1
        for lease in winners:
            lease.release()


def test_what_is_told_at_every_beat_is_told_at_the_end_too(uri: str) -> None:
    beats: list[float] = []
    lease = Lease(Store(uri))
    lease.claim("here", lambda text: None, lambda: beats.append(time.monotonic()))
    time.sleep(0.35)
    lease.release()
    assert len(beats) >= 3
