"""What a diagnosis says to whoever is on call: the words, whole, for each way in which a saga can be held up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from choreography.v1 import participant_pb2, saga_diagnosis_pb2
from choreography.v1.participant_pb2 import (
    QUEUED_EVENT_STATE_DEAD_LETTERED,
    QUEUED_EVENT_STATE_DEPENDENCY_DOWN,
    QUEUED_EVENT_STATE_EARLY,
    QUEUED_EVENT_STATE_RETRYING,
    QUEUED_EVENT_STATE_SNOOZED,
    QUEUED_EVENT_STATE_UNREADABLE,
    QUEUED_EVENT_STATE_WAITING,
    ParticipantStatus,
    QueuedEvent,
)
from farandole.cli.saga_diagnosis import next_commands
from farandole.correlator.awaited import awaited
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.diagnosis import diagnose
from farandole.correlator.held_up import Consumer, Standing
from farandole.correlator.inquiry import consumer_of
from farandole.lifecycle import CORRELATOR
from farandole.partitions import partition_of
from farandole.reasons import Reason
from farandole.saga import Cause, Lifecycle
from tests.unit.saga_histories import DRONE_DELIVERY, ORDER_FULFILMENT, START, Told, event, lifecycle, timed_out, told
from tests.unit.saga_histories import dead_letter as history_dead_letter

PAID = ("OrderCreated", "ItemsReserved", "PaymentProcessed")
"""At 12:00:00, :01 and :02, as sequences 10, 20 and 30: shipping is to carry out ship-order by 12:01:02."""
LATE = lifecycle("StepOverdue", "ship-order", after=61)
REFUSED = event("ShippingFailed", reason="no post goes to nowhere")
ALL_STEPS = tuple(step.name for step in ORDER_FULFILMENT.steps)
TIMED_OUT = timed_out(*ALL_STEPS, after=1800)
"""At 12:30:02, sequence 40."""
PROCESSED, FAILED = "payments.v1.PaymentProcessed", "shipping.v1.ShippingFailed"

WAITS_FOR_SHIPPING = (
    "It waits since 2026-11-22T12:00:02.000Z for shipping to carry out ship-order; that is due "
    "2026-11-22T12:01:02.000Z."
)
WAITED_FOR_SHIPPING = WAITS_FOR_SHIPPING.replace("that is due", "that was due")
UNTIL_THE_TIME_OUT = (
    "Where shipping.v1.OrderShipped has not come by 2026-11-22T12:30:00.000Z, the saga is timed out and undone."
)
OVERDUE = "order-fulfilment ord-1 is RUNNING. It is OVERDUE: a deadline of a step or of a compensation has passed."
DECIDE = "Remove its cause; then have it redriven, or discarded to go on without it."

VOIDED_LAST = lifecycle("StepVoided", "complete-order")
NO_LAST_WORD = (
    "shipping has not said yet what became of ship-order, which had not ended when the saga was timed out. shipping is "
    "not running, or it is suspended: nobody answers, and its durable consumer, which nobody reads, has acknowledged "
    "nothing since "
    "2026-11-22T12:00:00.000Z. It has not acknowledged choreography.v1.SagaTimedOut (sequence 40) yet (it is at 20), "
    "and 4 events for it wait. Start shipping: it voids the step, or undoes it where it was done."
)


def consumer(lag: int = 0, acknowledged: int = 30, *, is_read: bool = True) -> Consumer:
    return Consumer(lag, acknowledged, START, is_read)


def answers(position: int, *queue: QueuedEvent, lag: int = 0, problems: Sequence[str] = ()) -> Standing:
    """A participant that runs."""
    return Standing(consumer(lag), ParticipantStatus(position=position, queue=queue, problems=problems))


DISCARDED = ("DeadLetterRecorded", "DeadLetterDiscarded")
STOPPED = Standing(consumer(4, 20, is_read=False))


TRIED_BY_TIME = (QUEUED_EVENT_STATE_RETRYING, QUEUED_EVENT_STATE_SNOOZED, QUEUED_EVENT_STATE_UNREADABLE)


def with_circuit(standing: Standing, dependency: str, error: str) -> Standing:
    """The same participant, with a dependency of it down since the beginning."""
    assert standing.status is not None
    circuit = standing.status.circuits.add(dependency=dependency, error=error)
    circuit.open_time.FromDatetime(START)
    circuit.next_probe_time.FromDatetime(START + timedelta(seconds=30))
    return standing


def with_refused(standing: Standing, *sagas: str) -> Standing:
    """The same participant, of whose events the broker refuses one of each of these sagas."""
    assert standing.status is not None
    for saga_id in sagas:
        refused = standing.status.refused.add(saga_id=saga_id, subject=f"events.{saga_id}.x", error="it is too large")
        refused.refuse_time.FromDatetime(START)
    return standing


def queued(sequence: int, state: participant_pb2.QueuedEventState.ValueType, **fields: object) -> QueuedEvent:
    made = QueuedEvent(sequence=sequence, event_type=PROCESSED if sequence == 30 else FAILED, state=state)
    for name, value in fields.items():
        setattr(made, name, value)
    if state in TRIED_BY_TIME:
        made.next_attempt_time.FromDatetime(START + timedelta(seconds=90))
    return made


def dead_letter(participant: str = "shipping", sequence: int = 30, **fields: object) -> DeadLetter:
    values: dict[str, object] = {
        "participant": participant,
        "sequence": sequence,
        "subject": f"events.1.{PROCESSED}",
        "event_type": PROCESSED,
        "key": "ord-1",
        "reason": Reason.RETRIES_EXHAUSTED,
        "detail": "RuntimeError: the label printer is jammed",
        "stream_time": START,
        "headers": {},
        "body_size": 0,
        "body_sha256": "",
        "state_sequence": 40,
        "definition": "order-fulfilment",
        "step": "ship-order",
        "attempts": 3,
    }
    return DeadLetter(**(values | fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A saga, what was learnt of those it waits for, and all that the diagnosis says."""

    name: str
    events: Sequence[str | Told]
    standings: Mapping[str, Standing]
    says: Sequence[str]
    tries: Sequence[str]
    dead_letters: Sequence[DeadLetter] = ()


