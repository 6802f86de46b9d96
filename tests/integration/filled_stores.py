"""Stores with something in every table, of keys in several partitions, as a version of Farandole leaves them, and what
a later one makes of them.

`python -m tests.integration.filled_stores` writes them down in `dumps/`, named for the revision of their schema. That
is done before a revision is added: the dumps of all earlier ones stay, and every test of them goes on.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from choreography.v1.correlator_events_pb2 import EventUnreadable
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_UNKNOWN_TYPE
from farandole import Transaction, step
from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.queries import DeadLetterQuery
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch, SagaChange
from farandole.database import Database
from farandole.envelope import StoredMessage
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.outbox import OutboxRow
from farandole.participant.barrier import BarrierState
from farandole.participant.tables import ParticipantTables
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.registry import Registry
from farandole.sql_leases import SqlLeases
from farandole.testing.store_conformance import (
    INCARNATION,
    at,
    closed,
    dead_letter,
    definition,
    entry,
    given_up,
    new,
    publication,
    record,
    saga,
)
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed
from shipping.v1.shipping_events_pb2 import OrderShipped
from tests.integration.participant_bench import Bench, ProcessEnds, bench_at, failed, redriven, reserved, write_down

DUMPS = Path(__file__).parent / "dumps"
LANES = Lanes(4)


def dispatch(_items: ItemsReserved, _payment: PaymentProcessed, tx: Transaction) -> OrderShipped:
    write_down(tx, "dispatch")
    return OrderShipped(order_id=tx.key, tracking_number=tx.step_id)


def paid(key: str) -> PaymentProcessed:
    return PaymentProcessed(order_id=key, payment_id="p", amount_cents=5, currency="EUR", address="a street")


async def staff(bench: Bench) -> None:
    """Gives the participant its steps, as another process than the one before."""
    bench.with_steps(
        step("take-payment", bench.cashier.charge, undo=bench.cashier.refund, saga="order-fulfilment"),
        step("dispatch-order", dispatch, saga="order-fulfilment"),
    )
    await bench.handler.claim("stream-1")


GIVEN_UP = 5
"""The sequence of the event of the saga `broken`."""
POISON = 7
"""The sequence of the event that has ended two processes."""
SET_ASIDE = 9
"""The sequence of the event that no one could read."""
LAST = 10
"""The sequence up to which a filled store has taken events in. The one behind it has ended a process once."""


async def fill_participant(bench: Bench) -> None:
    """What is done, undone, void, given up on, to be tried again, waits for another event or behind one of its saga,
    has ended processes, and is set aside. The last process did not end in order."""
    await bench.handler.release()
    await staff(bench)
    bench.cashier.fails = lambda key: key in {"broken", "tried", "poison"}
    await bench.take(bench.message(reserved("done"), event_id="done"))
    await bench.take(bench.message(reserved("undone")), bench.message(failed("undone")))
    await bench.take(bench.message(failed("void")))
    await bench.take(bench.message(reserved("broken")))
    await bench.finish()
    await bench.take(bench.message(reserved("broken", cents=7)))
    await bench.take(bench.message(reserved("poison")))
    poison_is_due = bench.now + timedelta(seconds=bench.handler.due_in() or 0)
    bench.now += timedelta(milliseconds=1)
    await bench.take(bench.message(reserved("tried")))
    await _set_aside(bench, bench.message(reserved("unread")))
    assert await bench.queued("broken") == [(GIVEN_UP, True), (GIVEN_UP + 1, False)]
    assert await bench.queued("tried") == [(POISON + 1, False)]
    assert bench.handler.position == LAST
    bench.now = poison_is_due
    bench.cashier.ends = lambda key: key in {"poison", "counted"}
    for _ in range(2):
        await bench.restart()
        with pytest.raises(ProcessEnds):
            await bench.finish()
    await bench.restart()
    with pytest.raises(ProcessEnds):
        await bench.take(bench.message(reserved("counted")))
    await SqlLeases(bench.database, ParticipantTables().leases).join(Replica.begun("a"), LANES.count, is_able=True)


async def _set_aside(bench: Bench, message: StoredMessage) -> None:
    """Takes in what nobody has the schema of, and the word of the correlator that it has not either."""
    registry = bench.participant.registry
    known = {name: known for name, known in registry.types.items() if name != message.type}
    word = EventUnreadable(
        partition_key=partition_key(message.partition or 0),
        sequence=message.sequence,
        event_type=message.type,
        reason=DEAD_LETTER_REASON_UNKNOWN_TYPE,
    )
    bench.participant.registry = Registry(known)
    await bench.take(message)
    await bench.take(bench.message(word, source="correlator"))
    bench.participant.registry = registry


KEYS = ("done", "undone", "void", "broken", "tried", "poison", "unread", "counted")


async def go_on_as_participant(bench: Bench) -> None:
    """Takes a filled store over and loses nothing of it; first as replicas do that share it out in lanes."""
    bench.sequence = LAST
    position = await bench.handler.claim("stream-1")
    assert (position.sequence, position.incarnation) == (LAST, "stream-1")
    waiting = await bench.handler.waiting()
    assert len(waiting) == len({row.id for row in waiting}) > 0
    await _each_thing_has_its_partition(bench)
    await staff(bench)
    assert [await bench.done(key) for key in KEYS] == [["charge"], ["charge", "refund"], *([[]] * 6)]
    for lane in LANES.all:
        await _go_on_in_a_lane(bench, lane, [row for row in waiting if _lane_of(row.publication.key) == lane])
    charged = {"done", "undone", "tried", "counted"}
    assert [(await bench.done(key))[:1] == ["charge"] for key in KEYS] == [key in charged for key in KEYS]
    await staff(bench)
    await bench.take(bench.message(reserved("done"), event_id="done"))
    await bench.take(bench.message(reserved("void")))
    await bench.take(bench.message(redriven(GIVEN_UP, key="broken")))
    await bench.take(bench.message(redriven(POISON, key="poison")))
    await bench.take(
        bench.message(redriven(SET_ASIDE, key="unread", participant="correlator", definition="", step_name=""))
    )
    await bench.finish()
    await bench.take(*(bench.message(paid(key)) for key in ("done", "broken", "tried")))
    await bench.take(bench.message(failed("done")))
    assert [await bench.done(key) for key in KEYS] == [
        ["charge", "dispatch", "refund"],
        ["charge", "refund"],
        [],
        ["charge", "dispatch"],
        ["charge", "dispatch"],
        ["charge"],
        ["charge"],
        ["charge"],
    ]
    assert await bench.barrier(key="void") is BarrierState.VOID
    assert [await bench.queued(key) for key in KEYS] == [[]] * len(KEYS)
    assert await bench.counts() == {}
    rows = await bench.handler.waiting()
    assert rows[: len(waiting)] == waiting
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    leases = SqlLeases(bench.database, ParticipantTables().leases)
    assert (await leases.join(Replica.begun("a"), LANES.count, is_able=True)).lanes == set(LANES.all)


async def _each_thing_has_its_partition(bench: Bench) -> None:
    """By it is told whose it is to publish, and to go on with."""

    def read(connection: sa.Connection) -> dict[str, set[tuple[str, int]]]:
        tables = ParticipantTables()
        outbox, queue, started = tables.outbox.table, tables.queue.table, tables.started.table
        counts = sa.select(queue.c.key, started.c.partition).join_from(
            started, queue, started.c.sequence == queue.c.sequence
        )
        selects = {
            "outbox": sa.select(outbox.c.key, outbox.c.partition),
            "queue": sa.select(queue.c.key, queue.c.partition),
            "counts": counts,
        }
        return {name: {(key, place) for key, place in connection.execute(select)} for name, select in selects.items()}

    found = await bench.database.read(read)
    assert found == {
        "outbox": {(key, partition_of(key)) for key in ("done", "undone", "void", "broken")},
        "queue": {(key, partition_of(key)) for key in ("broken", "tried", "poison")},
        "counts": {("poison", partition_of("poison"))},
    }


async def _go_on_in_a_lane(bench: Bench, lane: int, waiting: Sequence[OutboxRow]) -> None:
    """Takes over one lane of several: what is its own goes on, and nothing else does."""
    before = {key: await bench.done(key) for key in KEYS}

    async def take_over() -> None:
        bench.handler = bench.new_owner(partitions=LANES.partitions(lane))
        position = await bench.handler.claim("stream-1")
        assert (position.sequence, position.incarnation) == (LAST, "stream-1")

    await take_over()
    assert await bench.handler.waiting() == waiting
    bench.cashier.ends = lambda key: key == "poison"
    if lane == _lane_of("poison"):
        with pytest.raises(ProcessEnds):  # the third that it ends: it is not run again
            await bench.finish()
        await take_over()
    await bench.finish()
    bench.cashier.ends = lambda _key: False
    if lane == _lane_of("counted"):
        bench.sequence = LAST
        await bench.take(bench.message(reserved("counted")))
    went_on = {key for key in KEYS if await bench.done(key) != before[key]}
    assert went_on == {key for key in ("tried", "counted") if _lane_of(key) == lane}
    assert await bench.queued("poison") == [(POISON, lane >= _lane_of("poison"))]


def _lane_of(key: str) -> int:
    return LANES.of(partition_of(key))


RUNNING = saga("a", history=[entry(1), entry(2, type_="inventory.v1.ItemsReserved")])
ENDED = saga("b", definition="drone-delivery", version=2, ended=9, deadline=None, history=[entry(3)])


async def fill_correlator(store: SqlCorrelatorStore) -> None:
    """Records with their histories, dead letters in several states, definitions, and what is to be published."""
    await store.activate([definition()], replica="correlator-1")
    await store.remember([definition("drone-delivery", 2)])
    claim = await record(store, RUNNING)
    batch = FoldedBatch(
        40,
        new(ENDED),
        payloads={3: b"\x00payload"},
        publications=[publication("a")],
        dead_letters=[dead_letter(7), given_up(1, at_sequence=8), given_up(2, at_sequence=9)],
        closed_dead_letters=[closed(2, at_sequence=10, state=DeadLetterState.DISCARDED, actor="ada", reason="paid")],
    )
    await store.commit(claim, batch)
    await store.leases.join(Replica.begun("correlator-1"), LANES.count, is_able=True)


async def go_on_as_correlator(store: SqlCorrelatorStore) -> None:
    """Takes a filled store over and loses nothing of it."""
    claim = await store.claim(INCARNATION)
    assert claim.position == 40
    assert (await store.leases.join(Replica.begun("correlator-1"), LANES.count, is_able=True)).lanes == set(LANES.all)
    assert await store.load(["a", "b"]) == {"a": (RUNNING,), "b": (ENDED,)}
    [recorded] = await store.get_sagas("b")
    assert recorded.payloads == {3: b"\x00payload"}
    waiting = await store.waiting_publications()
    assert [row.publication.key for row in waiting] == ["a", "correlator-7", "unreadable-7"]
    for lane in LANES.all:
        own = await store.waiting_publications(LANES.partitions(lane))
        assert own == tuple(row for row in waiting if _lane_of(row.publication.key) == lane)
    for partition in range(PARTITIONS):
        due = await store.due(at(3600), 10, partition)
        assert [one.key for one in due] == [key for key in ("a", "b") if partition_of(key) == partition]
    letters = (await store.list_dead_letters(DeadLetterQuery())).dead_letters
    assert [(one.participant, one.sequence, one.state, one.close_actor) for one in letters] == [
        ("payments", 2, DeadLetterState.DISCARDED, "ada"),
        ("payments", 1, DeadLetterState.OPEN, ""),
        ("correlator", 7, DeadLetterState.OPEN, ""),
    ]
    assert [(one.name, one.version, one.is_active) for one in await store.definitions()] == [
        ("drone-delivery", 2, False),
        ("order-fulfilment", 1, True),
    ]
    after = replace(RUNNING, revision=3, history=(*RUNNING.history, entry(41)))
    committed = await store.commit(
        claim, FoldedBatch(41, [SagaChange(RUNNING, after)], publications=[publication("a")])
    )
    assert (await store.load(["a"]))["a"] == (after,)
    assert committed.publications[0].id > waiting[-1].id


async def _write_dumps(directory: Path) -> None:
    participant, correlator = directory / "participant.db", directory / "correlator.db"
    async with bench_at(f"sqlite:///{participant}") as bench:
        await fill_participant(bench)
    store = SqlCorrelatorStore(Database(f"sqlite:///{correlator}"))
    await store.open()
    await fill_correlator(store)
    await store.close()
    for path in (participant, correlator):
        with closing(sqlite3.connect(path)) as connection:
            table = f"farandole_{path.stem}_version"
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            revision = connection.execute(f"SELECT version_num FROM {table}").fetchone()[0] if known else "0001"
            (DUMPS / f"{path.stem}_{revision}.sql").write_text("\n".join(connection.iterdump()) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(_write_dumps(Path(made)))
