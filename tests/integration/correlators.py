"""Correlators at work inside a test's process, over a real broker, and sagas to tell them of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from farandole.broker.connection import Broker
from farandole.broker.nudges import Nudges
from farandole.broker.publisher import Publisher
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.broker.streams import EVENTS
from farandole.correlator.changes import SagaChanges
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.main import read_registry
from farandole.correlator.queries import RecordedSaga
from farandole.correlator.snapshots import begin_from_snapshot
from farandole.correlator.store import CorrelatorStore
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.envelope import Publication, StoredMessage
from farandole.errors import BrokerUnavailableError
from farandole.registry import Registry
from farandole.saga import Disposition, Saga, Status
from farandole.worker import Handled, Worker

ROOT = Path(__file__).resolve().parent.parent.parent
REGISTRY = read_registry(ROOT / "generated" / "descriptors.binpb")
DEFINITIONS = load_definitions(ROOT / "services" / "correlator" / "sagas", REGISTRY)


def unhurried(directory: Path) -> tuple[Definition, ...]:
    """The orders' definition with a day for each step, however slow the machine is; its file is in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "services" / "correlator" / "sagas" / "order-fulfilment.yaml").read_text()
    (directory / "order-fulfilment.yaml").write_text(text.replace('"60s"', '"86400s"').replace('"300s"', '"86400s"'))
    return tuple(load_definitions(directory, REGISTRY))


HAPPY: tuple[tuple[str, dict[str, object]], ...] = (
    (
        "orders.v1.OrderCreated",
        {
            "customerId": "ada",
            "currency": "EUR",
            "card": "4111",
            "address": "1 Main Street",
            "lines": [{"sku": "widget", "quantity": 1, "unitPriceCents": 5}],
        },
    ),
    (
        "inventory.v1.ItemsReserved",
        {"reservationId": "r", "amountCents": 5, "currency": "EUR", "card": "4111", "address": "1 Main Street"},
    ),
    (
        "payments.v1.PaymentProcessed",
        {"paymentId": "p", "amountCents": 5, "currency": "EUR", "address": "1 Main Street"},
    ),
    ("shipping.v1.OrderShipped", {"trackingNumber": "t"}),
    ("orders.v1.OrderCompleted", {"trackingNumber": "t"}),
)


class NoStream:
    """An `EventsStream` of a broker that is away."""

    async def publish(self, publication: Publication) -> None:
        raise BrokerUnavailableError(f"{publication.subject} was not sent: there is no broker")

    async def stored_at(self, sequence: int) -> StoredMessage | None:
        raise BrokerUnavailableError(f"what is stored at {sequence} can't be read: there is no broker")


class Problems:
    """What the worker reports to health."""

    def __init__(self) -> None:
        self.now: str | None = "the worker has not begun"
        """Of the check `events`."""
        self.told: list[str] = []
        self.outbox: str | None = None
        self._changed = asyncio.Event()

    def report(self, check: str, problem: str | None) -> None:
        if check == "outbox":
            self.outbox = problem
        elif check == "events":
            self.now = problem
            self.told.append(problem or "")
        self._changed.set()

    async def until(self, part: str) -> None:
        """Waits until the problem holds a text."""
        await self._until(lambda: part in (self.now or ""))

    async def until_well(self) -> None:
        """Waits until there is none."""
        await self._until(lambda: self.now is None and self.outbox is None)

    async def until_outbox(self, part: str) -> None:
        """Waits until the problem of the outbox holds a text."""
        await self._until(lambda: part in (self.outbox or ""))

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class CorrelatorUnderTest(CorrelatorBatchHandler):
    """The correlator's handler, held up where a test wants to do something in between."""

    decided: int = 0
    """How often it has decided that a saga is to be timed out."""
    before_time_outs: Callable[[], Awaitable[None]] | None = None
    """Called once, when time-outs are decided and have not been published yet."""

    async def due(self) -> Handled:
        """See `BatchHandler.due`."""
        handled = await super().due()
        time_outs = self._count(handled)
        if time_outs and self.before_time_outs is not None:
            do, self.before_time_outs = self.before_time_outs, None
            await do()
        return handled

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        handled = await super().handle(messages, published)
        self._count(handled)
        return handled

    def _count(self, handled: Handled) -> int:
        time_outs = sum(attempt.subject.endswith("SagaTimedOut") for attempt in handled.attempts)
        self.decided += time_outs
        return time_outs


