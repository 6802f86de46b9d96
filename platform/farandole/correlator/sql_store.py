"""A correlator's store in a SQL database, SQLite or PostgreSQL.

Times are integers, microseconds since 1970 UTC. A record and its history are apart, so that a commit writes only the
history rows that are new or changed. All statements are prepared once; a batch is a handful of `executemany`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

import sqlalchemy as sa

from farandole.correlator.contents import Item, PartitionPosition, Take
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.filters import COMPARE, And, Comparison, Filter, Not, Operator, Or, Present, Value
from farandole.correlator.queries import (
    DeadLetterGroup,
    DeadLetterGroupPage,
    DeadLetterGroupQuery,
    DeadLetterPage,
    DeadLetterQuery,
    DueSaga,
    GroupCursor,
    OpenDeadLetters,
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
    SagaChange,
    changed_definitions,
    claim_after,
    dead_letter_change,
    digest_of,
    history_change,
    outdated_starts,
    refuse_changed_definitions,
    refuse_other_content,
    refuse_other_incarnation,
    refuse_outdated,
    refuse_step_back,
    taken_in_beyond,
)
from farandole.database import Database
from farandole.database.columns import KEY_TEXT, ROW_NUMBER
from farandole.deadlines import next_deadline
from farandole.definition import Definition
from farandole.envelope import Publication, Reason
from farandole.errors import FencedError, StoreError
from farandole.leases import Leases
from farandole.migrations import CORRELATOR, migrate
from farandole.outbox import Outbox, OutboxRow
from farandole.partitions import partition_of
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
from farandole.sql_leases import LeaseTables, SqlLeases

Parameters: TypeAlias = dict[str, Any]
Row: TypeAlias = sa.Row[Any]

METADATA = sa.MetaData()
_NEVER = 253_402_300_799_999_999
"""The end of the year 9999: where what has no deadline stands among deadlines."""


class _Bytes(sa.LargeBinary):
    """Bytes that the drivers give as bytes: SQLAlchemy's own type converts each value in Python all the same."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """Nothing to convert."""


_POSITION = sa.Table(
    "correlator_position",
    METADATA,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("position_time", sa.BigInteger),
    sa.Column("incarnation", sa.Text, nullable=False),
)

