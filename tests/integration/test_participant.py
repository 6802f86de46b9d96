"""A participant's one transaction: what an event does, exactly once, whatever comes twice, early, late or badly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1.lifecycle_pb2 import SagaTimedOut, StepVoided
from choreography.v1.saga_pb2 import SAGA_CAUSE_DEADLINE
from farandole import Participant, Transaction, step
from farandole.database import Database
from farandole.envelope import Event, StoredMessage, decode, encode
from farandole.errors import ContractError, FencedError, StoreUnavailableError
from farandole.outbox import OutboxRow
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.tables import ParticipantTables
from farandole.partitions import partition_of
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


@dataclass
class Cashier:
    """A participant's handlers, with a fault that a test can switch on."""

    fails: Callable[[str], bool] = field(default=lambda _key: False)
    misbehaves: bool = False

    def charge(self, event: ItemsReserved, tx: Transaction) -> PaymentProcessed | PaymentFailed:
        tx.execute(charges.insert(), {"key": tx.key, "what": "charge"})
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
        tx.execute(charges.insert(), {"key": tx.key, "what": "refund"})
        return PaymentRefunded(order_id=tx.key, payment_id=tx.step_id, reason=type(event).__name__)


class Bench:
    """A participant over a real database, fed with stored messages."""

    def __init__(self, path: Path) -> None:
        self.cashier = Cashier()
        self.participant = Participant(
            "payments",
            step("take-payment", self.cashier.charge, undo=self.cashier.refund, saga="order-fulfilment"),
            metadata=metadata,
        )
        self.database = Database(f"sqlite:///{path}/payments.db")
        self.now = START
        self.handler = self.new_owner()
        self.sequence = 0
        self.published: list[OutboxRow] = []

    def new_owner(self) -> ParticipantBatchHandler:
        """Another process on the same database."""
        return ParticipantBatchHandler(self.participant, self.database, ParticipantTables(), clock=lambda: self.now)

    def message(self, body: Message, *, source: str = "someone", event_id: str = "") -> StoredMessage:
        """The next stored message."""
        event_type = self.participant.registry.get(body.DESCRIPTOR.full_name)
        assert event_type is not None
        publication = encode(event_type, body, source=source, event_id=event_id, time=START)
        self.sequence += 1
        subject = f"events.{partition_of(publication.key)}.{event_type.name}"
        return StoredMessage(subject, publication.headers, publication.data, self.sequence, START)

    async def take(self, *messages: StoredMessage) -> list[Event]:
        """Handles one batch; what it published, decoded."""
        return self.decoded((await self.handler.handle(messages, ())).rows)

    async def due(self) -> list[Event]:
        """Does what is due; what it published, decoded."""
        return self.decoded((await self.handler.due()).rows)

    def decoded(self, rows: Sequence[OutboxRow]) -> list[Event]:
        """What outbox rows would look like once stored."""
        events: list[Event] = []
        for row in rows:
            publication = row.publication
            event_type = publication.subject.split(".", 2)[2]
            stored = StoredMessage(
                f"events.{partition_of(publication.key)}.{event_type}",
                publication.headers,
                publication.data,
                row.id,
                START,
            )
            event = decode(self.participant.registry, stored)
            assert isinstance(event, Event), event
            events.append(event)
        return events

    async def done(self, key: str = "o1") -> list[str]:
        """The work that was done for a saga, in order."""
        query = sa.select(charges.c.what).where(charges.c.key == key).order_by(charges.c.number)
        return await self.database.read(lambda connection: list(connection.execute(query).scalars()))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.database.create(ParticipantTables().metadata, metadata)
    await bench.handler.claim("stream-1")
    yield bench
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


def types(events: list[Event]) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events]


async def test_an_event_does_its_work_and_publishes_what_follows(bench: Bench) -> None:
    cause = bench.message(reserved(), event_id="cause")
    (event,) = await bench.take(cause)
    assert event.type == "payments.v1.PaymentProcessed"
    assert (event.source, event.causation_id, event.key) == ("payments", "cause", "o1")
    assert await bench.done() == ["charge"]


