"""Dead letters: what a batch makes of them, and one with its payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import sqlalchemy as sa

from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.sql_store.rows import dead_letter_of, dead_letter_parameters
from farandole.correlator.sql_store.tables import DEAD_LETTER, HISTORY, SAGA
from farandole.correlator.store import FoldedBatch, dead_letter_change
from farandole.database.statements import chunks
from farandole.envelope import Publication

_SELECT_DEAD_LETTER = sa.select(DEAD_LETTER).where(
    DEAD_LETTER.c.participant == sa.bindparam("by"), DEAD_LETTER.c.sequence == sa.bindparam("at")
)
_SELECT_RECORDED = sa.select(DEAD_LETTER).where(DEAD_LETTER.c.sequence.in_(sa.bindparam("sequences", expanding=True)))
_SELECT_PAYLOAD = (
    sa.select(HISTORY.c.payload)
    .join_from(SAGA, HISTORY)
    .where(
        SAGA.c.key == sa.bindparam("of_key"),
        HISTORY.c.sequence == sa.bindparam("at"),
        HISTORY.c.type == sa.bindparam("of_type"),
        HISTORY.c.payload.is_not(None),
    )
    .limit(1)
)
_SELECT_ALL = sa.select(DEAD_LETTER).order_by(DEAD_LETTER.c.id)
_AT_ONCE = 500
_INSERT_DEAD_LETTER = sa.insert(DEAD_LETTER)
_UPDATE_DEAD_LETTER = (
    sa.update(DEAD_LETTER)
    .where(DEAD_LETTER.c.participant == sa.bindparam("by"), DEAD_LETTER.c.sequence == sa.bindparam("at"))
    .values({column: sa.bindparam(f"new_{column.name}") for column in DEAD_LETTER.columns if column.name != "id"})
)


def write_dead_letters(connection: sa.Connection, batch: FoldedBatch) -> tuple[Publication, ...]:
    """Writes what the batch makes of dead letters; returns what is to be published of them."""
    stored: dict[tuple[str, int], DeadLetter] = {}
    sequences = {one.dead_letter.sequence for one in batch.dead_letters}
    sequences.update(one.sequence for one in batch.closed_dead_letters)
    for some in chunks(sequences):
        for row in connection.execute(_SELECT_RECORDED, {"sequences": some}):
            stored[row.participant, row.sequence] = dead_letter_of(row)
    change = dead_letter_change(stored, batch)
    if change.added:
        insert_dead_letters(connection, change.added)
    if change.changed:
        connection.execute(
            _UPDATE_DEAD_LETTER,
            [
                {"by": one.participant, "at": one.sequence}
                | {f"new_{name}": value for name, value in dead_letter_parameters(one).items()}
                for one in change.changed
            ],
        )
    return change.publications


def insert_dead_letters(connection: sa.Connection, dead_letters: Sequence[DeadLetter]) -> None:
    """Writes dead letters that are not there yet, in this order."""
    connection.execute(_INSERT_DEAD_LETTER, [dead_letter_parameters(one) for one in dead_letters])


def every_dead_letter(connection: sa.Connection) -> Iterator[DeadLetter]:
    """All of them, in the order in which they were recorded; some at a time."""
    for row in connection.execute(_SELECT_ALL, execution_options={"yield_per": _AT_ONCE}):
        yield dead_letter_of(row)


def get_dead_letter(connection: sa.Connection, participant: str, sequence: int) -> DeadLetter | None:
    """See `CorrelatorQueries.get_dead_letter`: with the payload that the saga's history has, where it has none."""
    row = connection.execute(_SELECT_DEAD_LETTER, {"by": participant, "at": sequence}).first()
    if row is None:
        return None
    found = dead_letter_of(row)
    if found.payload is not None:
        return found
    event = {"of_key": found.key, "at": sequence, "of_type": found.event_type}
    return replace(found, payload=connection.execute(_SELECT_PAYLOAD, event).scalar())
