"""What a participant can't read waits in its queue: with older schemas than its publisher's, or since no one can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from buf.validate import validate_pb2
from choreography.v1 import participant_pb2
from choreography.v1.correlator_events_pb2 import EventUnreadable
from choreography.v1.dead_letter_events_pb2 import (
    DeadLetterDiscarded,
    DeadLetterRecorded,
    DeadLetterRedriven,
    DeadLetterSuperseded,
)
from choreography.v1.dead_letter_pb2 import (
    DEAD_LETTER_REASON_INVALID_HEADER,
    DEAD_LETTER_REASON_RULE_VIOLATION,
    DEAD_LETTER_REASON_UNDECODABLE,
)
from farandole import Reject, Transaction, step
from farandole.envelope import Event, StoredMessage
from farandole.partitions import partition_key, partition_of
from farandole.registry import Registry
from inventory.v1 import inventory_events_pb2
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed
from tests.integration.participant_bench import START, Bench, bench_at, discarded, failed, redriven, reserved, types

TYPE = ItemsReserved.DESCRIPTOR.full_name
EXPENSIVE = 5000
"""Cents: more than the older schema allows."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_at(f"sqlite:///{tmp_path}/payments.db") as bench:
        yield bench


def with_a_rule(message: descriptor_pb2.DescriptorProto) -> None:
    """An older version, in which nothing may cost more than 10."""
    (amount,) = (field for field in message.field if field.name == "amount_cents")
    amount.options.Extensions[validate_pb2.field].CopyFrom(
        validate_pb2.FieldRules(int64=validate_pb2.Int64Rules(lte=1000))
    )


def with_another_type(message: descriptor_pb2.DescriptorProto) -> None:
    """An older version, in which a reservation has a number; as JSON the newer one can't be read at all."""
    (reservation,) = (field for field in message.field if field.name == "reservation_id")
    reservation.ClearField("options")
    reservation.type = descriptor_pb2.FieldDescriptorProto.TYPE_INT64


def deploy_older(bench: Bench, change: Callable[[descriptor_pb2.DescriptorProto], None]) -> None:
    """Has the participant read with an older schema of one event."""
    file = descriptor_pb2.FileDescriptorProto()
    inventory_events_pb2.DESCRIPTOR.CopyToProto(file)
    (message,) = (message for message in file.message_type if message.name == "ItemsReserved")
    change(message)
    older = Registry.of_descriptor_set(
        descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString(), where="the older schemas"
    )
    bench.participant.registry = Registry({**bench.participant.registry.types, TYPE: older.types[TYPE]})


async def deploy_right(bench: Bench) -> None:
    """Has another process go on with the schemas that the events have."""
    bench.participant.registry = Registry.of_classes(bench.participant._classes())
    await bench.restart()


def as_json(bench: Bench, key: str = "o1") -> StoredMessage:
    """The next stored message: an event whose key only the newer schema can tell."""
    bench.sequence += 1
    body = f'{{"orderId":"{key}","reservationId":"r","amountCents":"1","currency":"EUR","card":"c","address":"a"}}'
    return StoredMessage(f"events.{partition_of(key)}.{TYPE}", {}, body.encode(), bench.sequence, START)


def garbage(bench: Bench, headers: dict[str, str] | None = None) -> StoredMessage:
    """The next stored message: what no one can read."""
    bench.sequence += 1
    return StoredMessage(f"events.1.{TYPE}", headers or {}, b"\xff", bench.sequence, START)


def unreadable(message: StoredMessage) -> EventUnreadable:
    """What the correlator says of it."""
    return EventUnreadable(
        partition_key=partition_key(message.partition or 0),
        sequence=message.sequence,
        event_type=message.type,
        reason=DEAD_LETTER_REASON_UNDECODABLE,
    )


def own_redriven(message: StoredMessage, *, key: str = "o1") -> DeadLetterRedriven:
    """An operator's decision about the correlator's dead letter of it."""
    return redriven(message.sequence, key=key, participant="correlator", definition="", step_name="")


