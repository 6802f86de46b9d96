"""A step that needs several events runs once with all of them, whatever comes early, twice, late or in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, permutations, product
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event as sqlalchemy_event
from structlog.testing import capture_logs

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from choreography.v1.lifecycle_pb2 import SagaCompensated, SagaCompleted, SagaFailed, SagaTimedOut, StepVoided
from choreography.v1.participant_pb2 import QUEUED_EVENT_STATE_EARLY, QUEUED_EVENT_STATE_RETRYING
from choreography.v1.saga_pb2 import SAGA_CAUSE_STEP_FAILURE, SAGA_CAUSE_UNSPECIFIED
from drones.v1.drone_events_pb2 import DroneProvisioned
from farandole import Reject, Retries, Step, Transaction, step
from farandole.envelope import Event, StoredMessage, decode
from farandole.ids import message_id
from farandole.participant.barrier import BarrierState
from farandole.participant.tables import ParticipantTables
from farandole.saga import Disposition
from inventory.v1.inventory_events_pb2 import ItemsReleased, ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped
from tests.integration.participant_bench import (
    Bench,
    bench_at,
    discarded,
    redriven,
    reserved,
    timed_out,
    types,
    write_down,
)

NAMES = ("reserved", "paid", "provisioned")
"""What the step needs, in the order of its parameters."""


def paid(key: str = "o1", *, payment: str = "p") -> PaymentProcessed:
    return PaymentProcessed(order_id=key, payment_id=payment, amount_cents=5, currency="EUR", address="1 Secret Street")


def provisioned(key: str = "o1", *, drone: str = "d") -> DroneProvisioned:
    return DroneProvisioned(parcel_id=key, drone_id=drone, package_id="a package", address="1 Secret Street")


def refunded(key: str = "o1") -> PaymentRefunded:
    return PaymentRefunded(order_id=key, payment_id="p", reason="r")


MAKERS: dict[str, Callable[[str], Message]] = {"reserved": reserved, "paid": paid, "provisioned": provisioned}
BODIES = {name: make("o1") for name, make in MAKERS.items()}
OTHER_BODIES: dict[str, Message] = {
    "reserved": reserved(cents=999),
    "paid": paid(payment="another"),
    "provisioned": provisioned(drone="another"),
}
DONE = "dispatch r p d"
"""What a run with `BODIES` writes down."""


@dataclass
class Dispatcher:
    """The handlers of a step that needs three events, and of a step that needs one of them."""

    errors: list[Exception] = field(default_factory=list)
    """What the next runs raise."""

    def dispatch(
        self, items: ItemsReserved, payment: PaymentProcessed, drone: DroneProvisioned, tx: Transaction
    ) -> OrderShipped:
        amount = "" if items.amount_cents == 100 else f" {items.amount_cents}"
        write_down(tx, f"dispatch {items.reservation_id}{amount} {payment.payment_id} {drone.drone_id}")
        if self.errors:
            raise self.errors.pop(0)
        return OrderShipped(order_id=tx.key, tracking_number=tx.step_id)

    def call_back(self, event: PaymentRefunded | SagaTimedOut, tx: Transaction) -> ItemsReleased:
        write_down(tx, "call back")
        return ItemsReleased(order_id=tx.key, reservation_id="r", reason="called back")

    def look(self, event: PaymentProcessed, tx: Transaction) -> None:
        write_down(tx, "look")

    def step(self, name: str = "dispatch-order", saga: str = "order-fulfilment") -> Step:
        return step(name, self.dispatch, undo=self.call_back, saga=saga)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher()


@pytest.fixture
async def bench(database_url: str, dispatcher: Dispatcher) -> AsyncIterator[Bench]:
    async with bench_at(database_url) as bench:
        await with_steps(bench, dispatcher.step())
        yield bench


async def with_steps(bench: Bench, *steps: Step) -> None:
    await bench.handler.release()
    bench.with_steps(*steps, name="dispatch", retries=Retries(tries=2))
    await bench.handler.claim("stream-1")


def messages(bench: Bench, *names: str) -> list[StoredMessage]:
    """Events under ids that are their names."""
    return [bench.message(BODIES[name], event_id=name) for name in names]


async def dispositions(bench: Bench) -> dict[str, Disposition]:
    """What became of each event, by id."""
    inbox = bench.handler._tables.metadata.tables["farandole_inbox"]
    rows = await bench.database.read(lambda connection: connection.execute(sa.select(inbox)).all())
    return {row.identity.partition("/")[2]: Disposition(row.disposition) for row in rows}


async def waiting(bench: Bench, key: str = "o1") -> list[str]:
    """What waits of a saga, by the event's id, in stream order."""
    tables = ParticipantTables()
    found = await bench.database.read(lambda connection: tables.prerequisites.waiting(connection, [key]))
    came = [one for of_step in found.values() for one in of_step.values()]
    return [one.identity.partition("/")[2] for one in sorted(came, key=lambda one: one.message.sequence)]


