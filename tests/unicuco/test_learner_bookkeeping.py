"""The learner's books balance in any sequence of asking, telling, failing, training and resuming."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unicuco.small_search import MODEL, balanced, learner
from unicuco.evaluations import Candidate, EvaluationLog


class Bookkeeping(RuleBasedStateMachine):
    """Random sequences of everything that can happen to a candidate, against plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name)
        self.learner = learner(self.log, evaluations=14)
        self.handed: dict[str, Candidate] = {}
        self.running: set[str] = set()
        self.waiting: set[str] = set()
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    def some(self, data: st.DataObject, ids: set[str]) -> Candidate:
        return self.handed[data.draw(st.sampled_from(sorted(ids)))]

    @rule(n=st.integers(0, 4))
    def ask(self, n: int) -> None:
        room = 14 - len(self.handed) + len(self.waiting)
        given_before = set(self.waiting)
        given = self.learner.ask(n)
        assert len(given) == min(n, room)
        for candidate in given:
            assert candidate.eval_id not in self.done | self.failed | self.running
            if candidate.eval_id not in self.waiting:
                assert not self.waiting, "what waits again goes first"
                assert candidate.eval_id not in self.handed
                assert candidate.levels not in {c.levels for c in self.handed.values()}, "a strategy proposed twice"
            assert self.handed.setdefault(candidate.eval_id, candidate) == candidate
            self.waiting.discard(candidate.eval_id)
            self.running.add(candidate.eval_id)
        assert len(given_before - self.waiting) == min(n, len(given_before))

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        """Of any candidate ever handed out: a late answer for one that was requeued or given up counts, once."""
        candidate = self.some(data, set(self.handed))
        assert self.learner.tell(MODEL.evaluation(candidate)) == (candidate.eval_id not in self.done)
        for group in (self.running, self.waiting, self.failed):
            group.discard(candidate.eval_id)
        self.done.add(candidate.eval_id)

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        candidate = self.some(data, set(self.handed))
        self.learner.requeue(candidate)
        if candidate.eval_id in self.running:
            self.running.remove(candidate.eval_id)
            self.waiting.add(candidate.eval_id)

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        candidate = self.some(data, set(self.handed))
        self.learner.give_up(candidate, "it kills its evaluator")
        if candidate.eval_id not in self.done:
            self.running.discard(candidate.eval_id)
            self.waiting.discard(candidate.eval_id)
            self.failed.add(candidate.eval_id)

    @rule()
    def restart(self) -> None:
        """A new process on the same log: what was done is done, the rest never happened."""
        self.learner = learner(self.log, evaluations=14)
        self.handed = {i: c for i, c in self.handed.items() if i in self.done}
        self.running, self.waiting, self.failed = set(), set(), set()

    @invariant()
    def the_books_balance(self) -> None:
        status = self.learner.status()
        assert balanced(status)
        assert status.submitted == len(self.handed)
        assert (status.done, status.failed) == (len(self.done), len(self.failed))
        assert status.running == len(self.running) + len(self.waiting)
        assert {e.eval_id for e in self.learner.evaluations()} == self.done
        assert {e.eval_id for e in EvaluationLog(self.log).read()} == self.done


TestBookkeeping = Bookkeeping.TestCase
TestBookkeeping.settings = settings(max_examples=25, stateful_step_count=25)
