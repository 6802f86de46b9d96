"""A participant over a real broker: what it hears first, what it reads back, and what it gives up on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterRedriven
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from choreography.v1.saga_pb2 import SAGA_CAUSE_DEADLINE
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneProvisioned
from farandole import Participant, Reject, Transaction, step
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_events
from farandole.broker.streams import DEADLETTERS, EVENTS, events_state
from farandole.database import Database
from farandole.envelope import StoredMessage, encode
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.tables import ParticipantTables
from farandole.partitions import partition_of
from farandole.testing.brokers import nats_py
from farandole.worker import Worker
from tests.integration.stored_events import keys_of_stored

metadata = sa.MetaData()
acts = sa.Table(
    "acts",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)


def decide(event: DroneProvisioned, tx: Transaction) -> PackageDelivered | DeliveryFailed:
    if event.address == "nowhere":
        raise Reject(f"{event.address} is on no map")
    tx.execute(acts.insert(), {"key": tx.key, "what": "decide"})
    return PackageDelivered(parcel_id=tx.key, delivery_id=tx.step_id, drone_id=event.drone_id)


def answer(_event: SagaTimedOut, tx: Transaction) -> DeliveryFailed:
    tx.execute(acts.insert(), {"key": tx.key, "what": "answer"})
    return DeliveryFailed(parcel_id=tx.key, reason="too late")


def fly(_event: PackageDelivered, tx: Transaction) -> None:
    tx.execute(acts.insert(), {"key": tx.key, "what": "fly"})


DELIVERY = Participant(
    "delivery",
    step("deliver-package", decide, undo=answer, irrevocable=fly, saga="drone-delivery"),
    metadata=metadata,
)


@dataclass
class Delivery:
    """The participant's parts, over one database."""

    broker: Broker
    database: Database
    handler: ParticipantBatchHandler

    async def done(self, key: str) -> list[str]:
        """What was done for a saga, in order."""
        query = sa.select(acts.c.what).where(acts.c.key == key).order_by(acts.c.number)
        return await self.database.read(lambda connection: list(connection.execute(query).scalars()))

    async def until_taken_in(self) -> None:
        """Waits until the participant has taken in all that the stream holds, and published what follows."""
        async with asyncio.timeout(20):
            while not await self._is_idle():  # noqa: ASYNC110 - a position is polled by its users too
                await asyncio.sleep(0.02)

    async def _is_idle(self) -> bool:
        before = await events_state(self.broker)
        if self.handler.position < await self._last_of_interest(before.last_sequence):
            return False
        # what it has taken in may still be on its way out, and back
        if await self.database.read(ParticipantTables().outbox.depth):
            return False
        return await events_state(self.broker) == before

    async def _last_of_interest(self, last: int) -> int:
        """The last stored sequence that the participant's consumer takes."""
        types = [subject.rpartition("*.")[2] for subject in DELIVERY.filters]
        for sequence in range(last, 0, -1):
            message = await nats_py(self.broker).jetstream().get_msg(EVENTS, sequence)
            if message.subject is not None and message.subject.split(".", 2)[2] in types:
                return sequence
        return 0


@asynccontextmanager
async def delivery_at(broker: Broker, path: Path) -> AsyncIterator[Delivery]:
    """The participant over a database, not at work yet."""
    database = Database(f"sqlite:///{path}/delivery.db")
    tables = ParticipantTables()
    await database.create(tables.metadata, metadata, if_earlier="")
    try:
        yield Delivery(broker, database, ParticipantBatchHandler(DELIVERY, database, tables))
    finally:
        await database.close()