CASES = [
    Case(
        "on time, and the participant has not come to it yet",
        PAID,
        {"shipping": answers(20, lag=7)},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping runs and has not read {PROCESSED} (sequence 30) yet: it is at "
                f"sequence 20, "
                "with 7 events to go."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "on time, and the answer is on its way",
        PAID,
        {"shipping": answers(30)},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping runs, has read {PROCESSED} (sequence 30) and has nothing of "
                f"this saga left "
                "in its queue: its answer is on its way, or it gave none. Where this stays so, look for saga_id "
                "ord-1 in "
                "its log."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant is not running",
        [*PAID, LATE],
        {"shipping": STOPPED},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping is not running, or it is suspended: "
                f"nobody answers, and its durable consumer, "
                f"which nobody "
                "reads, has acknowledged nothing since 2026-11-22T12:00:00.000Z. It has not acknowledged "
                f"{PROCESSED} (sequence 30) yet (it is at 20), and 4 events for it wait. Start shipping: it "
                f"goes on where "
                "it stopped."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole start shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant stopped when it had taken the event in",
        [*PAID, LATE],
        {"shipping": Standing(consumer(0, 30, is_read=False))},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping is not running, or it is suspended: "
                f"nobody answers, and its durable consumer, "
                f"which nobody "
                "reads, has acknowledged nothing since 2026-11-22T12:00:00.000Z. It had taken in "
                f"{PROCESSED} (sequence 30). Start shipping: it goes on where it stopped."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole start shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant has never run",
        [*PAID, LATE],
        {"shipping": Standing()},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping has never run: it does not answer, and the broker has no "
                f"durable consumer "
                "of that name. Start shipping."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole start shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant hangs",
        [*PAID, LATE],
        {"shipping": Standing(consumer(1, 20))},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping does not answer, though a process reads its durable consumer: "
                f"it hangs, "
                f"or it is one that does not tell its status. It has not acknowledged {PROCESSED} (sequence 30) "
                f"yet (it is "
                "at 20), and 1 event for it waits. Look at its log, or restart shipping."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole start shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant can't work",
        [*PAID, LATE],
        {"shipping": answers(20, lag=1, problems=["store: the database is locked"])},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping says what keeps it from working: store: the database is "
                f"locked. shipping "
                f"runs and has not read {PROCESSED} (sequence 30) yet: it is at sequence 20, with 1 event to go."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "overdue, and the participant is retrying",
        [*PAID, LATE],
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_RETRYING, attempts=2, error="OSError:\nno route"))},
        [
            OVERDUE,
            (
                f"{WAITED_FOR_SHIPPING} shipping has read {PROCESSED} (sequence 30) and is retrying it: 2 tries "
                f"so far, "
                "the next one at 2026-11-22T12:01:30.000Z. The last try raised OSError: no route."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "snoozed",
        PAID,
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_SNOOZED, error="nobody is in the depot"))},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping has read {PROCESSED} (sequence 30), and its handler wants it again at "
                "2026-11-22T12:01:30.000Z: nobody is in the depot."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "a dependency of the participant is down",
        PAID,
        {
            "shipping": with_circuit(
                answers(30, queued(30, QUEUED_EVENT_STATE_DEPENDENCY_DOWN, dependency="label-printer")),
                "label-printer",
                "out of paper",
            )
        },
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping has read {PROCESSED} (sequence 30), and it waits for label-printer. "
                "That has been down since 2026-11-22T12:00:00.000Z, and is tried again at 2026-11-22T12:00:30.000Z: "
                "out of paper."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "a dependency of the participant is up again",
        PAID,
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_DEPENDENCY_DOWN, dependency="label-printer"))},
        [
            "order-fulfilment ord-1 is RUNNING.",
            f"{WAITS_FOR_SHIPPING} shipping has read {PROCESSED} (sequence 30), and it waits for label-printer.",
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "the participant was deployed with older schemas",
        PAID,
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_UNREADABLE, error="there is no field weight"))},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping can't read {PROCESSED} (sequence 30): there is no field weight. It was "
                "deployed with other schemas than the correlator has: deploy it with those. It tries again at "
                "2026-11-22T12:01:30.000Z."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "the broker refuses what the participant publishes",
        PAID,
        {"shipping": with_refused(answers(30), "ord-0", "ord-1")},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping has an event of this saga that the broker has refused since "
                "2026-11-22T12:00:00.000Z, for events.ord-1.x: it is too large. It is tried again and again, and later "
                "ones wait behind it."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole logs shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "quarantined, and the correlator knows the dead letter",
        PAID,
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_DEAD_LETTERED, attempts=3))},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping gave up on {PROCESSED} (sequence 30) for ship-order: dead letter "
                "shipping-30, RETRIES_EXHAUSTED after 3 tries: RuntimeError: the label printer is jammed. "
                f"{DECIDE}"
            ),
            UNTIL_THE_TIME_OUT,
        ],
        [
            "farandole deadletters show shipping-30",
            "farandole deadletters redrive shipping-30 --reason WHY",
            "farandole deadletters discard shipping-30 --reason WHY",
            "farandole logs shipping",
            "farandole sagas watch ord-1",
        ],
        [dead_letter()],
    ),
    Case(
        "quarantined in a participant that is not running",
        PAID,
        {"shipping": STOPPED},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                f"{WAITS_FOR_SHIPPING} shipping gave up on {PROCESSED} (sequence 30) for ship-order: dead letter "
                f"shipping-30, REJECTED: bad address. {DECIDE} shipping is not running, or it is suspended: "
                f"nobody answers, and its "
                f"durable "
                "consumer, which nobody reads, has acknowledged nothing since 2026-11-22T12:00:00.000Z. It has not "
                f"acknowledged {PROCESSED} (sequence 30) yet (it is at 20), and 4 events for it wait. Start "
                f"shipping: it "
                "goes on where it stopped."
            ),
            UNTIL_THE_TIME_OUT,
        ],
        [
            "farandole deadletters show shipping-30",
            "farandole deadletters redrive shipping-30 --reason WHY",
            "farandole deadletters discard shipping-30 --reason WHY",
            "farandole start shipping",
            "farandole sagas watch ord-1",
        ],
        [dead_letter(reason=Reason.REJECTED, detail="bad address", attempts=0)],
    ),
    Case(
        "a compensation waits behind a dead letter of which only the participant has told so far",
        [*PAID, REFUSED],
        {
            "payments": answers(
                40,
                queued(30, QUEUED_EVENT_STATE_DEAD_LETTERED, attempts=1, error="Reject: what is this?"),
                queued(40, QUEUED_EVENT_STATE_WAITING),
            )
        },
        [
            (
                "order-fulfilment ord-1 is COMPENSATING: what it did is being undone (STEP_FAILURE: ship-order: "
                "no post "
                "goes to nowhere)."
            ),
            (
                "It waits since 2026-11-22T12:00:03.000Z for payments to undo take-payment; that is due "
                f"2026-11-22T12:05:03.000Z. payments has read {FAILED} (sequence 40); it waits behind {PROCESSED} "
                f"(sequence 30). payments gave up on {PROCESSED} (sequence 30): dead letter payments-30 after 1 try: "
                f"Reject: what is this? {DECIDE}"
            ),
            "Still to be undone after that: reserve-items, place-order.",
        ],
        ["farandole logs payments", "farandole deadletters show payments-30", "farandole sagas watch ord-1"],
    ),
    Case(
        "compensating",
        [*PAID, REFUSED, "PaymentRefunded"],
        {"inventory": answers(20)},
        [
            (
                "order-fulfilment ord-1 is COMPENSATING: what it did is being undone (STEP_FAILURE: ship-order: "
                "no post "
                "goes to nowhere)."
            ),
            (
                "It waits since 2026-11-22T12:00:04.000Z for inventory to undo reserve-items; that is due "
                "2026-11-22T12:05:04.000Z. inventory runs and has not read payments.v1.PaymentRefunded "
                "(sequence 50) yet: "
                "it is at sequence 20."
            ),
            "Still to be undone after that: place-order.",
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "voided",
        [*PAID, lifecycle("StepVoided", "ship-order")],
        {},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                "ship-order was voided: no work is done there any more, so the saga can't complete. It will be "
                "timed out "
                "at its deadline (2026-11-22T12:30:00.000Z), and what it did is undone then."
            ),
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "voided, and its commit event waits",
        ["OrderCreated", lifecycle("StepVoided", "reserve-items"), "OrderShipped"],
        {},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                "reserve-items was voided: no work is done there any more, so the saga can't complete. It is not timed "
                "out either, since shipping.v1.OrderShipped (sequence 30) has come: it stays as it is."
            ),
            (
                "shipping.v1.OrderShipped (sequence 30) came early and waits for payments.v1.PaymentProcessed to start "
                "ship-order."
            ),
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "committed",
        [*PAID, "OrderShipped"],
        {"orders": answers(30)},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                "It waits since 2026-11-22T12:00:03.000Z for orders to carry out complete-order; that is due "
                "2026-11-22T12:01:03.000Z. orders runs and has not read shipping.v1.OrderShipped (sequence 40) "
                "yet: it is "
                "at sequence 30."
            ),
            "The saga has committed with shipping.v1.OrderShipped: it is not undone any more, it can only be late.",
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "about to complete",
        [*PAID, "OrderShipped", "OrderCompleted"],
        {},
        [
            "order-fulfilment ord-1 is RUNNING.",
            "Every step has succeeded; only the correlator's own SagaCompleted has not been read back yet.",
        ],
        ["farandole sagas watch ord-1"],
    ),
    Case(
        "completed",
        [*PAID, "OrderShipped", "OrderCompleted", lifecycle("SagaCompleted")],
        {},
        ["order-fulfilment ord-1 is COMPLETED since 2026-11-22T12:00:05.000Z."],
        ["farandole sagas show ord-1"],
    ),
    Case(
        "failed",
        ["OrderCreated", event("ReservationFailed", reason="sold out"), "OrderCancelled", lifecycle("SagaCompensated")],
        {},
        [
            (
                "order-fulfilment ord-1 is COMPENSATED since 2026-11-22T12:00:03.000Z: what it did has been undone "
                "(STEP_FAILURE: reserve-items: sold out)."
            )
        ],
        ["farandole sagas show ord-1"],
    ),
    Case(
        "quarantined, as its history tells",
        [*PAID, history_dead_letter("Recorded", "ship-order", 30)],
        {"shipping": answers(30, queued(30, QUEUED_EVENT_STATE_DEAD_LETTERED, attempts=3))},
        [
            (
                "order-fulfilment ord-1 is RUNNING. It is QUARANTINED: an event of it is a dead letter, and later "
                "events wait behind that."
            ),
            (
                f"{WAITS_FOR_SHIPPING} shipping gave up on {PROCESSED} (sequence 30) for ship-order: dead letter "
                f"shipping-30, RETRIES_EXHAUSTED after 3 tries: RuntimeError: the label printer is jammed. {DECIDE}"
            ),
            UNTIL_THE_TIME_OUT,
        ],
        [
            "farandole deadletters show shipping-30",
            "farandole deadletters redrive shipping-30 --reason WHY",
            "farandole deadletters discard shipping-30 --reason WHY",
            "farandole logs shipping",
            "farandole sagas watch ord-1",
        ],
        [dead_letter()],
    ),
    Case(
        "a compensation was given up on",
        [*PAID, REFUSED, history_dead_letter("Recorded", "take-payment", 40, compensation=True)],
        {"payments": answers(40, queued(40, QUEUED_EVENT_STATE_DEAD_LETTERED, attempts=3))},
        [
            (
                "order-fulfilment ord-1 is COMPENSATION_FAILED: undoing it was given up on, and an operator "
                "must decide "
                "(STEP_FAILURE: ship-order: no post goes to nowhere). It is QUARANTINED: an event of it is a dead "
                "letter, and later events wait behind that."
            ),
            (
                "It waits since 2026-11-22T12:00:03.000Z for payments to undo take-payment; that is due "
                f"2026-11-22T12:05:03.000Z. payments gave up on {FAILED} (sequence 40) for undoing take-payment: dead "
                f"letter payments-40, REJECTED after 1 try: the bank is closed. {DECIDE}"
            ),
            "Still to be undone after that: reserve-items, place-order.",
        ],
        [
            "farandole deadletters show payments-40",
            "farandole deadletters redrive payments-40 --reason WHY",
            "farandole deadletters discard payments-40 --reason WHY",
            "farandole logs payments",
            "farandole sagas watch ord-1",
        ],
        [
            dead_letter(
                "payments",
                40,
                event_type=FAILED,
                step="take-payment",
                compensation=True,
                reason=Reason.REJECTED,
                detail="the bank is closed",
                attempts=1,
            )
        ],
    ),
    Case(
        "stalled after its commit event",
        [*PAID, "OrderShipped", lifecycle("SagaStalled", after=1900)],
        {"orders": Standing(consumer(1, 30, is_read=False))},
        [
            (
                "order-fulfilment ord-1 is RUNNING. It is STALLED: it has not ended by its deadline "
                "(2026-11-22T12:30:00.000Z), and since it has committed it is not timed out."
            ),
            (
                "It waits since 2026-11-22T12:00:03.000Z for orders to carry out complete-order; that is due "
                "2026-11-22T12:01:03.000Z. orders is not running, or it is suspended: "
                "nobody answers, and its durable consumer, which "
                "nobody reads, has acknowledged nothing since 2026-11-22T12:00:00.000Z. It has not acknowledged "
                "shipping.v1.OrderShipped (sequence 40) yet (it is at 30), and 1 event for it waits. Start orders: it "
                "goes on where it stopped."
            ),
            "The saga has committed with shipping.v1.OrderShipped: it is not undone any more, it can only be late.",
        ],
        ["farandole start orders", "farandole sagas watch ord-1"],
    ),
    Case(
        "timed out, with a participant that is not running",
        [*PAID, TIMED_OUT, "OrderCancelled", VOIDED_LAST],
        {"inventory": answers(40), "payments": answers(30, lag=1), "shipping": STOPPED},
        [
            (
                "order-fulfilment ord-1 is COMPENSATING: what it did is being undone (DEADLINE: its deadline passed at "
                "2026-11-22T12:30:00Z while it waited for ship-order)."
            ),
            (
                "It waits since 2026-11-22T12:30:02.000Z for inventory to undo reserve-items; that is due "
                "2026-11-22T12:35:02.000Z. inventory runs, has read choreography.v1.SagaTimedOut (sequence 40) and has "
                "nothing of this saga left in its queue: its answer is on its way, or it gave none. Where this stays "
                "so, look for saga_id ord-1 in its log."
            ),
            (
                "It waits since 2026-11-22T12:30:02.000Z for payments to undo take-payment; that is due "
                "2026-11-22T12:35:02.000Z. payments runs and has not read choreography.v1.SagaTimedOut (sequence 40) "
                "yet: it is at sequence 30, with 1 event to go."
            ),
            NO_LAST_WORD,
        ],
        ["farandole start shipping", "farandole sagas watch ord-1"],
    ),
    Case(
        "timed out and ended, with a participant that is not running",
        [
            *(*PAID, TIMED_OUT, "OrderCancelled", VOIDED_LAST, "PaymentRefunded", "ItemsReleased"),
            lifecycle("SagaCompensated", cause=Cause.DEADLINE),
        ],
        {"shipping": STOPPED},
        [
            (
                "order-fulfilment ord-1 is COMPENSATED since 2026-11-22T12:30:07.000Z: what it did has been undone "
                "(DEADLINE: its deadline passed at 2026-11-22T12:30:00Z while it waited for ship-order)."
            ),
            NO_LAST_WORD,
        ],
        ["farandole start shipping", "farandole sagas show ord-1"],
    ),
    Case(
        "timed out, and a compensation is late",
        [
            *(*PAID, TIMED_OUT, "OrderCancelled", VOIDED_LAST, "ItemsReleased"),
            lifecycle("StepVoided", "ship-order"),
            lifecycle("StepOverdue", "take-payment", compensation=True, after=301),
        ],
        {"payments": answers(40, queued(40, QUEUED_EVENT_STATE_RETRYING, attempts=1, error="OSError: no route"))},
        [
            (
                "order-fulfilment ord-1 is COMPENSATING: what it did is being undone (DEADLINE: its deadline passed at "
                "2026-11-22T12:30:00Z while it waited for ship-order). It is STALLED: it was timed out, and undoing it "
                "is late too."
            ),
            (
                "It waits since 2026-11-22T12:30:02.000Z for payments to undo take-payment; that was due "
                "2026-11-22T12:35:02.000Z. payments has read shipping.v1.ShippingFailed (sequence 40) and is retrying "
                "it: 1 try so far, the next one at 2026-11-22T12:01:30.000Z. The last try raised OSError: no route."
            ),
        ],
        ["farandole logs payments", "farandole sagas watch ord-1"],
    ),
    Case(
        "an event came early, and one can't be read",
        ["OrderCreated", "PaymentProcessed"],
        {"inventory": Standing(trouble="the broker is not reachable; start it")},
        [
            "order-fulfilment ord-1 is RUNNING.",
            (
                "It waits since 2026-11-22T12:00:00.000Z for inventory to carry out reserve-items; that is due "
                "2026-11-22T12:01:00.000Z. Where inventory stands could not be learnt: the broker is not "
                "reachable; start "
                "it."
            ),
            (
                f"A {PROCESSED} with this key (sequence 15) can't be read by anyone, and so moved nothing: dead letter "
                "correlator-15, RULE_VIOLATION: amount_cents: too low."
            ),
            f"{PROCESSED} (sequence 20) came early and waits for inventory.v1.ItemsReserved to start take-payment.",
            UNTIL_THE_TIME_OUT,
        ],
        ["farandole status", "farandole sagas watch ord-1"],
        [dead_letter(CORRELATOR, 15, definition="", reason=Reason.RULE_VIOLATION, detail="amount_cents: too low")],
    ),
]


