"""The table of checkpoints: what was asked for, how far it is, what came of it. It survives every restart.

One process owns it, so that a transaction is never retried; SQLite by default, PostgreSQL by its URL. Every change of
state is one transaction that names the state it expects: of two that race, one does nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from cluster.service.problems import ProblemError
from cluster.service.schema import CHECKPOINTS, EVENTS, META, to_checkpoint
from unicuco.request import Answer
from unicuco.wire import ACTIVE, ENDED, Checkpoint, CheckpointResult, Event, State

ATTEMPTS = 3
"""A build that takes its replica down so often is given up."""
IDEMPOTENCY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Order:
    """A checkpoint that somebody asks for. ``build``: equal for equal checkpoints, whoever asks."""

    policy: str
    layout: str
    build: str
    answer: Answer
    idempotency_key: str | None = None
    body: str = ""
    """Digest of what was sent, to tell a repeated call from another one under the same key."""


@dataclass(frozen=True)
class Build:
    """What a pruning replica is to make."""

    build: str
    policy: str
    layout: str
    answer: Answer


class CheckpointTable:
    """The table at a database URL; made where there is none."""

    def __init__(self, url: str) -> None:
        self.is_file = url.startswith("sqlite")
        if self.is_file:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(url)
        if self.is_file:

            @sa.event.listens_for(self._engine, "connect")
            def _settings(connection: Any, record: object) -> None:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")

        META.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    # -- what callers do ------------------------------------------------------------------------------------------

    def submit(self, owner: str, order: Order, most_active: int) -> tuple[Checkpoint, bool]:
        """Enters ``order``, or finds what the same idempotency key entered before.

        Returns:
            the checkpoint, and whether it is new.

        Raises:
            ProblemError: 422 where the key came with another body, 429 where the owner has too many under way.
        """
        now = time.time()
        with self._engine.begin() as db:
            if order.idempotency_key:
                self._forget_keys(db, now)
                before = db.execute(
                    sa.select(CHECKPOINTS).where(
                        CHECKPOINTS.c.owner == owner, CHECKPOINTS.c.idempotency_key == order.idempotency_key
                    )
                ).one_or_none()
                if before is not None:
                    if before.body != order.body:
                        raise ProblemError(
                            422, "idempotency_key_reused", "This Idempotency-Key was used with another body."
                        )
                    return to_checkpoint(before), False
            active = sa.select(sa.func.count()).where(CHECKPOINTS.c.owner == owner, CHECKPOINTS.c.state.in_(ACTIVE))
            if db.execute(active).scalar_one() >= most_active:
                raise ProblemError(
                    429, "quota", f"{most_active} checkpoints are under way already; wait for one of them.", 10
                )
            last = db.execute(sa.select(sa.func.max(CHECKPOINTS.c.number))).scalar_one()
            row: dict[str, Any] = {
                "id": f"c-{secrets.token_hex(12)}",
                "number": (last or 0) + 1,
                "owner": owner,
                "state": "queued",
                "stage": "",
                "policy": order.policy,
                "layout": order.layout,
                "build": order.build,
                "answer": order.answer.model_dump_json(),
                "created": now,
                "updated": now,
                "attempts": 0,
                "idempotency_key": order.idempotency_key,
                "body": order.body,
            }
            db.execute(sa.insert(CHECKPOINTS).values(**row))
            _note(db, [row["id"]], "queued", "", now)
            return to_checkpoint(_one(db, row["id"])), True

    def get(self, owner: str, checkpoint_id: str) -> Checkpoint:
        """Raises ProblemError (404), the same for what is not there and what is not theirs."""
        with self._engine.connect() as db:
            return to_checkpoint(self._owned(db, owner, checkpoint_id))

    def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Checkpoint], str | None]:
        """The owner's checkpoints, newest first, and the ``after`` of the next page."""
        with self._engine.connect() as db:
            query = sa.select(CHECKPOINTS).where(CHECKPOINTS.c.owner == owner)
            if after is not None:
                query = query.where(CHECKPOINTS.c.number < self._owned(db, owner, after).number)
            rows = db.execute(query.order_by(CHECKPOINTS.c.number.desc()).limit(limit + 1)).all()
        return [to_checkpoint(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None

    def events(self, owner: str, checkpoint_id: str, after: int) -> list[Event]:
        """Steps of a checkpoint from ``seq`` > ``after`` on. Raises ProblemError (404)."""
        with self._engine.connect() as db:
            self._owned(db, owner, checkpoint_id)
            rows = db.execute(
                sa.select(EVENTS)
                .where(EVENTS.c.checkpoint == checkpoint_id, EVENTS.c.seq > after)
                .order_by(EVENTS.c.seq)
            ).all()
        return [Event(seq=row.seq, time=row.time, state=row.state, stage=row.stage) for row in rows]

    def cancel(self, owner: str, checkpoint_id: str) -> tuple[Checkpoint, str | None]:
        """Cancels what has not ended; what has ended stays as it is.

        Returns:
            the checkpoint, and its build where nobody waits for that any more.
        """
        with self._engine.begin() as db:
            row = self._owned(db, owner, checkpoint_id)
            if row.state in ACTIVE:
                self._move(db, [checkpoint_id], ACTIVE, "cancelled")
            orphan = None if self._in_build(db, row.build, ACTIVE) else row.build
            return to_checkpoint(_one(db, checkpoint_id)), orphan

    # -- what the builders' side does -----------------------------------------------------------------------------

    def take(self, policy: str, busy: Sequence[str]) -> Build | None:
        """The oldest build of ``policy`` that nobody works on: all who wait for it are running from here on.

        Args:
            busy: builds that somebody works on although nobody waits for them (cancelled a moment ago).
        """
        with self._engine.begin() as db:
            running = sa.select(CHECKPOINTS.c.build).where(CHECKPOINTS.c.state == "running")
            queued = sa.select(CHECKPOINTS).where(
                CHECKPOINTS.c.policy == policy,
                CHECKPOINTS.c.state == "queued",
                CHECKPOINTS.c.build.not_in(running),
                CHECKPOINTS.c.build.not_in(busy),
            )
            row = db.execute(queued.order_by(CHECKPOINTS.c.number).limit(1)).one_or_none()
            if row is None:
                return None
            waiting = self._in_build(db, row.build, ("queued",))
            self._move(db, waiting, ("queued",), "running", stage="starting")
            db.execute(
                sa.update(CHECKPOINTS).where(CHECKPOINTS.c.id.in_(waiting)).values(attempts=CHECKPOINTS.c.attempts + 1)
            )
            return Build(row.build, row.policy, row.layout, Answer.model_validate_json(row.answer))

    def stage(self, build: str, stage: str) -> None:
        """Says to all who wait for ``build``, also those who came since it began, what is being done."""
        with self._engine.begin() as db:
            self._move(db, self._in_build(db, build, ACTIVE), ACTIVE, "running", stage=stage)

    def finish(self, build: str, result: CheckpointResult, expires: float) -> int:
        """All who waited for ``build``, also those who came while it was made, have it. Returns how many."""
        with self._engine.begin() as db:
            values: dict[str, Any] = {"result": result.model_dump_json(), "expires": expires}
            waiting = self._in_build(db, build, ACTIVE)
            self._move(db, waiting, ACTIVE, "done", **values)
        return len(waiting)

    def fail(self, build: str, error: str) -> None:
        with self._engine.begin() as db:
            self._move(db, self._in_build(db, build, ("running",)), ("running",), "failed", error=error)

    def requeue(self, build: str | None = None) -> None:
        """Puts back what ran where a replica was lost, one build or (after a restart) all; not for ever."""
        with self._engine.begin() as db:
            rows = db.execute(sa.select(CHECKPOINTS).where(CHECKPOINTS.c.state == "running")).all()
            rows = [row for row in rows if build is None or row.build == build]
            spent = [row.id for row in rows if row.attempts >= ATTEMPTS]
            again = [row.id for row in rows if row.attempts < ATTEMPTS]
            error = f"The process that built it was lost {ATTEMPTS} times."
            self._move(db, spent, ("running",), "failed", error=error)
            self._move(db, again, ("running",), "queued")

    def built(self, build: str, now: float) -> tuple[CheckpointResult, float] | None:
        """The result of an equal checkpoint that still lies there, and when it expires."""
        with self._engine.connect() as db:
            row = db.execute(
                sa.select(CHECKPOINTS)
                .where(CHECKPOINTS.c.build == build, CHECKPOINTS.c.state == "done", CHECKPOINTS.c.expires > now)
                .order_by(CHECKPOINTS.c.expires.desc())
                .limit(1)
            ).one_or_none()
        return (CheckpointResult.model_validate_json(row.result), row.expires) if row else None

    def expire(self, now: float) -> list[str]:
        """Ends what has lain long enough. Returns the builds whose files nobody has a claim to any more."""
        with self._engine.begin() as db:
            old = db.execute(
                sa.select(CHECKPOINTS).where(CHECKPOINTS.c.state == "done", CHECKPOINTS.c.expires <= now)
            ).all()
            self._move(db, [row.id for row in old], ("done",), "expired")
            wanted = {
                b
                for (b,) in db.execute(sa.select(CHECKPOINTS.c.build).where(CHECKPOINTS.c.state.in_((*ACTIVE, "done"))))
            }
        return sorted({row.build for row in old} - wanted)

    def counts(self) -> dict[str, int]:
        """Checkpoints in every state, those with none among them: a gauge keeps what it was told last."""
        with self._engine.connect() as db:
            rows = db.execute(sa.select(CHECKPOINTS.c.state, sa.func.count()).group_by(CHECKPOINTS.c.state)).all()
        return {**dict.fromkeys((*ACTIVE, *ENDED), 0), **{row.state: row[1] for row in rows}}

    # -- inside a transaction -------------------------------------------------------------------------------------

    @staticmethod
    def _owned(db: Connection, owner: str, checkpoint_id: str) -> Row[Any]:
        row = db.execute(
            sa.select(CHECKPOINTS).where(CHECKPOINTS.c.id == checkpoint_id, CHECKPOINTS.c.owner == owner)
        ).one_or_none()
        if row is None:
            raise ProblemError(404, "unknown_checkpoint", "There is no such checkpoint of yours.")
        return row

    @staticmethod
    def _in_build(db: Connection, build: str, states: Sequence[str]) -> list[str]:
        query = sa.select(CHECKPOINTS.c.id).where(CHECKPOINTS.c.build == build, CHECKPOINTS.c.state.in_(states))
        return list(db.execute(query).scalars())

    @staticmethod
    def _move(
        db: Connection, ids: Sequence[str], expected: Sequence[str], state: State, stage: str = "", **values: Any
    ) -> None:
        """From any of the ``expected`` states to ``state``, with an event for each that moved."""
        if not ids:
            return
        now = time.time()
        moved = db.execute(
            sa.update(CHECKPOINTS)
            .where(CHECKPOINTS.c.id.in_(ids), CHECKPOINTS.c.state.in_(expected))
            .values(state=state, stage=stage, updated=now, **values)
            .returning(CHECKPOINTS.c.id)
        ).scalars()
        _note(db, list(moved), state, stage, now)

    @staticmethod
    def _forget_keys(db: Connection, now: float) -> None:
        db.execute(
            sa.update(CHECKPOINTS)
            .where(CHECKPOINTS.c.created < now - IDEMPOTENCY_SECONDS, CHECKPOINTS.c.idempotency_key.is_not(None))
            .values(idempotency_key=None)
        )


def _note(db: Connection, ids: Sequence[str], state: State, stage: str, now: float) -> None:
    for checkpoint_id in ids:
        last = sa.select(sa.func.coalesce(sa.func.max(EVENTS.c.seq), 0)).where(EVENTS.c.checkpoint == checkpoint_id)
        seq = db.execute(last).scalar_one() + 1
        db.execute(sa.insert(EVENTS).values(checkpoint=checkpoint_id, seq=seq, time=now, state=state, stage=stage))


def _one(db: Connection, checkpoint_id: str) -> Row[Any]:
    return db.execute(sa.select(CHECKPOINTS).where(CHECKPOINTS.c.id == checkpoint_id)).one()
