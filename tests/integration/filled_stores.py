"""Stores with one of everything in them, as a version of Farandole leaves them, and what a later one makes of them.

`python -m tests.integration.filled_stores` writes them down in `dumps/`, named for the revision of their schema. That
is done before a revision is added: the dumps of all earlier ones stay, and every test of them goes on.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from farandole import Transaction, step
from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.queries import DeadLetterQuery
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch, SagaChange
from farandole.database import Database
from farandole.participant.barrier import BarrierState
from farandole.testing.store_conformance import (
    INCARNATION,
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
from tests.integration.participant_bench import Bench, bench_at, failed, redriven, reserved, write_down

DUMPS = Path(__file__).parent / "dumps"


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


async def fill_participant(bench: Bench) -> None:
    """What is done, undone, void, given up on, to be tried again, and waits for another event."""
    await bench.handler.release()
    await staff(bench)
    bench.cashier.fails = lambda key: key in {"broken", "tried"}
    await bench.take(bench.message(reserved("done"), event_id="done"))
    await bench.take(bench.message(reserved("undone")), bench.message(failed("undone")))
    await bench.take(bench.message(failed("void")))
    await bench.take(bench.message(reserved("broken")))
    await bench.finish()
    await bench.take(bench.message(reserved("tried")))
    assert await bench.queued("broken") == [(GIVEN_UP, True)]
    assert await bench.queued("tried") == [(6, False)]


async def go_on_as_participant(bench: Bench) -> None:
    """Takes a filled store over and loses nothing of it."""
    bench.sequence = 6
    position = await bench.handler.claim("stream-1")
    assert (position.sequence, position.incarnation) == (6, "stream-1")
    waiting = await bench.handler.waiting()
    assert len(waiting) == len({row.id for row in waiting}) > 0
    await staff(bench)
    assert [await bench.done(key) for key in ("done", "undone", "void", "broken", "tried")] == [
        ["charge"],
        ["charge", "refund"],
        [],
        [],
        [],
    ]
    await bench.take(bench.message(reserved("done"), event_id="done"))
    await bench.take(bench.message(reserved("void")))
    await bench.take(bench.message(redriven(GIVEN_UP, key="broken")))
    await bench.finish()
    await bench.take(*(bench.message(paid(key)) for key in ("done", "broken", "tried")))
    await bench.take(bench.message(failed("done")))
    assert [await bench.done(key) for key in ("done", "undone", "void", "broken", "tried")] == [
        ["charge", "dispatch", "refund"],
        ["charge", "refund"],
        [],
        ["charge", "dispatch"],
        ["charge", "dispatch"],
    ]
    assert await bench.barrier(key="void") is BarrierState.VOID
    rows = await bench.handler.waiting()
    assert rows[: len(waiting)] == waiting
    assert [row.id for row in rows] == sorted({row.id for row in rows})


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


async def go_on_as_correlator(store: SqlCorrelatorStore) -> None:
    """Takes a filled store over and loses nothing of it."""
    claim = await store.claim(INCARNATION)
    assert claim.position == 40
    assert await store.load(["a", "b"]) == {"a": (RUNNING,), "b": (ENDED,)}
    [recorded] = await store.get_sagas("b")
    assert recorded.payloads == {3: b"\x00payload"}
    waiting = await store.waiting_publications()
    assert [row.publication.key for row in waiting] == ["a", "correlator-7", "unreadable-7"]
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
