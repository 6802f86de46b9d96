"""The outbox: what was decided in a transaction and has yet to be published.

Rows are written in the transaction that decides them, published in order (at most one unacknowledged a key), and
removed once the broker has acknowledged them. A crash in between publishes a row again, with the same message id.
Who publishes a row is whoever owns the partition of its key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from farandole.database.columns import ROW_NUMBER
from farandole.envelope import Publication
from farandole.partitions import PARTITIONS, partition_of


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One publication that waits for the broker's acknowledgement."""

    id: int
    """Rises in the order in which the rows were written."""
    publication: Publication


class Outbox:
    """The outbox table of one database."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = sa.Table(
            "farandole_outbox",
            metadata,
            sa.Column("id", ROW_NUMBER, primary_key=True),
            sa.Column("partition", sa.SmallInteger, nullable=False, index=True),
            sa.Column("key", sa.Text, nullable=False),
            sa.Column("subject", sa.Text, nullable=False),
            sa.Column("headers", sa.Text, nullable=False),
            sa.Column("data", sa.LargeBinary, nullable=False),
            sqlite_autoincrement=True,  # an id is never used again: a late `remove` can't hit another row
        )
        self._insert = sa.insert(self.table).returning(self.table.c.id, sort_by_parameter_order=True)
        self._select = (
            sa.select(self.table)
            .where(self.table.c.partition.in_(sa.bindparam("partitions", expanding=True)))
            .order_by(self.table.c.id)
        )
        self._delete = sa.delete(self.table).where(self.table.c.id == sa.bindparam("removed"))

    def add(self, connection: sa.Connection, publications: Sequence[Publication]) -> list[OutboxRow]:
        """Writes rows in the caller's transaction; returns them with their ids, in order."""
        if not publications:
            return []
        ids = connection.execute(
            self._insert,
            [
                {
                    "partition": partition_of(p.key),
                    "key": p.key,
                    "subject": p.subject,
                    "headers": json.dumps(dict(p.headers)),
                    "data": p.data,
                }
                for p in publications
            ],
        ).scalars()
        return [OutboxRow(row_id, publication) for row_id, publication in zip(ids, publications, strict=True)]

    def waiting(self, connection: sa.Connection, partitions: Iterable[int] = range(PARTITIONS)) -> list[OutboxRow]:
        """Every row whose key is in one of these partitions, in the order in which they were written."""
        return [
            OutboxRow(row.id, Publication(row.key, row.subject, json.loads(row.headers), row.data))
            for row in connection.execute(self._select, {"partitions": list(partitions)})
        ]

    def remove(self, connection: sa.Connection, ids: Collection[int]) -> None:
        """Removes rows that the broker has acknowledged."""
        if ids:
            connection.execute(self._delete, [{"removed": row_id} for row_id in ids])

    def depth(self, connection: sa.Connection) -> int:
        """How many rows wait."""
        return connection.execute(sa.select(sa.func.count()).select_from(self.table)).scalar_one()