_SAGA = sa.Table(
    "saga",
    METADATA,
    sa.Column("id", ROW_NUMBER, primary_key=True),
    sa.Column("key", KEY_TEXT, nullable=False),
    sa.Column("definition", KEY_TEXT, nullable=False),
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
_DUE_LAST = sa.func.coalesce(_SAGA.c.deadline, sa.literal_column(str(_NEVER)))
sa.Index("saga_by_update", _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_status", _SAGA.c.status, _SAGA.c.update_time, _SAGA.c.id)
sa.Index("saga_by_status_and_deadline", _SAGA.c.status, _DUE_LAST, _SAGA.c.id)
sa.Index("saga_by_status_and_start", _SAGA.c.status, _SAGA.c.start_time, _SAGA.c.id)
sa.Index("saga_by_health", _SAGA.c.health, _SAGA.c.update_time, _SAGA.c.id)
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

_HISTORY = sa.Table(
    "saga_history",
    METADATA,
    sa.Column("saga", sa.BigInteger, sa.ForeignKey("saga.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("disposition", sa.SmallInteger, nullable=False),
    sa.Column("disposition_reason", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("digest", _Bytes, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("causation_id", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("lifecycle", sa.Text),
    sa.Column("payload", _Bytes),
)

_DEAD_LETTER = sa.Table(
    "dead_letter",
    METADATA,
    sa.Column("id", ROW_NUMBER, primary_key=True),
    sa.Column("participant", KEY_TEXT, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("key", KEY_TEXT),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("stream_time", sa.BigInteger, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body_size", sa.BigInteger, nullable=False),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("state_sequence", sa.BigInteger, nullable=False),
    sa.Column("payload", _Bytes),
    sa.Column("body_prefix", _Bytes, nullable=False),
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

_STARTED = sa.Table(
    "correlator_started",
    METADATA,
    sa.Column("replica", KEY_TEXT, primary_key=True),
    sa.Column("definitions", sa.Text, nullable=False),
)
"""By replica: the digest of the definitions with which it started."""

_DEFINITION = sa.Table(
    "saga_definition",
    METADATA,
    sa.Column("name", KEY_TEXT, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("message", _Bytes, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
)


class _Many:
    """A statement to execute for many rows of parameters. Compiled once; each row is a tuple in the order of `names`.

    SQLAlchemy would take a dictionary a row and copy it twice, which costs more than the database's work.
    """

    def __init__(self, statement: sa.Executable, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._compiled: tuple[str, str, Callable[[Sequence[Any]], Any]] | None = None

    def execute(self, connection: sa.Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Executes it for every row; returns how many rows of the table it touched in all."""
        if not rows:
            return 0
        dialect, text, arrange = self._compiled or self._compile(connection.dialect)
        if dialect != connection.dialect.name:
            dialect, text, arrange = self._compile(connection.dialect)
        return connection.exec_driver_sql(text, [arrange(row) for row in rows]).rowcount

    def _compile(self, dialect: sa.Dialect) -> tuple[str, str, Callable[[Sequence[Any]], Any]]:
        compiled: Any = self._statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        names = self._names
        if sorted(compiled.params) != sorted(names):
            raise TypeError(f"the statement takes {sorted(compiled.params)}, not {sorted(names)}")
        arrange: Callable[[Sequence[Any]], Any]
        if compiled.positional:
            arrange = itemgetter(*(names.index(name) for name in compiled.positiontup))
        else:
            arrange = lambda row: dict(zip(names, row, strict=True))  # noqa: E731 - as short as the other branch
        self._compiled = (dialect.name, str(compiled), arrange)
        return self._compiled


_SELECT_POSITIONS = (
    sa.select(_POSITION).where(_POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True))).with_for_update()
)
_INSERT_POSITION = sa.insert(_POSITION)
_TAKE_OVER = (
    sa.update(_POSITION)
    .where(_POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True)))
    .values(epoch=sa.bindparam("new_epoch"))
)
_NEW_POSITION = sa.bindparam("new_position", type_=sa.BigInteger)
_MOVES = _POSITION.c.position < _NEW_POSITION
_NEW_TIME = sa.bindparam("new_time", type_=sa.BigInteger)
_ADVANCE = (
    sa.update(_POSITION)
    .where(
        _POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True)),
        _POSITION.c.epoch == sa.bindparam("old_epoch"),
        _POSITION.c.position == sa.bindparam("old_position"),
    )
    .values(
        position=sa.case((_MOVES, _NEW_POSITION), else_=_POSITION.c.position),
        position_time=sa.case((_MOVES, _NEW_TIME), else_=_POSITION.c.position_time),
    )
)
"""Moves partitions that stand at one position, unless they are further."""

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

_STATE = (
    "version", "revision", "status", "cause", "cause_detail", "health", "start_time", "update_time", "end_time",
    "deadline", "next_deadline", "finished_late", "steps", "history_omitted",
)  # fmt: skip
"""The columns of a record that change, as `_state_values` gives them."""
_INSERT_SAGA = _Many(
    sa.insert(_SAGA).values({name: sa.bindparam(name) for name in ("key", "definition", "partition", *_STATE)}),
    ("key", "definition", "partition", *_STATE),
)
_UPDATE_SAGA = _Many(
    sa.update(_SAGA)
    .where(
        _SAGA.c.key == sa.bindparam("of_key"),
        _SAGA.c.definition == sa.bindparam("of_definition"),
        _SAGA.c.revision == sa.bindparam("old_revision"),
    )
    .values({name: sa.bindparam(f"new_{name}") for name in _STATE}),
    ("of_key", "of_definition", "old_revision", *(f"new_{name}" for name in _STATE)),
)

_SAGA_ROW = (
    sa.select(_SAGA.c.id)
    .where(_SAGA.c.key == sa.bindparam("of_key"), _SAGA.c.definition == sa.bindparam("of_definition"))
    .scalar_subquery()
)
_ENTRY = (
    "disposition", "disposition_reason", "stream_time", "type", "source", "event_id", "digest", "time",
    "causation_id", "reason", "lifecycle",
)  # fmt: skip
"""The columns of a history row besides its key and its payload, as `_entry_values` gives them."""
_INSERT_HISTORY = _Many(
    sa.insert(_HISTORY).values(
        saga=_SAGA_ROW, **{name: sa.bindparam(name) for name in ("sequence", "payload", *_ENTRY)}
    ),
    ("of_key", "of_definition", "sequence", "payload", *_ENTRY),
)
_THE_ENTRY = (_HISTORY.c.saga == _SAGA_ROW, _HISTORY.c.sequence == sa.bindparam("of_sequence"))
_UPDATE_HISTORY = _Many(
    sa.update(_HISTORY).where(*_THE_ENTRY).values({name: sa.bindparam(f"new_{name}") for name in _ENTRY}),
    ("of_key", "of_definition", "of_sequence", *(f"new_{name}" for name in _ENTRY)),
)
_DELETE_HISTORY = _Many(sa.delete(_HISTORY).where(*_THE_ENTRY), ("of_key", "of_definition", "of_sequence"))

SELECT_DUE = (
    sa.select(_SAGA.c.definition, _SAGA.c.key, _SAGA.c.next_deadline)
    .where(_SAGA.c.partition == sa.bindparam("of_partition"), _IS_DUE, _SAGA.c.next_deadline <= sa.bindparam("until"))
    .order_by(_SAGA.c.next_deadline, _SAGA.c.id)
    .limit(sa.bindparam("how_many"))
)
"""Definition, key and deadline of the sagas of a partition that are due."""
_EARLIEST = sa.func.min(_SAGA.c.next_deadline)


@cache
def next_deadlines_statement(partitions: frozenset[int]) -> sa.Select[Any]:
    """One row: the earliest next deadline of each of the partitions, by rising number.

    Each is one look into the index; a GROUP BY would walk it.
    """
    return sa.select(
        *(
            sa.select(_EARLIEST)
            .where(_SAGA.c.partition == sa.literal_column(str(partition)), _IS_DUE)
            .scalar_subquery()
            for partition in sorted(partitions)
        )
    )


_SELECT_DEAD_LETTER = sa.select(_DEAD_LETTER).where(
    _DEAD_LETTER.c.participant == sa.bindparam("by"), _DEAD_LETTER.c.sequence == sa.bindparam("at")
)
_SELECT_RECORDED = sa.select(_DEAD_LETTER).where(_DEAD_LETTER.c.sequence.in_(sa.bindparam("sequences", expanding=True)))
_SELECT_PAYLOAD = (
    sa.select(_HISTORY.c.payload)
    .join_from(_SAGA, _HISTORY)
    .where(
        _SAGA.c.key == sa.bindparam("of_key"),
        _HISTORY.c.sequence == sa.bindparam("at"),
        _HISTORY.c.type == sa.bindparam("of_type"),
        _HISTORY.c.payload.is_not(None),
    )
    .limit(1)
)
_INSERT_DEAD_LETTER = sa.insert(_DEAD_LETTER)
_UPDATE_DEAD_LETTER = (
    sa.update(_DEAD_LETTER)
    .where(_DEAD_LETTER.c.participant == sa.bindparam("by"), _DEAD_LETTER.c.sequence == sa.bindparam("at"))
    .values({column: sa.bindparam(f"new_{column.name}") for column in _DEAD_LETTER.columns if column.name != "id"})
)

_SELECT_DEFINITIONS = sa.select(_DEFINITION).order_by(_DEFINITION.c.name, _DEFINITION.c.version.desc())
_NAMED = ("of_name", "of_version")
_SELECT_KEPT = (
    sa.select(_SAGA.c.id)
    .where(_SAGA.c.definition == sa.bindparam("of_name"), _SAGA.c.version == sa.bindparam("of_version"))
    .limit(1)
)
_INSERT_DEFINITION = sa.insert(_DEFINITION)
_UPDATE_DEFINITION = (
    sa.update(_DEFINITION)
    .where(_DEFINITION.c.name == sa.bindparam("of_name"), _DEFINITION.c.version == sa.bindparam("of_version"))
    .values(digest=sa.bindparam("new_digest"), message=sa.bindparam("new_message"), is_active=True)
)
_DEACTIVATE = sa.update(_DEFINITION).values(is_active=False)
_SELECT_STARTED = sa.select(_STARTED)
_FORGET_START = sa.delete(_STARTED).where(_STARTED.c.replica == sa.bindparam("by"))
_INSERT_START = sa.insert(_STARTED)

_SELECT_ALL_POSITIONS = sa.select(_POSITION).order_by(_POSITION.c.partition)
_SELECT_HISTORIES_OF = (
    sa.select(_HISTORY.c.saga, *_FACT_COLUMNS, _HISTORY.c.payload)
    .where(_HISTORY.c.saga.in_(sa.bindparam("rows", expanding=True)))
    .order_by(_HISTORY.c.saga, _HISTORY.c.sequence)
)
_BYTEWISE = {"sqlite": "BINARY", "postgresql": "C"}
"""The collation that compares texts as bytes, as Python does: two stores are compared while both are read once."""
_SAGAS_AT_ONCE = 500

_KEYS_AT_ONCE = 1000
"""A statement takes a limited number of parameters: 32,766 in SQLite, 65,535 in PostgreSQL."""


class SqlCorrelatorStore:
    """A `CorrelatorStore` in one database, which it owns: `close` closes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.leases: Leases = SqlLeases(database, _LEASES)

    async def open(self) -> None:
        """See `CorrelatorStore.open`. Raises `StoreError` with the remedy where another version made the tables."""
        await migrate(self._database, CORRELATOR)

    async def close(self) -> None:
        """See `CorrelatorStore.close`."""
        await self._database.close()

    async def check(self) -> None:
        """See `CorrelatorStore.check`."""
        await self._database.check()

    async def claim(
        self, incarnation: str, partitions: Iterable[int] = ALL_PARTITIONS, *, held: Claim | None = None
    ) -> Claim:
        """See `CorrelatorStore.claim`."""
        owned = frozenset(partitions)
        return await self._database.write(lambda connection: _claim(connection, incarnation, owned, held))

    async def load(self, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
        """See `CorrelatorStore.load`."""
        return await self._database.read(lambda connection: _load(connection, keys))

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        """See `CorrelatorStore.commit`."""
        refuse_step_back(claim, batch)
        return await self._database.write(lambda connection: _commit(connection, claim, batch))

    async def waiting_publications(self, partitions: Collection[int] = ALL_PARTITIONS) -> tuple[OutboxRow, ...]:
        """See `CorrelatorStore.waiting_publications`."""
        return tuple(await self._database.read(lambda connection: _OUTBOX.waiting(connection, partitions)))

    async def remove_publications(self, ids: Collection[int]) -> None:
        """See `CorrelatorStore.remove_publications`."""
        await self._database.write(lambda connection: _OUTBOX.remove(connection, ids))

    async def activate(self, definitions: Collection[Definition], *, replica: str) -> bool:
        """See `CorrelatorStore.activate`."""
        return await self._database.write(lambda connection: _activate(connection, definitions, replica))

    async def leave(self, replica: str) -> None:
        """See `CorrelatorStore.leave`."""
        await self._database.write(lambda connection: connection.execute(_FORGET_START, {"by": replica}))

    async def remember(self, definitions: Collection[Definition]) -> None:
        """See `CorrelatorStore.remember`."""
        await self._database.write(lambda connection: _remember(connection, definitions))

    async def due(self, until: datetime, limit: int, partition: int) -> tuple[DueSaga, ...]:
        """See `CorrelatorStore.due`."""
        parameters = {"of_partition": partition, "until": _micros(until), "how_many": limit}
        return await self._database.read(
            lambda connection: tuple(
                DueSaga(definition, key, _time(deadline))
                for definition, key, deadline in connection.execute(SELECT_DUE, parameters)
            )
        )

    async def next_deadlines(self, partitions: Collection[int] = ALL_PARTITIONS) -> dict[int, datetime]:
        """See `CorrelatorStore.next_deadlines`."""
        statement = next_deadlines_statement(frozenset(partitions))
        row = await self._database.read(lambda connection: connection.execute(statement).one())
        return {
            partition: _time(earliest)
            for partition, earliest in zip(sorted(partitions), row, strict=True)
            if earliest is not None
        }

    async def positions(self) -> dict[int, int]:
        """See `CorrelatorStore.positions`."""
        rows = await self._database.read(lambda connection: connection.execute(_SELECT_ALL_POSITIONS).all())
        return {row.partition: row.position for row in rows}

    async def export(self, take: Take) -> None:
        """See `CorrelatorStore.export`."""
        await self._database.read(lambda connection: _export(connection, take))

    async def restore(self, contents: Callable[[], Iterable[Item]]) -> bool:
        """See `CorrelatorStore.restore`."""
        return await self._database.write(lambda connection: _restore(connection, contents))

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

    async def group_dead_letters(self, query: DeadLetterGroupQuery) -> DeadLetterGroupPage:
        """See `CorrelatorQueries.group_dead_letters`."""
        statement = _groups_statement(query)
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        page = tuple(_group(query, row) for row in rows[: query.limit])
        more = len(rows) > len(page)
        return DeadLetterGroupPage(page, GroupCursor(page[-1].count, page[-1].row) if more else None)

    async def count_open_dead_letters(self, filter: Filter | None = None) -> OpenDeadLetters:  # noqa: A002
        """See `CorrelatorQueries.count_open_dead_letters`."""
        columns = _DEAD_LETTER.c
        statement = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.max(columns.id), 0),
            sa.func.coalesce(sa.func.max(columns.state_sequence), 0),
        ).where(*_open_and(filter))
        row = await self._database.read(lambda connection: connection.execute(statement).one())
        return OpenDeadLetters(*row)

    async def open_dead_letters(
        self,
        counted: OpenDeadLetters,
        filter: Filter | None = None,  # noqa: A002 - the API's word
        *,
        after: int = 0,
        limit: int = 500,
    ) -> DeadLetterPage:
        """See `CorrelatorQueries.open_dead_letters`."""
        columns = _DEAD_LETTER.c
        statement = (
            sa.select(_DEAD_LETTER)
            .where(
                *_open_and(filter),
                columns.id > after,
                columns.id <= counted.last_row,
                columns.state_sequence <= counted.last_state_sequence,
            )
            .order_by(columns.id)
            .limit(limit + 1)
        )
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        page = rows[:limit]
        return DeadLetterPage(tuple(_dead_letter(row) for row in page), page[-1].id if len(rows) > len(page) else None)

    async def get_dead_letter(self, participant: str, sequence: int) -> DeadLetter | None:
        """See `CorrelatorQueries.get_dead_letter`."""
        return await self._database.read(lambda connection: _get_dead_letter(connection, participant, sequence))

    async def definitions(self) -> tuple[StoredDefinition, ...]:
        """See `CorrelatorQueries.definitions`."""
        return await self._database.read(_definitions)


def _claim(connection: sa.Connection, incarnation: str, owned: frozenset[int], held: Claim | None) -> Claim:
    if held is not None:
        rows = connection.execute(_SELECT_POSITIONS, {"partitions": sorted(held.partitions)})
        refuse_outdated(held, {row.partition: row.epoch for row in rows})
    stored = connection.execute(_SELECT_POSITIONS, {"partitions": sorted(owned)}).all()
    for row in stored:
        if row.incarnation != incarnation:
            raise refuse_other_incarnation(row.incarnation, incarnation)
    known = {row.partition for row in stored}
    lowest = min(stored, key=lambda row: row.position) if known == owned and stored else None
    position = 0 if lowest is None else lowest.position
    claim = Claim(
        incarnation=incarnation,
        epoch=1 + max((row.epoch for row in stored), default=0),
        position=position,
        time=None if lowest is None else _maybe_time(lowest.position_time),
        partitions=owned,
        taken_in=taken_in_beyond(position, {row.partition: row.position for row in stored}),
    )
    connection.execute(_TAKE_OVER, {"partitions": sorted(known), "new_epoch": claim.epoch})
    if owned - known:
        new = {"epoch": claim.epoch, "position": 0, "position_time": None, "incarnation": incarnation}
        connection.execute(_INSERT_POSITION, [{"partition": partition, **new} for partition in sorted(owned - known)])
    return claim


def _load(connection: sa.Connection, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
    found: dict[str, list[Saga]] = {key: [] for key in keys}
    for some in _chunks(list(found)):
        histories: dict[int, list[HistoryEntry]] = {}
        for row, *columns in connection.execute(_SELECT_HISTORIES, {"keys": some}).all():
            histories.setdefault(row, []).append(_entry(columns))
        for row, *columns in connection.execute(_SELECT_SAGAS, {"keys": some}).all():
            saga = _saga(columns, tuple(histories.get(row, ())))
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
    after = claim_after(claim, batch)
    standing: dict[int, list[int]] = {}
    for partition in sorted(claim.partitions):
        standing.setdefault(claim.position_of(partition), []).append(partition)
    for position, partitions in standing.items():
        advanced = connection.execute(
            _ADVANCE,
            {
                "partitions": partitions,
                "old_epoch": claim.epoch,
                "old_position": position,
                "new_position": batch.position,
                "new_time": _maybe_micros(after.time),
            },
        )
        if advanced.rowcount != len(partitions):
            raise FencedError("another correlator has claimed these partitions")
    _write_sagas(connection, batch.changes)
    _write_history(connection, batch.changes, batch.payloads)
    publications = [*batch.publications, *_write_dead_letters(connection, batch)]
    _OUTBOX.remove(connection, batch.acknowledged)
    rows = _OUTBOX.add(connection, publications)
    return Committed(after, tuple(rows))


def _write_sagas(connection: sa.Connection, changes: Sequence[SagaChange]) -> None:
    new: list[tuple[Any, ...]] = []
    changed: list[tuple[Any, ...]] = []
    for change in changes:
        after = change.after
        if change.before is None:
            new.append((after.key, after.definition, partition_of(after.key), *_state_values(after)))
        else:
            changed.append((after.key, after.definition, change.before.revision, *_state_values(after)))
    _INSERT_SAGA.execute(connection, new)
    updated = _UPDATE_SAGA.execute(connection, changed)
    if updated != len(changed):
        raise StoreError(f"{len(changed) - updated} of {len(changed)} sagas are not stored as they were loaded")


def _write_history(connection: sa.Connection, changes: Sequence[SagaChange], payloads: Mapping[int, bytes]) -> None:
    added: list[tuple[Any, ...]] = []
    changed: list[tuple[Any, ...]] = []
    removed: list[tuple[Any, ...]] = []
    for change in changes:
        key, definition = change.after.key, change.after.definition
        difference = history_change(change.before, change.after)
        for entry in difference.added:
            sequence = entry.fact.sequence
            added.append((key, definition, sequence, payloads.get(sequence), *_entry_values(entry)))
        changed.extend((key, definition, entry.fact.sequence, *_entry_values(entry)) for entry in difference.changed)
        removed.extend((key, definition, sequence) for sequence in difference.removed)
    _DELETE_HISTORY.execute(connection, removed)
    _UPDATE_HISTORY.execute(connection, changed)
    _INSERT_HISTORY.execute(connection, added)


def _write_dead_letters(connection: sa.Connection, batch: FoldedBatch) -> tuple[Publication, ...]:
    """Writes what the batch makes of dead letters; returns what is to be published of them."""
    stored: dict[tuple[str, int], DeadLetter] = {}
    sequences = {one.dead_letter.sequence for one in batch.dead_letters}
    sequences.update(one.sequence for one in batch.closed_dead_letters)
    for some in _chunks(list(sequences)):
        for row in connection.execute(_SELECT_RECORDED, {"sequences": some}):
            stored[row.participant, row.sequence] = _dead_letter(row)
    change = dead_letter_change(stored, batch)
    if change.added:
        connection.execute(_INSERT_DEAD_LETTER, [_dead_letter_parameters(one) for one in change.added])
    if change.changed:
        connection.execute(
            _UPDATE_DEAD_LETTER,
            [
                {"by": one.participant, "at": one.sequence}
                | {f"new_{name}": value for name, value in _dead_letter_parameters(one).items()}
                for one in change.changed
            ],
        )
    return change.publications


def _get_dead_letter(connection: sa.Connection, participant: str, sequence: int) -> DeadLetter | None:
    row = connection.execute(_SELECT_DEAD_LETTER, {"by": participant, "at": sequence}).first()
    if row is None:
        return None
    found = _dead_letter(row)
    if found.payload is not None:
        return found
    event = {"of_key": found.key, "at": sequence, "of_type": found.event_type}
    return replace(found, payload=connection.execute(_SELECT_PAYLOAD, event).scalar())


def _activate(connection: sa.Connection, definitions: Collection[Definition], replica: str) -> bool:
    stored = _definitions(connection)
    started = {row.replica: row.definitions for row in connection.execute(_SELECT_STARTED)}
    digest, active = digest_of(definitions), digest_of(one for one in stored if one.is_active)
    if started.get(replica) == digest:
        return digest == active
    living = _LEASES.living(connection)
    changed = changed_definitions(definitions, stored)
    refuse_changed_definitions(
        changed,
        kept={one for one in changed if connection.execute(_SELECT_KEPT, dict(zip(_NAMED, one, strict=True))).first()},
        is_alone=living <= {replica},
    )
    for outdated in {replica, *outdated_starts(started, active=active, activated=digest, living=living)}:
        connection.execute(_FORGET_START, {"by": outdated})
    connection.execute(_INSERT_START, {"replica": replica, "definitions": digest})
    known = {(old.name, old.version) for old in stored}
    connection.execute(_DEACTIVATE)
    for new in map(StoredDefinition.of, definitions):
        content = {"digest": new.digest, "message": new.message}
        if (new.name, new.version) in known:
            of = {"of_name": new.name, "of_version": new.version}
            connection.execute(_UPDATE_DEFINITION, of | {f"new_{name}": value for name, value in content.items()})
        else:
            row = {"name": new.name, "version": new.version, "is_active": True}
            connection.execute(_INSERT_DEFINITION, row | content)
    return True


def _remember(connection: sa.Connection, definitions: Collection[Definition]) -> None:
    stored = {(old.name, old.version) for old in _definitions(connection)}
    missing = {(new.name, new.version): new for new in definitions if (new.name, new.version) not in stored}
    for new in map(StoredDefinition.of, missing.values()):
        row = {"name": new.name, "version": new.version, "digest": new.digest, "message": new.message}
        connection.execute(_INSERT_DEFINITION, row | {"is_active": False})


def _definitions(connection: sa.Connection) -> tuple[StoredDefinition, ...]:
    return tuple(
        StoredDefinition(row.name, row.version, row.digest, row.message, row.is_active)
        for row in connection.execute(_SELECT_DEFINITIONS)
    )


def _export(connection: sa.Connection, take: Take) -> None:
    for row in connection.execute(_SELECT_ALL_POSITIONS):
        take(PartitionPosition(row.partition, row.position, row.incarnation, _maybe_time(row.position_time)))
    for definition in _definitions(connection):
        take(definition)
    collation = _BYTEWISE[connection.dialect.name]
    by_name = (_SAGA.c.key.collate(collation), _SAGA.c.definition.collate(collation))
    sagas = connection.execute(
        sa.select(_SAGA.c.id, *_SAGA_COLUMNS).order_by(*by_name), execution_options={"yield_per": _SAGAS_AT_ONCE}
    )
    for page in sagas.partitions():
        histories: dict[int, list[HistoryEntry]] = {}
        payloads: dict[int, dict[int, bytes]] = {}
        for row, *columns, payload in connection.execute(_SELECT_HISTORIES_OF, {"rows": [saga.id for saga in page]}):
            entry = _entry(columns)
            histories.setdefault(row, []).append(entry)
            if payload is not None:
                payloads.setdefault(row, {})[entry.fact.sequence] = payload
        for row, *columns in page:
            take(RecordedSaga(_saga(columns, tuple(histories.get(row, ()))), payloads.get(row, {})))
    letters = sa.select(_DEAD_LETTER).order_by(_DEAD_LETTER.c.id)
    for row in connection.execute(letters, execution_options={"yield_per": _SAGAS_AT_ONCE}):
        take(_dead_letter(row))
    for waiting in _OUTBOX.waiting(connection):
        take(waiting.publication)


def _restore(connection: sa.Connection, contents: Callable[[], Iterable[Item]]) -> bool:
    if connection.execute(_SELECT_ALL_POSITIONS).first() is not None:
        return False
    stored = {(old.name, old.version): old for old in _definitions(connection)}
    kept: set[tuple[str, int]] = set()
    definitions: list[StoredDefinition] = []
    for kind, items in groupby(contents(), type):
        for some in _batches(items, _SAGAS_AT_ONCE):
            if kind is PartitionPosition:
                _insert_positions(connection, some)
            elif kind is StoredDefinition:
                definitions += some
            elif kind is RecordedSaga:
                kept |= {(one.saga.definition, one.saga.version) for one in some}
                changes = [SagaChange(None, one.saga) for one in some]
                _write_sagas(connection, changes)
                payloads = {sequence: payload for one in some for sequence, payload in one.payloads.items()}
                _write_history(connection, changes, payloads)
            elif kind is DeadLetter:
                connection.execute(_INSERT_DEAD_LETTER, [_dead_letter_parameters(one) for one in some])
            else:
                _OUTBOX.add(connection, some)
    refuse_other_content(stored, definitions, kept)
    _remember(connection, [definition.definition() for definition in definitions])
    return True


def _insert_positions(connection: sa.Connection, positions: Sequence[PartitionPosition]) -> None:
    connection.execute(
        _INSERT_POSITION,
        [
            {
                "partition": one.partition,
                "epoch": 1,
                "position": one.position,
                "position_time": _maybe_micros(one.time),
                "incarnation": one.incarnation,
            }
            for one in positions
        ],
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
    **{
        name: _DEAD_LETTER.c[name]
        for name in (
            "participant", "definition", "step", "event_type", "reason", "detail", "failure", "state", "sequence",
            "stream_time",
        )
    },
}  # fmt: skip


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


def _groups_statement(query: DeadLetterGroupQuery) -> sa.Select[Any]:
    """The statement of a page and one group more: the groups' own columns, then what their dead letters share."""
    columns = _DEAD_LETTER_FILTER_COLUMNS
    keys = [columns[key] for key in query.keys]
    alike = dict.fromkeys((*query.fields, *query.keys))
    groups = (
        sa.select(
            sa.func.count().label("group_count"),
            sa.func.min(_DEAD_LETTER.c.id).label("group_row"),
            sa.func.sum(sa.case((_DEAD_LETTER.c.state == DeadLetterState.OPEN.value, 1), else_=0)).label("group_open"),
            sa.func.min(_DEAD_LETTER.c.stream_time).label("group_first"),
            sa.func.max(_DEAD_LETTER.c.stream_time).label("group_last"),
            *(sa.func.min(columns[name]).label(f"alike_{name}") for name in alike),
        )
        .where(*([] if query.filter is None else [_condition(query.filter, columns)]))
        .group_by(*keys)
        .subquery()
    )
    count, row = groups.c.group_count, groups.c.group_row
    statement = sa.select(groups).order_by(count.desc(), row).limit(query.limit + 1)
    if query.after is not None:
        after = query.after
        statement = statement.where(sa.or_(count < after.count, sa.and_(count == after.count, row > after.row)))
    return statement


def _group(query: DeadLetterGroupQuery, row: Row) -> DeadLetterGroup:
    values = {name: getattr(row, f"alike_{name}") for name in dict.fromkeys((*query.fields, *query.keys))}
    if "reason" in values:
        values["reason"] = Reason(values["reason"])
    return DeadLetterGroup(
        values=values,
        count=row.group_count,
        open=row.group_open,
        first_time=_time(row.group_first),
        last_time=_time(row.group_last),
        row=row.group_row,
    )


def _open_and(filter: Filter | None) -> list[sa.ColumnElement[bool]]:  # noqa: A002 - the API's word
    """The conditions of an open dead letter that matches."""
    is_open = _DEAD_LETTER.c.state == DeadLetterState.OPEN.value
    return [is_open] if filter is None else [is_open, _condition(filter, _DEAD_LETTER_FILTER_COLUMNS)]


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
            compared: sa.ColumnElement[bool] = COMPARE[how](column, _literal(value))  # type: ignore[assignment]
            if not column.nullable:
                return compared
            if how is Operator.NOT_EQUAL:
                return sa.or_(column.is_(None), compared)
            return sa.and_(column.is_not(None), compared)


def _literal(value: Value) -> sa.ColumnElement[Any]:
    match value:
        case datetime():
            return sa.literal(_micros(value), sa.BigInteger)
        case int():
            return sa.literal(int(value), sa.BigInteger)  # the column may be a smaller integer than what is asked for
        case str():
            return sa.literal(value, sa.Text)


def _state_values(saga: Saga) -> tuple[Any, ...]:
    """The values of `_STATE`."""
    return (
        saga.version,
        saga.revision,
        saga.status.value,
        saga.cause.value,
        saga.cause_detail,
        saga.health.value,
        _maybe_micros(saga.start_time),
        _micros(saga.update_time),
        _maybe_micros(saga.end_time),
        _maybe_micros(saga.deadline),
        _maybe_micros(next_deadline(saga)),
        saga.finished_late,
        _dump([_step_values(step) for step in saga.steps]),
        saga.history_omitted,
    )


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


def _entry_values(entry: HistoryEntry) -> tuple[Any, ...]:
    """The values of `_ENTRY`."""
    fact = entry.fact
    return (
        entry.disposition.value,
        entry.reason,
        _micros(fact.stream_time),
        fact.type,
        fact.source,
        fact.id,
        fact.digest,
        _micros(fact.time),
        fact.causation_id,
        fact.reason,
        None if fact.lifecycle is None else _lifecycle_text(fact.lifecycle),
    )


def _lifecycle_text(lifecycle: Lifecycle) -> str:
    return _dump(
        [
            lifecycle.definition,
            lifecycle.version,
            lifecycle.cause.value,
            list(lifecycle.steps),
            lifecycle.compensation,
            lifecycle.dead_letter,
        ]
    )


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
    definition, version, cause, steps, compensation, dead_letter = json.loads(text)
    about = None if dead_letter is None else (dead_letter[0], dead_letter[1])
    return Lifecycle(definition, version, _CAUSES[cause], tuple(steps), compensation, about)


def _dead_letter_parameters(dead_letter: DeadLetter) -> Parameters:
    return {
        "participant": dead_letter.participant,
        "sequence": dead_letter.sequence,
        "subject": dead_letter.subject,
        "event_type": dead_letter.event_type,
        "key": dead_letter.key or None,
        "reason": dead_letter.reason.value,
        "detail": dead_letter.detail,
        "failure": dead_letter.failure,
        "stream_time": _micros(dead_letter.stream_time),
        "headers": _dump(dict(dead_letter.headers)),
        "body_size": dead_letter.body_size,
        "body_sha256": dead_letter.body_sha256,
        "state_sequence": dead_letter.state_sequence,
        "payload": dead_letter.payload,
        "body_prefix": dead_letter.body_prefix,
        "definition": dead_letter.definition or None,
        "step": dead_letter.step or None,
        "compensation": dead_letter.compensation,
        "attempts": dead_letter.attempts,
        "state": dead_letter.state.value,
        "close_time": _maybe_micros(dead_letter.close_time),
        "close_actor": dead_letter.close_actor,
        "close_reason": dead_letter.close_reason,
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
        state_sequence=row.state_sequence,
        payload=row.payload,
        body_prefix=row.body_prefix,
        definition=row.definition or "",
        step=row.step or "",
        compensation=row.compensation,
        attempts=row.attempts,
        state=DeadLetterState(row.state),
        close_time=_maybe_time(row.close_time),
        close_actor=row.close_actor,
        close_reason=row.close_reason,
    )


_OUTBOX = Outbox(METADATA)
_LEASES = LeaseTables(METADATA)

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


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(items, size)):
        yield some


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    return (items[start : start + _KEYS_AT_ONCE] for start in range(0, len(items), _KEYS_AT_ONCE))
