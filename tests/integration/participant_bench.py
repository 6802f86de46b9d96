"""A participant over a real database, fed with stored messages: for tests of what its one transaction does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1 import participant_pb2
from choreography.v1.dead_letter_events_pb2 import DeadLetterDiscarded, DeadLetterRedriven
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from choreography.v1.saga_pb2 import SAGA_CAUSE_DEADLINE
from farandole import Participant, Retries, Step, Transaction, step
from farandole.database import Database
from farandole.envelope import Event, Publication, StoredMessage, decode, encode
from farandole.outbox import OutboxRow
from farandole.participant.barrier import BarrierState
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.status import circuit_status, stored_status
from farandole.participant.tables import ParticipantTables
from farandole.partitions import PARTITIONS, partition_of
from farandole.service import create_tables
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import ShippingFailed

START = datetime(2026, 1, 1, tzinfo=UTC)

metadata = sa.MetaData()
charges = sa.Table(
    "charges",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)


def write_down(tx: Transaction, what: str) -> None:
    """Does work that a test can see, and that goes where the transaction goes."""
    tx.execute(charges.insert(), {"key": tx.key, "what": what})


class ProcessEnds(BaseException):
    """Ends a process of a test: nothing in a participant catches it, so nothing of what was not committed is left."""


@dataclass
class Cashier:
    """A participant's handlers, with faults that a test can switch on."""

    fails: Callable[[str], bool] = field(default=lambda _key: False)
    ends: Callable[[str], bool] = field(default=lambda _key: False)
    """Whether the process ends while it charges."""
    refund_fails: bool = False
    misbehaves: bool = False

    def charge(self, event: ItemsReserved, tx: Transaction) -> PaymentProcessed | PaymentFailed:
        write_down(tx, "charge")
        if self.ends(tx.key):
            raise ProcessEnds
        if self.fails(tx.key):
            raise RuntimeError("the card reader is broken")
        if self.misbehaves:
            return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")  # type: ignore[return-value]
        if event.card == "card-declined":
            return PaymentFailed(order_id=tx.key, reason="declined")
        return PaymentProcessed(
            order_id=tx.key, payment_id=tx.step_id, amount_cents=event.amount_cents, currency="EUR", address="a"
        )

    def refund(self, event: ShippingFailed | SagaTimedOut, tx: Transaction) -> PaymentRefunded:
        write_down(tx, "refund")
        if self.refund_fails:
            raise RuntimeError("the bank is closed")
        return PaymentRefunded(order_id=tx.key, payment_id=tx.step_id, reason=type(event).__name__)