async def take(bench: Bench, batch: Sequence[StoredMessage], *, together: bool) -> list[Event]:
    """Handles messages in one batch, or one by one."""
    events = []
    for part in [batch] if together else [[message] for message in batch]:
        events += await bench.take(*part)
    return events


EARLY, APPLIED, LATE = Disposition.EARLY, Disposition.APPLIED, Disposition.LATE


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one batch"])
@pytest.mark.parametrize("order", [*permutations(NAMES)], ids=" ".join)
async def test_it_runs_with_all_of_them_whatever_their_order(
    bench: Bench, order: tuple[str, ...], *, together: bool
) -> None:
    (event,) = await take(bench, messages(bench, *order), together=together)
    assert (event.type, event.causation_id) == ("shipping.v1.OrderShipped", order[-1])
    assert await bench.done() == [DONE]
    assert await dispositions(bench) == dict.fromkeys(order, APPLIED)
    assert await waiting(bench) == []


@pytest.mark.parametrize("order", [*permutations(NAMES)], ids=" ".join)
async def test_what_came_early_waits_across_restarts(bench: Bench, order: tuple[str, ...]) -> None:
    for number, message in enumerate(messages(bench, *order[:-1]), start=1):
        assert await bench.take(message) == []
        await bench.restart()
        assert await dispositions(bench) == dict.fromkeys(order[:number], EARLY)
        assert await waiting(bench) == [*order[:number]]
        assert await bench.queued() == []
    assert types(await bench.take(*messages(bench, order[-1]))) == ["OrderShipped"]
    assert await bench.done() == [DONE]


async def test_the_same_events_give_the_same_ids(bench: Bench, dispatcher: Dispatcher, tmp_path: Path) -> None:
    batch = messages(bench, *NAMES)
    (first,) = await bench.take(*batch)
    async with bench_at(f"sqlite:///{tmp_path}/other.db") as other:
        await with_steps(other, dispatcher.step())
        (second,) = await take(other, batch, together=False)
        assert first.id == second.id


async def test_what_waits_may_trigger_another_step_at_once(bench: Bench, dispatcher: Dispatcher) -> None:
    """For that it has been applied, whatever becomes of the step that it waits for."""
    look = step("look", dispatcher.look, saga="order-fulfilment")
    await with_steps(bench, look, dispatcher.step())
    await bench.take(*messages(bench, "reserved", "paid"))
    assert await bench.done() == ["look"]
    assert await dispositions(bench) == {"reserved": EARLY, "paid": APPLIED}
    assert await waiting(bench) == ["reserved", "paid"]
    await bench.take(bench.message(refunded(), event_id="refunded"))
    assert await dispositions(bench) == {"reserved": LATE, "paid": APPLIED, "refunded": APPLIED}
    assert await waiting(bench) == []


async def test_what_waits_holds_up_nothing(bench: Bench) -> None:
    """Neither its own saga nor others."""
    await bench.take(*messages(bench, "reserved"))
    assert bench.handler.due_in() is None
    others = [bench.message(body) for body in (reserved("o2"), paid("o2"), provisioned("o2"))]
    assert types(await bench.take(*others)) == ["OrderShipped"]
    assert await waiting(bench) == ["reserved"]


