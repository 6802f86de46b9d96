"""What a participant gives up on: retries, dead letters, quarantine, and what an operator or a compensation ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_REJECTED, DEAD_LETTER_REASON_RETRIES_EXHAUSTED
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Reject, Retries, Transaction, step
from farandole.envelope import Event, StoredMessage
from farandole.errors import FencedError, StoreUnavailableError
from farandole.participant.barrier import BarrierState
from farandole.participant.tables import ParticipantTables
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped, ShippingFailed
from tests.integration.participant_bench import (
    Bench,
    bench_at,
    discarded,
    failed,
    redriven,
    reserved,
    timed_out,
    types,
    write_down,
)


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_at(database_url) as bench:
        yield bench


def always(_key: str) -> bool:
    return True


def never(_key: str) -> bool:
    return False


def recorded(events: Iterable[Event]) -> DeadLetterRecorded:
    """The one dead letter among events."""
    (body,) = (event.body for event in events if isinstance(event.body, DeadLetterRecorded))
    return body


async def give_up(bench: Bench, *messages: StoredMessage) -> list[Event]:
    """Takes messages in with a card reader that is broken, until it is not tried any more."""
    bench.cashier.fails = always
    events = [*await bench.take(*messages), *await bench.finish()]
    bench.cashier.fails = never
    return events


def reject(event: ItemsReserved, tx: Transaction) -> PaymentProcessed:
    write_down(tx, "charge")
    raise Reject(f"{event.card} is no card of {event.address}")


class TestRetries:
    """An event whose handler raises is tried again, later and later, and then given up on."""

    async def test_it_is_not_tried_before_its_time_and_then_twice_as_late(self, bench: Bench) -> None:
        bench.with_steps(
            step("take-payment", bench.cashier.charge, saga="order-fulfilment"),
            retries=Retries(tries=6, first=timedelta(seconds=1), longest=timedelta(seconds=5)),
        )
        await bench.handler.claim("stream-1")
        bench.cashier.fails = always
        await bench.take(bench.message(reserved()))
        pauses = []
        while (due := bench.handler.due_in()) is not None:
            assert await bench.due() == []
            pauses.append(due)
            bench.now += timedelta(seconds=due)
            await bench.due()
        assert pauses == [1, 2, 4, 5, 5]
        assert await bench.done() == []

    async def test_the_last_try_may_still_succeed(self, bench: Bench) -> None:
        bench.cashier.fails = always
        await bench.take(bench.message(reserved()))
        bench.now += timedelta(seconds=0.5)
        assert await bench.due() == []
        bench.cashier.fails = never
        bench.now += timedelta(seconds=1)
        assert types(await bench.due()) == ["PaymentProcessed"]
        assert (await bench.queued(), bench.handler.due_in()) == ([], None)

    async def test_out_of_tries_it_is_a_dead_letter(self, bench: Bench) -> None:
        message = bench.message(reserved(), source="a shop", event_id="e 1")
        events = await give_up(bench, message)
        assert types(events) == ["DeadLetterRecorded"]
        (event,) = events
        assert (event.source, event.causation_id, event.key) == ("payments", "e 1", "o1")
        body = recorded(events)
        assert (body.definition, body.step, body.participant) == ("order-fulfilment", "take-payment", "payments")
        assert (body.sequence, body.event_type) == (message.sequence, "inventory.v1.ItemsReserved")
        assert (body.event_source, body.event_id, body.compensation) == ("a shop", "e 1", False)
        assert (body.reason, body.attempts) == (DEAD_LETTER_REASON_RETRIES_EXHAUSTED, 3)
        assert body.detail == "RuntimeError: the card reader is broken"
        assert await bench.done() == []
        assert await bench.queued() == [(message.sequence, True)]
        assert bench.handler.due_in() is None

    async def test_a_rejected_event_is_a_dead_letter_at_once(self, bench: Bench) -> None:
        bench.with_steps(step("take-payment", reject, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        body = recorded(await bench.take(bench.message(reserved(card="4111-2222"))))
        assert (body.reason, body.attempts) == (DEAD_LETTER_REASON_REJECTED, 1)
        assert body.detail == "[REDACTED] is no card of [REDACTED]"
        assert await bench.done() == []
        assert bench.handler.due_in() is None

    async def test_a_compensation_that_fails_for_good_says_so(self, bench: Bench) -> None:
        bench.cashier.refund_fails = True
        events = [*await bench.take(bench.message(reserved()), bench.message(failed())), *await bench.finish()]
        body = recorded(events)
        assert (body.step, body.compensation, body.event_type) == ("take-payment", True, "shipping.v1.ShippingFailed")
        assert await bench.done() == ["charge"]
        assert await bench.barrier() is BarrierState.DONE

    async def test_the_step_that_failed_is_named_where_an_event_has_several(self, bench: Bench) -> None:
        def audit(_event: ItemsReserved, tx: Transaction) -> None:
            raise Reject("no ledger")

        bench.with_steps(
            step("take-payment", bench.cashier.charge, saga="order-fulfilment"),
            step("audit-payment", audit, saga="yearly-audit"),
        )
        await bench.handler.claim("stream-1")
        body = recorded(await bench.take(bench.message(reserved())))
        assert (body.definition, body.step) == ("yearly-audit", "audit-payment")
        assert await bench.done() == []

    async def test_trouble_of_the_store_is_never_a_try(self, bench: Bench) -> None:
        def hoard(_event: ItemsReserved, tx: Transaction) -> None:
            write_down(tx, "x" * 5_000_000)

        bench.with_steps(step("hoard", hoard, saga="order-fulfilment"), retries=Retries(tries=1))
        await bench.handler.claim("stream-1")
        async with bench.no_room():
            message = bench.message(reserved())
            for _ in range(3):
                with pytest.raises(StoreUnavailableError, match="make room"):
                    await bench.take(message)
        assert await bench.take(message) == []
        assert len(await bench.done()) == 1

    async def test_a_retry_that_meets_trouble_of_the_store_stays_a_try(self, bench: Bench) -> None:
        calls: list[bool] = []

        def hoard(_event: ItemsReserved, tx: Transaction) -> None:
            calls.append(True)
            if len(calls) <= 2:  # without and with a savepoint
                raise RuntimeError("broken")
            write_down(tx, "x" * 5_000_000)

        bench.with_steps(step("hoard", hoard, saga="order-fulfilment"), retries=Retries(tries=2))
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(reserved()))
        bench.now += timedelta(seconds=0.5)
        async with bench.no_room():
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    await bench.due()
        assert await bench.due() == []
        assert len(await bench.done()) == 1

    @pytest.mark.parametrize("restarts", [False, True])
    @pytest.mark.parametrize("hours", [-1, 1])
    async def test_a_moved_clock_makes_nothing_wait_longer_than_the_longest_pause(
        self, bench: Bench, *, hours: int, restarts: bool
    ) -> None:
        bench.cashier.fails = always
        await bench.take(bench.message(reserved()))
        bench.cashier.fails = never
        bench.now += timedelta(hours=hours)
        if restarts:
            await bench.restart()
        due_in = bench.handler.due_in()
        assert due_in is not None
        assert due_in <= 30
        bench.now += timedelta(seconds=30)
        assert types(await bench.due()) == ["PaymentProcessed"]


class TestTheCopy:
    """It comes before what tells of it, with everything that the event had, secrets too."""

    async def test_its_subject_headers_and_body_are_as_the_wire_page_says(self, bench: Bench) -> None:
        message = bench.message(reserved(card="4111-2222"), event_id="e1")
        await give_up(bench, message)
        (copy,) = bench.copies
        assert (copy.key, copy.subject) == ("o1", "deadletters.payments.inventory.v1.ItemsReserved")
        assert copy.data == message.data
        added = {name: value for name, value in copy.headers.items() if name not in message.headers}
        assert added == {
            "farandole-participant": "payments",
            "farandole-sequence": str(message.sequence),
            "farandole-subject": message.subject,
            "farandole-reason": "RETRIES_EXHAUSTED",
            "farandole-detail": "RuntimeError: the card reader is broken",
        }
        assert copy.headers["Nats-Msg-Id"] == f"payments-{message.sequence}"
        assert copy.headers["ce-id"] == "e1"

    async def test_it_stands_before_what_tells_of_it_in_the_same_transaction(self, bench: Bench) -> None:
        bench.with_steps(step("take-payment", reject, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        await bench.handler.handle([bench.message(reserved())], ())
        rows = await bench.handler.waiting()
        assert [row.publication.key for row in rows] == ["o1", "o1"]
        assert [row.publication.subject.split(".")[0] for row in rows] == ["deadletters", "events"]

    async def test_giving_up_again_after_a_crash_tells_the_same(self, bench: Bench, tmp_path: Path) -> None:
        message = bench.message(reserved())
        (first,) = await give_up(bench, message)
        async with bench_at(f"sqlite:///{tmp_path}/other.db") as other:
            (second,) = await give_up(other, message)
        assert (first.id, first.digest) == (second.id, second.digest)

    async def test_giving_up_once_more_after_a_redrive_is_another_event(self, bench: Bench) -> None:
        message = bench.message(reserved())
        first = await give_up(bench, message)
        second = await give_up(bench, bench.message(redriven(message.sequence)))
        assert first[0].id != second[0].id
        assert (recorded(first).attempts, recorded(second).attempts) == (3, 6)


class TestQuarantine:
    """The saga's later events wait in order; nothing else does."""

    async def test_later_events_wait_in_order_and_others_go_on(self, bench: Bench) -> None:
        bad = bench.message(reserved("bad"))
        bench.cashier.fails = lambda key: key == "bad"
        await bench.take(bad)
        await bench.finish()
        later = [bench.message(reserved("bad", cents=cents)) for cents in (1, 2)]
        events = await bench.take(*later, bench.message(reserved("good")))
        assert [event.key for event in events] == ["good"]
        assert await bench.queued("bad") == [
            (bad.sequence, True), (later[0].sequence, False), (later[1].sequence, False),
        ]  # fmt: skip
        assert bench.handler.due_in() is None

    async def test_it_outlasts_a_restart(self, bench: Bench) -> None:
        message = bench.message(reserved())
        await give_up(bench, message)
        await bench.restart()
        assert await bench.finish() == []
        assert await bench.take(bench.message(reserved(cents=5))) == []
        assert await bench.done() == []
        assert bench.handler.due_in() is None
        assert types([*await bench.take(bench.message(redriven(message.sequence))), *await bench.finish()]) == [
            "PaymentProcessed"
        ]
        assert (await bench.done(), await bench.queued()) == (["charge"], [])

    async def test_it_is_counted(self, bench: Bench) -> None:
        await give_up(bench, bench.message(reserved("o1")), bench.message(reserved("o2")))
        await bench.take(bench.message(reserved("o1", cents=3)))
        counts = await bench.database.read(ParticipantTables().queue.counts)
        assert counts == (3, 2)
        await bench.take(bench.message(discarded(1)))
        await bench.finish()
        assert await bench.database.read(ParticipantTables().queue.counts) == (1, 1)

    async def test_a_duplicate_does_not_wait(self, bench: Bench) -> None:
        await bench.take(bench.message(reserved(), event_id="a"))
        bench.cashier.refund_fails = True
        await bench.take(bench.message(failed()))
        assert await bench.take(bench.message(reserved(), event_id="a")) == []
        assert len(await bench.queued()) == 1

    async def test_a_very_long_queue_is_worked_off_in_order(self, bench: Bench) -> None:
        def count(event: ItemsReserved, tx: Transaction) -> None:
            if bench.cashier.fails(tx.key):
                raise RuntimeError("broken")
            write_down(tx, str(event.amount_cents))

        steps = [step(f"count-{number}", count, saga="order-fulfilment") for number in range(2)]
        bench.with_steps(*steps)
        await bench.handler.claim("stream-1")
        await give_up(bench, bench.message(reserved(cents=0)))
        await bench.take(*(bench.message(reserved(cents=cents)) for cents in range(1, 1100)))
        await bench.take(bench.message(discarded(1, step_name="count-0")))
        await bench.finish()
        assert await bench.queued() == []
        assert await bench.done() == ["1", "1"]  # each step once, for the first event that came through
        assert await bench.take(bench.message(reserved("o2", cents=5))) == []
        assert await bench.done("o2") == ["5", "5"]

    async def test_a_very_long_queue_holds_up_no_other_saga(self, bench: Bench) -> None:
        """More of one saga waits than one transaction looks at, and it is looked at once after a restart."""
        await give_up(bench, bench.message(reserved()))
        await bench.take(*(bench.message(reserved(cents=cents)) for cents in range(700)))
        bench.cashier.fails = always
        await bench.take(bench.message(reserved("other")))
        bench.cashier.fails = never
        bench.now += timedelta(seconds=1)
        await bench.restart()
        assert [event.key for event in await asyncio.wait_for(bench.finish(), 30)] == ["other"]


