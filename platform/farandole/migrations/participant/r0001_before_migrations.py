"""The participant's tables as they were when migrations began."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()

sa.Table(
    "farandole_position",
    metadata,
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("incarnation", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("position_time", sa.BigInteger),
    sa.Column("in_use", sa.Boolean, nullable=False),
)
sa.Table(
    "farandole_inbox",
    metadata,
    sa.Column("identity", _KEY_TEXT, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("disposition", sa.SmallInteger, nullable=False),
)
sa.Table(
    "farandole_barrier",
    metadata,
    sa.Column("key", _KEY_TEXT, primary_key=True),
    sa.Column("definition", _KEY_TEXT, primary_key=True),
    sa.Column("step", _KEY_TEXT, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("trigger_digest", sa.LargeBinary, nullable=False),
    sa.Column("awaited_id", sa.Text, nullable=False),
)
sa.Table(
    "farandole_prerequisite",
    metadata,
    sa.Column("key", _KEY_TEXT, primary_key=True),
    sa.Column("definition", _KEY_TEXT, primary_key=True),
    sa.Column("step", _KEY_TEXT, primary_key=True),
    sa.Column("event_type", _KEY_TEXT, primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
)
sa.Table(
    "farandole_queue",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", _KEY_TEXT, nullable=False, index=True),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due", sa.BigInteger, nullable=False),
    sa.Column("pause", sa.BigInteger, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("attempts_before", sa.Integer, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("dependency", sa.Text, nullable=False),
)
sa.Table(
    "farandole_set_aside",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
)
sa.Table(
    "farandole_started",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("times", sa.Integer, nullable=False),
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
