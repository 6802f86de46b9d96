"""Two services and the broker under them, for tests that harm them: what they say of it, and what comes of it all.

`orders` sells: `PlaceOrder` makes an order, and that it was shipped completes it. The correlator records both. So an
order that is complete in the database of `orders`, of whose completion the stream has one event, and whose history in
the correlator has three, has lost nothing and done nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from choreography.v1 import dead_letter_service_pb2_grpc, participant_service_pb2_grpc, saga_service_pb2_grpc
from choreography.v1.dead_letter_pb2 import DeadLetter
from choreography.v1.dead_letter_service_pb2 import ListDeadLettersRequest, RedriveDeadLettersRequest
from choreography.v1.participant_pb2 import ParticipantStatus
from choreography.v1.participant_service_pb2 import GetStatusRequest
from choreography.v1.saga_service_pb2 import GetSagaRequest
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_events
from farandole.broker.streams import events_state
from farandole.envelope import Publication
from farandole.errors import BrokerUnavailableError
from farandole.saga import Disposition
from farandole.stack.health import Health, ask_service
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker, connect
from orders.v1 import order_service_pb2_grpc
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2 import GetOrderRequest, OrderStatus, PlaceOrderRequest
from tests.integration.service_processes import CORRELATOR, ROOT, Services, answered, channels_to, eventually

ORDERS = "orders"
BOTH = (ORDERS, CORRELATOR)
HISTORY = {"orders.v1.OrderCreated", "shipping.v1.OrderShipped", "orders.v1.OrderCompleted"}
PAGE = ROOT / "docs" / "bad-days.md"


def told(what: str) -> re.Pattern[str]:
    """What the page says that health says on a bad day: the table's row `what`. `…` stands for any text."""
    rows = dict(re.findall(r"^\| ([^|]+?) \| `([^|]+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    return re.compile(".*".join(re.escape(part) for part in rows[what].split("…")))


@dataclass
class StoresElsewhere(Services):
    """Services whose databases are not where their logs are."""

    stores: Path = Path()
    urls: Mapping[str, str] = field(default_factory=dict)
    """By service: its database, where that is no file."""

    def database(self, service: str) -> Path:
        """The file of a service's database."""
        return self.stores / f"{service}.db"

    def database_url(self, service: str) -> str:
        """See `Services.database_url`."""
        return self.urls.get(service) or f"sqlite:///{self.database(service)}"


@dataclass
class BadDay:
    """A broker, `orders` and the correlator."""

    broker: EmbeddedBroker
    services: StoresElsewhere

    def health(self, service: str) -> Health:
        """What a service says of itself now."""
        return ask_service(self.services.address(service))

    async def until_told(self, what: str, *services: str) -> None:
        """Waits until each service says NOT_SERVING, in the page's words for `what`."""
        pattern = told(what)
        for service in services:
            await self._until(
                service, lambda health: health.status == "NOT_SERVING" and pattern.search(health.reason) is not None
            )

    async def until_serving(self, *services: str) -> None:
        """Waits until each service says SERVING."""
        for service in services:
            await self._until(service, lambda health: health.is_serving)

    async def _until(self, service: str, is_so: Callable[[Health], bool]) -> None:
        health = None
        try:
            async with asyncio.timeout(30):
                while True:
                    health = await asyncio.to_thread(self.health, service)
                    if is_so(health):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{service} says {health}") from None

    def log(self, service: str) -> list[dict[str, object]]:
        """What a service has logged."""
        lines = (self.services.directory / f"{service}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Nobody does anything meanwhile."""
        for process in self.services.processes.values():
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.services.processes.values():
                process.send_signal(signal.SIGCONT)

    def stop(self, service: str) -> None:
        """Ends a service in an orderly way."""
        process = self.services.processes.pop(service)
        process.terminate()
        assert process.wait(30) == 0

    def save(self, service: str) -> Path:
        """A backup of the database of a service that is stopped."""
        saved = self.services.directory / f"{service}.backup"
        shutil.copy(self.services.database(service), saved)
        return saved

    def restore(self, service: str, saved: Path) -> None:
        """Puts a backup in place of the database of a service that is stopped."""
        self._forget_log(service)
        shutil.copy(saved, self.services.database(service))

    def damage(self, service: str) -> None:
        """Writes over the beginning of the database of a service that is stopped."""
        self._forget_log(service)
        with self.services.database(service).open("r+b") as damaged:
            damaged.write(b"\xff" * 4096)

    def _forget_log(self, service: str) -> None:
        """Removes what SQLite keeps beside a database: it belongs to the file that was there."""
        for suffix in ("-wal", "-shm"):
            Path(f"{self.services.database(service)}{suffix}").unlink(missing_ok=True)


@dataclass
class Clients:
    """What a customer, a carrier and an auditor do."""

    orders: order_service_pb2_grpc.OrderServiceAsyncStub
    participants: participant_service_pb2_grpc.ParticipantServiceAsyncStub
    sagas: saga_service_pb2_grpc.SagaServiceAsyncStub
    dead_letters: dead_letter_service_pb2_grpc.DeadLetterServiceAsyncStub
    broker: Broker
    publisher: Publisher

    async def place(self, *order_ids: str) -> None:
        """Places orders; asks again where the service is away."""
        for order_id in order_ids:
            await eventually(partial(self._placed, order_id))

    async def _placed(self, order_id: str) -> str | None:
        return await answered(lambda: self.try_to_place(order_id))

    async def try_to_place(self, order_id: str, *, lines: int = 1) -> str:
        """Places an order, of so many lines. Raises what the service answers else."""
        request = PlaceOrderRequest(
            order_id=order_id,
            customer_id="ada",
            currency="EUR",
            card="card-1",
            address="1 Main Street",
            lines=[OrderLine(sku="widget", quantity=1, unit_price_cents=100)] * lines,
        )
        placed = await self.orders.PlaceOrder(request, timeout=5)
        return placed.order_id

    async def ship(self, *order_ids: str, tracking_number: str = "t") -> None:
        """Tells the stream that orders were shipped. Each is acknowledged."""
        for order_id in order_ids:
            data = json.dumps({"orderId": order_id, "trackingNumber": tracking_number}).encode()
            await self.publisher.publish(Publication(order_id, f"events.{order_id}.shipping.v1.OrderShipped", {}, data))

    async def sell(self, *order_ids: str) -> None:
        """Places orders and ships them once the stream has them."""
        await self.place(*order_ids)
        await self.until_stored("orders.v1.OrderCreated", order_ids)
        await self.ship(*order_ids)

    async def until_complete(self, *order_ids: str) -> None:
        """Waits until everybody knows that the orders are complete, and sees that nothing happened twice."""
        await self.until_known(*order_ids)
        completed = await self.stored("orders.v1.OrderCompleted")
        assert sorted(key for key in completed if key in order_ids) == sorted(order_ids)

    async def until_known(self, *order_ids: str) -> None:
        """Waits until everybody knows that the orders are complete."""
        for order_id in order_ids:
            await eventually(partial(self._is_complete, order_id))
            await eventually(partial(self._is_recorded, order_id))

    async def dispositions(self, order_id: str, event_type: str) -> list[Disposition]:
        """What the correlator has made of each event of a type."""
        found = await self.sagas.GetSaga(GetSagaRequest(saga_id=order_id), timeout=5)
        return [Disposition(entry.disposition) for entry in found.saga.history if entry.event_type == event_type]

    async def _is_complete(self, order_id: str) -> bool | None:
        found = await answered(lambda: self.orders.GetOrder(GetOrderRequest(order_id=order_id), timeout=5))
        return True if found is not None and found.order.status == OrderStatus.ORDER_STATUS_COMPLETED else None

    async def _is_recorded(self, order_id: str) -> bool | None:
        request = GetSagaRequest(saga_id=order_id)
        found = await answered(lambda: self.sagas.GetSaga(request, timeout=5))
        types = [] if found is None else [entry.event_type for entry in found.saga.history]
        return True if set(types) >= HISTORY else None

    async def until_stored(self, event_type: str, order_ids: Iterable[str]) -> None:
        """Waits until the stream has an event of the type for each order."""

        async def look() -> bool | None:
            return True if set(order_ids) <= set(await self.stored(event_type)) else None

        await eventually(look)

    async def stored(self, event_type: str) -> list[str]:
        """The keys of all stored events of a type, in stream order."""
        until = (await events_state(self.broker)).last_sequence
        pages = [page async for page in stored_events(self.broker, event_type, after=0, until=until)]
        return [_key(message.headers, message.data) for page in pages for message in page]

    async def until_connected(self) -> None:
        """Waits until the broker answers again."""

        async def look() -> bool | None:
            try:
                await self.broker.request("$JS.API.INFO")
            except BrokerUnavailableError:
                return None
            return True

        await eventually(look)

    async def status(self, order_id: str = "") -> ParticipantStatus:
        """What `orders` says of its work, and of what it has not finished of an order."""
        answer = await self.participants.GetStatus(GetStatusRequest(saga_id=order_id), timeout=5)
        return answer.status

    async def open_dead_letters(self, participant: str) -> list[DeadLetter]:
        """What somebody has given up on."""
        request = ListDeadLettersRequest(filter=f"participant = {participant} AND state = OPEN")
        found = await self.dead_letters.ListDeadLetters(request, timeout=5)
        return list(found.dead_letters)

    async def redrive(self, dead_letter_id: str) -> None:
        """Has a dead letter tried again."""
        request = RedriveDeadLettersRequest(dead_letter_id=dead_letter_id, actor="ada", reason="the right version runs")
        async for progress in self.dead_letters.RedriveDeadLetters(request, timeout=10):
            assert progress is not None


def _key(headers: object, data: bytes) -> str:
    found = headers.get("ce-correlationid") if isinstance(headers, dict) else None
    return str(found or json.loads(data)["orderId"])


@contextmanager
def bad_day(
    directory: Path,
    *,
    stores: Path | None = None,
    store_of_broker: Path | None = None,
    urls: Mapping[str, str] | None = None,
) -> Iterator[BadDay]:
    """Everything, and running; `stores` is where the databases are that `urls` does not name."""
    logs = directory / "logs"
    logs.mkdir(parents=True)
    stores = stores or directory / "stores"
    stores.mkdir(exist_ok=True)
    broker = EmbeddedBroker(directory / "broker")
    if store_of_broker is not None:
        broker.store = store_of_broker
    broker.start()
    services = StoresElsewhere(logs, broker.url, stores=stores, urls=urls or {})
    try:
        provision_broker(broker.url)
        services.start(*BOTH)
        yield BadDay(broker, services)
    finally:
        services.stop()
        broker.stop()


@asynccontextmanager
async def clients_of(day: BadDay) -> AsyncIterator[Clients]:
    """Clients that find the services and the broker again after each was restarted."""
    broker = await connect(day.broker.url)
    publisher = Publisher(broker)
    try:
        async with channels_to(day.services, BOTH) as channels:
            yield Clients(
                order_service_pb2_grpc.OrderServiceStub(channels[ORDERS]),
                participant_service_pb2_grpc.ParticipantServiceStub(channels[ORDERS]),
                saga_service_pb2_grpc.SagaServiceStub(channels[CORRELATOR]),
                dead_letter_service_pb2_grpc.DeadLetterServiceStub(channels[CORRELATOR]),
                broker,
                publisher,
            )
    finally:
        await publisher.stop()
        await broker.close()
