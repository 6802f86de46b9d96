"""A participant at work over a real broker and database, when something goes wrong between them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from nats.aio.msg import Msg

from farandole import CommandTransaction, Participant, Runtime, Transaction, cancelling, step
from farandole import worker as worker_module
from farandole.broker import relay as relay_module
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import EVENTS, events_state
from farandole.broker.subscription import Subscription
from farandole.database import Database
from farandole.envelope import Publication, StoredMessage
from farandole.errors import FencedError, StoreUnavailableError
from farandole.lanes import Lanes
from farandole.lanes_at_work import LaneAtWork
from farandole.outbox import OutboxRow
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.tables import ParticipantTables
from farandole.testing.brokers import BrokerUnderTest, connect
from farandole.worker import BatchHandler, FirstHeard, Handled, Position, Worker
from orders.v1.order_events_pb2 import OrderCancelled, OrderCompleted
from shipping.v1.shipping_events_pb2 import OrderShipped
from tests.integration.stored_events import keys_of_stored

metadata = sa.MetaData()
notes = sa.Table("notes", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("text", sa.Text))


began, may_end = threading.Event(), threading.Event()
"""Whether the handler of the order `slow` runs, and whether it may end."""


def complete(event: OrderShipped, tx: Transaction) -> OrderCompleted:
    if tx.key == "slow":
        began.set()
        may_end.wait(20)
    tx.execute(notes.insert(), {"key": tx.key, "text": event.tracking_number})
    return OrderCompleted(order_id=tx.key, tracking_number=event.tracking_number)


PARTICIPANT = Participant(
    "orders",
    step("complete-order", complete, saga="order-fulfilment"),
    metadata=metadata,
    publishes=(OrderCancelled,),
)


class Trouble(ParticipantBatchHandler):
    """A handler whose store fails before or after its commit, once or for longer."""

    before_commit = False
    after_commit = False
    lasts = False
    """Whether it goes on failing until this is taken back."""
    sessions = 0

    async def claim(self, incarnation: str) -> Position:
        self.sessions += 1
        return await super().claim(incarnation)

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        if self.before_commit or self.lasts:
            self.before_commit = False
            raise StoreUnavailableError("the disk is full")
        handled = await super().handle(messages, published)
        if self.after_commit:
            self.after_commit = False
            raise StoreUnavailableError("the connection was lost during the commit")
        return handled


@dataclass
class AtWork:
    """A running participant's parts."""

    database: Database
    tables: ParticipantTables
    handler: Trouble
    worker: Worker
    runtime: Runtime
    running: asyncio.Task[None]
    problems: dict[str, str | None]

    async def until(self, condition: str, seconds: float = 20.0) -> None:
        """Waits until a check of health holds a text; "" for all checks being well."""
        async with asyncio.timeout(seconds):
            while not self._holds(condition):  # noqa: ASYNC110 - health is polled by its users too
                await asyncio.sleep(0.02)

    def _holds(self, text: str) -> bool:
        told = [problem for problem in self.problems.values() if problem]
        return any(text in problem for problem in told) if text else not told

    async def until_outbox_is_empty(self) -> None:
        async with asyncio.timeout(20):
            while await self.database.read(self.tables.outbox.depth):  # noqa: ASYNC110 - a table has no signal
                await asyncio.sleep(0.02)


@asynccontextmanager
async def at_work(broker: Broker, path: Path) -> AsyncIterator[AtWork]:
    """The participant at work on a database."""
    database = Database(f"sqlite:///{path}/orders.db")
    tables = ParticipantTables()
    await database.create(tables.metadata, metadata, if_earlier="")
    handler = Trouble(PARTICIPANT, database, tables)
    problems: dict[str, str | None] = {"events": "the worker has not begun"}
    worker = Worker(
        broker=broker,
        durable="orders",
        description="",
        filters=PARTICIPANT.filters,
        handler=handler,
        batch_size=10,
        report=problems.__setitem__,
        hold_until_caught_up=False,
    )
    lanes = ParticipantLanes(PARTICIPANT, database, tables, lanes=Lanes(), broker=broker, batch_size=10)
    running = asyncio.create_task(LaneAtWork(0, handler, worker, lanes._at_work).run())
    runtime = Runtime(PARTICIPANT, database, tables, lanes)
    try:
        yield AtWork(database, tables, handler, worker, runtime, running, problems)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def ship(broker: Broker, keys: Sequence[str]) -> None:
    """Publishes what makes the participant work."""
    publisher = Publisher(broker)
    for key in keys:
        data = json.dumps({"orderId": key, "trackingNumber": "t"}).encode()
        await publisher.publish(Publication(key, f"events.{key}.shipping.v1.OrderShipped", {}, data))
    await publisher.stop()