class TestOperators:
    """Their verbs are events; they pass the quarantine, name the participant, and are done once."""

    async def test_a_redriven_event_is_tried_at_once_at_its_place(self, bench: Bench) -> None:
        message = bench.message(reserved())
        await give_up(bench, message)
        await bench.take(bench.message(ShippingFailed(order_id="o2", reason="r")))
        # what comes later in the same batch waits behind it
        assert await bench.take(bench.message(redriven(message.sequence)), bench.message(reserved(cents=9))) == []
        assert bench.handler.due_in() == 0
        events = await bench.due()
        assert types(events) == ["PaymentProcessed"]
        assert isinstance(events[0].body, PaymentProcessed)
        assert events[0].body.amount_cents == 100
        assert (await bench.done(), await bench.queued(), bench.handler.due_in()) == (["charge"], [], None)

    async def test_a_redrive_gives_as_many_tries_as_the_first_time(self, bench: Bench) -> None:
        message = bench.message(reserved())
        await give_up(bench, message)
        bench.cashier.fails = always
        await bench.take(bench.message(redriven(message.sequence)))
        pauses = []
        while (due := bench.handler.due_in()) is not None:
            pauses.append(due)
            bench.now += timedelta(seconds=due)
            await bench.due()
        assert pauses == [0, 0.5, 1]
        assert await bench.queued() == [(message.sequence, True)]

    async def test_a_discarded_event_is_gone_and_later_ones_follow(self, bench: Bench) -> None:
        message = bench.message(reserved(), event_id="a")
        await give_up(bench, message)
        later = bench.message(reserved(cents=7))
        await bench.take(later, bench.message(discarded(message.sequence)))
        (event,) = await bench.finish()
        assert isinstance(event.body, PaymentProcessed)
        assert event.body.amount_cents == 7
        assert (await bench.done(), await bench.queued()) == (["charge"], [])

    async def test_a_discarded_event_does_nothing_either_when_it_comes_again(self, bench: Bench) -> None:
        message = bench.message(reserved(), event_id="a")
        await give_up(bench, message)
        await bench.take(bench.message(discarded(message.sequence)))
        await bench.finish()
        assert await bench.take(bench.message(reserved(), event_id="a")) == []
        assert await bench.done() == []
        assert await bench.barrier() is None

    async def test_a_verb_is_done_once(self, bench: Bench) -> None:
        message = bench.message(reserved())
        await give_up(bench, message)
        verb = bench.message(redriven(message.sequence), event_id="r1")
        await give_up(bench, verb)
        assert await bench.take(bench.message(redriven(message.sequence), event_id="r1")) == []
        assert bench.handler.due_in() is None
        assert await bench.queued() == [(message.sequence, True)]

    @pytest.mark.parametrize("verb", [redriven, discarded])
    async def test_another_participant_s_dead_letter_is_not_its_own(self, bench: Bench, verb: object) -> None:
        message = bench.message(reserved())
        await give_up(bench, message)
        await bench.take(bench.message(verb(message.sequence, participant="shipping")))  # type: ignore[operator]
        assert await bench.queued() == [(message.sequence, True)]
        assert bench.handler.due_in() is None

    @pytest.mark.parametrize("verb", [redriven, discarded])
    @pytest.mark.parametrize(("sequence", "key"), [(99, "o1"), (1, "o2"), (2, "o1")])
    async def test_what_is_no_dead_letter_is_told_and_changes_nothing(
        self, bench: Bench, verb: object, sequence: int, key: str
    ) -> None:
        await give_up(bench, bench.message(reserved()))
        await bench.take(bench.message(reserved(cents=5)))
        with capture_logs() as logs:
            assert await bench.take(bench.message(verb(sequence, key=key))) == []  # type: ignore[operator]
        assert [entry["event"] for entry in logs] == ["no such dead letter"]
        assert await bench.queued() == [(1, True), (2, False)]
        assert bench.handler.due_in() is None

    @pytest.mark.parametrize("verb", [redriven, discarded])
    @pytest.mark.parametrize("wrong", [{"definition": "drone-delivery"}, {"step_name": "ship-order"}])
    async def test_a_verb_that_names_another_step_changes_nothing(
        self, bench: Bench, verb: object, wrong: dict[str, str]
    ) -> None:
        """The record does not take it either: participant and correlator must not come to differ."""
        await give_up(bench, bench.message(reserved()))
        with capture_logs() as logs:
            assert await bench.take(bench.message(verb(1, **wrong))) == []  # type: ignore[operator]
        assert [entry["event"] for entry in logs] == ["the dead letter is of another step"]
        assert await bench.queued() == [(1, True)]
        assert bench.handler.due_in() is None

    async def test_a_dead_letter_and_its_redrive_in_one_batch(self, bench: Bench) -> None:
        """As where a database is built anew from the stream."""
        bench.with_steps(step("take-payment", bench.cashier.charge, saga="order-fulfilment"), retries=Retries(tries=1))
        await bench.handler.claim("stream-1")
        bench.cashier.fails = always
        await bench.take(bench.message(reserved()), bench.message(redriven(1)))
        bench.cashier.fails = never
        assert types(await bench.finish()) == ["PaymentProcessed"]

    async def test_more_dead_letters_than_one_of_a_saga(self, bench: Bench) -> None:
        """The redriven first one succeeds; then the second one, behind it, fails in its turn."""
        first = bench.message(reserved())
        await give_up(bench, first)
        bench.cashier.refund_fails = True
        undo = bench.message(failed())
        await bench.take(bench.message(redriven(first.sequence)), undo)
        assert types(await bench.finish()) == ["PaymentProcessed", "DeadLetterRecorded"]
        assert await bench.queued() == [(undo.sequence, True)]
        bench.cashier.refund_fails = False
        await bench.take(bench.message(redriven(undo.sequence)))
        assert types(await bench.finish()) == ["PaymentRefunded"]


