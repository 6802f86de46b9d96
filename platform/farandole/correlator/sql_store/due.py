"""The sagas that are due, found without walking those that are not."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from farandole.correlator.queries import DueSaga
from farandole.correlator.sql_store.tables import IS_DUE, SAGA
from farandole.times import microseconds_of, time_of

SELECT_DUE = (
    sa.select(SAGA.c.definition, SAGA.c.key, SAGA.c.next_deadline)
    .where(SAGA.c.partition == sa.bindparam("of_partition"), IS_DUE, SAGA.c.next_deadline <= sa.bindparam("until"))
    .order_by(SAGA.c.next_deadline, SAGA.c.id)
    .limit(sa.bindparam("how_many"))
)
"""Definition, key and deadline of the sagas of a partition that are due."""
_EARLIEST = sa.func.min(SAGA.c.next_deadline)


def due_sagas(connection: sa.Connection, until: datetime, limit: int, partition: int) -> tuple[DueSaga, ...]:
    """See `CorrelatorStore.due`."""
    parameters = {"of_partition": partition, "until": microseconds_of(until), "how_many": limit}
    return tuple(
        DueSaga(definition, key, time_of(deadline))
        for definition, key, deadline in connection.execute(SELECT_DUE, parameters)
    )


def next_deadlines(connection: sa.Connection, partitions: frozenset[int]) -> dict[int, datetime]:
    """See `CorrelatorStore.next_deadlines`."""
    row = connection.execute(next_deadlines_statement(partitions)).one()
    return {
        partition: time_of(earliest)
        for partition, earliest in zip(sorted(partitions), row, strict=True)
        if earliest is not None
    }


@cache
def next_deadlines_statement(partitions: frozenset[int]) -> sa.Select[Any]:
    """One row: the earliest next deadline of each of the partitions, by rising number.

    Each is one look into the index; a GROUP BY would walk it.
    """
    return sa.select(
        *(
            sa.select(_EARLIEST).where(SAGA.c.partition == sa.literal_column(str(partition)), IS_DUE).scalar_subquery()
            for partition in sorted(partitions)
        )
    )