async def until_stored(broker: Broker, event_type: str, count: int) -> list[str]:
    async with asyncio.timeout(20):
        while len(found := await keys_of_stored(broker, event_type)) < count:  # noqa: ASYNC110 - a stream is polled
            await asyncio.sleep(0.02)
    return found


KEYS = [f"o{number}" for number in range(25)]


async def test_the_outbox_is_empty_once_all_is_published(broker: Broker, tmp_path: Path) -> None:
    async with at_work(broker, tmp_path) as working:
        await ship(broker, KEYS)
        assert sorted(await until_stored(broker, "OrderCompleted", 25)) == sorted(KEYS)
        await working.until_outbox_is_empty()


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
async def test_trouble_of_the_store_is_told_and_survived(broker: Broker, tmp_path: Path, when: str) -> None:
    async with at_work(broker, tmp_path) as working:
        await working.until("")
        setattr(working.handler, when, True)
        await ship(broker, KEYS)
        assert sorted(await until_stored(broker, "OrderCompleted", 25)) == sorted(KEYS)
        await working.until("")
        await working.until_outbox_is_empty()
    assert len(await keys_of_stored(broker, "OrderCompleted")) == 25


async def test_a_trouble_that_lasts_is_told_as_long_as_it_does(broker: Broker, tmp_path: Path) -> None:
    """Also while the next session has begun, which takes less room than what it is to write."""
    async with at_work(broker, tmp_path) as working:
        await working.until("")
        working.handler.lasts = True
        await ship(broker, KEYS[:1])
        await working.until("full")
        sessions = working.handler.sessions
        async with asyncio.timeout(20):
            while working.handler.sessions < sessions + 3:
                assert working.problems["events"] is not None
                await asyncio.sleep(0)
        working.handler.lasts = False
        await working.until("")