class TestACompensationPasses:
    """It voids the step that its dead letter would have triggered; the dead letter is closed; the rest goes on."""

    @pytest.mark.parametrize("undo", [failed(), timed_out()], ids=["an event", "a time-out"])
    @pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted in between"])
    async def test_a_given_up_step_is_voided(
        self, bench: Bench, undo: ShippingFailed | SagaTimedOut, *, restarts: bool
    ) -> None:
        message = bench.message(reserved(), event_id="a")
        await give_up(bench, message)
        if restarts:
            await bench.restart()
        undoing = bench.message(undo, event_id="u")
        assert await bench.take(undoing) == []
        events = await bench.finish()
        assert types(events) == ["StepVoided", "DeadLetterSuperseded"]
        body = events[1].body
        assert isinstance(body, DeadLetterSuperseded)
        assert (body.definition, body.step, body.participant, body.sequence) == (
            "order-fulfilment", "take-payment", "payments", message.sequence,
        )  # fmt: skip
        assert (events[1].causation_id, events[1].source) == ("u", "payments")
        assert (await bench.queued(), await bench.done()) == ([], [])
        assert await bench.barrier() is BarrierState.VOID
        assert await bench.take(bench.message(reserved(), event_id="a"), bench.message(reserved(cents=4))) == []
        assert await bench.done() == []

    async def test_one_that_came_before_the_step_was_given_up_on_passes_then(self, bench: Bench) -> None:
        bench.cashier.fails = always
        await bench.take(bench.message(reserved()), bench.message(failed()))
        events = await bench.finish()
        assert types(events) == ["DeadLetterRecorded", "StepVoided", "DeadLetterSuperseded"]
        assert await bench.queued() == []

    async def test_one_in_the_batch_of_a_rejected_event_passes(self, bench: Bench) -> None:
        bench.with_steps(step("take-payment", reject, undo=bench.cashier.refund, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        assert types(await bench.take(bench.message(reserved()), bench.message(failed()))) == ["DeadLetterRecorded"]
        assert types(await bench.finish()) == ["StepVoided", "DeadLetterSuperseded"]

    async def test_what_waits_between_them_follows(self, bench: Bench) -> None:
        await give_up(bench, bench.message(reserved()))
        await bench.take(bench.message(reserved(cents=5)), bench.message(failed()), bench.message(reserved(cents=6)))
        assert types(await bench.finish()) == ["StepVoided", "DeadLetterSuperseded"]
        assert (await bench.queued(), await bench.done()) == ([], [])

    async def test_a_time_out_of_another_saga_or_step_does_not_pass(self, bench: Bench) -> None:
        await give_up(bench, bench.message(reserved()))
        others = [timed_out(definition="another-saga"), timed_out(steps=("ship-order",))]
        await bench.take(*(bench.message(other) for other in others))
        assert await bench.finish() == []
        assert [given_up for _, given_up in await bench.queued()] == [True, False, False]
        assert bench.handler.due_in() is None

    async def test_one_whose_step_has_not_failed_keeps_its_order(self, bench: Bench) -> None:
        """The dead letter triggers two steps, and only one of them would be undone: the other one is still needed."""

        def audit(_event: ItemsReserved, tx: Transaction) -> None:
            raise Reject("no ledger")

        bench.with_steps(
            step("take-payment", bench.cashier.charge, undo=bench.cashier.refund, saga="order-fulfilment"),
            step("audit-payment", audit, saga="yearly-audit"),
        )
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(reserved()), bench.message(failed()))
        await bench.finish()
        assert [given_up for _, given_up in await bench.queued()] == [True, False]
        await bench.take(bench.message(discarded(1, definition="yearly-audit", step_name="audit-payment")))
        assert types(await bench.finish()) == ["StepVoided"]

    async def test_one_does_not_pass_another_compensation(self, bench: Bench) -> None:
        bench.cashier.refund_fails = True
        await bench.take(bench.message(reserved()), bench.message(failed()))
        await bench.finish()
        bench.cashier.refund_fails = False
        assert await bench.take(bench.message(timed_out())) == []
        assert await bench.finish() == []
        assert [given_up for _, given_up in await bench.queued()] == [True, False]

    async def test_one_that_fails_as_it_passes_is_tried_again_and_given_up_on_itself(self, bench: Bench) -> None:
        """The same time-out undoes another step, which was done, and that fails."""

        def hold(_event: OrderShipped, tx: Transaction) -> None:
            write_down(tx, "hold")

        def let_go(event: SagaTimedOut, tx: Transaction) -> PaymentRefunded:
            write_down(tx, "let go")
            if bench.cashier.refund_fails:
                raise RuntimeError("stuck")
            return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")

        bench.with_steps(
            step("take-payment", bench.cashier.charge, undo=bench.cashier.refund, saga="order-fulfilment"),
            step("hold-money", hold, undo=let_go, saga="order-fulfilment"),
        )
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(OrderShipped(order_id="o1", tracking_number="t")))
        dead = bench.message(reserved())
        await give_up(bench, dead)
        bench.cashier.refund_fails = True
        undo = bench.message(timed_out(steps=("take-payment", "hold-money")), event_id="u1")
        again = bench.message(timed_out(steps=("take-payment", "hold-money")), event_id="u2")
        await bench.take(undo)
        await bench.due()
        await bench.take(again)
        await bench.restart()  # has the saga looked at, but nothing tried before its time
        await bench.due()
        assert bench.handler.due_in() == 0.5
        body = recorded(await bench.finish())
        assert (body.sequence, body.step, body.compensation, body.attempts) == (undo.sequence, "hold-money", True, 3)
        assert await bench.queued() == [(dead.sequence, True), (undo.sequence, True), (again.sequence, False)]
        assert await bench.barrier() is None
        bench.cashier.refund_fails = False
        await bench.restart()
        assert await bench.finish() == []
        await bench.take(bench.message(redriven(undo.sequence, step_name="hold-money")))
        assert types(await bench.finish()) == ["StepVoided", "PaymentRefunded", "DeadLetterSuperseded"]
        assert (await bench.queued(), await bench.done()) == ([], ["hold", "let go"])


