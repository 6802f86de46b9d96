"""The tables of a correlator's database.

Times are integers, microseconds since 1970 UTC. A record and its history are apart, so that a commit writes only the
history rows that are new or changed.
"""

from __future__ import annotations

import sqlalchemy as sa

from farandole.database.columns import KEY_TEXT, ROW_NUMBER
from farandole.outbox import Outbox
from farandole.sql_leases import LeaseTables

METADATA = sa.MetaData()
_NEVER = 253_402_300_799_999_999
"""The end of the year 9999: where what has no deadline stands among deadlines."""


class _Bytes(sa.LargeBinary):
    """Bytes that the drivers give as bytes: SQLAlchemy's own type converts each value in Python all the same."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """Nothing to convert."""


POSITION = sa.Table(
    "correlator_position",
    METADATA,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("position_time", sa.BigInteger),
    sa.Column("incarnation", sa.Text, nullable=False),
)

SAGA = sa.Table(
    "saga",
    METADATA,
    sa.Column("id", ROW_NUMBER, primary_key=True),
    sa.Column("key", KEY_TEXT, nullable=False),
    sa.Column("definition", KEY_TEXT, nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("cause", sa.SmallInteger, nullable=False),
    sa.Column("cause_detail", sa.Text, nullable=False),
    sa.Column("health", sa.SmallInteger, nullable=False),
    sa.Column("start_time", sa.BigInteger),
    sa.Column("update_time", sa.BigInteger, nullable=False),
    sa.Column("end_time", sa.BigInteger),
    sa.Column("deadline", sa.BigInteger),
    sa.Column("next_deadline", sa.BigInteger),
    sa.Column("finished_late", sa.Boolean, nullable=False),
    sa.Column("steps", sa.Text, nullable=False),
    sa.Column("history_omitted", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("key", "definition"),
)
DUE_LAST = sa.func.coalesce(SAGA.c.deadline, sa.literal_column(str(_NEVER)))
sa.Index("saga_by_update", SAGA.c.update_time, SAGA.c.id)
sa.Index("saga_by_status", SAGA.c.status, SAGA.c.update_time, SAGA.c.id)
sa.Index("saga_by_status_and_deadline", SAGA.c.status, DUE_LAST, SAGA.c.id)
sa.Index("saga_by_status_and_start", SAGA.c.status, SAGA.c.start_time, SAGA.c.id)
sa.Index("saga_by_health", SAGA.c.health, SAGA.c.update_time, SAGA.c.id)
sa.Index("saga_by_definition", SAGA.c.definition, SAGA.c.update_time, SAGA.c.id)
sa.Index("saga_by_start", SAGA.c.start_time, SAGA.c.id)
sa.Index("saga_by_deadline", DUE_LAST, SAGA.c.id)
IS_DUE = SAGA.c.next_deadline.is_not(None)
IS_STARTED = SAGA.c.start_time.is_not(None)
sa.Index(
    "saga_by_next_deadline",
    SAGA.c.partition,
    SAGA.c.next_deadline,
    sqlite_where=IS_DUE,
    postgresql_where=IS_DUE,
)

HISTORY = sa.Table(
    "saga_history",
    METADATA,
    sa.Column("saga", sa.BigInteger, sa.ForeignKey("saga.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("disposition", sa.SmallInteger, nullable=False),
    sa.Column("disposition_reason", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("digest", _Bytes, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("causation_id", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("lifecycle", sa.Text),
    sa.Column("payload", _Bytes),
)

DEAD_LETTER = sa.Table(
    "dead_letter",
    METADATA,
    sa.Column("id", ROW_NUMBER, primary_key=True),
    sa.Column("participant", KEY_TEXT, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("key", KEY_TEXT),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body_size", sa.BigInteger, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("state_sequence", sa.BigInteger, nullable=False),
    sa.Column("payload", _Bytes),
    sa.Column("body_prefix", _Bytes, nullable=False),
    sa.Column("definition", sa.Text),
    sa.Column("step", sa.Text),
    sa.Column("compensation", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("close_time", sa.BigInteger),
    sa.Column("close_actor", sa.Text, nullable=False),
    sa.Column("close_reason", sa.Text, nullable=False),
    sa.UniqueConstraint("participant", "sequence"),
)
sa.Index("dead_letter_by_key", DEAD_LETTER.c.key, DEAD_LETTER.c.id)
sa.Index("dead_letter_by_reason", DEAD_LETTER.c.reason, DEAD_LETTER.c.id)
sa.Index("dead_letter_by_state", DEAD_LETTER.c.state, DEAD_LETTER.c.id)

STARTED = sa.Table(
    "correlator_started",
    METADATA,
    sa.Column("replica", KEY_TEXT, primary_key=True),
    sa.Column("definitions", sa.Text, nullable=False),
)
"""By replica: the digest of the definitions with which it started."""

DEFINITION = sa.Table(
    "saga_definition",
    METADATA,
    sa.Column("name", KEY_TEXT, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("message", _Bytes, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
)

OUTBOX = Outbox(METADATA)
LEASES = LeaseTables(METADATA)