class TestASecondEventOfAType:
    @pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted in between"])
    @pytest.mark.parametrize("name", NAMES)
    async def test_while_the_first_waits(self, bench: Bench, name: str, *, restarts: bool) -> None:
        """The first stays: the step runs with that one."""
        await bench.take(*messages(bench, name))
        if restarts:
            await bench.restart()
        again = [
            bench.message(BODIES[name], event_id=name),
            bench.message(BODIES[name], event_id="same"),
            bench.message(OTHER_BODIES[name], event_id="another"),
        ]
        assert await bench.take(*again) == []
        assert await dispositions(bench) == {
            name: EARLY,
            "same": Disposition.DUPLICATE,
            "another": Disposition.UNEXPECTED,
        }
        await bench.take(*messages(bench, *(other for other in NAMES if other != name)))
        assert await bench.done() == [DONE]

    @pytest.mark.parametrize("name", NAMES)
    async def test_after_the_step(self, bench: Bench, name: str) -> None:
        await bench.take(*messages(bench, *NAMES))
        again = [
            bench.message(BODIES[name], event_id=name),
            bench.message(BODIES[name], event_id="same"),
            bench.message(OTHER_BODIES[name], event_id="another"),
        ]
        assert await bench.take(*again) == []
        assert await bench.done() == [DONE]
        known = await dispositions(bench)
        assert (known["same"], known["another"]) == (Disposition.DUPLICATE, Disposition.UNEXPECTED)
        assert await waiting(bench) == []


class TestAHandlerThatFails:
    """The last event goes the way of every failed event; the others wait on."""

    async def test_it_is_tried_again_with_all_of_them(self, bench: Bench, dispatcher: Dispatcher) -> None:
        dispatcher.errors = [RuntimeError("the van is broken")] * 2
        batch = messages(bench, *NAMES)
        assert await bench.take(*batch) == []
        assert await bench.queued() == [(batch[-1].sequence, False)]
        assert await waiting(bench) == ["reserved", "paid"]
        await bench.restart()
        dispatcher.errors = []
        (event,) = await bench.finish()
        assert event.causation_id == "provisioned"
        assert await bench.done() == [DONE]
        assert await dispositions(bench) == dict.fromkeys(NAMES, APPLIED)
        assert (await bench.queued(), await waiting(bench)) == ([], [])

    async def test_other_sagas_of_the_batch_go_on(self, bench: Bench, dispatcher: Dispatcher) -> None:
        await bench.take(*messages(bench, "reserved", "paid"))
        dispatcher.errors = [RuntimeError("the van is broken")] * 2  # once for the batch, once alone
        others = [bench.message(body) for body in (reserved("o2"), paid("o2"), provisioned("o2"))]
        events = await bench.take(*messages(bench, "provisioned"), *others)
        assert [event.key for event in events] == ["o2"]
        assert await waiting(bench) == ["reserved", "paid"]

    async def test_a_dead_letter_is_redriven_with_all_of_them(self, bench: Bench, dispatcher: Dispatcher) -> None:
        batch = messages(bench, *NAMES)
        dispatcher.errors = [Reject("no van fits")] * 2
        (recorded,) = await bench.take(*batch)
        assert isinstance(recorded.body, DeadLetterRecorded)
        assert (recorded.body.sequence, recorded.body.step) == (batch[-1].sequence, "dispatch-order")
        assert await waiting(bench) == ["reserved", "paid"]
        dispatcher.errors = []
        verb = redriven(batch[-1].sequence, participant="dispatch", step_name="dispatch-order")
        await bench.take(bench.message(verb))
        assert types(await bench.finish()) == ["OrderShipped"]
        assert await bench.done() == [DONE]

    async def test_without_a_discarded_one_the_others_wait_for_another(
        self, bench: Bench, dispatcher: Dispatcher
    ) -> None:
        batch = messages(bench, *NAMES)
        dispatcher.errors = [Reject("no van fits")] * 2
        await bench.take(*batch)
        dispatcher.errors = []
        verb = discarded(batch[-1].sequence, participant="dispatch", step_name="dispatch-order")
        await bench.take(bench.message(verb))
        await bench.finish()
        assert await waiting(bench) == ["reserved", "paid"]
        await bench.take(bench.message(OTHER_BODIES["provisioned"], event_id="another"))
        assert await bench.done() == ["dispatch r p another"]

    async def test_a_compensation_passes_its_dead_letter(self, bench: Bench, dispatcher: Dispatcher) -> None:
        dispatcher.errors = [Reject("no van fits")] * 2
        await bench.take(*messages(bench, *NAMES))
        dispatcher.errors = []
        await bench.take(bench.message(refunded(), event_id="refunded"))
        events = await bench.finish()
        assert [type(event.body) for event in events] == [StepVoided, DeadLetterSuperseded]
        assert await bench.done() == []
        assert await waiting(bench) == []
        assert (await dispositions(bench))["reserved"] is LATE

    async def test_what_it_says_hides_what_any_of_the_events_hides(self, bench: Bench, dispatcher: Dispatcher) -> None:
        """Also of those that waited, in the log as in the dead letter."""
        dispatcher.errors = [RuntimeError("nobody lives in 1 Secret Street, a street")] * 4
        with capture_logs() as logs:
            await bench.take(*messages(bench, "paid", "provisioned", "reserved"))
            (recorded,) = await bench.finish()
        assert isinstance(recorded.body, DeadLetterRecorded)
        assert recorded.body.detail == "RuntimeError: nobody lives in [REDACTED], [REDACTED]"
        assert "1 Secret Street" not in str(logs)

    async def test_one_that_cannot_be_read_any_more_is_named(self, bench: Bench) -> None:
        """As where an older version was deployed. Once it can be read again, the step runs."""
        batch = messages(bench, *NAMES)
        await bench.take(*batch[:2])
        table = bench.handler._tables.prerequisites.table
        first = sa.update(table).where(table.c.sequence == batch[0].sequence)
        data = batch[0].data
        await bench.database.write(lambda connection: connection.execute(first.values(data=b"\xff")))
        assert await bench.take(batch[2]) == []
        (recorded,) = await bench.finish()
        assert isinstance(recorded.body, DeadLetterRecorded)
        assert "inventory.v1.ItemsReserved (sequence 1) has waited for this event" in recorded.body.detail
        assert "UNDECODABLE" in recorded.body.detail
        await bench.database.write(lambda connection: connection.execute(first.values(data=data)))
        verb = redriven(batch[2].sequence, participant="dispatch", step_name="dispatch-order")
        await bench.take(bench.message(verb))
        await bench.finish()
        assert await bench.done() == [DONE]