class TestHearing:
    """Time-outs behind the position come first, and again at their place, where they are duplicates."""

    async def test_a_step_in_the_backlog_is_voided_before_it_comes(self, bench: Bench) -> None:
        backlog = [bench.message(reserved()), bench.message(timed_out())]
        assert types(await bench.hear(backlog[1])) == ["StepVoided"]
        assert await bench.take(*backlog) == []
        assert await bench.done() == []

    async def test_what_was_done_is_undone_once(self, bench: Bench) -> None:
        await bench.handler.handle([bench.message(reserved())], ())
        time_out = bench.message(timed_out())
        assert types(await bench.hear(time_out)) == ["PaymentProcessed", "PaymentRefunded"]
        assert await bench.take(time_out) == []
        await bench.restart()
        await bench.hear(time_out)
        assert await bench.done() == ["charge", "refund"]

    async def test_where_something_waits_that_it_does_not_pass_it_keeps_its_place(self, bench: Bench) -> None:
        bench.cashier.refund_fails = True
        await bench.take(bench.message(reserved()), bench.message(failed()))
        bench.cashier.refund_fails = False
        await bench.restart()
        time_out = bench.message(timed_out())
        assert types(await bench.hear(time_out)) == ["PaymentProcessed"]
        assert await bench.take(time_out) == []
        assert types(await bench.finish()) == ["PaymentRefunded"]
        assert await bench.done() == ["charge", "refund"]

    async def test_it_passes_a_dead_letter(self, bench: Bench) -> None:
        await give_up(bench, bench.message(reserved()))
        await bench.take(bench.message(reserved(cents=3)))
        await bench.restart()
        time_out = bench.message(timed_out())
        assert types(await bench.hear(time_out))[-2:] == ["StepVoided", "DeadLetterSuperseded"]
        assert await bench.take(time_out) == []
        assert await bench.finish() == []
        assert (await bench.queued(), await bench.done()) == ([], [])

    async def test_two_of_one_key_pass_together(self, bench: Bench) -> None:
        """Two definitions start on the same event, and both were timed out."""

        def audit(_event: OrderShipped, tx: Transaction) -> None:
            write_down(tx, "audit")

        bench.with_steps(
            step("take-payment", bench.cashier.charge, undo=bench.cashier.refund, saga="order-fulfilment"),
            step("audit-order", audit, saga="yearly-audit"),
        )
        await bench.handler.claim("stream-1")
        await give_up(bench, bench.message(reserved()))
        backlog = [
            bench.message(OrderShipped(order_id="o1", tracking_number="t")),
            bench.message(timed_out()),
            bench.message(timed_out(definition="yearly-audit", steps=("audit-order",))),
        ]
        events = await bench.hear(*backlog[1:])
        assert types(events)[-3:] == ["StepVoided", "DeadLetterSuperseded", "StepVoided"]
        assert await bench.take(*backlog) == []
        assert await bench.finish() == []
        assert (await bench.queued(), await bench.done()) == ([], [])

    async def test_one_whose_handler_fails_keeps_its_place(self, bench: Bench) -> None:
        await bench.handler.handle([bench.message(reserved())], ())
        bench.cashier.refund_fails = True
        time_out, other = bench.message(timed_out()), bench.message(timed_out("o2"))
        assert types(await bench.hear(time_out, other)) == ["PaymentProcessed", "StepVoided"]
        bench.cashier.refund_fails = False
        assert types(await bench.take(time_out, other)) == ["PaymentRefunded"]

    async def test_one_owner_that_was_shut_out_hears_nothing(self, bench: Bench) -> None:
        await bench.new_owner().claim("stream-1")
        with pytest.raises(FencedError):
            await bench.hear(bench.message(timed_out()))