async def test_a_stop_while_a_transaction_takes_long_is_in_order(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is told to stop meanwhile: nobody is to take the transaction for what has ended the process."""
    monkeypatch.setattr(cancelling, "_AGAIN_SECONDS", 0.01)
    async with at_work(broker, tmp_path) as working:
        await ship(broker, ["slow"])
        assert await asyncio.to_thread(began.wait, 20)
        stopping = asyncio.create_task(cancelling.cancel([working.running]))
        async with asyncio.timeout(20):
            while working.running.cancelling() < 3 and not stopping.done():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        may_end.set()
        await stopping
        marks = sa.text("SELECT in_use FROM farandole_position")
        in_use = await working.database.read(lambda connection: connection.execute(marks).scalars().all())
    assert set(in_use) == {False}
    assert await keys_of_stored(broker, "OrderCompleted") == []


async def test_a_full_disk_loses_and_doubles_nothing(broker: Broker, tmp_path: Path) -> None:
    async with at_work(broker, tmp_path) as working:
        await working.until("")

        def fill(connection: sa.Connection) -> None:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        def enlarge(connection: sa.Connection) -> None:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")

        await working.database.write(fill)
        keys = [f"{'k' * 100}{number}" for number in range(200)]
        await ship(broker, keys)
        await working.until("full")
        await working.database.write(enlarge)
        assert sorted(await until_stored(broker, "OrderCompleted", 200)) == sorted(keys)
        await working.until("")
        written = await working.database.read(lambda c: c.execute(sa.select(notes.c.key)).scalars().all())
        assert sorted(written) == sorted(keys)


async def test_what_a_caller_has_committed_is_published_though_it_gave_up(broker: Broker, tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def cancel(tx: CommandTransaction) -> None:
        tx.publish(OrderCancelled(order_id="o1", reason="changed my mind"))
        inside.set()
        go_on.wait(10)

    async with at_work(broker, tmp_path) as working:
        await working.until("")
        call = asyncio.create_task(working.runtime.execute(cancel))
        await asyncio.to_thread(inside.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        assert await until_stored(broker, "OrderCancelled", 1) == ["o1"]


async def test_a_command_is_not_refused_because_of_this_process_s_own_claim(broker: Broker, tmp_path: Path) -> None:
    async with at_work(broker, tmp_path) as working:
        await working.until("")
        state = await events_state(broker)

        async def command(number: int) -> None:
            await working.runtime.execute(lambda tx: tx.publish(OrderCancelled(order_id=f"c{number}", reason="r")))

        async def claims() -> None:
            for _ in range(5):  # one after the other, as a worker makes them
                await working.handler.claim(state.incarnation)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(claims())
            for number in range(20):
                tasks.create_task(command(number))
        assert len(await until_stored(broker, "OrderCancelled", 20)) == 20


async def test_a_second_process_on_another_database_shuts_the_first_out(
    provisioned: BrokerUnderTest, tmp_path: Path
) -> None:
    """Two that read one consumer, each from a position of its own, would make each other skip events."""
    first_broker, second_broker = await connect(provisioned.url), await connect(provisioned.url)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with at_work(first_broker, tmp_path / "first") as first:
        await ship(first_broker, KEYS[:5])
        await until_stored(first_broker, "OrderCompleted", 5)
        async with at_work(second_broker, tmp_path / "second") as second:
            await ship(second_broker, KEYS[5:])
            await first.until("has taken over")
            with pytest.raises(FencedError):
                await first.running
            async with asyncio.timeout(20):
                while await second.database.read(_count_notes) < len(KEYS):  # noqa: ASYNC110 - a table has no signal
                    await asyncio.sleep(0.02)
            assert second.problems["events"] is None
    await first_broker.close()
    await second_broker.close()


def _count_notes(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one()


async def test_who_has_nothing_to_do_finds_out_that_another_has_taken_over(broker: Broker, tmp_path: Path) -> None:
    """As where the other one was killed before it read anything: nothing else would tell."""
    async with at_work(broker, tmp_path) as working:
        await working.until("")
        other = ParticipantBatchHandler(PARTICIPANT, working.database, working.tables)
        await other.claim((await events_state(broker)).incarnation)
        await working.until("has taken over")
        with pytest.raises(FencedError):
            await working.running


async def test_a_reader_that_lost_its_consumer_does_not_take_it_back(broker: Broker) -> None:
    state = await events_state(broker)
    first = Subscription(broker, "reader", ["events.>"])
    await first.start(after=0, incarnation=state.incarnation)
    await ship(broker, ["o1"])
    assert len((await first.next_batch(10)).messages) == 1
    second = Subscription(broker, "reader", ["events.>"])
    await second.start(after=0, incarnation=state.incarnation)
    assert len((await second.next_batch(10)).messages) == 1
    await ship(broker, KEYS[5:])
    with pytest.raises(FencedError):
        await asyncio.wait_for(_read_for_ever(first), 20)
    await first.stop()
    await second.stop()


async def _read_for_ever(subscription: Subscription) -> None:
    while True:
        await subscription.next_batch(10)


async def test_a_stream_that_another_position_belongs_to_is_told_with_the_remedy(
    broker: Broker, tmp_path: Path
) -> None:
    async with at_work(broker, tmp_path) as working:
        await ship(broker, KEYS[:3])
        await until_stored(broker, "OrderCompleted", 3)
    database = Database(f"sqlite:///{tmp_path}/orders.db")
    left = Publication("o9", "events.o9.orders.v1.OrderCancelled", {"ce-correlationid": "o9"}, b"{}")
    await database.write(lambda c: c.exec_driver_sql("UPDATE farandole_position SET incarnation='another'"))
    await database.write(lambda c: ParticipantTables().outbox.add(c, [left]))
    await database.close()
    async with at_work(broker, tmp_path) as working:
        await working.until("restore the stream from its backup")
        await ship(broker, KEYS[3:])
        assert await working.database.read(_count_notes) == 3
        assert await keys_of_stored(broker, "OrderCancelled") == []


async def test_a_stranger_who_answers_publications_holds_up_nothing(broker: Broker, tmp_path: Path) -> None:
    async def answer(message: Msg) -> None:
        if message.reply:
            for text in (b"hi", b"{}", b"[]", b'{"seq": "x"}'):
                await broker.client.publish(message.reply, text)

    await broker.client.subscribe("events.>", cb=answer)
    async with at_work(broker, tmp_path) as working:
        await ship(broker, KEYS)
        await until_stored(broker, "OrderCompleted", 25)
        await working.until_outbox_is_empty()


async def test_a_stream_that_is_full_is_told(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_PATIENCE_SECONDS", 0.1)
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    async with at_work(broker, tmp_path) as working:
        await ship(broker, KEYS[:1])
        await until_stored(broker, "OrderCompleted", 1)
        await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": 100})
        await working.runtime.execute(lambda tx: tx.publish(OrderCancelled(order_id="o9", reason="r")))
        await working.until("wait to be published")
        await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": -1})
        assert await until_stored(broker, "OrderCancelled", 1) == ["o9"]
        await working.until("")


class Asking:
    """A handler that asks once at the beginning and once when it has taken in everything, and keeps no store."""

    first_heard = FirstHeard()
    problem: str | None = None
    dependencies_problem: str | None = None

    def __init__(self, incarnation: str, expected: int) -> None:
        self._position = Position(0, incarnation)
        self._missing = expected
        self._asks = ["first"]
        self.asked: list[str] = []

    async def claim(self, incarnation: str) -> Position:
        return self._position

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        return Handled()

    async def waiting(self) -> Sequence[OutboxRow]:
        return ()

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        taken_in = sum(message.type == "shipping.v1.OrderShipped" for message in messages)
        self._missing -= taken_in
        if taken_in and self._missing == 0:
            self._asks.append("second")
        return Handled()

    async def due(self) -> Handled:
        name = self._asks.pop(0)
        self.asked.append(name)
        return Handled(attempts=[Publication(name, f"events.{name}.nobody.v1.Knows", {"ce-correlationid": name}, b"")])

    def due_in(self) -> float | None:
        return 0.0 if self._asks else None

    async def remove(self, published: Collection[int]) -> None:
        return

    async def release(self) -> None:
        return

    async def still_owner(self) -> None:
        return


class Answering(Asking):
    """A handler that answers each event with a row, and keeps what waits in memory."""

    def __init__(self, incarnation: str) -> None:
        super().__init__(incarnation, 0)
        self._asks = []
        self._rows: dict[int, OutboxRow] = {}
        self.looked = 0
        """How often what waits was read."""

    async def waiting(self) -> Sequence[OutboxRow]:
        self.looked += 1
        return list(self._rows.values())

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        await self.remove(published)
        rows = [
            OutboxRow(m.sequence, Publication(key, f"events.{key}.nobody.v1.Knows", {"ce-correlationid": key}, b""))
            for m in messages
            if m.type == "shipping.v1.OrderShipped" and (key := f"a{m.sequence}")
        ]
        self._rows |= {row.id: row for row in rows}
        return Handled(rows)

    async def remove(self, published: Collection[int]) -> None:
        for row_id in published:
            del self._rows[row_id]


@asynccontextmanager
async def driven(broker: Broker, handler: BatchHandler, *, holds: bool) -> AsyncIterator[Worker]:
    """A worker that drives a handler."""
    problems: dict[str, str | None] = {}
    worker = Worker(
        broker=broker,
        durable="driven",
        description="",
        filters=["events.>"],
        handler=handler,
        batch_size=5,
        report=problems.__setitem__,
        hold_until_caught_up=holds,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_backlog_that_calls_for_more_than_may_wait_is_caught_up_with(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it catches up nothing is published, so nothing that it could wait for would ever come."""
    monkeypatch.setattr(worker_module, "_MOST_UNPUBLISHED", 7)
    await ship(broker, KEYS)
    handler = Answering((await events_state(broker)).incarnation)
    async with driven(broker, handler, holds=True):
        assert len(set(await until_stored(broker, "nobody.v1.Knows", len(KEYS)))) == len(KEYS)


async def test_while_much_waits_nudges_have_it_read_again_only_now_and_then(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_FEW_ROWS", len(KEYS))
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    handler = Answering((await events_state(broker)).incarnation)
    await ship(broker, KEYS)
    await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": 1})
    async with driven(broker, handler, holds=False) as worker:
        async with asyncio.timeout(20):
            while len(worker.unpublished) < len(KEYS):  # noqa: ASYNC110 - a relay has no signal for what comes
                await asyncio.sleep(0.01)
        began, looked = asyncio.get_running_loop().time(), handler.looked
        for _ in range(100):
            worker.look_into_outbox()
            await asyncio.sleep(0.01)
        took = asyncio.get_running_loop().time() - began
        assert handler.looked - looked <= 2 + took
        async with asyncio.timeout(20):
            while handler.looked == looked:  # noqa: ASYNC110 - nor has a store for being read
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("holds", [True, False])
async def test_who_catches_up_attempts_nothing(broker: Broker, holds: bool) -> None:
    """A rebuild publishes nothing; who does not hold anything back publishes at once."""
    await ship(broker, KEYS)
    handler = Asking((await events_state(broker)).incarnation, len(KEYS))
    async with driven(broker, handler, holds=holds):
        attempted = await until_stored(broker, "nobody.v1.Knows", 1 if holds else 2)
    assert handler.asked == ["first", "second"]
    assert attempted == (["second"] if holds else ["first", "second"])
