"""A stored message as columns of a table: what has to wait is kept as the stream had it, and decoded when it is run."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from farandole.envelope import StoredMessage
from farandole.times import microseconds_of, time_of


def message_columns() -> tuple[sa.Column[Any], ...]:
    """The columns beside `sequence`, which is a table's own to declare: in some it is the primary key."""
    return (
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("stream_time", sa.BigInteger, nullable=False),
    )


def columns_of(message: StoredMessage) -> dict[str, object]:
    """A message's values for these columns and `sequence`."""
    return {
        "sequence": message.sequence,
        "subject": message.subject,
        "headers": json.dumps(dict(message.headers)),
        "data": message.data,
        "stream_time": microseconds_of(message.time),
    }


def message_of(row: sa.Row[Any]) -> StoredMessage:
    """The message of a row that has these columns and `sequence`."""
    return StoredMessage(row.subject, json.loads(row.headers), row.data, row.sequence, time_of(row.stream_time))
