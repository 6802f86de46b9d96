"""A participant over a real broker whose dependency is down: health says so, and it comes back by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from farandole import DependencyDown, Participant, Probes, Snooze, Transaction, step
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.database import Database
from farandole.envelope import Publication
from farandole.lanes import Lanes
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.tables import ParticipantTables
from orders.v1.order_events_pb2 import OrderCompleted
from shipping.v1.shipping_events_pb2 import OrderShipped
from tests.integration.stored_events import keys_of_stored


@dataclass
class Ledger:
    """What the participant depends on."""

    is_down: bool = False
    is_closed: bool = False

    def complete(self, event: OrderShipped, tx: Transaction) -> OrderCompleted:
        if self.is_closed:
            raise Snooze(timedelta(milliseconds=300))
        if self.is_down:
            raise DependencyDown("ledger", "no answer")
        return OrderCompleted(order_id=tx.key, tracking_number=event.tracking_number)


@dataclass
class AtWork:
    """A running participant's parts."""

    database: Database
    handler: ParticipantBatchHandler
    problems: dict[str, str | None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until what health says fulfils a condition."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - health is polled by its users too
                await asyncio.sleep(0.02)

    def says_down(self, *texts: str) -> bool:
        """Whether health says that the ledger is down."""
        said = self.problems["dependencies"] or ""
        return said.startswith("ledger has been down since ") and all(text in said for text in texts)

    async def is_in_use(self) -> bool:
        """Whether the store has the mark of a process that works on it."""
        query = sa.text("SELECT max(in_use) FROM farandole_position")
        return bool(await self.database.read(lambda connection: connection.execute(query).scalar_one()))


@asynccontextmanager
async def at_work(broker: Broker, path: Path, ledger: Ledger) -> AsyncIterator[AtWork]:
    """The participant at work on a database, until an orderly stop."""
    participant = Participant(
        "orders",
        step("complete-order", ledger.complete, saga="order-fulfilment"),
        probes=Probes(first=timedelta(milliseconds=100), longest=timedelta(milliseconds=200)),
    )
    database = Database(f"sqlite:///{path}/orders.db")
    tables = ParticipantTables()
    await database.create(tables.metadata, if_earlier="")
    problems: dict[str, str | None] = {}
    lanes = ParticipantLanes(participant, database, tables, lanes=Lanes(), broker=broker, batch_size=10)
    lane = lanes.work_of(0, problems.__setitem__)
    running = asyncio.create_task(lane.run())
    working = AtWork(database, lane.handler, problems)
    try:
        yield working
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not await working.is_in_use()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def ship(broker: Broker, *keys: str) -> None:
    """Publishes what makes the participant work."""
    publisher = Publisher(broker)
    for key in keys:
        data = json.dumps({"orderId": key, "trackingNumber": "t"}).encode()
        await publisher.publish(Publication(key, f"events.{key}.shipping.v1.OrderShipped", {}, data))
    await publisher.stop()


async def test_health_names_what_is_down_and_all_goes_on_once_it_is_back(broker: Broker, tmp_path: Path) -> None:
    ledger = Ledger(is_down=True)
    async with at_work(broker, tmp_path, ledger) as working:
        await working.until(lambda: working.problems.get("events", "") is None)
        assert working.problems["dependencies"] is None
        assert await working.is_in_use()
        await ship(broker, *(f"o{number}" for number in range(25)))
        await working.until(lambda: working.says_down(": no answer"))
        assert working.problems["events"] is None, "the stream is not held up"
        await working.until(lambda: working.handler.position == 25)
        assert await keys_of_stored(broker, "OrderCompleted") == []
    async with at_work(broker, tmp_path, ledger) as working:
        await working.until(lambda: bool(working.problems.get("dependencies")))
        ledger.is_down = False
        await working.until(lambda: working.problems["dependencies"] is None)
        async with asyncio.timeout(20):
            while len(await keys_of_stored(broker, "OrderCompleted")) < 25:  # noqa: ASYNC110 - a stream is polled
                await asyncio.sleep(0.02)


async def test_a_snoozed_event_is_run_when_it_is_time(broker: Broker, tmp_path: Path) -> None:
    ledger = Ledger(is_closed=True)
    async with at_work(broker, tmp_path, ledger) as working:
        await ship(broker, "o1")
        await working.until(lambda: working.handler.due_in() is not None)
        assert working.problems["dependencies"] is None
        ledger.is_closed = False
        async with asyncio.timeout(20):
            while await keys_of_stored(broker, "OrderCompleted") != ["o1"]:  # noqa: ASYNC110 - a stream is polled
                await asyncio.sleep(0.02)
