"""An event that ends the process each time it runs is found and given up on; what was only beside it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest
import sqlalchemy as sa

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_CRASHED, DEAD_LETTER_REASON_RETRIES_EXHAUSTED
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Transaction, step
from farandole.envelope import Event, StoredMessage
from farandole.lanes import Lanes
from farandole.participant.barrier import BarrierState
from farandole.partitions import partition_key
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import ShippingFailed
from tests.integration.participant_bench import (
    Bench,
    ProcessEnds,
    bench_at,
    discarded,
    failed,
    redriven,
    reserved,
    timed_out,
    types,
    write_down,
)

CRASHES = 4
"""How often the process ends: once in whatever batch it is, then three times at the event alone."""


class Till:
    """A participant whose process ends while it runs certain events."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.deadly: set[tuple[str, str]] = set()
        """What ends the process: (what is done, key)."""
        self.crashes = 0
        self.runs: list[tuple[str, str]] = []
        self.published: list[Event] = []

    def charge(self, event: ItemsReserved, tx: Transaction) -> PaymentProcessed:
        self._do("charge", tx)
        return PaymentProcessed(
            order_id=tx.key, payment_id="p", amount_cents=event.amount_cents, currency="EUR", address="a"
        )

    def refund(self, _event: ShippingFailed, tx: Transaction) -> PaymentRefunded:
        self._do("refund", tx)
        return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")

    def _do(self, what: str, tx: Transaction) -> None:
        self.runs.append((what, tx.key))
        write_down(tx, what)
        if (what, tx.key) in self.deadly:
            raise ProcessEnds

    async def consume(self, *messages: StoredMessage, heard: Collection[StoredMessage] = ()) -> None:
        """Takes in what the stream holds, as processes do that are started again whenever one has ended."""
        while True:
            behind = [message for message in messages if message.sequence > self.bench.handler.position]
            try:
                self.published += await self.bench.hear(
                    *(message for message in heard if message.sequence > self.bench.handler.position)
                )
                if behind:
                    await self.bench.take(*behind)
                await self.bench.finish()
                self.published = await self._outbox()
            except ProcessEnds:
                self.crashes += 1
                assert self.crashes <= 20, "it never ends"
                await self.bench.restart()
            else:
                return

    async def _outbox(self) -> list[Event]:
        return self.bench.decoded(await self.bench.handler.waiting())

    @property
    def dead_letters(self) -> list[DeadLetterRecorded]:
        return [event.body for event in self.published if isinstance(event.body, DeadLetterRecorded)]