def diagnosis_of(case: Case) -> saga_diagnosis_pb2.SagaDiagnosis:
    return diagnose(ORDER_FULFILMENT, told(*case.events), case.standings, case.dead_letters)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_words(case: Case) -> None:
    diagnosis = diagnosis_of(case)
    assert diagnosis.summary.splitlines() == list(case.says)
    assert next_commands(diagnosis) == list(case.tries)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_asked_is_what_is_told(case: Case) -> None:
    """Whoever is awaited was asked, and every detail of the fields stands in the summary too."""
    saga = told(*case.events)
    assert {one.step.participant for one in awaited(ORDER_FULFILMENT, saga)} == set(case.standings)
    diagnosis = diagnosis_of(case)
    assert {outcome.participant for outcome in diagnosis.awaited} == set(case.standings)
    assert all(outcome.detail in case.says for outcome in diagnosis.awaited)


LANE = partition_of("ord-1") % 4
OTHERS = [lane for lane in range(4) if lane != LANE]
NOT_READ_YET = "runs and has not read payments.v1.PaymentProcessed (sequence 30) yet: it is at sequence 20."


@pytest.mark.parametrize(
    ("lanes", "replicas", "says"),
    [
        (1, {"a": [0]}, f"shipping {NOT_READ_YET}"),
        (1, {"a": [], "b": [0]}, f"shipping (on replica b) {NOT_READ_YET}"),
        (4, {"a": OTHERS, "b": [LANE]}, f"shipping (lane {LANE}, on replica b) {NOT_READ_YET}"),
        (4, {"a": range(4)}, f"shipping (lane {LANE}, on replica a) {NOT_READ_YET}"),
        (
            4,
            {"a": OTHERS, "b": None},
            (
                f"No replica of shipping that answers works on lane {LANE}, which this saga is in. Of replica b "
                "nothing is heard: look at the log there, or restart it."
            ),
        ),
        (
            4,
            {"a": OTHERS},
            (
                f"No replica of shipping that answers works on lane {LANE}, which this saga is in. One takes it over "
                "within seconds, where any is able to."
            ),
        ),
        (
            1,
            {"a": [], "b": None, "c": None},
            (
                "No replica of shipping that answers works on its events. Of replica b, c nothing is heard: look at "
                "the log there, or restart it."
            ),
        ),
    ],
)
def test_of_several_replicas_it_is_said_which_one_has_the_saga(
    lanes: int, replicas: Mapping[str, Sequence[int] | None], says: str
) -> None:
    standing = answers(20)
    assert standing.status is not None
    standing.status.lanes = lanes
    for name, held in replicas.items():
        standing.status.replicas.add(replica=name, lanes=held or (), silent=held is None)
    diagnosis = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": standing})
    assert diagnosis.awaited[0].detail == f"{WAITS_FOR_SHIPPING} {says}"