SECRETS = ("4111-2222", "7 Elm Street")


async def test_no_secret_of_an_event_is_in_what_is_kept_told_or_logged(bench: Bench) -> None:
    """But in the queue's own row and the copy, which hold the event as it was."""

    def careless(event: ItemsReserved, tx: Transaction) -> None:
        try:
            int(event.card)
        except ValueError as cause:
            raise RuntimeError(f"can't charge {event}") from cause

    bench.with_steps(step("take-payment", careless, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    body = reserved(card=SECRETS[0])
    body.address = SECRETS[1]
    with capture_logs() as logs:
        events = [*await bench.take(bench.message(body)), *await bench.finish()]
    query = sa.text("SELECT error FROM farandole_queue")
    kept = await bench.database.read(lambda connection: connection.execute(query).scalars().all())
    assert "[REDACTED]" in recorded(events).detail
    assert [entry["log_level"] for entry in logs] == ["warning", "warning", "error"]
    assert ["Traceback" in entry.get("exception", "") for entry in logs] == [True, False, False]
    shown = "\n".join((str(logs), str(kept), recorded(events).detail, bench.copies[0].headers["farandole-detail"]))
    for secret in SECRETS:
        assert secret not in shown


async def test_the_detail_and_the_copy_s_headers_fit_whatever_a_handler_says(bench: Bench) -> None:
    def verbose(_event: ItemsReserved, tx: Transaction) -> None:
        raise Reject("é\x00\n" * 100_000)

    bench.with_steps(step("take-payment", verbose, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    events = await bench.take(bench.message(reserved()))
    assert len(recorded(events).detail) == 2048
    (copy,) = bench.copies
    assert len(copy.headers["farandole-detail"]) <= 1024
    assert copy.headers["farandole-detail"].isascii()
