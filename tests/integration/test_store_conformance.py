"""The stores that ship keep every rule of their port, and agree on every filter."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.filters import And, Comparison, Filter, Not, Operator, Or, Present
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import DeadLetterQuery, SagaOrder, SagaQuery
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.sql_store.due import SELECT_DUE, next_deadlines_statement
from farandole.correlator.sql_store.saga_lists import saga_page_statement
from farandole.correlator.store import ALL_PARTITIONS, CorrelatorStore, FoldedBatch
from farandole.database import Database
from farandole.errors import StoreUnavailableError
from farandole.lanes import Lanes
from farandole.reasons import Reason
from farandole.saga import Cause, Health, Saga, Status
from farandole.testing import CorrelatorStoreConformance
from farandole.testing.store_conformance import (
    INCARNATION,
    at,
    closed,
    dead_letter,
    definition,
    key_of,
    new,
    publication,
    record,
    saga,
)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqlCorrelatorStore]:
    store = SqlCorrelatorStore(Database(f"sqlite:///{tmp_path}/made/for/it/correlator.db"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def postgresql(postgres_url: str) -> AsyncIterator[SqlCorrelatorStore]:
    store = SqlCorrelatorStore(Database(postgres_url))
    await store.open()
    yield store
    await store.close()


USUAL_PAGES = [
    (wanted, order, descending)
    for descending in (False, True)
    for wanted, order in [
        *((None, order) for order in SagaOrder),
        (Comparison("status", Operator.EQUAL, Status.RUNNING), SagaOrder.UPDATE_TIME),
        (Comparison("status", Operator.EQUAL, Status.COMPLETED), SagaOrder.START_TIME),
        (Comparison("status", Operator.EQUAL, Status.RUNNING), SagaOrder.DEADLINE),
        (Comparison("health", Operator.EQUAL, Health.STALLED), SagaOrder.UPDATE_TIME),
        (Comparison("definition", Operator.EQUAL, "order-fulfilment"), SagaOrder.UPDATE_TIME),
    ]
]


class TestMemoryStore(CorrelatorStoreConformance):
    @pytest.fixture
    def store(self) -> CorrelatorStore:
        return MemoryCorrelatorStore()


class TestSqliteStore(CorrelatorStoreConformance):
    @pytest.fixture
    def store(self, sqlite: SqlCorrelatorStore) -> CorrelatorStore:
        return sqlite


class TestPostgresqlStore(CorrelatorStoreConformance):
    @pytest.fixture
    def store(self, postgresql: SqlCorrelatorStore) -> CorrelatorStore:
        return postgresql


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[list[SqlCorrelatorStore]]:
    """The stores of four replicas, which start together."""
    stores = [SqlCorrelatorStore(Database(postgres_url)) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    yield stores
    await asyncio.gather(*(store.close() for store in stores))


async def test_replicas_commit_to_their_lanes_at_the_same_time(replicas: list[SqlCorrelatorStore]) -> None:
    async def work(store: SqlCorrelatorStore, lane: int) -> None:
        claim = await store.claim(INCARNATION, Lanes(4).partitions(lane))
        for number in range(20):
            key = key_of(lane, number)
            await store.load([key])
            batch = FoldedBatch(
                number + 1,
                new(saga(key)),
                publications=[publication(key)],
                dead_letters=[dead_letter(4 * number + lane + 1, key=key)],
            )
            committed = await store.commit(claim, batch)
            claim = committed.claim
            await store.remove_publications([committed.publications[0].id])

    await asyncio.gather(*(work(store, lane) for lane, store in enumerate(replicas)))
    assert sum(count.count for count in await replicas[0].summarize()) == 80
    assert len((await replicas[0].list_dead_letters(DeadLetterQuery(limit=1000))).dead_letters) == 80
    assert len(await replicas[0].waiting_publications()) == 160, "of each dead letter two"


async def test_replicas_that_start_together_leave_the_definitions_of_one_active(
    replicas: list[SqlCorrelatorStore],
) -> None:
    sets = [[definition()], [definition(version=2), definition("drone-delivery")]]
    await asyncio.gather(
        *(store.activate(sets[number % 2], replica=f"r{number}") for number, store in enumerate(replicas)),
        *(store.remember([definition(version=3)]) for store in replicas),
    )
    stored = await replicas[0].definitions()
    assert [one.definition() for one in stored if one.is_active] in [sets[0], sets[1][::-1]]
    assert {(one.name, one.version) for one in stored} == {
        *(("order-fulfilment", version) for version in (1, 2, 3)),
        ("drone-delivery", 1),
    }


async def test_everything_is_kept_across_processes(database_url: str) -> None:
    first = SqlCorrelatorStore(Database(database_url))
    await first.open()
    claim = await record(first, saga("a"))
    await first.commit(claim, FoldedBatch(8, dead_letters=(dead_letter(8),)))
    waiting = await first.waiting_publications()
    await first.close()
    second = SqlCorrelatorStore(Database(database_url))
    await second.open()
    assert (await second.load(["a"]))["a"] == (saga("a"),)
    assert await second.waiting_publications() == waiting
    again = await second.claim(INCARNATION)
    assert (again.position, again.epoch) == (8, claim.epoch + 1)
    await second.close()


async def test_a_database_that_another_process_locks_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "correlator.db"
    store = SqlCorrelatorStore(Database(f"sqlite:///{path}"))
    await store.open()
    other = sa.create_engine(f"sqlite:///{path}")
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError):
            await store.check()
        connection.exec_driver_sql("ROLLBACK")
    other.dispose()
    await store.check()
    await store.close()


@pytest.mark.parametrize("statement", [SELECT_DUE, next_deadlines_statement(ALL_PARTITIONS)])
async def test_sqlite_finds_what_is_due_without_walking_all_sagas(
    sqlite: SqlCorrelatorStore, statement: sa.Select[Any]
) -> None:
    explained = str(statement.compile(dialect=sa.create_engine("sqlite://").dialect))
    plan = await sqlite._database.read(
        lambda connection: connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {explained}", (1,) * explained.count("?")
        ).all()
    )
    steps = [row[3] for row in plan if not row[3].startswith(("SCALAR SUBQUERY", "SCAN CONSTANT ROW"))]
    assert steps
    assert all("INDEX saga_by_next_deadline (partition=? AND next_deadline" in step for step in steps), steps


@pytest.mark.parametrize(("wanted", "order", "descending"), USUAL_PAGES)
async def test_sqlite_finds_every_usual_page_without_sorting_all_sagas(
    sqlite: SqlCorrelatorStore, wanted: Filter | None, order: SagaOrder, descending: bool
) -> None:
    statement = saga_page_statement(SagaQuery(wanted, order, descending))
    explained = statement.compile(dialect=sa.create_engine("sqlite://").dialect, compile_kwargs={"literal_binds": True})
    plan = await sqlite._database.read(
        lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {explained}").all()
    )
    steps = [row[3] for row in plan]
    assert all("USING INDEX saga_by_" in step for step in steps), steps
    if wanted is not None:
        assert all("SEARCH saga" in step for step in steps), "nothing else is walked either"


async def postgresql_plan(store: SqlCorrelatorStore, statement: sa.Select[Any]) -> list[str]:
    """What PostgreSQL does for a statement where there is too much to read or to sort it all."""
    compiled = statement.compile(dialect=store._database._writer.dialect, compile_kwargs={"render_postcompile": True})

    def plan(connection: sa.Connection) -> list[str]:
        for way in ("seqscan", "sort", "bitmapscan"):
            connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        return [
            " ".join(line.split())
            for (line,) in connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {compiled}", compiled.params)
        ]

    return await store._database.write(plan)


@pytest.mark.parametrize(
    "statement",
    [SELECT_DUE.params(of_partition=1, until=1, how_many=1), next_deadlines_statement(ALL_PARTITIONS)],
    ids=["due", "next deadlines"],
)
async def test_postgresql_finds_what_is_due_without_walking_all_sagas(
    postgresql: SqlCorrelatorStore, statement: sa.Select[Any]
) -> None:
    plan = "\n".join(await postgresql_plan(postgresql, statement))
    assert "using saga_by_next_deadline on saga" in plan
    assert re.search(r"Index Cond: \(\(?partition = ", plan)
    for walk in ("Seq Scan", "-> Sort", "Filter"):  # an incremental one sorts those that are due at the same moment
        assert walk not in plan, plan


@pytest.mark.parametrize(("wanted", "order", "descending"), USUAL_PAGES)
async def test_postgresql_finds_every_usual_page_without_sorting_all_sagas(
    postgresql: SqlCorrelatorStore, wanted: Filter | None, order: SagaOrder, descending: bool
) -> None:
    plan = "\n".join(await postgresql_plan(postgresql, saga_page_statement(SagaQuery(wanted, order, descending))))
    assert "using saga_by_" in plan
    for walk in ("Seq Scan", "Sort"):
        assert walk not in plan, plan


SAGAS = [
    saga(
        f"k{number}",
        definition="order-fulfilment" if number % 3 else "drone-delivery",
        version=1 + number % 2,
        status=list(Status)[number % 6],
        health=list(Health)[number % 4],
        started=number % 5,
        updated=number % 7,
        ended=number % 4 if number % 2 else None,
        deadline=number % 6 if number % 5 else None,
    )
    for number in range(60)
]
LETTERS = [
    dead_letter(
        number,
        key=f"k{number % 4}" if number % 3 else "",
        reason=list(Reason)[number % 10],
        participant="correlator" if number % 2 else "payments",
    )
    for number in range(1, 40)
]
CLOSED = [
    closed(
        number,
        at_sequence=number + 40,
        state=list(DeadLetterState)[1 + number % 3],
        participant="correlator" if number % 2 else "payments",
    )
    for number in range(1, 40, 5)
]

EQUALITY = st.sampled_from([Operator.EQUAL, Operator.NOT_EQUAL])
ANY = st.sampled_from(Operator)
TIMES = st.integers(-1, 8).map(at) | st.integers(-1, 8).map(lambda second: at(second) + timedelta(microseconds=1))


def filters(comparisons: st.SearchStrategy[Filter], fields: list[str]) -> st.SearchStrategy[Filter]:
    return st.recursive(
        comparisons | st.sampled_from(fields).map(Present),
        lambda inner: (
            inner.map(Not)
            | st.lists(inner, min_size=2, max_size=4).map(tuple).map(And)
            | st.lists(inner, min_size=2, max_size=4).map(tuple).map(Or)
        ),
        max_leaves=10,
    )


SAGA_FILTERS = filters(
    st.one_of(
        st.builds(Comparison, st.just("saga_id"), EQUALITY, st.sampled_from(["k1", "k2", "none", ""])),
        st.builds(Comparison, st.just("definition"), EQUALITY, st.sampled_from(["order-fulfilment", "x' OR 1=1 --"])),
        st.builds(Comparison, st.just("version"), ANY, st.integers(-1, 3) | st.sampled_from([2**63 - 1, -(2**63)])),
        st.builds(Comparison, st.just("status"), EQUALITY, st.sampled_from(Status)),
        st.builds(Comparison, st.just("health"), EQUALITY, st.sampled_from(Health)),
        st.builds(Comparison, st.just("cause"), EQUALITY, st.sampled_from(Cause)),
        st.builds(Comparison, st.sampled_from(["start_time", "update_time", "end_time", "deadline"]), ANY, TIMES),
    ),
    ["end_time", "deadline", "start_time", "saga_id"],
)
DEAD_LETTER_FILTERS = filters(
    st.one_of(
        st.builds(Comparison, st.just("saga_id"), EQUALITY, st.sampled_from(["k1", "k2", "none"])),
        st.builds(Comparison, st.just("participant"), EQUALITY, st.sampled_from(["correlator", "payments"])),
        st.builds(Comparison, st.just("event_type"), EQUALITY, st.sampled_from(["orders.v1.OrderCreated", "x"])),
        st.builds(Comparison, st.just("reason"), EQUALITY, st.sampled_from(Reason)),
        st.builds(Comparison, st.just("state"), EQUALITY, st.sampled_from(DeadLetterState)),
        st.builds(Comparison, st.just("sequence"), ANY, st.integers(0, 41)),
        st.builds(Comparison, st.just("stream_time"), ANY, st.integers(0, 41).map(at)),
    ),
    ["saga_id", "reason", "state"],
)


Stores: TypeAlias = tuple[CorrelatorStore, ...]


@pytest.fixture
async def stores(sqlite: SqlCorrelatorStore, postgresql: SqlCorrelatorStore) -> Stores:
    """One of each kind, with the same in them."""
    stores = (MemoryCorrelatorStore(), sqlite, postgresql)
    for store in stores:
        batch = FoldedBatch(1, new(*SAGAS), dead_letters=LETTERS, closed_dead_letters=CLOSED)
        await store.commit(await store.claim(INCARNATION), batch)
    return stores


ONE_STORE_FOR_ALL_EXAMPLES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ONE_STORE_FOR_ALL_EXAMPLES
@given(wanted=SAGA_FILTERS, order=st.sampled_from(SagaOrder), descending=st.booleans())
async def test_all_stores_agree_on_every_filter_of_sagas(
    stores: Stores, wanted: Filter, order: SagaOrder, descending: bool
) -> None:
    memory, *others = stores
    query = SagaQuery(wanted, order, descending, limit=7)
    for other in others:
        assert await memory.list_sagas(query) == await other.list_sagas(query)
        assert await memory.summarize(wanted) == await other.summarize(wanted)


@ONE_STORE_FOR_ALL_EXAMPLES
@given(wanted=DEAD_LETTER_FILTERS)
async def test_all_stores_agree_on_every_filter_of_dead_letters(stores: Stores, wanted: Filter) -> None:
    memory, *others = stores
    query = DeadLetterQuery(wanted, limit=7)
    for other in others:
        assert await memory.list_dead_letters(query) == await other.list_dead_letters(query)


def test_the_sample_has_sagas_of_every_kind() -> None:
    def values(field: str) -> set[object]:
        return {getattr(one, field) for one in SAGAS}

    assert all(isinstance(one, Saga) for one in SAGAS)
    assert values("status") == set(Status)
    assert values("health") == set(Health)
    assert None in values("end_time")
    assert None in values("deadline")