def ended(
    message_class: type[SagaCompleted | SagaCompensated | SagaFailed], key: str, definition: str = "order-fulfilment"
) -> Message:
    cause = SAGA_CAUSE_UNSPECIFIED if message_class is SagaCompleted else SAGA_CAUSE_STEP_FAILURE
    return message_class(saga_id=key, definition=definition, version=1, cause=cause)


ENDS: dict[str, Callable[[str], Message]] = {
    "undone": refunded,
    "timed out": lambda key: timed_out(key, steps=("dispatch-order",)),
    "timed out without the step": lambda key: timed_out(key, steps=("another-step",)),
    "completed": lambda key: ended(SagaCompleted, key),
    "compensated": lambda key: ended(SagaCompensated, key),
    "failed": lambda key: ended(SagaFailed, key),
}
VOIDS = {"undone", "timed out"}
"""Where somebody waits to be told that the step does no work."""


class TestTheEnd:
    """Where the step can't run any more, what waits is late, and so is what comes."""

    @pytest.mark.parametrize("end", ENDS)
    async def test_what_waits_becomes_late(self, bench: Bench, end: str) -> None:
        for came, together in product(range(len(NAMES)), (False, True)):
            key = f"o-{came}-{together}"
            batch = [bench.message(MAKERS[name](key), event_id=f"{name}-{key}") for name in NAMES]
            batch.insert(came, bench.message(ENDS[end](key), event_id=f"end-{key}"))
            events = await take(bench, batch, together=together)
            assert types(events) == (["StepVoided"] if end in VOIDS else [])
            assert await bench.done(key) == []
            known = await dispositions(bench)
            assert [known[f"{name}-{key}"] for name in NAMES] == [LATE] * len(NAMES)
            assert known[f"end-{key}"] is APPLIED
            assert await waiting(bench, key) == []
            assert await bench.barrier("dispatch-order", key) is BarrierState.VOID

    @pytest.mark.parametrize("end", ENDS)
    async def test_after_the_step_only_an_undoing_does_anything(self, bench: Bench, end: str) -> None:
        await bench.take(*messages(bench, *NAMES))
        events = await bench.take(bench.message(ENDS[end]("o1")))
        assert types(events) == (["ItemsReleased"] if end in VOIDS else [])
        assert await bench.done() == ([DONE, "call back"] if end in VOIDS else [DONE])
        assert (await dispositions(bench))["reserved"] is APPLIED

    @pytest.mark.parametrize(
        "body",
        [
            ended(SagaCompleted, "o1", "another-saga"),
            ended(SagaCompensated, "o1", "another-saga"),
            ended(SagaFailed, "o1", "another-saga"),
            timed_out(definition="another-saga", steps=("dispatch-order",)),
        ],
        ids=lambda body: type(body).__name__,
    )
    async def test_the_end_of_another_saga_of_that_key_is_none(self, bench: Bench, body: Message) -> None:
        await bench.take(*messages(bench, "reserved", "paid"))
        await bench.take(bench.message(body))
        assert await waiting(bench) == ["reserved", "paid"]
        assert types(await bench.take(*messages(bench, "provisioned"))) == ["OrderShipped"]

    async def test_a_time_out_that_is_heard_first_voids_the_step(self, bench: Bench) -> None:
        """Before its backlog, in which the last of the events stands before the time-out."""
        await bench.take(*messages(bench, "reserved", "paid"))
        last, time_out = messages(bench, "provisioned")[0], bench.message(timed_out(steps=("dispatch-order",)))
        await bench.restart()
        assert types(await bench.hear(time_out)) == ["StepVoided"]
        assert await waiting(bench) == []
        assert await bench.take(last, time_out) == []
        assert await bench.done() == []
        assert set((await dispositions(bench)).values()) == {APPLIED, LATE}

    async def test_a_time_out_passes_dead_letters_of_the_steps_that_it_names(
        self, bench: Bench, dispatcher: Dispatcher
    ) -> None:
        """Also where it is the end for what waits for another step, which it does not name."""

        def refuse(_event: ItemsReserved, _tx: Transaction) -> None:
            raise Reject("no room")

        def two(_payment: PaymentProcessed, _drone: DroneProvisioned, tx: Transaction) -> None:
            write_down(tx, "two")

        saga = "order-fulfilment"
        await with_steps(bench, step("refuse", refuse, saga=saga), step("two", two, saga=saga))
        await bench.take(*messages(bench, "paid", "reserved"))
        await bench.take(bench.message(timed_out(steps=("refuse",))))
        assert types(await bench.finish()) == ["StepVoided", "DeadLetterSuperseded"]
        assert (await waiting(bench), await bench.queued()) == ([], [])

    async def test_an_event_that_one_step_ran_with_stays_applied(self, bench: Bench, dispatcher: Dispatcher) -> None:
        """In whichever order the steps that need it are decided."""

        def two(_payment: PaymentProcessed, _drone: DroneProvisioned, tx: Transaction) -> None:
            write_down(tx, "two")

        for key, is_voided_first in (("o1", False), ("o2", True)):
            await with_steps(bench, step("two", two, saga="another-saga"), dispatcher.step())
            end = bench.message(refunded(key), event_id=f"end-{key}")
            drone = bench.message(provisioned(key), event_id=f"drone-{key}")
            await bench.take(bench.message(paid(key), event_id=f"paid-{key}"))
            for message in (end, drone) if is_voided_first else (drone, end):
                await bench.take(message)
            assert await bench.done(key) == ["two"]
            known = await dispositions(bench)
            assert (known[f"paid-{key}"], known[f"drone-{key}"]) == (APPLIED, APPLIED)
            assert await waiting(bench, key) == []


