"""All that a store holds: read in one view, and put into an empty store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from farandole.correlator.contents import Item, PartitionPosition, Take
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.correlator.sql_store.claims import insert_positions, stored_positions
from farandole.correlator.sql_store.dead_letters import every_dead_letter, insert_dead_letters
from farandole.correlator.sql_store.definitions import remember, stored_definitions
from farandole.correlator.sql_store.records import every_recorded_saga, write_history, write_sagas
from farandole.correlator.sql_store.tables import OUTBOX
from farandole.correlator.store import SagaChange, refuse_other_content
from farandole.database.statements import chunks


def export_contents(connection: sa.Connection, take: Take) -> None:
    """See `CorrelatorStore.export`."""
    for position in stored_positions(connection):
        take(position)
    for definition in stored_definitions(connection):
        take(definition)
    for recorded in every_recorded_saga(connection):
        take(recorded)
    for dead_letter in every_dead_letter(connection):
        take(dead_letter)
    for waiting in OUTBOX.waiting(connection):
        take(waiting.publication)


def restore_contents(connection: sa.Connection, contents: Callable[[], Iterable[Item]]) -> bool:
    """See `CorrelatorStore.restore`."""
    if stored_positions(connection):
        return False
    stored = {(old.name, old.version): old for old in stored_definitions(connection)}
    kept: set[tuple[str, int]] = set()
    definitions: list[StoredDefinition] = []
    groups: Iterable[tuple[type[Item], Iterable[Any]]] = groupby(contents(), type)
    for kind, items in groups:
        for some in chunks(items):
            if kind is PartitionPosition:
                insert_positions(connection, some)
            elif kind is StoredDefinition:
                definitions += some
            elif kind is RecordedSaga:
                kept |= {(one.saga.definition, one.saga.version) for one in some}
                changes = [SagaChange(None, one.saga) for one in some]
                write_sagas(connection, changes)
                payloads = {sequence: payload for one in some for sequence, payload in one.payloads.items()}
                write_history(connection, changes, payloads)
            elif kind is DeadLetter:
                insert_dead_letters(connection, some)
            else:
                OUTBOX.add(connection, some)
    refuse_other_content(stored, definitions, kept)
    remember(connection, [definition.definition() for definition in definitions])
    return True