def test_what_is_in_a_queue_is_told_whoever_works_on_it() -> None:
    standing = answers(30, queued(30, QUEUED_EVENT_STATE_WAITING))
    assert standing.status is not None
    standing.status.lanes = 4
    standing.status.replicas.add(replica="b", silent=True)
    detail = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": standing}).awaited[0].detail
    assert detail == f"{WAITS_FOR_SHIPPING} shipping has read {PROCESSED} (sequence 30), and it waits in its queue."


@pytest.mark.parametrize("is_read", [True, False])
def test_the_durable_consumer_of_a_lane_is_named(is_read: bool) -> None:
    standing = Standing(replace(consumer(4, 20, is_read=is_read), name="shipping-2"))
    diagnosis = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": standing})
    assert "its durable consumer shipping-2" in diagnosis.summary
    assert diagnosis.awaited[0].participant_diagnosis.consumer == "shipping-2"
    of_all = Standing(replace(consumer(4, 20, is_read=is_read), name="shipping"))
    assert "its durable consumer shipping" not in diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": of_all}).summary


def test_an_act_without_compensation_that_came_too_late_is_to_be_taken_back_with_a_failure() -> None:
    delivering = ("ParcelOrdered", "PackagePrepared", "DroneProvisioned")
    undone = ("DroneReleased", "PackageUnpacked", "ParcelOrderCancelled")
    time_out = timed_out(definition=DRONE_DELIVERY)
    saga = told(*delivering, time_out, "PackageDelivered", *undone, definition=DRONE_DELIVERY)
    first, *_ = awaited(DRONE_DELIVERY, saga)
    assert (first.step.name, first.is_compensation) == ("deliver-package", True)
    assert first.event_types == ("delivery.v1.DeliveryFailed",)
    assert first.deadline == saga.steps[3].deadline