async def test_a_saga_may_be_told_of_while_it_waits(bench: Bench, dispatcher: Dispatcher) -> None:
    """The status names what waits, and what for; it is beside what is in the queue."""
    await bench.take(*messages(bench, "paid"))
    status = await bench.status()
    (event,) = status.queue
    assert (event.sequence, event.event_type, event.state) == (
        1,
        "payments.v1.PaymentProcessed",
        QUEUED_EVENT_STATE_EARLY,
    )
    assert list(event.missing) == ["inventory.v1.ItemsReserved", "drones.v1.DroneProvisioned"]
    assert (status.queued_events, status.dead_letters) == (0, 0)
    dispatcher.errors = [RuntimeError("the van is broken")] * 2
    await bench.take(*messages(bench, "reserved", "provisioned"))
    states = [(event.sequence, event.state, list(event.missing)) for event in (await bench.status()).queue]
    assert states == [
        (1, QUEUED_EVENT_STATE_EARLY, ["drones.v1.DroneProvisioned"]),
        (2, QUEUED_EVENT_STATE_EARLY, ["drones.v1.DroneProvisioned"]),
        (3, QUEUED_EVENT_STATE_RETRYING, []),
    ]
    assert list((await bench.status("")).queue) == []


async def test_a_batch_takes_the_same_few_statements_however_large_it_is(bench: Bench) -> None:
    statements: list[str] = []

    @sqlalchemy_event.listens_for(bench.database._writer, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "farandole_prerequisite" in statement or "UPDATE farandole_inbox" in statement:
            statements.append(statement.split()[0])

    for size in (1, 50):
        keys = [f"{size}-{number}" for number in range(size)]
        await bench.take(*(bench.message(body) for key in keys for body in (reserved(key), paid(key))))
        await bench.take(*(bench.message(provisioned(key)) for key in keys))
    assert statements == ["SELECT", "INSERT", "SELECT", "UPDATE", "DELETE"] * 2


@dataclass(frozen=True)
class Arrival:
    """One moment of a run: an event comes, perhaps after a restart, perhaps in a batch with the one before."""

    name: str
    event_id: str
    restart: bool
    joined: bool
    """Whether it is in one batch with what came before."""
    fails: bool
    """Whether a handler that it lets run fails once."""


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """Each of the events at least once, some again under their own or another id, in any order."""
    copies = draw(st.lists(st.sampled_from([*NAMES]), max_size=5))
    sent = [(name, name) for name in NAMES]
    sent += [(name, draw(st.sampled_from([name, f"{name}-{number}"]))) for number, name in enumerate(copies)]
    flag = st.booleans()
    return [Arrival(*one, draw(flag), draw(flag), draw(flag)) for one in draw(st.permutations(sent))]


async def play(bench: Bench, dispatcher: Dispatcher, key: str, came: Sequence[Arrival]) -> None:
    batches: list[list[Arrival]] = []
    for one in came:
        if one.joined and not one.restart and batches:
            batches[-1].append(one)
        else:
            batches.append([one])
    published: list[Event] = []
    for batch in batches:
        if batch[0].restart:
            await bench.restart()
        # a batch that fails is rolled back, and its events are run one by one
        dispatcher.errors = [RuntimeError("the van is broken")] * (2 if any(one.fails for one in batch) else 0)
        published += await bench.take(
            *(bench.message(MAKERS[one.name](key), event_id=f"{key}-{one.event_id}") for one in batch)
        )
        dispatcher.errors = []
    published += await bench.finish()
    assert types(published) == ["OrderShipped"]
    assert await bench.done(key) == [DONE]
    assert await waiting(bench, key) == []
    assert await bench.queued(key) == []
    own = f"{key}-"
    known = {i.removeprefix(own): became for i, became in (await dispositions(bench)).items() if i.startswith(own)}
    assert set(known) == {one.event_id for one in came}
    applied = [event_id.partition("-")[0] for event_id, became in known.items() if became is APPLIED]
    assert sorted(applied) == sorted(NAMES)
    assert set(known.values()) <= {APPLIED, Disposition.DUPLICATE}


def test_any_order_with_duplicates_failures_and_restarts_gives_one_run(tmp_path: Path) -> None:
    """With the same bodies, and every event dealt with."""
    dispatcher, keys = Dispatcher(), count()

    @settings(max_examples=50, deadline=None)
    @given(arrivals())
    def check(came: list[Arrival]) -> None:
        runner.run(play(bench, dispatcher, f"s{next(keys)}", came))

    with asyncio.Runner() as runner:
        opened = bench_at(f"sqlite:///{tmp_path}/payments.db")
        bench = runner.run(opened.__aenter__())
        try:
            runner.run(with_steps(bench, dispatcher.step()))
            check()
        finally:
            runner.run(bench.database.close())


async def test_a_waiting_event_is_kept_as_the_stream_had_it(bench: Bench) -> None:
    """With what this version's schema does not know, too: a later version may."""
    (message,) = messages(bench, "reserved")
    fields = {"orderId": "o1", "reservationId": "r", "amountCents": 5, "currency": "EUR", "card": "c", "address": "a"}
    body = json.dumps({**fields, "isNew": True}).encode()
    as_json = StoredMessage(message.subject, {"ce-id": "as json"}, body, message.sequence, message.time)
    await bench.take(as_json)
    tables = ParticipantTables()
    found = await bench.database.read(lambda connection: tables.prerequisites.waiting(connection, ["o1"]))
    ((prerequisite,),) = (of_step.values() for of_step in found.values())
    decoded = decode(bench.participant.registry, as_json)
    assert isinstance(decoded, Event)
    assert prerequisite.message == as_json
    assert (prerequisite.identity, prerequisite.digest) == (message_id("anonymous", "as json"), decoded.digest)