@dataclass
class Correlator:
    """A running correlator's parts."""

    store: CorrelatorStore
    worker: Worker
    changes: SagaChanges
    problems: Problems
    handler: CorrelatorUnderTest
    running: asyncio.Task[None]

    async def until(self, key: str, *statuses: Status, definition: str = "order-fulfilment") -> RecordedSaga:
        """Waits until a saga has one of the statuses."""
        return await self.until_saga(key, lambda saga: saga.status in statuses, definition=definition)

    async def until_saga(
        self, key: str, condition: Callable[[Saga], bool], *, definition: str = "order-fulfilment"
    ) -> RecordedSaga:
        """Waits until a saga has started and something holds of it."""
        with self.changes.watch(key) as watch:
            async with asyncio.timeout(20):
                while True:
                    found = await self.store.get_sagas(key, definition)
                    if found and found[0].saga.is_started and condition(found[0].saga):
                        return found[0]
                    await watch.wait(0.5)


@asynccontextmanager
async def correlating(
    broker: Broker,
    store: CorrelatorStore,
    definitions: tuple[Definition, ...] = DEFINITIONS,
    *,
    batch_size: int = 100,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    before_time_outs: Callable[[], Awaitable[None]] | None = None,
    last_stored: Callable[[Broker, str], Awaitable[int]] = last_stored_on,
    registry: Registry = REGISTRY,
    nudges: Nudges | None = None,
) -> AsyncIterator[Correlator]:
    """A correlator at work on a store."""
    await store.open()
    await store.activate(definitions, replica="correlator-1")
    changes = SagaChanges(nudges)
    handler = CorrelatorUnderTest(
        store=store,
        registry=registry,
        changes=changes,
        last_stored_on=partial(last_stored, broker),
        stored_on=partial(stored_on, broker),
        stored_at=partial(stored_at, broker),
        begin=partial(begin_from_snapshot, broker),
        clock=clock,
    )
    handler.before_time_outs = before_time_outs
    problems = Problems()
    worker = Worker(
        broker=broker,
        durable="correlator",
        description="",
        filters=["events.>"],
        handler=handler,
        batch_size=batch_size,
        report=problems.report,
        hold_until_caught_up=True,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield Correlator(store, worker, changes, problems, handler, running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def tell(broker: Broker, key: str, events: Iterable[tuple[str, dict[str, object]]] = HAPPY) -> None:
    """Publishes events of a saga, with no headers, as anyone may."""
    publisher = Publisher(broker)
    for name, body in events:
        data = json.dumps({"orderId": key, **body}).encode()
        await publisher.publish(Publication(key, f"events.{key}.{name}", {}, data))
    await publisher.stop()


def dispositions(recorded: RecordedSaga) -> list[tuple[str, Disposition]]:
    """The short type and the disposition of each event of the history, in stream order."""
    return [(entry.fact.type.rpartition(".")[2], entry.disposition) for entry in recorded.saga.history]


async def end_deduplication(broker: Broker) -> None:
    """Makes the broker forget every message id that it has seen: its window must not be what a test rests on."""
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "duplicate_window": 100_000_000})
    publisher = Publisher(broker)
    probe = Publication("probe", "events.probe.nobody.v1.Knows", {"Nats-Msg-Id": "probe"}, b"{}")
    await publisher.publish(probe)
    async with asyncio.timeout(20):
        while (await publisher.publish(probe)).is_duplicate:  # noqa: ASYNC110 - the broker does not tell when
            await asyncio.sleep(0.05)
    await publisher.stop()
