"""When a saga is due next, and what the correlator tells it then."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from farandole.deadlines import due_lifecycle, next_deadline
from farandole.lifecycle import CORRELATOR
from farandole.saga import Cause, Saga
from tests.unit.saga_histories import (
    DRONE_DELIVERY,
    KEY,
    ORDER_FULFILMENT,
    START,
    Told,
    dead_letter,
    event,
    lifecycle,
    overdue,
    timed_out,
    told,
    voided,
)

SHIPPED = ("OrderCreated", "ItemsReserved", "PaymentProcessed", "OrderShipped")
SHIPPING_FAILED = (*SHIPPED[:3], "ShippingFailed")
FINISHED = (*SHIPPED, "OrderCompleted")
LONG_AFTER = START + timedelta(days=1)


def seconds(saga: Saga) -> float | None:
    """The next deadline, in seconds after the start."""
    deadline = next_deadline(saga)
    return None if deadline is None else (deadline - START).total_seconds()


def due(saga: Saga, now: datetime = LONG_AFTER) -> list[str]:
    """`StepOverdue take-payment` for each lifecycle event that is due; `undoing` where it is about a compensation."""
    return [
        " ".join(
            (
                found.type.rpartition(".")[2],
                *(("undoing",) if found.compensation else ()),
                *(found.steps if found.type.endswith("StepOverdue") else ()),
            )
        )
        for found in due_lifecycle(ORDER_FULFILMENT, saga, now)
    ]


def told_of_due(saga: Saga, number: int = 0) -> Told:
    """The number-th event that is due, as the correlator publishes it."""
    found = due_lifecycle(ORDER_FULFILMENT, saga, LONG_AFTER)[number]
    return lifecycle(
        found.type.rpartition(".")[2],
        *found.steps,
        cause=found.cause,
        compensation=found.compensation,
        id=found.id,
        source=CORRELATOR,
    )


@pytest.mark.parametrize(
    ("events", "next_due", "then"),
    [
        pytest.param(
            ("OrderCreated",), 60, ["StepOverdue reserve-items", "SagaTimedOut"], id="a step runs"
        ),
        pytest.param(
            ("OrderCreated", voided("reserve-items")), 1800, ["SagaTimedOut"], id="nothing runs and nothing can"
        ),
        pytest.param(
            SHIPPED, 63, ["StepOverdue complete-order", "SagaStalled"], id="it has committed"
        ),
        pytest.param(
            ("OrderCreated", "OrderShipped"), 60, ["StepOverdue reserve-items", "SagaStalled"],
            id="its commit event waits for its turn",
        ),
        pytest.param(FINISHED, None, [], id="it waits for its end only"),
        pytest.param((*FINISHED, lifecycle("SagaCompleted")), None, [], id="it has completed"),
        pytest.param(
            SHIPPING_FAILED, 303, ["StepOverdue undoing take-payment", "SagaStalled"], id="a failure turned it"
        ),
        pytest.param(
            (*SHIPPING_FAILED, "PaymentRefunded"), 304, ["StepOverdue undoing reserve-items", "SagaStalled"],
            id="the next one is being undone",
        ),
        pytest.param(
            (*SHIPPING_FAILED, voided("place-order"), voided("complete-order"), "PaymentRefunded", "ItemsReleased"),
            None, [], id="all is undone",
        ),
        pytest.param(
            ("OrderCreated", "ItemsReserved", timed_out()), 302,
            ["StepOverdue undoing place-order", "StepOverdue undoing reserve-items"], id="it was timed out",
        ),
        pytest.param(
            ("OrderCreated", timed_out(), "OrderCancelled"), None, [], id="timed out, and a step has not answered"
        ),
        pytest.param(("ItemsReserved",), None, [], id="it has not started"),
    ],
)  # fmt: skip
def test_what_is_due_and_when(events: tuple[str | Told, ...], next_due: float | None, then: list[str]) -> None:
    saga = told(*events)
    assert (seconds(saga), due(saga)) == (next_due, then)


def test_nothing_is_due_a_microsecond_before_its_deadline() -> None:
    saga = told("OrderCreated")
    assert due(saga, START + timedelta(seconds=60, microseconds=-1)) == []
    assert due(saga, START + timedelta(seconds=60)) == ["StepOverdue reserve-items"]
    assert due(saga, START + timedelta(seconds=1800, microseconds=-1)) == ["StepOverdue reserve-items"]


def test_what_is_due_tells_what_its_event_says() -> None:
    late, out = due_lifecycle(ORDER_FULFILMENT, told("OrderCreated"), LONG_AFTER)
    assert (late.key, late.definition, late.version, late.cause) == (KEY, "order-fulfilment", 1, Cause.UNSPECIFIED)
    assert (late.participant, late.compensation, late.deadline) == ("inventory", False, START + timedelta(seconds=60))
    assert (out.cause, out.participant, out.deadline) == (Cause.DEADLINE, "", START + timedelta(seconds=1800))
    assert out.steps == tuple(step.name for step in ORDER_FULFILMENT.steps)
    assert late.causation_id == out.causation_id == "event-1"
    undoing, stalled = due_lifecycle(ORDER_FULFILMENT, told(*SHIPPING_FAILED), LONG_AFTER)
    assert (undoing.cause, undoing.participant, undoing.compensation) == (Cause.STEP_FAILURE, "payments", True)
    assert (stalled.cause, stalled.steps) == (Cause.STEP_FAILURE, ())
    assert stalled.deadline == START + timedelta(seconds=1800)
    assert due_lifecycle(ORDER_FULFILMENT, told(*SHIPPED), LONG_AFTER)[1].cause is Cause.UNSPECIFIED


def test_the_cause_is_what_the_saga_waits_since_and_nothing_that_only_tells_of_it() -> None:
    saga = told("OrderCreated", overdue("reserve-items"), dead_letter("Recorded", "reserve-items"), "PaymentProcessed")
    assert due_lifecycle(ORDER_FULFILMENT, saga, LONG_AFTER)[-1].causation_id == "event-1"
    assert due_lifecycle(ORDER_FULFILMENT, told(*SHIPPED), LONG_AFTER)[-1].causation_id == "event-4"


def test_ids_stay_the_same_until_their_event_is_stored_and_are_of_that_saga_alone() -> None:
    ids = [one.id for one in due_lifecycle(ORDER_FULFILMENT, told("OrderCreated"), LONG_AFTER)]
    noise = told(
        "OrderCreated", event("loyalty.v1.PointsGranted"), "OrderCreated", dead_letter("Recorded", "ship-order")
    )
    assert [one.id for one in due_lifecycle(ORDER_FULFILMENT, noise, LONG_AFTER)] == ids
    assert len(set(ids)) == 2
    for other in (replace(noise, key="another"), replace(noise, version=2), replace(noise, definition="another")):
        definition = replace(ORDER_FULFILMENT, name=other.definition, version=other.version)
        assert not {one.id for one in due_lifecycle(definition, other, LONG_AFTER)} & set(ids)


class TestOnceTold:
    """What has been read back is not due again."""

    def test_a_step_that_is_known_to_be_overdue_waits_for_the_saga_only(self) -> None:
        events = ("OrderCreated", told_of_due(told("OrderCreated")))
        assert (seconds(told(*events)), due(told(*events))) == (1800, ["SagaTimedOut"])

    def test_a_compensation_is_told_apart_from_its_step(self) -> None:
        paying = SHIPPED[:2]
        events = (*paying, told_of_due(told(*paying)), "PaymentProcessed", "ShippingFailed")
        assert due(told(*events)) == ["StepOverdue undoing take-payment", "SagaStalled"]

    def test_what_came_too_late_to_count_is_not_due_again_either(self) -> None:
        """The step ended between the tick and the event."""
        late = told_of_due(told("OrderCreated"))
        assert due(told("OrderCreated", "ItemsReserved", late)) == ["StepOverdue take-payment", "SagaTimedOut"]

    def test_what_somebody_else_says_is_not_the_correlators_word(self) -> None:
        """Anyone may publish a `StepOverdue` too soon; the deadline is watched all the same."""
        assert due(told("OrderCreated", overdue("reserve-items", source="someone"))) == [
            "StepOverdue reserve-items",
            "SagaTimedOut",
        ]

    def test_a_compensation_that_is_triggered_again_is_told_again(self) -> None:
        """Undone without having succeeded, then a late success: it is undone a second time, by another deadline."""
        placing, reserving, paying, *others = ORDER_FULFILMENT.steps
        assert paying.compensation is not None
        compensation = replace(paying.compensation, triggers=("inventory.v1.ReservationFailed",))
        parallel = replace(
            ORDER_FULFILMENT,
            steps=(
                placing,
                reserving,
                replace(paying, triggers=("orders.v1.OrderCreated",), compensation=compensation),
                *others,
            ),
        )
        events: list[str | Told] = ["OrderCreated", "ReservationFailed", "OrderCancelled"]
        first = told(*events, definition=parallel)
        assert due(first) == ["StepOverdue undoing take-payment", "SagaStalled"]
        events += [told_of_due(first)]
        assert due(told(*events, definition=parallel)) == ["SagaStalled"]
        events += ["PaymentRefunded", "PaymentProcessed"]
        assert due(told(*events, definition=parallel)) == ["StepOverdue undoing take-payment", "SagaStalled"]

    def test_a_saga_is_timed_out_once(self) -> None:
        saga = told("OrderCreated", told_of_due(told("OrderCreated"), 1))
        assert (saga.cause, due(saga)) == (Cause.DEADLINE, ["StepOverdue undoing place-order"])

    def test_a_time_out_that_came_after_the_commit_event_makes_way_for_stalled(self) -> None:
        time_out = told_of_due(told(*SHIPPED[:3]), 1)
        assert due(told(*SHIPPED, time_out)) == ["StepOverdue complete-order", "SagaStalled"]

    def test_a_saga_is_told_once_that_it_is_stalled(self) -> None:
        saga = told(*SHIPPED, told_of_due(told(*SHIPPED), 1))
        assert due(saga) == ["StepOverdue complete-order"]

    def test_a_saga_that_opens_again_after_its_deadline_is_told_again(self) -> None:
        """It was told after its end the first time, so that this did not count."""
        undone = ("OrderCreated", "ReservationFailed", "OrderCancelled")
        stalled = told_of_due(told(*undone[:2]), 1)
        ended = (*undone, lifecycle("SagaCompensated", cause=Cause.STEP_FAILURE), stalled)
        assert due(told(*ended)) == []
        reopened = told(*ended, "PaymentProcessed")
        assert due(reopened) == ["StepOverdue undoing take-payment", "SagaStalled"]
        again = told(*ended, "PaymentProcessed", told_of_due(reopened, 1))
        assert due(again) == ["StepOverdue undoing take-payment"]


def test_a_compensation_that_was_given_up_on_is_still_watched() -> None:
    given_up = dead_letter("Recorded", "take-payment", 40, compensation=True)
    assert due(told(*SHIPPING_FAILED, given_up)) == ["StepOverdue undoing take-payment", "SagaStalled"]


def test_an_act_that_must_be_taken_back_is_watched_though_its_definition_gives_no_compensation() -> None:
    saga = told(
        "ParcelOrdered", "PackagePrepared", "DroneProvisioned", timed_out(definition=DRONE_DELIVERY),
        "PackageDelivered", "DroneReleased", "PackageUnpacked", "ParcelOrderCancelled", definition=DRONE_DELIVERY,
    )  # fmt: skip
    (late,) = due_lifecycle(DRONE_DELIVERY, saga, LONG_AFTER)
    assert (late.steps, late.participant, late.compensation) == (("deliver-package",), "delivery", True)
