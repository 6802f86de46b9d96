"""Sagas' records and their histories: read, and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farandole.correlator.queries import RecordedSaga
from farandole.correlator.sql_store.rows import (
    ENTRY,
    FACT_COLUMNS,
    SAGA_COLUMNS,
    STATE,
    entry_of,
    entry_values,
    saga_of,
    state_values,
)
from farandole.correlator.sql_store.tables import HISTORY, SAGA
from farandole.correlator.store import SagaChange, history_change
from farandole.database.statements import Prepared, chunks
from farandole.errors import StoreError
from farandole.partitions import partition_of
from farandole.saga import HistoryEntry, Saga

_KEYS_ASKED = SAGA.c.key.in_(sa.bindparam("keys", expanding=True))

_SELECT_SAGAS = sa.select(SAGA.c.id, *SAGA_COLUMNS).order_by(SAGA.c.key, SAGA.c.definition)
_SELECT_SAGAS_ASKED = _SELECT_SAGAS.where(_KEYS_ASKED)
_SELECT_HISTORIES = (
    sa.select(HISTORY.c.saga, *FACT_COLUMNS)
    .join_from(SAGA, HISTORY)
    .where(_KEYS_ASKED)
    .order_by(HISTORY.c.saga, HISTORY.c.sequence)
)
_SELECT_HISTORIES_WITH_PAYLOADS = _SELECT_HISTORIES.add_columns(HISTORY.c.payload)
_SELECT_HISTORIES_OF = (
    sa.select(HISTORY.c.saga, *FACT_COLUMNS, HISTORY.c.payload)
    .where(HISTORY.c.saga.in_(sa.bindparam("rows", expanding=True)))
    .order_by(HISTORY.c.saga, HISTORY.c.sequence)
)
_SAGAS_AT_ONCE = 500

_INSERT_SAGA = Prepared(
    sa.insert(SAGA).values({name: sa.bindparam(name) for name in ("key", "definition", "partition", *STATE)}),
    ("key", "definition", "partition", *STATE),
)
_UPDATE_SAGA = Prepared(
    sa.update(SAGA)
    .where(
        SAGA.c.key == sa.bindparam("of_key"),
        SAGA.c.definition == sa.bindparam("of_definition"),
        SAGA.c.revision == sa.bindparam("old_revision"),
    )
    .values({name: sa.bindparam(f"new_{name}") for name in STATE}),
    ("of_key", "of_definition", "old_revision", *(f"new_{name}" for name in STATE)),
)

_SAGA_ROW = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.key == sa.bindparam("of_key"), SAGA.c.definition == sa.bindparam("of_definition"))
    .scalar_subquery()
)
_INSERT_HISTORY = Prepared(
    sa.insert(HISTORY).values(saga=_SAGA_ROW, **{name: sa.bindparam(name) for name in ("sequence", "payload", *ENTRY)}),
    ("of_key", "of_definition", "sequence", "payload", *ENTRY),
)
_THE_ENTRY = (HISTORY.c.saga == _SAGA_ROW, HISTORY.c.sequence == sa.bindparam("of_sequence"))
_UPDATE_HISTORY = Prepared(
    sa.update(HISTORY).where(*_THE_ENTRY).values({name: sa.bindparam(f"new_{name}") for name in ENTRY}),
    ("of_key", "of_definition", "of_sequence", *(f"new_{name}" for name in ENTRY)),
)
_DELETE_HISTORY = Prepared(sa.delete(HISTORY).where(*_THE_ENTRY), ("of_key", "of_definition", "of_sequence"))


def load_sagas(connection: sa.Connection, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
    """See `CorrelatorStore.load`."""
    found: dict[str, list[Saga]] = {key: [] for key in keys}
    for some in chunks(found):
        histories: dict[int, list[HistoryEntry]] = {}
        for row, *columns in connection.execute(_SELECT_HISTORIES, {"keys": some}).all():
            histories.setdefault(row, []).append(entry_of(columns))
        for row, *columns in connection.execute(_SELECT_SAGAS_ASKED, {"keys": some}).all():
            saga = saga_of(columns, tuple(histories.get(row, ())))
            found[saga.key].append(saga)
    return {key: tuple(sagas) for key, sagas in found.items()}


def recorded_sagas(connection: sa.Connection, key: str) -> list[RecordedSaga]:
    """The records under a key with the payloads of their histories, by definition."""
    asked = {"keys": [key]}
    histories = connection.execute(_SELECT_HISTORIES_WITH_PAYLOADS, asked)
    return list(_recorded(connection.execute(_SELECT_SAGAS_ASKED, asked), histories))


def every_recorded_saga(connection: sa.Connection) -> Iterator[RecordedSaga]:
    """All records with the payloads of their histories, by key and definition as bytes compare; some at a time."""
    sagas = connection.execute(_SELECT_SAGAS, execution_options={"yield_per": _SAGAS_AT_ONCE})
    for page in sagas.partitions():
        yield from _recorded(page, connection.execute(_SELECT_HISTORIES_OF, {"rows": [saga.id for saga in page]}))


def _recorded(sagas: Iterable[Sequence[Any]], histories: Iterable[Sequence[Any]]) -> Iterator[RecordedSaga]:
    entries: dict[int, list[HistoryEntry]] = {}
    payloads: dict[int, dict[int, bytes]] = {}
    for row, *columns, payload in histories:
        entry = entry_of(columns)
        entries.setdefault(row, []).append(entry)
        if payload is not None:
            payloads.setdefault(row, {})[entry.fact.sequence] = payload
    for row, *columns in sagas:
        yield RecordedSaga(saga_of(columns, tuple(entries.get(row, ()))), payloads.get(row, {}))


def write_sagas(connection: sa.Connection, changes: Sequence[SagaChange]) -> None:
    """Writes records without their histories. Raises `StoreError` where one is not stored as it was loaded."""
    new: list[tuple[Any, ...]] = []
    changed: list[tuple[Any, ...]] = []
    for change in changes:
        after = change.after
        if change.before is None:
            new.append((after.key, after.definition, partition_of(after.key), *state_values(after)))
        else:
            changed.append((after.key, after.definition, change.before.revision, *state_values(after)))
    _INSERT_SAGA.execute(connection, new)
    updated = _UPDATE_SAGA.execute(connection, changed)
    if updated != len(changed):
        raise StoreError(f"{len(changed) - updated} of {len(changed)} sagas are not stored as they were loaded")


def write_history(connection: sa.Connection, changes: Sequence[SagaChange], payloads: Mapping[int, bytes]) -> None:
    """Writes what is new, changed or gone in the histories of records that are written; `payloads` by sequence."""
    added: list[tuple[Any, ...]] = []
    changed: list[tuple[Any, ...]] = []
    removed: list[tuple[Any, ...]] = []
    for change in changes:
        key, definition = change.after.key, change.after.definition
        difference = history_change(change.before, change.after)
        for entry in difference.added:
            sequence = entry.fact.sequence
            added.append((key, definition, sequence, payloads.get(sequence), *entry_values(entry)))
        changed.extend((key, definition, entry.fact.sequence, *entry_values(entry)) for entry in difference.changed)
        removed.extend((key, definition, sequence) for sequence in difference.removed)
    _DELETE_HISTORY.execute(connection, removed)
    _UPDATE_HISTORY.execute(connection, changed)
    _INSERT_HISTORY.execute(connection, added)