async def test_the_same_event_again_does_nothing(bench: Bench) -> None:
    await bench.take(bench.message(reserved(), event_id="a"))
    assert await bench.take(bench.message(reserved(), event_id="a")) == []
    assert await bench.done() == ["charge"]


async def test_the_same_event_twice_in_one_batch_does_its_work_once(bench: Bench) -> None:
    events = await bench.take(bench.message(reserved(), event_id="a"), bench.message(reserved(), event_id="a"))
    assert types(events) == ["PaymentProcessed"]
    assert await bench.done() == ["charge"]


@pytest.mark.parametrize("cents", [100, 999])
async def test_another_event_for_a_step_that_has_run_does_nothing(bench: Bench, cents: int) -> None:
    await bench.take(bench.message(reserved(), event_id="a"))
    assert await bench.take(bench.message(reserved(cents=cents), event_id="b")) == []
    assert await bench.done() == ["charge"]


async def test_handling_an_event_again_after_a_crash_gives_the_same_ids(bench: Bench, tmp_path: Path) -> None:
    message = bench.message(reserved(), event_id="a")
    (first,) = await bench.take(message)
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other")
    await other.database.create(ParticipantTables().metadata, metadata)
    await other.handler.claim("stream-1")
    other.now = START + timedelta(hours=5)
    (second,) = await other.take(message)
    assert first.id == second.id
    await other.database.close()


async def test_an_undoing_runs_once_and_only_after_its_step(bench: Bench) -> None:
    await bench.take(bench.message(reserved()))
    assert types(await bench.take(bench.message(failed(), event_id="a"))) == ["PaymentRefunded"]
    assert await bench.take(bench.message(failed(), event_id="b"), bench.message(timed_out())) == []
    assert await bench.done() == ["charge", "refund"]


async def test_an_undoing_that_comes_first_voids_the_step_and_says_so(bench: Bench) -> None:
    (event,) = await bench.take(bench.message(failed()))
    assert isinstance(event.body, StepVoided)
    assert (event.body.step, event.body.participant, event.key) == ("take-payment", "payments", "o1")
    assert await bench.take(bench.message(reserved())) == []
    assert await bench.done() == []


async def test_a_failed_step_has_nothing_to_undo(bench: Bench) -> None:
    assert types(await bench.take(bench.message(reserved(card="card-declined")))) == ["PaymentFailed"]
    assert await bench.take(bench.message(failed()), bench.message(timed_out())) == []
    assert await bench.done() == ["charge"]


@pytest.mark.parametrize(
    "other", [timed_out(definition="another-saga"), timed_out(steps=("reserve-items",))], ids=["definition", "step"]
)
async def test_a_time_out_of_something_else_undoes_nothing(bench: Bench, other: SagaTimedOut) -> None:
    await bench.take(bench.message(reserved()))
    assert await bench.take(bench.message(other)) == []
    assert types(await bench.take(bench.message(timed_out()))) == ["PaymentRefunded"]


async def test_a_batch_commits_as_one(bench: Bench) -> None:
    """State, outbox and position of all its events, or of none."""
    messages = [bench.message(reserved(f"o{n}")) for n in range(20)]
    rows = (await bench.handler.handle(messages, ())).rows
    assert len(rows) == 20
    assert (await bench.new_owner().claim("stream-1")).sequence == 20


async def test_a_second_owner_shuts_the_first_out(bench: Bench) -> None:
    first = bench.handler
    second = bench.new_owner()
    await second.claim("stream-1")
    with pytest.raises(FencedError):
        await first.handle([bench.message(reserved())], ())
    assert await bench.done() == []
    with pytest.raises(FencedError):
        await first.claim("stream-1")
    with pytest.raises(FencedError):  # a remote procedure must not write what nobody would publish
        await bench.database.write(first.check_owner)
    bench.sequence = 0
    assert len((await second.handle([bench.message(reserved())], ())).rows) == 1


async def test_the_position_keeps_the_stream_that_it_belongs_to(bench: Bench) -> None:
    await bench.take(bench.message(reserved()))
    position = await bench.new_owner().claim("another-stream")
    assert (position.sequence, position.incarnation) == (1, "stream-1")


