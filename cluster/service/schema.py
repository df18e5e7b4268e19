"""Tables of the database, and a row of theirs as callers see it."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from unicuco.request import Answer
from unicuco.wire import Checkpoint, CheckpointResult

META = sa.MetaData()
CHECKPOINTS = sa.Table(
    "checkpoints",
    META,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("policy", sa.String(64), nullable=False),
    sa.Column("layout", sa.String(16), nullable=False),
    sa.Column("build", sa.String(64), nullable=False, index=True),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.Text),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("body", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key"),
)
EVENTS = sa.Table(
    "events",
    META,
    sa.Column("checkpoint", sa.String(40), sa.ForeignKey("checkpoints.id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
)


def to_checkpoint(row: Row[Any]) -> Checkpoint:
    """A row as callers see it."""
    return Checkpoint(
        id=row.id,
        state=row.state,
        stage=row.stage,
        policy=row.policy,
        layout=row.layout,
        answer=Answer.model_validate_json(row.answer),
        created=row.created,
        updated=row.updated,
        expires=row.expires,
        error=row.error,
        result=CheckpointResult.model_validate(json.loads(row.result)) if row.result else None,
    )