class Bench:
    """A participant over a real database, fed with stored messages."""

    def __init__(self, url: str) -> None:
        self.cashier = Cashier()
        self.database = Database(url)
        self._is_sqlite = url.startswith("sqlite:")
        self.now = START
        self.sequence = 0
        self.copies: list[Publication] = []
        """What went to the stream `DEADLETTERS`."""
        self.handler = self.with_steps(
            step("take-payment", self.cashier.charge, undo=self.cashier.refund, saga="order-fulfilment")
        )

    def with_steps(
        self, *steps: Step, name: str = "payments", retries: Retries | None = None
    ) -> ParticipantBatchHandler:
        """Makes the participant one of these steps."""
        self.participant = Participant(name, *steps, metadata=metadata, retries=retries or Retries())
        self.handler = self.new_owner()
        return self.handler

    def new_owner(
        self,
        *,
        batch_size: int = 500,
        partitions: Collection[int] = range(PARTITIONS),
        alone: asyncio.Lock | None = None,
    ) -> ParticipantBatchHandler:
        """Another process on the same database, or another lane of one."""
        return ParticipantBatchHandler(
            self.participant,
            self.database,
            ParticipantTables(),
            partitions=partitions,
            alone=alone,
            clock=lambda: self.now,
            batch_size=batch_size,
        )

    async def restart(self) -> None:
        """Goes on in another process."""
        self.handler = self.new_owner()
        await self.handler.claim("stream-1")

    def message(self, body: Message, *, source: str = "someone", event_id: str = "") -> StoredMessage:
        """The next stored message."""
        event_type = self.participant.registry.get(body.DESCRIPTOR.full_name)
        assert event_type is not None
        return self.stored(encode(event_type, body, source=source, event_id=event_id, time=START))

    def stored(self, publication: Publication) -> StoredMessage:
        """A publication as the next stored message."""
        self.sequence += 1
        event_type = publication.subject.split(".", 2)[2]
        subject = f"events.{partition_of(publication.key)}.{event_type}"
        return StoredMessage(subject, publication.headers, publication.data, self.sequence, START)

    async def take(self, *messages: StoredMessage) -> list[Event]:
        """Handles one batch; what it published, decoded."""
        return self.decoded((await self.handler.handle(messages, ())).rows)

    async def hear(self, *messages: StoredMessage) -> list[Event]:
        """Hears messages first, as after a claim; what the outbox has then, decoded."""

        async def pages() -> AsyncIterator[Sequence[StoredMessage]]:
            yield messages

        await self.handler.hear(pages())
        return self.decoded(await self.handler.waiting())

    async def due(self) -> list[Event]:
        """Does what is due; what it published, decoded."""
        return self.decoded((await self.handler.due()).rows)

    async def finish(self) -> list[Event]:
        """Lets time pass until nothing is to be tried again by time; what it published, decoded."""
        events: list[Event] = []
        while (due_in := self.handler.due_in()) is not None:
            self.now += timedelta(seconds=max(due_in, 0))
            events += await self.due()
        return events

    def decoded(self, rows: Sequence[OutboxRow]) -> list[Event]:
        """What outbox rows would look like once stored; copies of dead letters go to `copies`."""
        events: list[Event] = []
        for row in rows:
            if row.publication.subject.startswith("deadletters."):
                self.copies.append(row.publication)
                continue
            event_type = row.publication.subject.split(".", 2)[2]
            subject = f"events.{partition_of(row.publication.key)}.{event_type}"
            stored = StoredMessage(subject, row.publication.headers, row.publication.data, row.id, START)
            event = decode(self.participant.registry, stored)
            assert isinstance(event, Event), event
            events.append(event)
        return events

    async def done(self, key: str = "o1") -> list[str]:
        """The work that was done for a saga, in order."""
        query = sa.select(charges.c.what).where(charges.c.key == key).order_by(charges.c.number)
        return await self.database.read(lambda connection: list(connection.execute(query).scalars()))

    async def barrier(self, step_name: str = "take-payment", key: str = "o1") -> BarrierState | None:
        """What has become of a step."""
        found = await self.database.read(lambda connection: ParticipantTables().barriers(connection, [key]))
        return next((barrier.state for (_, _, name), barrier in found.items() if name == step_name), None)

    async def status(self, key: str = "o1") -> participant_pb2.ParticipantStatus:
        """What the participant tells whoever asks."""
        status = await self.database.read(
            lambda connection: stored_status(connection, self.participant, ParticipantTables(), key)
        )
        status.circuits.extend(circuit_status(*found) for found in self.handler.circuits.items())
        return status

    async def queued(self, key: str = "o1") -> list[tuple[int, bool]]:
        """What waits of a saga: sequence, and whether it is a dead letter."""
        entries = await self.database.read(lambda connection: ParticipantTables().queue.of(connection, [key], 100))
        return [(entry.message.sequence, entry.given_up) for entry in entries]

    async def counts(self) -> dict[int, int]:
        """How often each event has been run that was counted before and is not dealt with, by sequence."""
        return await self.database.read(
            lambda connection: ParticipantTables().started.of(connection, range(PARTITIONS))
        )

    @asynccontextmanager
    async def no_room(self) -> AsyncIterator[None]:
        """Lets the database find its disk full where a handler writes."""
        for statement in _NO_ROOM_IN_SQLITE if self._is_sqlite else _NO_ROOM_IN_POSTGRESQL:
            await self._execute(statement)
        yield
        await self._execute(_ROOM_IN_SQLITE if self._is_sqlite else _ROOM_IN_POSTGRESQL)

    async def _execute(self, statement: str) -> None:
        await self.database.write(lambda connection: connection.exec_driver_sql(statement))


_NO_ROOM_IN_SQLITE = ("PRAGMA max_page_count=200",)
_ROOM_IN_SQLITE = "PRAGMA max_page_count=1000000"
_NO_ROOM_IN_POSTGRESQL = (
    """CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE SQLSTATE '53100' USING MESSAGE = 'could not extend file: No space left on device';
    END $$""",
    """CREATE TRIGGER no_room BEFORE INSERT ON charges FOR EACH ROW WHEN (length(NEW.what) > 1000)
        EXECUTE FUNCTION no_room()""",
)
_ROOM_IN_POSTGRESQL = "DROP FUNCTION no_room CASCADE"


@asynccontextmanager
async def bench_at(url: str) -> AsyncIterator[Bench]:
    """A bench over a new database."""
    bench = Bench(url)
    await create_tables(bench.participant, bench.database)
    await bench.handler.claim("stream-1")
    try:
        yield bench
    finally:
        await bench.database.close()


def reserved(key: str = "o1", *, cents: int = 100, card: str = "c") -> ItemsReserved:
    return ItemsReserved(
        order_id=key, reservation_id="r", amount_cents=cents, currency="EUR", card=card, address="a street"
    )


def failed(key: str = "o1") -> ShippingFailed:
    return ShippingFailed(order_id=key, reason="nowhere")


def timed_out(key: str = "o1", *, definition: str = "order-fulfilment", steps: tuple[str, ...] = ()) -> SagaTimedOut:
    message = SagaTimedOut(
        saga_id=key, definition=definition, version=1, cause=SAGA_CAUSE_DEADLINE, steps=steps or ("take-payment",)
    )
    message.deadline.FromDatetime(START)
    return message


def redriven(
    sequence: int,
    *,
    key: str = "o1",
    participant: str = "payments",
    definition: str = "order-fulfilment",
    step_name: str = "take-payment",
) -> DeadLetterRedriven:
    return DeadLetterRedriven(
        saga_id=key,
        definition=definition,
        step=step_name,
        participant=participant,
        sequence=sequence,
        actor="ada",
        reason="the reader is repaired",
    )


def discarded(
    sequence: int,
    *,
    key: str = "o1",
    participant: str = "payments",
    definition: str = "order-fulfilment",
    step_name: str = "take-payment",
) -> DeadLetterDiscarded:
    return DeadLetterDiscarded(
        saga_id=key,
        definition=definition,
        step=step_name,
        participant=participant,
        sequence=sequence,
        actor="ada",
        reason="paid in cash",
    )


def types(events: Sequence[Event]) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events]