async def test_outbox_rows_stay_until_they_are_removed(bench: Bench) -> None:
    rows = (await bench.handler.handle([bench.message(reserved("o1")), bench.message(reserved("o2"))], ())).rows
    assert [row.id for row in await bench.handler.waiting()] == [row.id for row in rows]
    await bench.handler.handle([bench.message(reserved("o3"))], [rows[0].id])
    assert [row.publication.key for row in await bench.handler.waiting()] == ["o2", "o3"]


class TestAHandlerThatRaises:
    """What it did is undone; its saga waits in order; all others go on; it is tried again, later and later."""

    async def test_others_go_on_and_its_own_saga_waits_in_order(self, bench: Bench) -> None:
        bench.cashier.fails = lambda key: key == "bad"
        events = await bench.take(
            bench.message(reserved("good-1")),
            bench.message(reserved("bad")),
            bench.message(failed("bad")),
            bench.message(reserved("good-2")),
        )
        assert [event.key for event in events] == ["good-1", "good-2"]
        assert await bench.done("bad") == []
        assert await bench.take(bench.message(timed_out("bad"))) == []

        bench.cashier.fails = lambda _key: False
        bench.now += timedelta(seconds=1)
        assert types(await bench.due()) == ["PaymentProcessed", "PaymentRefunded"]
        assert await bench.done("bad") == ["charge", "refund"]
        assert bench.handler.due_in() is None

    async def test_a_disk_that_is_full_is_not_the_handlers_fault(self, bench: Bench) -> None:
        """SQLite takes the whole transaction back, and the savepoint with it: nothing of the batch may stay."""

        def hoard(_event: ItemsReserved, tx: Transaction) -> None:
            if tx.key == "bad":  # so that each event of the batch has a savepoint
                raise RuntimeError("broken")
            tx.execute(charges.insert(), {"key": tx.key, "what": "x" * 5_000_000})

        bench.participant = Participant("payments", step("hoard", hoard, saga="order-fulfilment"), metadata=metadata)
        bench.handler = bench.new_owner()
        await bench.handler.claim("stream-1")
        batch = [bench.message(reserved(key)) for key in ("bad", "big", "other")]
        await bench.database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=200"))
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="full"):
                await bench.handler.handle(batch, ())
            assert await bench.done("big") == []
            assert bench.handler.due_in() is None
        await bench.database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1000000"))
        await bench.handler.handle(batch, ())
        assert [len(await bench.done(key)) for key in ("bad", "big", "other")] == [0, 1, 1]

    async def test_what_is_kept_of_a_failure_shows_no_parameters(self, bench: Bench) -> None:
        def clash(event: ItemsReserved, tx: Transaction) -> None:
            for _ in range(2):
                tx.execute(charges.insert(), {"number": 1, "key": tx.key, "what": event.card})

        bench.participant = Participant("payments", step("clash", clash, saga="order-fulfilment"), metadata=metadata)
        bench.handler = bench.new_owner()
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(reserved(card="4111-2222")))
        query = sa.text("SELECT error FROM farandole_queue")
        (error,) = await bench.database.read(lambda connection: connection.execute(query).scalars().all())
        assert "IntegrityError" in error
        assert "4111" not in error

    async def test_all_of_an_events_steps_are_done_or_none(self, bench: Bench) -> None:
        """The first step's work, its barrier and what it published go too where the second one fails."""
        broken = [True]

        def second(_event: ItemsReserved, tx: Transaction) -> None:
            tx.execute(charges.insert(), {"key": tx.key, "what": "second"})
            if broken:
                raise RuntimeError("broken")

        bench.participant = Participant(
            "payments",
            step("take-payment", bench.cashier.charge, saga="order-fulfilment"),
            step("second", second, saga="order-fulfilment"),
            metadata=metadata,
        )
        bench.handler = bench.new_owner()
        await bench.handler.claim("stream-1")
        assert await bench.take(bench.message(reserved())) == []
        assert await bench.done() == []
        broken.clear()
        bench.now += timedelta(seconds=1)
        assert types(await bench.due()) == ["PaymentProcessed"]
        assert await bench.done() == ["charge", "second"]

    async def test_what_waits_survives_a_restart(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        await bench.take(bench.message(reserved()))
        bench.cashier.fails = lambda _key: False
        restarted = bench.new_owner()
        assert (await restarted.claim("stream-1")).sequence == 1
        bench.now += timedelta(seconds=1)
        assert types(bench.decoded((await restarted.due()).rows)) == ["PaymentProcessed"]

    async def test_a_retry_of_an_owner_that_was_shut_out_writes_nothing(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        await bench.take(bench.message(reserved()))
        bench.cashier.fails = lambda _key: False
        await bench.new_owner().claim("stream-1")
        bench.now += timedelta(seconds=1)
        with pytest.raises(FencedError):
            await bench.handler.due()
        assert await bench.done() == []

    async def test_more_waits_than_one_transaction_takes(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        keys = [f"o{n}" for n in range(700)]
        await bench.take(*[bench.message(reserved(key)) for key in keys])
        bench.cashier.fails = lambda _key: False
        bench.now += timedelta(seconds=1)
        published: list[OutboxRow] = []
        while bench.handler.due_in() is not None:
            published.extend((await bench.handler.due()).rows)
        assert sorted(row.publication.key for row in published) == sorted(keys)

    async def test_an_event_that_breaks_a_rule_is_the_handlers_fault(self, bench: Bench) -> None:
        def nameless(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
            tx.execute(charges.insert(), {"key": tx.key, "what": "charge"})
            return PaymentFailed(order_id=tx.key, reason="")

        bench.participant = Participant(
            "payments", step("take-payment", nameless, saga="order-fulfilment"), metadata=metadata
        )
        handler = bench.new_owner()
        await handler.claim("stream-1")
        assert (await handler.handle([bench.message(reserved())], ())).rows == []
        assert await bench.done() == []
        assert handler.due_in() is not None

    async def test_what_its_annotation_does_not_say_is_not_published(self, bench: Bench) -> None:
        bench.cashier.misbehaves = True
        assert await bench.take(bench.message(reserved())) == []
        assert await bench.done() == []
        assert bench.handler.due_in() is not None


async def test_what_no_one_can_read_is_passed_over(bench: Bench) -> None:
    """The correlator dead-letters it; here it must not hold up anything."""
    garbage = StoredMessage("events.1.inventory.v1.ItemsReserved", {}, b"\xff", 1, START)
    bench.sequence = 1
    assert types(await bench.take(garbage, bench.message(reserved()))) == ["PaymentProcessed"]


def test_a_contract_is_read_from_annotations() -> None:
    cashier = Cashier()
    participant = Participant(
        "payments", step("take-payment", cashier.charge, undo=cashier.refund, saga="order-fulfilment")
    )
    (contract,) = participant.contract.steps
    assert list(contract.consumes) == ["inventory.v1.ItemsReserved"]
    assert list(contract.produces) == ["payments.v1.PaymentProcessed", "payments.v1.PaymentFailed"]
    assert list(contract.undo_consumes) == ["shipping.v1.ShippingFailed", "choreography.v1.SagaTimedOut"]
    assert list(contract.undo_produces) == ["payments.v1.PaymentRefunded"]
    assert participant.filters == [
        "events.*.choreography.v1.DeadLetterDiscarded",
        "events.*.choreography.v1.DeadLetterRedriven",
        "events.*.choreography.v1.SagaTimedOut",
        "events.*.inventory.v1.ItemsReserved",
        "events.*.shipping.v1.ShippingFailed",
    ]


async def asynchronous(_event: ItemsReserved, _tx: Transaction) -> None: ...


def unannotated(event, tx): ...  # type: ignore[no-untyped-def]


def no_event(_event: int, _tx: Transaction) -> None: ...


def one_parameter(_event: ItemsReserved) -> None: ...


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (asynchronous, "is `async`"),
        (unannotated, "has no annotation for 'event'"),
        (no_event, "is no event class"),
        (one_parameter, "takes 1 parameters"),
    ],
)
def test_a_handler_without_a_readable_contract_is_refused(handler: Callable[..., None], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        step("a-step", handler, saga="a-saga")