def own_discarded(message: StoredMessage, *, key: str = "o1") -> DeadLetterDiscarded:
    """An operator's decision about the correlator's dead letter of it."""
    return discarded(message.sequence, key=key, participant="correlator", definition="", step_name="")


async def counts(bench: Bench) -> tuple[int, int]:
    """How many events the participant says to be in its queue, and how many dead letters."""
    status = await bench.status("")
    return status.queued_events, status.dead_letters


async def states(bench: Bench, key: str = "o1") -> list[str]:
    """Why the events of a saga are in the queue."""
    status = await bench.status(key)
    names = (participant_pb2.QueuedEventState.Name(event.state) for event in status.queue)
    return [name.removeprefix("QUEUED_EVENT_STATE_") for name in names]


def recorded(events: list[Event]) -> list[DeadLetterRecorded]:
    return [event.body for event in events if isinstance(event.body, DeadLetterRecorded)]


class TestAnOlderSchema:
    """The participant does not skip what others can read: that waits, and is handled once it can be read."""

    async def test_its_saga_waits_in_order_and_all_others_go_on(self, bench: Bench) -> None:
        messages = [bench.message(reserved(cents=EXPENSIVE)), bench.message(failed()), bench.message(reserved("o2"))]
        deploy_older(bench, with_a_rule)
        assert types(await bench.take(*messages)) == ["PaymentProcessed"]
        assert await states(bench) == ["UNREADABLE", "WAITING"]
        await deploy_right(bench)
        assert types(await bench.finish()) == ["PaymentProcessed", "PaymentRefunded"]
        assert await bench.done() == ["charge", "refund"]

    async def test_out_of_tries_it_is_a_dead_letter_of_its_step_and_a_redrive_runs_it_once_it_can_be_read(
        self, bench: Bench
    ) -> None:
        message = bench.message(reserved(cents=EXPENSIVE), source="a shop", event_id="e 1")
        deploy_older(bench, with_a_rule)
        events = [*await bench.take(message), *await bench.finish()]
        assert types(events) == ["DeadLetterRecorded"]
        assert (events[0].key, events[0].causation_id) == ("o1", "e 1")
        (body,) = recorded(events)
        assert (body.definition, body.step, body.compensation) == ("order-fulfilment", "take-payment", False)
        assert (body.event_type, body.event_source, body.event_id) == (TYPE, "a shop", "e 1")
        assert (body.reason, body.attempts) == (DEAD_LETTER_REASON_RULE_VIOLATION, 3)
        assert "amount_cents" in body.detail
        assert bench.copies[0].headers["farandole-reason"] == "RULE_VIOLATION"
        await bench.take(bench.message(reserved(cents=7)))
        await bench.take(bench.message(redriven(message.sequence), event_id="too early"))
        assert [body.attempts for body in recorded(await bench.finish())] == [6]
        await deploy_right(bench)
        assert await bench.finish() == [], "it waits for the operator, not for the deployment"
        await bench.take(bench.message(redriven(message.sequence)))
        (event,) = await bench.finish()
        assert event.causation_id == "e 1"
        assert (await bench.queued(), await bench.done()) == ([], ["charge"])

    async def test_it_can_be_discarded(self, bench: Bench) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(message)
        await bench.finish()
        await bench.take(bench.message(discarded(message.sequence)), bench.message(failed()))
        assert types(await bench.finish()) == ["StepVoided"]

    async def test_where_its_saga_can_t_be_told_it_waits_under_the_key_of_its_partition(self, bench: Bench) -> None:
        deploy_older(bench, with_another_type)
        message = as_json(bench)
        key = partition_key(partition_of("o1"))
        assert await bench.take(message) == []
        assert await states(bench, key) == ["UNREADABLE"]
        events = await bench.finish()
        (body,) = recorded(events)
        assert (body.saga_id, body.reason, body.event_source) == (key, DEAD_LETTER_REASON_UNDECODABLE, "anonymous")
        assert events[0].key == key
        await deploy_right(bench)
        assert await bench.finish() == []
        await bench.take(bench.message(redriven(message.sequence, key=key)))
        assert types(await bench.finish()) == ["PaymentProcessed"]
        assert (await bench.queued(key), await bench.queued(), await bench.done()) == ([], [], ["charge"])

    async def test_where_its_saga_could_not_be_told_that_goes_on_without_it(self, bench: Bench) -> None:
        """Its undoing did not wait, since nobody knew whose event it is, and has voided the step."""
        deploy_older(bench, with_another_type)
        await bench.take(as_json(bench))
        assert types(await bench.take(bench.message(failed()))) == ["StepVoided"]
        await deploy_right(bench)
        assert await bench.finish() == []
        assert (await bench.done(), await bench.queued()) == ([], [])

    async def test_it_is_handled_at_once_where_its_saga_is_quarantined_by_a_later_event(self, bench: Bench) -> None:
        """Also where both are looked at in one transaction, as after a restart."""
        messages = [as_json(bench), bench.message(reserved(cents=7))]

        def refuse(_event: ItemsReserved, _tx: Transaction) -> PaymentProcessed:
            raise Reject("not this one")

        bench.with_steps(step("take-payment", refuse, saga="order-fulfilment"))
        deploy_older(bench, with_another_type)
        await bench.restart()
        assert types(await bench.take(*messages)) == ["DeadLetterRecorded"]
        assert await states(bench) == ["DEAD_LETTERED"]
        await bench.handler.release()
        bench.now += timedelta(seconds=5)
        bench.with_steps(step("take-payment", bench.cashier.charge, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        assert types(await bench.finish()) == ["PaymentProcessed"]
        assert await states(bench) == ["DEAD_LETTERED"]

    async def test_it_goes_before_what_waits_of_its_saga(self, bench: Bench) -> None:
        deploy_older(bench, with_another_type)
        first = as_json(bench)
        await bench.take(first)
        await deploy_right(bench)
        bench.cashier.fails = lambda _key: True
        later = bench.message(reserved(cents=7))
        await bench.take(later)
        assert [sequence for sequence, _ in await bench.queued()] == [later.sequence]
        bench.now = START
        await bench.finish()
        assert [sequence for sequence, _ in await bench.queued()] == [first.sequence, later.sequence]
        assert [given_up for _, given_up in await bench.queued()] == [True, False]


class TestWhatNoOneCanRead:
    """The correlator says so: it makes no participant's dead letter, or closes it."""

    async def test_it_holds_up_nobody_else_and_goes_when_the_correlator_says_so(self, bench: Bench) -> None:
        message = garbage(bench)
        assert types(await bench.take(message, bench.message(reserved()))) == ["PaymentProcessed"]
        assert await states(bench, partition_key(1)) == ["UNREADABLE"]
        assert await bench.take(bench.message(unreadable(message), source="correlator")) == []
        assert await bench.finish() == []
        assert await bench.queued(partition_key(1)) == []

    async def test_in_the_batch_of_the_event_too(self, bench: Bench) -> None:
        message = garbage(bench)
        await bench.take(message, bench.message(unreadable(message), source="correlator"))
        assert (await bench.finish(), await bench.queued(partition_key(1))) == ([], [])

    async def test_a_dead_letter_that_was_made_meanwhile_is_closed_and_what_waits_goes_on(self, bench: Bench) -> None:
        """As where the correlator was down: the key can be read, and so the saga was held up."""
        bench.sequence += 1
        body = b'{"orderId":"o1","amountCents":"-1"}'
        message = StoredMessage(f"events.{partition_of('o1')}.{TYPE}", {}, body, bench.sequence, START)
        assert await bench.take(message, bench.message(reserved())) == []
        assert await states(bench) == ["UNREADABLE", "WAITING"]
        (body_of_record,) = recorded(await bench.finish())
        assert body_of_record.saga_id == "o1"
        word = bench.message(unreadable(message), source="correlator", event_id="u")
        (event,) = await bench.take(word)
        assert isinstance(event.body, DeadLetterSuperseded)
        assert (event.body.saga_id, event.body.sequence, event.causation_id) == ("o1", message.sequence, "u")
        assert (event.body.definition, event.body.step) == (body_of_record.definition, body_of_record.step)
        assert types(await bench.finish()) == ["PaymentProcessed"]
        assert await bench.take(word) == []

    async def test_nobody_else_may_say_so(self, bench: Bench) -> None:
        message = garbage(bench)
        word = unreadable(message)
        elsewhere = unreadable(message)
        elsewhere.partition_key = partition_key(2)
        await bench.take(message, bench.message(word, source="someone"), bench.message(elsewhere, source="correlator"))
        assert await states(bench, partition_key(1)) == ["UNREADABLE"]

    async def test_what_the_participant_can_read_stays(self, bench: Bench) -> None:
        """As where the correlator has older schemas than the participant."""
        bench.cashier.fails = lambda _key: True
        message = bench.message(reserved())
        await bench.take(message, bench.message(unreadable(message), source="correlator"))
        bench.cashier.fails = lambda _key: False
        assert types(await bench.finish()) == ["PaymentProcessed"]

    async def test_several_of_one_partition_wait_in_order_and_each_is_told_of(self, bench: Bench) -> None:
        """The same twice, too: both hold something up, so both must be told of, under ids of their own."""
        messages = [garbage(bench, {"ce-id": "x", "ce-source": "a shop"}) for _ in range(2)]
        events = [*await bench.take(*messages), *await bench.finish()]
        (first,) = recorded(events)
        assert (first.event_id, first.event_source) == ("x", "a shop")
        assert await states(bench, partition_key(1)) == ["DEAD_LETTERED", "WAITING"]
        events += await bench.take(bench.message(unreadable(messages[0]), source="correlator"))
        events += await bench.finish()
        assert [body.sequence for body in recorded(events)] == [m.sequence for m in messages]
        assert len({event.id for event in events}) == len(events)
        (superseded,) = await bench.take(bench.message(unreadable(messages[1]), source="correlator"))
        assert isinstance(superseded.body, DeadLetterSuperseded)
        assert await bench.queued(partition_key(1)) == []

    async def test_a_header_that_can_t_be_read_hides_no_other(self, bench: Bench) -> None:
        message = garbage(bench, {"ce-time": "yesterday", "ce-source": "%GG", "CE-ID": "e%201"})
        (body,) = recorded([*await bench.take(message), *await bench.finish()])
        assert (body.reason, body.event_source, body.event_id) == (
            DEAD_LETTER_REASON_INVALID_HEADER, "anonymous", "e 1",
        )  # fmt: skip

    async def test_a_key_of_another_partition_holds_up_no_saga(self, bench: Bench) -> None:
        stored = bench.message(reserved())
        wrong = (partition_of("o1") + 1) % 16
        astray = StoredMessage(f"events.{wrong}.{TYPE}", stored.headers, stored.data, stored.sequence, START)
        assert types(await bench.take(astray, bench.message(reserved(cents=3)))) == ["PaymentProcessed"]
        assert await states(bench, partition_key(wrong)) == ["UNREADABLE"]

    async def test_it_outlasts_a_restart(self, bench: Bench) -> None:
        message = garbage(bench)
        await bench.take(message)
        await bench.restart()
        assert len(recorded(await bench.finish())) == 1
        await bench.restart()
        assert (await bench.finish(), await states(bench, partition_key(1))) == ([], ["DEAD_LETTERED"])


Restart = Callable[[], Awaitable[None]]


class TestWhatTheCorrelatorCouldNotReadEither:
    """It ran with older schemas too: the event is set aside until the correlator's dead letter is redriven."""

    @pytest.fixture(params=[False, True], ids=["one-process", "restarts"])
    def between(self, request: pytest.FixtureRequest, bench: Bench) -> Restart:
        """What happens between two steps of a test: nothing, or another process goes on."""

        async def restart() -> None:
            if request.param:
                await bench.restart()

        return restart

    async def set_aside(self, bench: Bench, between: Restart, message: StoredMessage) -> list[Event]:
        """Has the correlator say that no one can read it; what the participant published."""
        await between()
        events = await bench.take(bench.message(unreadable(message), source="correlator"))
        await between()
        return events

    async def test_it_runs_when_that_dead_letter_is_redriven(self, bench: Bench, between: Restart) -> None:
        message = bench.message(reserved(cents=EXPENSIVE), event_id="e 1")
        deploy_older(bench, with_a_rule)
        await bench.take(message)
        assert await self.set_aside(bench, between, message) == []
        await bench.finish()
        assert (await states(bench), await counts(bench), bench.handler.due_in()) == ([], (0, 0), None)
        await deploy_right(bench)
        assert (await bench.finish(), await bench.done()) == ([], []), "it waits for the operator"
        verb = bench.message(own_redriven(message))
        assert await bench.take(verb) == []
        await between()
        (event,) = await bench.finish()
        assert (type(event.body), event.causation_id) == (PaymentProcessed, "e 1")
        await between()
        await bench.take(verb, bench.message(own_redriven(message)))
        assert (await bench.finish(), await counts(bench), await bench.done()) == ([], (0, 0), ["charge"])

    @pytest.mark.parametrize("is_key_told", [False, True])
    async def test_also_where_its_saga_could_not_be_told(
        self, bench: Bench, between: Restart, is_key_told: bool
    ) -> None:
        """It does not wait for the partition's other garbage: its saga can be told now."""
        deploy_older(bench, with_another_type)
        key = partition_key(partition_of("o1"))
        other = as_json(bench)
        await bench.take(StoredMessage(other.subject, {}, b"\xff", other.sequence, START))
        await bench.finish()
        message = as_json(bench)
        await bench.take(message)
        assert await states(bench, key) == ["DEAD_LETTERED", "WAITING"]
        await self.set_aside(bench, between, message)
        await bench.finish()
        assert (await states(bench), await states(bench, key)) == ([], ["DEAD_LETTERED"])
        await deploy_right(bench)
        await bench.take(bench.message(own_redriven(message, key="o1" if is_key_told else key)))
        await between()
        assert types(await bench.finish()) == ["PaymentProcessed"]
        assert (await states(bench, key), await bench.done()) == (["DEAD_LETTERED"], ["charge"])

    async def test_it_holds_nothing_up_and_does_no_work_that_its_saga_has_undone(
        self, bench: Bench, between: Restart
    ) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(message, bench.message(failed()))
        assert await states(bench) == ["UNREADABLE", "WAITING"]
        await self.set_aside(bench, between, message)
        assert types(await bench.finish()) == ["StepVoided"]
        await deploy_right(bench)
        await bench.take(bench.message(own_redriven(message)))
        await between()
        assert (await bench.finish(), await bench.done(), await counts(bench)) == ([], [], (0, 0))

    async def test_it_goes_behind_what_came_before_it_and_still_waits(self, bench: Bench, between: Restart) -> None:
        bench.cashier.fails = lambda _key: True
        first = bench.message(reserved())
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(first, message)
        await bench.finish()
        await self.set_aside(bench, between, message)
        assert await states(bench) == ["DEAD_LETTERED"]
        await deploy_right(bench)
        await bench.take(bench.message(own_redriven(message)))
        await between()
        await bench.finish()
        assert await bench.queued() == [(first.sequence, True), (message.sequence, False)]
        bench.cashier.fails = lambda _key: False
        await bench.take(bench.message(discarded(first.sequence)))
        (event,) = await bench.finish()
        assert isinstance(event.body, PaymentProcessed)
        assert event.body.amount_cents == EXPENSIVE
        assert await bench.queued() == []

    async def test_it_goes_before_what_came_after_it_and_still_waits(self, bench: Bench, between: Restart) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(message)
        await self.set_aside(bench, between, message)
        bench.cashier.fails = lambda _key: True
        later = bench.message(reserved())
        await bench.take(later)
        assert await states(bench) == ["RETRYING"]
        await deploy_right(bench)
        await bench.take(bench.message(own_redriven(message)))
        assert [sequence for sequence, _ in await bench.queued()] == [message.sequence, later.sequence]
        await between()
        bench.cashier.fails = lambda _key: False
        (event,) = await bench.finish()
        assert isinstance(event.body, PaymentProcessed)
        assert event.body.amount_cents == EXPENSIVE

    async def test_a_dead_letter_of_before_is_superseded_and_a_later_one_is_another(
        self, bench: Bench, between: Restart
    ) -> None:
        """The correlator is ahead of the participant: redriven, that can't read it, and gives it up once more."""
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        events = [*await bench.take(message), *await bench.finish()]
        events += await self.set_aside(bench, between, message)
        assert types(events) == ["DeadLetterRecorded", "DeadLetterSuperseded"]
        assert await counts(bench) == (0, 0)
        await bench.take(bench.message(own_redriven(message)))
        await between()
        events += await bench.due()
        assert await states(bench) == ["UNREADABLE"]
        await between()
        events += await bench.finish()
        assert (await states(bench), await counts(bench)) == (["DEAD_LETTERED"], (1, 1))
        assert [body.attempts for body in recorded(events)] == [3, 6]
        assert len({event.id for event in events}) == len(events) == 3
        await deploy_right(bench)
        await bench.take(bench.message(redriven(message.sequence)))
        assert types(await bench.finish()) == ["PaymentProcessed"]

    async def test_it_goes_for_good_when_that_dead_letter_is_discarded(self, bench: Bench, between: Restart) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(message)
        await self.set_aside(bench, between, message)
        await deploy_right(bench)
        assert await bench.take(bench.message(own_discarded(message))) == []
        await between()
        await bench.take(bench.message(own_redriven(message)))
        assert (await bench.finish(), await counts(bench), await bench.done()) == ([], (0, 0), [])

    async def test_in_the_batch_of_the_event_too(self, bench: Bench) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        word = bench.message(unreadable(message), source="correlator")
        await bench.take(message, word, bench.message(own_redriven(message)), bench.message(failed()))
        assert [sequence for sequence, _ in await bench.queued()] == [message.sequence, bench.sequence]
        await deploy_right(bench)
        assert types(await bench.finish()) == ["PaymentProcessed", "PaymentRefunded"]

    async def test_no_other_verb_brings_it_back_or_ends_it(self, bench: Bench, between: Restart) -> None:
        message = bench.message(reserved(cents=EXPENSIVE))
        deploy_older(bench, with_a_rule)
        await bench.take(message)
        await self.set_aside(bench, between, message)
        await deploy_right(bench)
        elsewhere = next(f"k{n}" for n in range(100) if partition_of(f"k{n}") != partition_of("o1"))
        for verb in (redriven, discarded):
            await bench.take(
                bench.message(verb(message.sequence)),
                bench.message(verb(message.sequence, participant="shipping")),
                bench.message(verb(message.sequence, participant="correlator")),
                bench.message(
                    verb(message.sequence, participant="correlator", definition="", step_name="", key=elsewhere)
                ),
                bench.message(verb(message.sequence + 1, participant="correlator", definition="", step_name="")),
            )
            await between()
            assert (await bench.finish(), await counts(bench)) == ([], (0, 0))
        await bench.take(bench.message(own_redriven(message)))
        assert types(await bench.finish()) == ["PaymentProcessed"]

    async def test_a_dead_letter_of_the_participant_itself_is_not_the_correlator_s(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        message = bench.message(reserved())
        await bench.take(message)
        await bench.finish()
        bench.cashier.fails = lambda _key: False
        await bench.take(bench.message(own_redriven(message)), bench.message(own_discarded(message)))
        assert (await bench.finish(), await states(bench)) == ([], ["DEAD_LETTERED"])
