"""A store with as many sagas as one likes, within seconds: a few that were really folded, multiplied by the database.

What is made is what the correlator would have written: the same tables, with the histories and payloads of whole order
sagas. The tables are read from the database, so that a change of the schema is followed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from benchmarks.order_events import ORDER_EVENTS, order_body
from farandole.advance import advance
from farandole.correlator.main import open_store
from farandole.correlator.store import CorrelatorStore, FoldedBatch, SagaChange
from farandole.definition import Definition
from farandole.envelope import Event, StoredMessage, decode
from farandole.partitions import partition_of
from farandole.registry import Registry
from farandole.saga import Cause, Health, Saga, Status

_STEP = timedelta(milliseconds=20)
"""Between the beginnings of two sagas."""
_TEMPLATES = 200
"""Of a saga that stands as so many others do, all but two have completed: one runs and is late, one was undone."""
_INCARNATION = "bench"
_INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'saga' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'saga' "
    "AND indexname NOT IN (SELECT conname FROM pg_constraint)",
}
"""The indexes of `saga` that can be made again: faster than to keep them."""
_DROP_REFERENCE = "ALTER TABLE saga_history DROP CONSTRAINT saga_history_saga_fkey"
"""PostgreSQL would look up each row's saga one by one."""
_ADD_REFERENCE = (
    "ALTER TABLE saga_history ADD CONSTRAINT saga_history_saga_fkey FOREIGN KEY (saga) REFERENCES saga (id)"
)


def key_of(number: int) -> str:
    """The key of a saga, from 0."""
    return f"order-{number}"


async def fill(store: CorrelatorStore, url: str, sagas: int, *, registry: Registry, definition: Definition) -> None:
    """Opens an empty store and fills it. The last saga began just now, the others before it; none is due for a day."""
    await open_store(store, [definition], replica="bench")
    templates = min(_TEMPLATES, sagas)
    began = datetime.now(UTC) - sagas * _STEP
    changes: list[SagaChange] = []
    payloads: dict[int, bytes] = {}
    for number in range(templates):
        key = key_of(number)
        events = list(_events(registry, key, number, began + number * _STEP))
        changes.append(SagaChange(None, _stood(_folded(definition, key, events), number)))
        payloads |= {event.sequence: event.body.SerializeToString(deterministic=True) for event in events}
    claim = await store.claim(_INCARNATION)
    await store.commit(claim, FoldedBatch(len(ORDER_EVENTS) * templates, changes, payloads))
    engine = engine_of(url)
    is_postgresql = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        tables = sa.MetaData()
        with warnings.catch_warnings(action="ignore", category=sa.exc.SAWarning):  # an index over an expression
            tables.reflect(connection, only=["saga", "saga_history", "correlator_position"])
        indexes = connection.exec_driver_sql(_INDEXES[engine.dialect.name]).all()
        for name, _ in indexes:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        if is_postgresql:
            connection.exec_driver_sql(_DROP_REFERENCE)
        _multiply(connection, tables.tables["saga"], tables.tables["saga_history"], templates, sagas)
        for _, definition_of_index in indexes:
            connection.exec_driver_sql(definition_of_index)
        if is_postgresql:
            connection.exec_driver_sql(_ADD_REFERENCE)
        connection.execute(tables.tables["correlator_position"].delete())  # the correlator takes it as a new one
    if is_postgresql:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")  # the server does so by itself, a minute later
    engine.dispose()


def engine_of(url: str) -> sa.Engine:
    """What gets into a database beside the store."""
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def _events(registry: Registry, key: str, number: int, began: datetime) -> list[Event]:
    events: list[Event] = []
    for place, (name, body) in enumerate(ORDER_EVENTS):
        sequence = number * len(ORDER_EVENTS) + place + 1
        subject = f"events.{partition_of(key)}.{name}"
        time = began + place * timedelta(milliseconds=2)
        event = decode(registry, StoredMessage(subject, {}, order_body(key, body), sequence, time))
        assert isinstance(event, Event), event
        events.append(event)
    return events


def _folded(definition: Definition, key: str, events: Sequence[Event]) -> Saga:
    saga: Saga | None = None
    for event in events:
        saga = advance(definition, saga, event.fact, key=key)
    assert saga is not None
    return saga


def _stood(saga: Saga, number: int) -> Saga:
    """The saga as it would stand, so that a list that is filtered has something to find: among many, few."""
    deadline = saga.update_time + timedelta(days=1)
    match number % _TEMPLATES:
        case 1:
            return replace(saga, status=Status.RUNNING, health=Health.OVERDUE, deadline=deadline, steps=())
        case 2:
            return replace(saga, status=Status.COMPENSATED, cause=Cause.STEP_FAILURE, end_time=saga.update_time)
        case _:
            return replace(saga, status=Status.COMPLETED, end_time=saga.update_time)


def _multiply(connection: sa.Connection, saga: sa.Table, history: sa.Table, templates: int, sagas: int) -> None:
    """Copies the templates, each with another key, number and times, until there are so many."""
    if sagas <= templates:
        return
    seed = sa.select(sa.literal(templates, sa.BigInteger).label("n")).cte("series", recursive=True)
    series = seed.union_all(sa.select(seed.c.n + 1).where(seed.c.n < sagas - 1))
    of_template = series.c.n % templates
    micros = _STEP // timedelta(microseconds=1)
    later = (series.c.n - of_template) * micros
    own = {
        "id": series.c.n + 1,
        "key": sa.literal("order-") + sa.cast(series.c.n, sa.Text),
        **{name: saga.c[name] + later for name in ("start_time", "update_time", "end_time", "deadline")},
        "next_deadline": saga.c.next_deadline,
    }
    copies = sa.select(*(own.get(column.name, column) for column in saga.columns)).join_from(
        series, saga, saga.c.id == of_template + 1
    )
    connection.execute(sa.insert(saga).from_select([column.name for column in saga.columns], copies))
    events = len(ORDER_EVENTS)
    later_sequence = (series.c.n - of_template) * events
    own_entry = {
        "saga": series.c.n + 1,
        "sequence": history.c.sequence + later_sequence,
        "stream_time": history.c.stream_time + later,
        "time": history.c.time + later,
    }
    entries = sa.select(*(own_entry.get(column.name, column) for column in history.columns)).join_from(
        series, history, history.c.saga == of_template + 1
    )
    connection.execute(sa.insert(history).from_select([column.name for column in history.columns], entries))