def test_what_nothing_leads_to_is_said_to_need_a_hand() -> None:
    """In a chain with a gap: undoing the payment leads nowhere, so the items stay reserved."""
    steps = list(ORDER_FULFILMENT.steps)
    payment = ORDER_FULFILMENT.index["take-payment"]
    steps[payment] = replace(steps[payment], compensation=None)
    gap = replace(ORDER_FULFILMENT, steps=tuple(steps))
    diagnosis = diagnose(gap, told(*PAID, REFUSED, definition=gap), {"inventory": STOPPED})
    (outcome,) = diagnosis.awaited
    assert (outcome.step, outcome.compensation, outcome.trigger_sequence) == ("reserve-items", True, 0)
    assert outcome.detail == (
        "reserve-items of inventory is to be undone, but none of payments.v1.PaymentFailed, "
        "payments.v1.PaymentRefunded "
        "has come, and nothing that is under way leads to it. Undo it by hand, and publish inventory.v1.ItemsReleased."
    )


def test_a_dead_letter_of_a_saga_that_waits_for_somebody_else_is_told_too() -> None:
    letter = dead_letter("inventory", 10, event_type="orders.v1.OrderCreated", step="reserve-items")
    diagnosis = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": answers(20)}, [letter])
    assert list(diagnosis.dead_letter_ids) == ["inventory-10"]
    assert (
        "inventory gave up on orders.v1.OrderCreated (sequence 10) for reserve-items: dead letter" in diagnosis.summary
    )


