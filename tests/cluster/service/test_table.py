"""The table of checkpoints: whatever callers, builders and restarts do, each checkpoint ends exactly once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cluster.service.problems import ProblemError
from cluster.service.table import ATTEMPTS, CheckpointTable, Order
from unicuco.request import Answer, Request
from unicuco.wire import ACTIVE, ENDED, CheckpointResult

RESULT = CheckpointResult(uri="file:///x", files=[], bytes=1, params=1, measured={}, verified=True, seconds=1.0)
ANSWER = Answer(
    id="", request=Request(kept=0.5), feasible=True, note="", levels=[1], strategy=[0.5], groups=[1], neurons=[1],
    params=1, bytes=2, kept=0.5, ratio=0.5, flops_per_token=1, kv_bytes_per_token=1, kl=0.1, kl_low=0.1, kl_high=0.1,
    preference=(0.5, 0.5), origin="stratnet",
)  # fmt: skip


def order(build: str, key: str | None = None, body: str = "") -> Order:
    return Order("tiny", "hetero", build, ANSWER, key, body)


POSTGRES = os.environ.get("UNICUCO_TEST_POSTGRES", "")
needs_postgres = pytest.mark.skipif(not POSTGRES, reason="UNICUCO_TEST_POSTGRES names no empty PostgreSQL database")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    empty(POSTGRES)
    return POSTGRES


def empty(url: str) -> None:
    engine = sa.create_engine(url)
    found = sa.MetaData()
    found.reflect(engine)
    found.drop_all(engine)
    engine.dispose()


@pytest.fixture
def table(url: str) -> Iterator[CheckpointTable]:
    table = CheckpointTable(url)
    yield table
    table.close()


def states(table: CheckpointTable, owner: str = "me") -> list[str]:
    return [checkpoint.state for checkpoint in reversed(table.page(owner, None, 100)[0])]


def test_equal_checkpoints_are_one_build(table: CheckpointTable) -> None:
    for build in ("a", "b", "a"):
        table.submit("me", order(build), 10)
    taken = table.take("tiny", [])
    assert taken is not None and taken.build == "a"
    assert states(table) == ["running", "queued", "running"]
    table.submit("you", order("a"), 10)  # comes while it is made
    other = table.take("tiny", [])
    assert other is not None and other.build == "b" and table.take("tiny", []) is None
    assert table.finish("a", RESULT, time.time() + 60) == 3
    assert states(table) == ["done", "running", "done"] and states(table, "you") == ["done"]
    assert table.built("a", time.time()) is not None and table.built("b", time.time()) is None


def test_a_state_that_nobody_is_in_any_more_counts_as_none(table: CheckpointTable) -> None:
    assert set(table.counts()) == {*ACTIVE, *ENDED} and not any(table.counts().values())
    table.submit("me", order("a"), 10)
    assert table.counts()["queued"] == 1
    table.take("tiny", [])
    assert (table.counts()["queued"], table.counts()["running"]) == (0, 1)


def test_the_same_key_enters_one_checkpoint(table: CheckpointTable) -> None:
    first, new = table.submit("me", order("a", "key-1", "body"), 10)
    again, second = table.submit("me", order("a", "key-1", "body"), 10)
    assert (new, second, again.id) == (True, False, first.id)
    with pytest.raises(ProblemError, match="another body"):
        table.submit("me", order("a", "key-1", "other"), 10)
    assert table.submit("you", order("a", "key-1", "other"), 10)[1]


def test_others_checkpoints_are_not_there(table: CheckpointTable) -> None:
    mine, _ = table.submit("me", order("a"), 10)
    for look in (lambda: table.get("you", mine.id), lambda: table.cancel("you", mine.id)):
        with pytest.raises(ProblemError) as refused:
            look()
        assert refused.value.status == 404
    assert table.page("you", None, 10) == ([], None)


def test_too_many_under_way_are_refused(table: CheckpointTable) -> None:
    first, _ = table.submit("me", order("a"), 2)
    table.submit("me", order("b"), 2)
    with pytest.raises(ProblemError) as refused:
        table.submit("me", order("c"), 2)
    assert refused.value.status == 429 and refused.value.retry_after
    table.cancel("me", first.id)
    table.submit("me", order("c"), 2)


def test_pages_hold_everything_once(table: CheckpointTable) -> None:
    ids = [table.submit("me", order(str(i)), 100)[0].id for i in range(11)]
    found, after = [], None
    while True:
        page, after = table.page("me", after, 4)
        found += [checkpoint.id for checkpoint in page]
        if after is None:
            break
    assert found == ids[::-1]


def test_what_ran_at_a_crash_is_built_again_but_not_for_ever(url: str) -> None:
    CheckpointTable(url).submit("me", order("a"), 10)
    for attempt in range(ATTEMPTS):
        table = CheckpointTable(url)  # as if the process before had been killed
        table.requeue()
        assert states(table) == ["queued"], attempt
        assert table.take("tiny", []) is not None
    table.requeue()
    (ended,) = table.page("me", None, 10)[0]
    assert ended.state == "failed" and "lost" in str(ended.error)


def test_events_tell_every_step_in_order(table: CheckpointTable) -> None:
    mine, _ = table.submit("me", order("a"), 10)
    table.take("tiny", [])
    twin, _ = table.submit("me", order("a"), 10)
    for stage in ("pinning", "writing"):
        table.stage("a", stage)
    table.finish("a", RESULT, time.time() + 60)
    events = table.events("me", mine.id, 0)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert [(e.state, e.stage) for e in events] == [
        ("queued", ""), ("running", "starting"), ("running", "pinning"), ("running", "writing"), ("done", ""),
    ]  # fmt: skip
    assert [event.seq for event in table.events("me", mine.id, 3)] == [4, 5]
    assert [event.state for event in table.events("me", twin.id, 0)] == ["queued", "running", "running", "done"]


def test_files_go_when_nobody_has_a_claim_to_them(table: CheckpointTable) -> None:
    for build in ("a", "a", "b"):
        table.submit("me", order(build), 10)
    for _ in range(2):
        taken = table.take("tiny", [])
        assert taken is not None
        table.finish(taken.build, RESULT, time.time() + (5 if taken.build == "a" else 500))
    table.submit("you", order("a"), 10)  # still wants it
    assert table.expire(time.time() + 60) == [] and states(table) == ["expired", "expired", "done"]
    table.take("tiny", [])
    table.fail("a", "no")
    assert table.expire(time.time() + 1000) == ["b"]


class Life(RuleBasedStateMachine):
    """Random callers, builders, losses and restarts against one table."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        empty(self.url)
        self.table = CheckpointTable(self.url)
        self.known: dict[str, str] = {}
        self.building: list[str] = []

    def teardown(self) -> None:
        self.table.close()

    @rule(build=st.sampled_from("abc"))
    def submit(self, build: str) -> None:
        found, _ = self.table.submit("me", order(build), 1000)
        self.known[found.id] = "queued"

    @rule()
    def take(self) -> None:
        if taken := self.table.take("tiny", self.building):
            assert taken.build not in self.building
            self.building.append(taken.build)

    @rule(data=st.data(), good=st.booleans())
    def end(self, data: st.DataObject, good: bool) -> None:
        if self.building:
            build = data.draw(st.sampled_from(self.building))
            self.building.remove(build)
            self.table.finish(build, RESULT, time.time() + 100) if good else self.table.fail(build, "no")

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.building:
            build = data.draw(st.sampled_from(self.building))
            self.building.remove(build)
            self.table.requeue(build)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.known:
            self.table.cancel("me", data.draw(st.sampled_from(sorted(self.known))))

    @rule()
    def crash(self) -> None:
        self.table.close()
        self.table = CheckpointTable(self.url)
        self.table.requeue()
        self.building.clear()

    @invariant()
    def each_is_there_once_and_what_ended_stays(self) -> None:
        now = {checkpoint.id: checkpoint for checkpoint in self.table.page("me", None, 10_000)[0]}
        assert now.keys() == self.known.keys()
        for name, before in self.known.items():
            if before in ENDED:
                assert now[name].state == before
            events = self.table.events("me", name, 0)
            assert [e.seq for e in events] == list(range(1, len(events) + 1))
            assert sum(e.state in ENDED for e in events) == (now[name].state in ENDED)
            assert (now[name].result is not None) == (now[name].state == "done")
        self.known = {name: checkpoint.state for name, checkpoint in now.items()}


def test_lives_of_checkpoints(url: str) -> None:
    Life.url = url
    run_state_machine_as_test(Life, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
