"""What no one could read when it came: set aside, outside the queue, in a participant's database.

It holds nothing up, and nothing tries it. What becomes of it is decided with the correlator's dead letter of it.
"""

from __future__ import annotations

import sqlalchemy as sa

from farandole.participant.message_columns import columns_of, message_columns, message_of
from farandole.participant.queue_table import QueueEntry


class SetAsideTable:
    """The table, and the statements on it."""

    def __init__(self, metadata: sa.MetaData) -> None:
        table = sa.Table(
            "farandole_set_aside",
            metadata,
            sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("key", sa.Text, nullable=False),
            *message_columns(),
            sa.Column("attempts", sa.Integer, nullable=False),
        )
        self._insert = sa.insert(table)
        self._select = sa.select(table).where(table.c.sequence == sa.bindparam("wanted"))
        self._delete = sa.delete(table).where(table.c.sequence == sa.bindparam("done"))

    def add(self, connection: sa.Connection, entry: QueueEntry) -> None:
        """Sets aside what was in the queue."""
        connection.execute(self._insert, {**columns_of(entry.message), "key": entry.key, "attempts": entry.attempts})

    def at(self, connection: sa.Connection, sequence: int) -> QueueEntry | None:
        """What is set aside of that stream sequence, as it goes into the queue again; None where nothing is.

        Its tries count on, and it gets as many again as the first time.
        """
        row = connection.execute(self._select, {"wanted": sequence}).first()
        if row is None:
            return None
        return QueueEntry(row.key, message_of(row), attempts=row.attempts, attempts_before=row.attempts)

    def remove(self, connection: sa.Connection, sequence: int) -> None:
        """Removes what has been decided."""
        connection.execute(self._delete, {"done": sequence})
