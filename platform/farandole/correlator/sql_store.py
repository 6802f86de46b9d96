"""A correlator's store in a SQL database: SQLite now, and nothing in the schema that PostgreSQL lacks.

Times are integers, microseconds since 1970 UTC. A record and its history are apart, so that a commit writes only the
history rows that are new or changed. All statements are prepared once; a batch is a handful of `executemany`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import sqlalchemy as sa

from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.filters import COMPARE, And, Comparison, Filter, Not, Operator, Or, Present, Value
from farandole.correlator.queries import (
    DeadLetterPage,
    DeadLetterQuery,
    DueSaga,
    RecordedSaga,
    SagaCount,
    SagaCursor,
    SagaOrder,
    SagaPage,
    SagaQuery,
    StoredDefinition,
)
from farandole.correlator.store import (
    ALL_PARTITIONS,
    Claim,
    Committed,
    FoldedBatch,
    NewDeadLetter,
    SagaChange,
    history_change,
    next_deadline,
    refuse_changed_definitions,
    refuse_other_incarnation,
    refuse_step_back,
)
from farandole.database import Database
from farandole.definition import Definition
from farandole.envelope import Publication, Reason
from farandole.errors import FencedError, StoreError
from farandole.outbox import Outbox, OutboxRow
from farandole.saga import (
    Cause,
    Disposition,
    Fact,
    Health,
    HistoryEntry,
    Lifecycle,
    Saga,
    Status,
    StepRecord,
    StepStatus,
)

Parameters: TypeAlias = dict[str, Any]
Row: TypeAlias = sa.Row[Any]

_METADATA = sa.MetaData()
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers only INTEGER keys by itself
_NEVER = 253_402_300_799_999_999
"""The end of the year 9999: where what has no deadline stands among deadlines."""

_POSITION = sa.Table(
    "correlator_position",
    _METADATA,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("incarnation", sa.Text, nullable=False),
)

_SAGA = sa.Table(
    "saga",
    _METADATA,
    sa.Column("id", _ROW_NUMBER, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
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
_DUE_LAST = sa.func.coalesce(_SAGA.c.deadline, sa.literal_column(str(_NEVER)))
sa.Index("saga_by_update", _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_status", _SAGA.c.status, _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_definition", _SAGA.c.definition, _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_start", _SAGA.c.start_time, _SAGA.c.id)
sa.Index("saga_by_deadline", _DUE_LAST, _SAGA.c.id)
_IS_DUE = _SAGA.c.next_deadline.is_not(None)
sa.Index("saga_by_next_deadline", _SAGA.c.next_deadline, sqlite_where=_IS_DUE, postgresql_where=_IS_DUE)

_HISTORY = sa.Table(
    "saga_history",
    _METADATA,
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
    sqlite_with_rowid=False,  # one saga's history lies together
)

_DEAD_LETTER = sa.Table(
    "dead_letter",
    _METADATA,
    sa.Column("id", _ROW_NUMBER, primary_key=True),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body_size", sa.BigInteger, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("body_prefix", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("participant", "sequence"),
)
sa.Index("dead_letter_by_key", _DEAD_LETTER.c.key, _DEAD_LETTER.c.id)
sa.Index("dead_letter_by_reason", _DEAD_LETTER.c.reason, _DEAD_LETTER.c.id)

_DEFINITION = sa.Table(
    "saga_definition",
    _METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
)

_SELECT_POSITIONS = (
    sa.select(_POSITION).where(_POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True))).with_for_update()
)
_INSERT_POSITION = sa.insert(_POSITION)
_TAKE_OVER = (
    sa.update(_POSITION)
    .where(_POSITION.c.partition == sa.bindparam("owned"))
    .values(epoch=sa.bindparam("new_epoch"), position=sa.bindparam("new_position"))
)
_ADVANCE = (
    sa.update(_POSITION)
    .where(
        _POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True)),
        _POSITION.c.epoch == sa.bindparam("old_epoch"),
        _POSITION.c.position == sa.bindparam("old_position"),
    )
    .values(position=sa.bindparam("new_position"))
)

_SAGA_COLUMNS = (
    _SAGA.c.definition, _SAGA.c.version, _SAGA.c.key, _SAGA.c.revision, _SAGA.c.status, _SAGA.c.cause,
    _SAGA.c.cause_detail, _SAGA.c.health, _SAGA.c.start_time, _SAGA.c.update_time, _SAGA.c.end_time,
    _SAGA.c.deadline, _SAGA.c.finished_late, _SAGA.c.steps, _SAGA.c.history_omitted,
)  # fmt: skip
_FACT_COLUMNS = (
    _HISTORY.c.sequence, _HISTORY.c.stream_time, _HISTORY.c.type, _HISTORY.c.source, _HISTORY.c.event_id,
    _HISTORY.c.digest, _HISTORY.c.time, _HISTORY.c.causation_id, _HISTORY.c.reason, _HISTORY.c.lifecycle,
    _HISTORY.c.disposition, _HISTORY.c.disposition_reason,
)  # fmt: skip
_KEYS_ASKED = _SAGA.c.key.in_(sa.bindparam("keys", expanding=True))
_IS_STARTED = _SAGA.c.start_time.is_not(None)

_SELECT_SAGAS = sa.select(_SAGA.c.id, *_SAGA_COLUMNS).where(_KEYS_ASKED).order_by(_SAGA.c.key, _SAGA.c.definition)
_HISTORIES = sa.select(_HISTORY.c.saga, *_FACT_COLUMNS).join_from(_SAGA, _HISTORY).where(_KEYS_ASKED)
_SELECT_HISTORIES = _HISTORIES.order_by(_HISTORY.c.saga, _HISTORY.c.sequence)
_SELECT_HISTORIES_WITH_PAYLOADS = _SELECT_HISTORIES.add_columns(_HISTORY.c.payload)

_INSERT_SAGA = sa.insert(_SAGA)
_UPDATED_COLUMNS = (
    "version", "revision", "status", "cause", "cause_detail", "health", "start_time", "update_time", "end_time",
    "deadline", "next_deadline", "finished_late", "steps", "history_omitted",
)  # fmt: skip
_UPDATE_SAGA = (
    sa.update(_SAGA)
    .where(
        _SAGA.c.key == sa.bindparam("of_key"),
        _SAGA.c.definition == sa.bindparam("of_definition"),
        _SAGA.c.revision == sa.bindparam("old_revision"),
    )
    .values({column: sa.bindparam(f"new_{column}") for column in _UPDATED_COLUMNS})
)

_SAGA_ROW = (
    sa.select(_SAGA.c.id)
    .where(_SAGA.c.key == sa.bindparam("of_key"), _SAGA.c.definition == sa.bindparam("of_definition"))
    .scalar_subquery()
)
_INSERT_HISTORY = sa.insert(_HISTORY).values(
    saga=_SAGA_ROW, **{column.name: sa.bindparam(column.name) for column in _HISTORY.c if column.name != "saga"}
)
_THE_ENTRY = (_HISTORY.c.saga == _SAGA_ROW, _HISTORY.c.sequence == sa.bindparam("of_sequence"))
_UPDATE_HISTORY = (
    sa.update(_HISTORY)
    .where(*_THE_ENTRY)
    .values(
        {
            column.name: sa.bindparam(f"new_{column.name}")
            for column in _HISTORY.c
            if column.name not in {"saga", "sequence", "payload"}
        }
    )
)
_DELETE_HISTORY = sa.delete(_HISTORY).where(*_THE_ENTRY)

_SELECT_DUE = (
    sa.select(_SAGA.c.definition, _SAGA.c.key, _SAGA.c.next_deadline)
    .where(_IS_DUE, _SAGA.c.next_deadline <= sa.bindparam("until"))
    .order_by(_SAGA.c.next_deadline)
    .limit(sa.bindparam("how_many"))
)

_SELECT_DEAD_LETTER = sa.select(_DEAD_LETTER).where(
    _DEAD_LETTER.c.participant == sa.bindparam("by"), _DEAD_LETTER.c.sequence == sa.bindparam("at")
)
_SELECT_RECORDED = sa.select(_DEAD_LETTER.c.participant, _DEAD_LETTER.c.sequence).where(
    _DEAD_LETTER.c.sequence.in_(sa.bindparam("sequences", expanding=True))
)
_INSERT_DEAD_LETTER = sa.insert(_DEAD_LETTER)

_SELECT_DEFINITIONS = sa.select(_DEFINITION).order_by(_DEFINITION.c.name, _DEFINITION.c.version.desc())
_SELECT_KEPT = sa.select(_SAGA.c.definition, _SAGA.c.version).distinct()
_INSERT_DEFINITION = sa.insert(_DEFINITION)
_UPDATE_DEFINITION = (
    sa.update(_DEFINITION)
    .where(_DEFINITION.c.name == sa.bindparam("of_name"), _DEFINITION.c.version == sa.bindparam("of_version"))
    .values(digest=sa.bindparam("new_digest"), message=sa.bindparam("new_message"), is_active=True)
)
_DEACTIVATE = sa.update(_DEFINITION).values(is_active=False)

_KEYS_AT_ONCE = 1000
"""A statement takes a limited number of parameters: 32,766 in SQLite, 65,535 in PostgreSQL."""


class SqlCorrelatorStore:
    """A `CorrelatorStore` in one database, which it owns: `close` closes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """See `CorrelatorStore.open`."""
        await self._database.create(_METADATA)

    async def close(self) -> None:
        """See `CorrelatorStore.close`."""
        await self._database.close()

    async def check(self) -> None:
        """See `CorrelatorStore.check`."""
        await self._database.check()

    async def claim(self, incarnation: str, partitions: Iterable[int] = ALL_PARTITIONS) -> Claim:
        """See `CorrelatorStore.claim`."""
        owned = frozenset(partitions)
        return await self._database.write(lambda connection: _claim(connection, incarnation, owned))

    async def load(self, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
        """See `CorrelatorStore.load`."""
        return await self._database.read(lambda connection: _load(connection, keys))

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        """See `CorrelatorStore.commit`."""
        refuse_step_back(claim, batch)
        return await self._database.write(lambda connection: _commit(connection, claim, batch))

    async def waiting_publications(self) -> tuple[OutboxRow, ...]:
        """See `CorrelatorStore.waiting_publications`."""
        return tuple(await self._database.read(_OUTBOX.waiting))

    async def remove_publications(self, ids: Collection[int]) -> None:
        """See `CorrelatorStore.remove_publications`."""
        await self._database.write(lambda connection: _OUTBOX.remove(connection, ids))

    async def activate(self, definitions: Collection[Definition]) -> None:
        """See `CorrelatorStore.activate`."""
        await self._database.write(lambda connection: _activate(connection, definitions))

    async def due(self, until: datetime, limit: int) -> tuple[DueSaga, ...]:
        """See `CorrelatorStore.due`."""
        parameters = {"until": _micros(until), "how_many": limit}
        return await self._database.read(
            lambda connection: tuple(
                DueSaga(definition, key, _time(deadline))
                for definition, key, deadline in connection.execute(_SELECT_DUE, parameters)
            )
        )

    async def get_sagas(self, key: str, definition: str | None = None) -> tuple[RecordedSaga, ...]:
        """See `CorrelatorQueries.get_sagas`."""
        found = await self._database.read(lambda connection: _recorded(connection, key))
        return tuple(recorded for recorded in found if definition in {None, recorded.saga.definition})

    async def list_sagas(self, query: SagaQuery) -> SagaPage:
        """See `CorrelatorQueries.list_sagas`."""
        statement = saga_page_statement(query)
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        page = rows[: query.limit]
        return SagaPage(
            tuple(_saga(columns, ()) for _, _, *columns in page),
            SagaCursor(page[-1][0], page[-1][1]) if len(rows) > len(page) else None,
        )

    async def summarize(self, filter: Filter | None = None) -> tuple[SagaCount, ...]:  # noqa: A002 - the API's word
        """See `CorrelatorQueries.summarize`."""
        alike = (_SAGA.c.definition, _SAGA.c.status, _SAGA.c.health)
        statement = sa.select(*alike, sa.func.count()).where(_IS_STARTED).group_by(*alike).order_by(*alike)
        if filter is not None:
            statement = statement.where(_condition(filter, _SAGA_FILTER_COLUMNS))
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return tuple(
            SagaCount(definition, Status(status), Health(health), count) for definition, status, health, count in rows
        )

    async def list_dead_letters(self, query: DeadLetterQuery) -> DeadLetterPage:
        """See `CorrelatorQueries.list_dead_letters`."""
        statement = sa.select(_DEAD_LETTER).order_by(_DEAD_LETTER.c.id.desc()).limit(query.limit + 1)
        if query.before is not None:
            statement = statement.where(_DEAD_LETTER.c.id < query.before)
        if query.filter is not None:
            statement = statement.where(_condition(query.filter, _DEAD_LETTER_FILTER_COLUMNS))
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        page = rows[: query.limit]
        return DeadLetterPage(tuple(_dead_letter(row) for row in page), page[-1].id if len(rows) > len(page) else None)

    async def get_dead_letter(self, participant: str, sequence: int) -> DeadLetter | None:
        """See `CorrelatorQueries.get_dead_letter`."""
        parameters = {"by": participant, "at": sequence}
        row = await self._database.read(lambda connection: connection.execute(_SELECT_DEAD_LETTER, parameters).first())
        return None if row is None else _dead_letter(row)

    async def definitions(self) -> tuple[StoredDefinition, ...]:
        """See `CorrelatorQueries.definitions`."""
        return await self._database.read(_definitions)


def _claim(connection: sa.Connection, incarnation: str, owned: frozenset[int]) -> Claim:
    stored = connection.execute(_SELECT_POSITIONS, {"partitions": sorted(owned)}).all()
    for row in stored:
        if row.incarnation != incarnation:
            raise refuse_other_incarnation(row.incarnation, incarnation)
    known = {row.partition for row in stored}
    claim = Claim(
        incarnation=incarnation,
        epoch=1 + max((row.epoch for row in stored), default=0),
        position=min((row.position for row in stored), default=0) if known == owned else 0,
        partitions=owned,
    )
    taken = {"new_epoch": claim.epoch, "new_position": claim.position}
    if known:
        connection.execute(_TAKE_OVER, [{"owned": partition, **taken} for partition in sorted(known)])
    if owned - known:
        new = {"epoch": claim.epoch, "position": claim.position, "incarnation": incarnation}
        connection.execute(_INSERT_POSITION, [{"partition": partition, **new} for partition in sorted(owned - known)])
    return claim


def _load(connection: sa.Connection, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
    found: dict[str, list[Saga]] = {key: [] for key in keys}
    for some in _chunks(list(found)):
        histories: dict[int, list[HistoryEntry]] = {}
        for row in connection.execute(_SELECT_HISTORIES, {"keys": some}):
            histories.setdefault(row[0], []).append(_entry(row[1:]))
        for row in connection.execute(_SELECT_SAGAS, {"keys": some}):
            saga = _saga(row[1:], tuple(histories.get(row[0], ())))
            found[saga.key].append(saga)
    return {key: tuple(sagas) for key, sagas in found.items()}


def _recorded(connection: sa.Connection, key: str) -> tuple[RecordedSaga, ...]:
    histories: dict[int, list[HistoryEntry]] = {}
    payloads: dict[int, dict[int, bytes]] = {}
    for row in connection.execute(_SELECT_HISTORIES_WITH_PAYLOADS, {"keys": [key]}):
        entry = _entry(row[1:-1])
        histories.setdefault(row[0], []).append(entry)
        if row[-1] is not None:
            payloads.setdefault(row[0], {})[entry.fact.sequence] = row[-1]
    return tuple(
        RecordedSaga(_saga(row[1:], tuple(histories.get(row[0], ()))), payloads.get(row[0], {}))
        for row in connection.execute(_SELECT_SAGAS, {"keys": [key]})
    )


def _commit(connection: sa.Connection, claim: Claim, batch: FoldedBatch) -> Committed:
    advanced = connection.execute(
        _ADVANCE,
        {
            "partitions": sorted(claim.partitions),
            "old_epoch": claim.epoch,
            "old_position": claim.position,
            "new_position": batch.position,
        },
    )
    if advanced.rowcount != len(claim.partitions):
        raise FencedError("another correlator has claimed these partitions")
    _write_sagas(connection, batch.changes)
    _write_history(connection, batch.changes, batch.payloads)
    publications = [*batch.publications, *_write_dead_letters(connection, batch.dead_letters)]
    _OUTBOX.remove(connection, batch.acknowledged)
    rows = _OUTBOX.add(connection, publications)
    return Committed(replace(claim, position=batch.position), tuple(rows))


def _write_sagas(connection: sa.Connection, changes: Sequence[SagaChange]) -> None:
    new: list[Parameters] = []
    changed: list[Parameters] = []
    for change in changes:
        row = _saga_parameters(change.after)
        if change.before is None:
            new.append(row)
        else:
            parameters = {f"new_{column}": row[column] for column in _UPDATED_COLUMNS}
            parameters |= {
                "of_key": change.after.key,
                "of_definition": change.after.definition,
                "old_revision": change.before.revision,
            }
            changed.append(parameters)
    if new:
        connection.execute(_INSERT_SAGA, new)
    if changed:
        updated = connection.execute(_UPDATE_SAGA, changed).rowcount
        if updated != len(changed):
            raise StoreError(f"{len(changed) - updated} of {len(changed)} sagas are not stored as they were loaded")


def _write_history(connection: sa.Connection, changes: Sequence[SagaChange], payloads: Mapping[int, bytes]) -> None:
    added: list[Parameters] = []
    changed: list[Parameters] = []
    removed: list[Parameters] = []
    for change in changes:
        of = {"of_key": change.after.key, "of_definition": change.after.definition}
        difference = history_change(change.before, change.after)
        for entry in difference.added:
            sequence = entry.fact.sequence
            added.append(
                {**of, "sequence": sequence, "payload": payloads.get(sequence), **_entry_parameters(entry)},
            )
        for entry in difference.changed:
            row = _entry_parameters(entry)
            changed.append(
                {**of, "of_sequence": entry.fact.sequence, **{f"new_{name}": value for name, value in row.items()}}
            )
        removed.extend({**of, "of_sequence": sequence} for sequence in difference.removed)
    for statement, parameters in ((_DELETE_HISTORY, removed), (_UPDATE_HISTORY, changed), (_INSERT_HISTORY, added)):
        if parameters:
            connection.execute(statement, parameters)


def _write_dead_letters(connection: sa.Connection, dead_letters: Sequence[NewDeadLetter]) -> list[Publication]:
    """Writes those that are not there yet; returns their publications."""
    known: set[tuple[str, int]] = set()
    for some in _chunks([new.dead_letter.sequence for new in dead_letters]):
        known.update((by, at) for by, at in connection.execute(_SELECT_RECORDED, {"sequences": some}))
    fresh: list[NewDeadLetter] = []
    for new in dead_letters:
        identity = (new.dead_letter.participant, new.dead_letter.sequence)
        if identity not in known:
            known.add(identity)
            fresh.append(new)
    if fresh:
        connection.execute(_INSERT_DEAD_LETTER, [_dead_letter_parameters(new.dead_letter) for new in fresh])
    return [new.publication for new in fresh]


def _activate(connection: sa.Connection, definitions: Collection[Definition]) -> None:
    stored = {(old.name, old.version): old.digest for old in _definitions(connection)}
    kept = {(name, version) for name, version in connection.execute(_SELECT_KEPT)}
    refused = [
        (new.name, new.version)
        for new in definitions
        if (new.name, new.version) in kept and stored.get((new.name, new.version), new.digest) != new.digest
    ]
    if refused:
        raise refuse_changed_definitions(refused)
    connection.execute(_DEACTIVATE)
    for new in map(StoredDefinition.of, definitions):
        content = {"digest": new.digest, "message": new.message}
        if (new.name, new.version) in stored:
            of = {"of_name": new.name, "of_version": new.version}
            connection.execute(_UPDATE_DEFINITION, of | {f"new_{name}": value for name, value in content.items()})
        else:
            row = {"name": new.name, "version": new.version, "is_active": True}
            connection.execute(_INSERT_DEFINITION, row | content)


def _definitions(connection: sa.Connection) -> tuple[StoredDefinition, ...]:
    return tuple(
        StoredDefinition(row.name, row.version, row.digest, row.message, row.is_active)
        for row in connection.execute(_SELECT_DEFINITIONS)
    )


_ORDER_COLUMNS: Mapping[SagaOrder, sa.ColumnElement[int]] = {
    SagaOrder.UPDATE_TIME: _SAGA.c.update_time,
    SagaOrder.START_TIME: _SAGA.c.start_time,
    SagaOrder.DEADLINE: _DUE_LAST,
}
_SAGA_FILTER_COLUMNS: Mapping[str, sa.Column[Any]] = {
    "saga_id": _SAGA.c.key,
    **{
        name: _SAGA.c[name]
        for name in (
            "definition", "version", "status", "health", "cause", "start_time", "update_time", "end_time", "deadline",
        )
    },
}  # fmt: skip
_DEAD_LETTER_FILTER_COLUMNS: Mapping[str, sa.Column[Any]] = {
    "saga_id": _DEAD_LETTER.c.key,
    **{name: _DEAD_LETTER.c[name] for name in ("participant", "event_type", "reason", "sequence", "stream_time")},
}


def saga_page_statement(query: SagaQuery) -> sa.Select[Any]:
    """The statement of a page and one saga more: ordering value, row number, then the record's columns."""
    place = _ORDER_COLUMNS[query.order]
    row = _SAGA.c.id
    statement = sa.select(place, row, *_SAGA_COLUMNS).where(_IS_STARTED).limit(query.limit + 1)
    if query.filter is not None:
        statement = statement.where(_condition(query.filter, _SAGA_FILTER_COLUMNS))
    if query.after is not None:
        here = sa.tuple_(place, row)
        last = sa.tuple_(sa.literal(query.after.value, sa.BigInteger), sa.literal(query.after.row, sa.BigInteger))
        statement = statement.where(here < last if query.descending else here > last)
    if query.descending:
        return statement.order_by(place.desc(), row.desc())
    return statement.order_by(place, row)


def _condition(filter: Filter, columns: Mapping[str, sa.Column[Any]]) -> sa.ColumnElement[bool]:  # noqa: A002
    """A filter as a condition that is always true or false, never NULL, so that NOT means the same everywhere."""
    match filter:
        case And(terms):
            return sa.and_(*(_condition(term, columns) for term in terms))
        case Or(terms):
            return sa.or_(*(_condition(term, columns) for term in terms))
        case Not(term):
            return sa.not_(_condition(term, columns))
        case Present(field):
            return columns[field].is_not(None)
        case Comparison(field, how, value):
            column = columns[field]
            compared: sa.ColumnElement[bool] = COMPARE[how](column, _stored(value))  # type: ignore[assignment]
            if not column.nullable:
                return compared
            if how is Operator.NOT_EQUAL:
                return sa.or_(column.is_(None), compared)
            return sa.and_(column.is_not(None), compared)


def _stored(value: Value) -> str | int:
    match value:
        case datetime():
            return _micros(value)
        case int():
            return int(value)
        case str():
            return value


def _saga_parameters(saga: Saga) -> Parameters:
    return {
        "key": saga.key,
        "definition": saga.definition,
        "version": saga.version,
        "revision": saga.revision,
        "status": saga.status.value,
        "cause": saga.cause.value,
        "cause_detail": saga.cause_detail,
        "health": saga.health.value,
        "start_time": _maybe_micros(saga.start_time),
        "update_time": _micros(saga.update_time),
        "end_time": _maybe_micros(saga.end_time),
        "deadline": _maybe_micros(saga.deadline),
        "next_deadline": _maybe_micros(next_deadline(saga)),
        "finished_late": saga.finished_late,
        "steps": _dump([_step_values(step) for step in saga.steps]),
        "history_omitted": saga.history_omitted,
    }


def _step_values(step: StepRecord) -> list[str | int | None]:
    return [
        step.name,
        step.status.value,
        _maybe_micros(step.deadline),
        _maybe_micros(step.start_time),
        _maybe_micros(step.end_time),
    ]


def _saga(columns: Sequence[Any], history: tuple[HistoryEntry, ...]) -> Saga:
    """The record of a row of `_SAGA_COLUMNS`."""
    (
        definition, version, key, revision, status, cause, cause_detail, health, start_time, update_time, end_time,
        deadline, finished_late, steps, history_omitted,
    ) = columns  # fmt: skip
    return Saga(
        definition=definition,
        version=version,
        key=key,
        revision=revision,
        status=_STATUSES[status],
        cause=_CAUSES[cause],
        cause_detail=cause_detail,
        health=_HEALTHS[health],
        start_time=_maybe_time(start_time),
        update_time=_time(update_time),
        end_time=_maybe_time(end_time),
        deadline=_maybe_time(deadline),
        finished_late=finished_late,
        steps=tuple(
            StepRecord(name, _STEP_STATUSES[step], _maybe_time(due), _maybe_time(start), _maybe_time(end))
            for name, step, due, start, end in json.loads(steps)
        ),
        history=history,
        history_omitted=history_omitted,
    )


def _entry_parameters(entry: HistoryEntry) -> Parameters:
    """The columns of a history row except its key and its payload."""
    fact = entry.fact
    lifecycle = fact.lifecycle
    return {
        "disposition": entry.disposition.value,
        "disposition_reason": entry.reason,
        "stream_time": _micros(fact.stream_time),
        "type": fact.type,
        "source": fact.source,
        "event_id": fact.id,
        "digest": fact.digest,
        "time": _micros(fact.time),
        "causation_id": fact.causation_id,
        "reason": fact.reason,
        "lifecycle": lifecycle
        and _dump(
            [
                lifecycle.definition,
                lifecycle.version,
                lifecycle.cause.value,
                list(lifecycle.steps),
                lifecycle.compensation,
            ]
        ),
    }


def _entry(columns: Sequence[Any]) -> HistoryEntry:
    """The history entry of a row of `_FACT_COLUMNS`."""
    (
        sequence, stream_time, type_, source, event_id, digest, time, causation_id, reason, lifecycle, disposition,
        disposition_reason,
    ) = columns  # fmt: skip
    fact = Fact(
        sequence,
        _time(stream_time),
        type_,
        source,
        event_id,
        digest,
        _time(time),
        causation_id,
        reason,
        None if lifecycle is None else _lifecycle(lifecycle),
    )
    return HistoryEntry(fact, _DISPOSITIONS[disposition], disposition_reason)


def _lifecycle(text: str) -> Lifecycle:
    definition, version, cause, steps, compensation = json.loads(text)
    return Lifecycle(definition, version, _CAUSES[cause], tuple(steps), compensation)


def _dead_letter_parameters(dead_letter: DeadLetter) -> Parameters:
    return {
        "participant": dead_letter.participant,
        "sequence": dead_letter.sequence,
        "subject": dead_letter.subject,
        "event_type": dead_letter.event_type,
        "key": dead_letter.key or None,
        "reason": dead_letter.reason.value,
        "detail": dead_letter.detail,
        "stream_time": _micros(dead_letter.stream_time),
        "headers": _dump(dict(dead_letter.headers)),
        "body_size": dead_letter.body_size,
        "body_sha256": dead_letter.body_sha256,
        "payload": dead_letter.payload,
        "body_prefix": dead_letter.body_prefix,
    }


def _dead_letter(row: Row) -> DeadLetter:
    return DeadLetter(
        participant=row.participant,
        sequence=row.sequence,
        subject=row.subject,
        event_type=row.event_type,
        key=row.key or "",
        reason=Reason(row.reason),
        detail=row.detail,
        stream_time=_time(row.stream_time),
        headers=json.loads(row.headers),
        body_size=row.body_size,
        body_sha256=row.body_sha256,
        payload=row.payload,
        body_prefix=row.body_prefix,
    )


_OUTBOX = Outbox(_METADATA)

_STATUSES = {member.value: member for member in Status}
_CAUSES = {member.value: member for member in Cause}
_HEALTHS = {member.value: member for member in Health}
_STEP_STATUSES = {member.value: member for member in StepStatus}
_DISPOSITIONS = {member.value: member for member in Disposition}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_dump: Callable[[object], str] = json.JSONEncoder(separators=(",", ":")).encode


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _maybe_micros(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MICROSECOND


def _maybe_time(micros: int | None) -> datetime | None:
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    return (items[start : start + _KEYS_AT_ONCE] for start in range(0, len(items), _KEYS_AT_ONCE))