@asynccontextmanager
async def at_work(delivery: Delivery) -> AsyncIterator[None]:
    """The participant at work."""
    worker = Worker(
        broker=delivery.broker,
        durable="delivery",
        description="",
        filters=DELIVERY.filters,
        handler=delivery.handler,
        batch_size=10,
        report=lambda _check, _problem: None,
        hold_until_caught_up=False,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def store(broker: Broker, *bodies: Message) -> None:
    """Publishes events and waits until the stream holds them, in this order."""
    publisher = Publisher(broker)
    for body in bodies:
        event_type = DELIVERY.registry.types[body.DESCRIPTOR.full_name]
        await publisher.publish(encode(event_type, body, source="someone", time=datetime.now(UTC)))
    await publisher.stop()


def provisioned(key: str, *, address: str = "a street") -> DroneProvisioned:
    return DroneProvisioned(parcel_id=key, drone_id="d1", package_id="p1", address=address)


def timed_out(key: str) -> SagaTimedOut:
    body = SagaTimedOut(
        saga_id=key, definition="drone-delivery", version=1, cause=SAGA_CAUSE_DEADLINE, steps=("deliver-package",)
    )
    body.deadline.FromDatetime(datetime.now(UTC))
    return body


async def stored(broker: Broker, body: type[Message]) -> list[StoredMessage]:
    """What the stream holds of a type."""
    state = await events_state(broker)
    pages = stored_events(broker, body.DESCRIPTOR.full_name, after=0, until=state.last_sequence)
    return [message async for page in pages for message in page]


def keys(prefix: str, count: int) -> Sequence[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def test_time_outs_are_heard_before_the_backlog(broker: Broker, tmp_path: Path) -> None:
    """It was stopped while work came in and was timed out: it never begins what was timed out."""
    stuck, alive = keys("stuck", 30), keys("alive", 5)
    await store(broker, *map(provisioned, [*stuck, *alive]), *map(timed_out, stuck))
    async with delivery_at(broker, tmp_path) as delivery, at_work(delivery):
        await delivery.until_taken_in()
        for key in stuck:
            assert await delivery.done(key) == ["answer"]
        for key in alive:
            assert await delivery.done(key) == ["decide", "fly"]
    assert sorted(await keys_of_stored(broker, "DeliveryFailed")) == sorted(stuck)
    assert sorted(await keys_of_stored(broker, "PackageDelivered")) == sorted(alive)


async def test_an_irrevocable_act_follows_its_own_stored_event(broker: Broker, tmp_path: Path) -> None:
    async with delivery_at(broker, tmp_path) as delivery, at_work(delivery):
        await store(broker, provisioned("o1"), timed_out("o2"), provisioned("o2"))
        await delivery.until_taken_in()
        assert await delivery.done("o1") == ["decide", "fly"]
        assert await delivery.done("o2") == ["answer"]
        await store(broker, timed_out("o1"))
        await delivery.until_taken_in()
        assert await delivery.done("o1") == ["decide", "fly"]
    assert await keys_of_stored(broker, "DeliveryFailed") == ["o2"]


async def test_a_crash_before_its_event_is_stored_leaves_the_time_out_first(broker: Broker, tmp_path: Path) -> None:
    """It had decided and not published yet; the time-out is stored; then it starts again and publishes."""
    state = await events_state(broker)
    await store(broker, provisioned("o1"), provisioned("o2"))
    async with delivery_at(broker, tmp_path) as crashed:
        await crashed.handler.claim(state.incarnation)
        await crashed.handler.handle(await stored(broker, DroneProvisioned), ())
    await store(broker, timed_out("o1"))
    async with delivery_at(broker, tmp_path) as delivery, at_work(delivery):
        await delivery.until_taken_in()
        assert await delivery.done("o1") == ["decide", "answer"]
        assert await delivery.done("o2") == ["decide", "fly"]
    assert sorted(await keys_of_stored(broker, "PackageDelivered")) == ["o1", "o2"]
    assert await keys_of_stored(broker, "DeliveryFailed") == ["o1"]


async def test_a_dead_letter_is_stored_twice_over_and_redriven_by_an_event(broker: Broker, tmp_path: Path) -> None:
    """The copy in `DEADLETTERS`, and what the saga is told in `EVENTS`."""
    async with delivery_at(broker, tmp_path) as delivery, at_work(delivery):
        await store(broker, provisioned("o1", address="nowhere"))
        await delivery.until_taken_in()
        stream = nats_py(broker).jetstream()
        copy = await stream.get_last_msg(DEADLETTERS, "deadletters.delivery.drones.v1.DroneProvisioned")
        assert copy.data == provisioned("o1", address="nowhere").SerializeToString(deterministic=True)
        assert copy.headers is not None
        assert copy.headers["farandole-reason"] == "REJECTED"
        told = await stream.get_last_msg(
            EVENTS, f"events.{partition_of('o1')}.{DeadLetterRecorded.DESCRIPTOR.full_name}"
        )
        assert told.data is not None
        body = DeadLetterRecorded.FromString(told.data)
        assert (body.saga_id, body.sequence, body.detail) == ("o1", 1, "[REDACTED] is on no map")
        await store(
            broker,
            DeadLetterRedriven(
                saga_id="o1",
                definition=body.definition,
                step=body.step,
                participant=body.participant,
                sequence=body.sequence,
                actor="ada",
            ),
        )
        async with asyncio.timeout(20):
            while len(await keys_of_stored(broker, "DeadLetterRecorded")) < 2:  # noqa: ASYNC110 - a stream is polled
                await asyncio.sleep(0.02)