def test_what_an_operator_discarded_is_said_to_need_a_hand() -> None:
    """The participant has nothing of it in its queue any more, and will never answer."""
    refused = event("ShippingFailed")
    named = Lifecycle("order-fulfilment", 0, Cause.UNSPECIFIED, ("take-payment",), dead_letter=("payments", 40))
    letters = [replace(lifecycle(verb, "take-payment"), lifecycle=named) for verb in DISCARDED]
    saga = told(*PAID, refused, *letters)
    diagnosis = diagnose(ORDER_FULFILMENT, saga, {"payments": answers(60)})
    (outcome,) = diagnosis.awaited
    assert outcome.detail == (
        "It waits since 2026-11-22T12:00:03.000Z for payments to undo take-payment; that is due "
        "2026-11-22T12:05:03.000Z. The event on which payments would have done that was discarded by an operator, so "
        "nothing comes of it any more. Do it by hand, and publish payments.v1.PaymentRefunded."
    )


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        (
            [
                queued(10, QUEUED_EVENT_STATE_EARLY),
                queued(20, QUEUED_EVENT_STATE_RETRYING, attempts=1),
                queued(30, QUEUED_EVENT_STATE_WAITING),
            ],
            f"it waits behind {FAILED} (sequence 20). shipping has read {FAILED} (sequence 20) and is retrying it",
        ),
        (
            [queued(10, QUEUED_EVENT_STATE_EARLY), queued(20, QUEUED_EVENT_STATE_RETRYING, attempts=1)],
            f"has read {FAILED} (sequence 20) and is retrying it",
        ),
        (
            [queued(10, QUEUED_EVENT_STATE_EARLY)],
            f"has read {PROCESSED} (sequence 30) and has nothing of this saga left in its queue",
        ),
    ],
    ids=["with what it waits for behind another event", "with another event alone", "alone"],
)
def test_what_waits_for_other_events_of_its_step_holds_nothing_up(queue: list[QueuedEvent], says: str) -> None:
    diagnosis = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": answers(60, *queue)})
    assert says in diagnosis.summary


def test_what_a_step_still_needs_is_named() -> None:
    waiting = queued(30, QUEUED_EVENT_STATE_EARLY)
    waiting.missing.extend(["drones.v1.DroneProvisioned", "inventory.v1.ItemsReserved"])
    diagnosis = diagnose(ORDER_FULFILMENT, told(*PAID), {"shipping": answers(60, waiting)})
    needed = "its step still needs drones.v1.DroneProvisioned and inventory.v1.ItemsReserved."
    assert f"shipping has read {PROCESSED} (sequence 30), and {needed}" in diagnosis.summary


def test_an_empty_consumer_is_read_as_the_broker_leaves_it_out() -> None:
    assert consumer_of({"num_waiting": 1}) == Consumer(0, 0, None, is_read=True)
    info = {
        "ack_floor": {"consumer_seq": 3, "stream_seq": 17, "last_active": "2026-11-22T12:00:00.123456789Z"},
        "num_pending": 4,
        "num_ack_pending": 2,
        "num_waiting": 0,
    }
    assert consumer_of(info) == Consumer(6, 17, START.replace(microsecond=123456), is_read=False)