@pytest.fixture
async def till(database_url: str) -> AsyncIterator[Till]:
    async with bench_at(database_url) as bench:
        till = Till(bench)
        await bench.handler.release()
        bench.with_steps(step("take-payment", till.charge, undo=till.refund, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        yield till


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_it_is_given_up_on_and_all_others_are_handled(till: Till, place: int) -> None:
    keys = [f"o{number}" for number in range(20)]
    messages = [till.bench.message(reserved(key)) for key in keys]
    poison = keys[place]
    till.deadly.add(("charge", poison))
    await till.consume(*messages)
    assert till.crashes == CRASHES
    (body,) = till.dead_letters
    assert (body.saga_id, body.sequence, body.step) == (poison, messages[place].sequence, "take-payment")
    assert (body.reason, body.attempts, body.compensation) == (DEAD_LETTER_REASON_CRASHED, 3, False)
    assert body.detail == "the process ended 3 times while the handler ran, with no other event beside it"
    assert till.bench.copies[-1].headers["farandole-reason"] == "CRASHED"
    for key in keys:
        assert await till.bench.done(key) == ([] if key == poison else ["charge"])
    assert await till.bench.queued(poison) == [(body.sequence, True)]
    assert await till.bench.counts() == {}


async def test_two_of_one_batch_are_both_found(till: Till) -> None:
    messages = [till.bench.message(reserved(f"o{number}")) for number in range(9)]
    till.deadly = {("charge", "o2"), ("charge", "o6")}
    await till.consume(*messages)
    assert [body.saga_id for body in till.dead_letters] == ["o2", "o6"]
    assert till.crashes == CRASHES + 3


async def test_a_bystander_that_was_counted_is_never_given_up_on(till: Till) -> None:
    """Each process ends at another event: whoever ends them, it is not these events."""
    messages = [till.bench.message(reserved(f"o{number}")) for number in range(12)]
    for number in range(1, 12, 2):
        till.deadly = {("charge", f"o{number}")}
        with pytest.raises(ProcessEnds):
            await till.bench.take(*[m for m in messages if m.sequence > till.bench.handler.position])
        till.deadly.clear()
        await till.bench.restart()
    await till.consume(*messages)
    assert till.dead_letters == []
    assert [await till.bench.done(f"o{number}") for number in range(12)] == [["charge"]] * 12


async def test_one_that_ended_the_process_less_often_is_handled(till: Till) -> None:
    messages = [till.bench.message(reserved(f"o{number}")) for number in range(5)]
    till.deadly = {("charge", "o3")}
    for _ in range(CRASHES - 1):
        with pytest.raises(ProcessEnds):
            await till.bench.take(*[m for m in messages if m.sequence > till.bench.handler.position])
        await till.bench.restart()
    till.deadly.clear()
    await till.consume(*messages)
    assert (till.dead_letters, await till.bench.done("o3"), await till.bench.counts()) == ([], ["charge"], {})


async def test_its_saga_is_quarantined_until_an_operator_decides(till: Till) -> None:
    poison = till.bench.message(reserved())
    till.deadly.add(("charge", "o1"))
    await till.consume(poison, till.bench.message(failed("o2")), till.bench.message(reserved(cents=7)))
    assert await till.bench.queued() == [(poison.sequence, True), (poison.sequence + 2, False)]
    await till.consume(till.bench.message(redriven(poison.sequence)))
    assert till.crashes == 2 * CRASHES
    assert [body.attempts for body in till.dead_letters] == [3, 6]
    till.deadly.clear()
    await till.consume(till.bench.message(redriven(poison.sequence), event_id="again"))
    assert (await till.bench.done(), await till.bench.queued()) == (["charge"], [])


async def test_one_that_ends_the_process_on_a_later_try_is_found_in_the_queue(till: Till) -> None:
    """It fails first, and waits among others of the queue; then it ends the process."""
    keys = [f"o{number}" for number in range(6)]
    broken = [True]

    def charge(_event: ItemsReserved, tx: Transaction) -> None:
        write_down(tx, "charge")
        if broken:
            raise RuntimeError("closed")
        if tx.key == "o4":
            raise ProcessEnds

    till.bench.with_steps(step("take-payment", charge, saga="order-fulfilment"))
    await till.bench.handler.claim("stream-1")
    await till.bench.take(*(till.bench.message(reserved(key)) for key in keys))
    await till.bench.take(*(till.bench.message(reserved(key, cents=9)) for key in keys))
    broken.clear()
    await till.consume()
    assert till.crashes == CRASHES
    (body,) = till.dead_letters
    assert (body.saga_id, body.reason, body.attempts) == ("o4", DEAD_LETTER_REASON_CRASHED, 4)
    assert [await till.bench.done(key) for key in keys] == [[] if key == "o4" else ["charge"] for key in keys]
    assert await till.bench.counts() == {}


async def test_one_behind_others_of_its_saga_is_found_and_those_are_not_suspected(till: Till) -> None:
    """Of one saga: what stands before it in the queue is run in the same transactions at first."""
    bench = till.bench
    locked = [True]

    def first(_event: ItemsReserved, tx: Transaction) -> None:
        if locked:
            raise RuntimeError("locked")
        write_down(tx, "first")

    bench.with_steps(
        step("take-payment", first, saga="order-fulfilment"),
        step("give-back", till.refund, saga="order-fulfilment"),
    )
    await bench.handler.claim("stream-1")
    await bench.take(bench.message(reserved()), bench.message(failed()))
    locked.clear()
    till.deadly.add(("refund", "o1"))
    await till.consume()
    assert [(body.step, body.reason) for body in till.dead_letters] == [("give-back", DEAD_LETTER_REASON_CRASHED)]
    assert await bench.done() == ["first"]


async def test_a_time_out_that_ends_the_process_is_given_up_on_at_its_place(till: Till) -> None:
    """It is heard before all others, and counted there too."""
    bench = till.bench

    def deadly(_event: SagaTimedOut, tx: Transaction) -> PaymentRefunded:
        raise ProcessEnds

    bench.with_steps(step("take-payment", till.charge, undo=deadly, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    await bench.take(bench.message(reserved()), bench.message(reserved("o2")))
    backlog = [bench.message(reserved(f"p{number}")) for number in range(3)]
    time_out = bench.message(timed_out())
    await till.consume(*backlog, time_out, heard=[time_out])
    assert till.crashes == 3, "a time-out is heard alone from the start where the process before ended in no order"
    (body,) = till.dead_letters
    assert (body.sequence, body.compensation, body.reason) == (time_out.sequence, True, DEAD_LETTER_REASON_CRASHED)
    assert await bench.barrier() is BarrierState.DONE
    assert await bench.done("p2") == ["charge"]
    await till.consume(bench.message(discarded(time_out.sequence)))
    assert await bench.queued() == []


async def test_time_outs_are_heard_one_by_one_as_long_as_one_may_have_ended_the_process(till: Till) -> None:
    """The others are heard together: after a long stop they are very many."""
    bench = till.bench
    keys = [f"o{number}" for number in range(8)]
    undone: list[str] = []

    def refund(_event: SagaTimedOut, tx: Transaction) -> PaymentRefunded:
        undone.append(tx.key)
        if tx.key == "o0":
            raise RuntimeError("the bank is closed")
        if (tx.key, len(undone)) == ("o7", 8):
            raise ProcessEnds
        return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")

    bench.with_steps(step("take-payment", till.charge, undo=refund, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    await bench.take(*(bench.message(reserved(key)) for key in keys))
    await bench.handler.release()
    time_outs = [bench.message(timed_out(key)) for key in keys]
    await bench.restart()
    with pytest.raises(ProcessEnds):
        await bench.hear(*time_outs)
    bench.handler = bench.new_owner(batch_size=4)
    await bench.handler.claim("stream-1")
    counted = statements(bench, "INSERT INTO farandole_started")
    await bench.hear(*time_outs)
    assert undone[-1] == "o7"
    assert 4 <= len(counted) < len(keys), "one that failed may come to nothing else each time"
    assert await till.bench.counts() == {}


def statements(bench: Bench, of: str) -> list[str]:
    """The statements of one kind that the database is given from now on."""
    found: list[str] = []

    @sa.event.listens_for(bench.database._writer, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(of):
            found.append(statement)

    return found


async def test_a_process_that_ended_in_order_leaves_nothing_to_be_doubted(till: Till) -> None:
    till.deadly.add(("charge", "o3"))
    messages = [till.bench.message(reserved(f"o{number}")) for number in range(5)]
    await till.bench.take(messages[0])
    await till.bench.handler.release()
    await till.bench.restart()
    with pytest.raises(ProcessEnds):
        await till.bench.take(*messages[1:])
    assert await till.bench.counts() == {}
    assert till.runs == [("charge", f"o{number}") for number in range(4)], "all were in one transaction"
    assert await till.bench.done("o1") == []


async def test_who_was_shut_out_does_not_take_the_mark_away(till: Till) -> None:
    displaced = till.bench.handler
    await till.bench.restart()
    await displaced.release()
    till.deadly.add(("charge", "o1"))
    await till.bench.restart()
    with pytest.raises(ProcessEnds):
        await till.bench.take(till.bench.message(reserved()))
    assert list((await till.bench.counts()).values()) == [1]


async def test_one_process_counts_an_event_once_however_often_it_tries(till: Till) -> None:
    """Trouble of the store is not the event's."""
    bench = till.bench
    await bench.restart()
    message = bench.message(reserved())
    till.deadly.add(("charge", "o1"))
    for _ in range(5):
        with pytest.raises(ProcessEnds):
            await bench.take(message)
        await bench.handler.claim("stream-1")  # a new session of the same process
    assert list((await till.bench.counts()).values()) == [1]
    till.deadly.clear()
    assert types(await bench.take(message)) == ["PaymentProcessed"]
    assert await till.bench.counts() == {}


async def test_a_handler_that_wants_to_end_the_process_just_fails(till: Till) -> None:
    def leave(_event: ItemsReserved, tx: Transaction) -> None:
        raise SystemExit(3)

    till.bench.with_steps(step("take-payment", leave, saga="order-fulfilment"))
    await till.bench.handler.claim("stream-1")
    await till.consume(till.bench.message(reserved()))
    (body,) = till.dead_letters
    assert (body.reason, body.detail) == (DEAD_LETTER_REASON_RETRIES_EXHAUSTED, "SystemExit: 3")


async def test_in_one_process_no_other_lane_counts_an_event_while_one_is_run(till: Till) -> None:
    """Whoever ends the process then, it is not the other one."""
    bench, lanes, alone = till.bench, Lanes(2), asyncio.Lock()
    counted: list[int] = []

    def charge(_event: ItemsReserved, tx: Transaction) -> None:
        counted.append(tx.connection.execute(sa.text("SELECT count(*) FROM farandole_started")).scalar_one())

    bench.with_steps(step("take-payment", charge, saga="order-fulfilment"))
    handlers = [bench.new_owner(partitions=lanes.partitions(lane), alone=alone) for lane in lanes.all]
    for handler in handlers:
        await handler.claim("stream-1")  # the process before did not end in order
    messages = [bench.message(reserved(partition_key(lane))) for lane in lanes.all]
    await asyncio.gather(*(one.handle([message], ()) for one, message in zip(handlers, messages, strict=True)))
    assert counted == [1, 1]
