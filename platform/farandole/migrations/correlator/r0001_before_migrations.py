"""The correlator's tables as they were when migrations began."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()

sa.Table(
    "correlator_position",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("position_time", sa.BigInteger),
    sa.Column("incarnation", sa.Text, nullable=False),
)

_SAGA = sa.Table(
    "saga",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True),
    sa.Column("key", _KEY_TEXT, nullable=False),
    sa.Column("definition", _KEY_TEXT, nullable=False),
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
_DUE_LAST = sa.func.coalesce(_SAGA.c.deadline, sa.literal_column("253402300799999999"))
sa.Index("saga_by_update", _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_status", _SAGA.c.status, _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_definition", _SAGA.c.definition, _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_start", _SAGA.c.start_time, _SAGA.c.id)
sa.Index("saga_by_deadline", _DUE_LAST, _SAGA.c.id)
_IS_DUE = _SAGA.c.next_deadline.is_not(None)
sa.Index(
    "saga_by_next_deadline",
    _SAGA.c.partition,
    _SAGA.c.next_deadline,
    sqlite_where=_IS_DUE,
    postgresql_where=_IS_DUE,
)

sa.Table(
    "saga_history",
    metadata,
    sa.Column("saga", sa.BigInteger, sa.ForeignKey("saga.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("disposition", sa.SmallInteger, nullable=False),
    sa.Column("disposition_reason", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("causation_id", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("lifecycle", sa.Text),
    sa.Column("payload", sa.LargeBinary),
)

_DEAD_LETTER = sa.Table(
    "dead_letter",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True),
    sa.Column("participant", _KEY_TEXT, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("key", _KEY_TEXT),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body_size", sa.BigInteger, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("state_sequence", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("body_prefix", sa.LargeBinary, nullable=False),
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
sa.Index("dead_letter_by_key", _DEAD_LETTER.c.key, _DEAD_LETTER.c.id)
sa.Index("dead_letter_by_reason", _DEAD_LETTER.c.reason, _DEAD_LETTER.c.id)
sa.Index("dead_letter_by_state", _DEAD_LETTER.c.state, _DEAD_LETTER.c.id)

sa.Table(
    "saga_definition",
    metadata,
    sa.Column("name", _KEY_TEXT, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
)

sa.Table(
    "farandole_outbox",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)


def upgrade() -> None:
    metadata.create_all(op.get_bind())
