"""Time-out against commit, and what comes after a time-out: the stream's order decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import permutations

import pytest

from farandole.advance import pending_lifecycle
from farandole.deadlines import due_lifecycle
from farandole.definition import Definition
from farandole.saga import Cause, Disposition, Health, Saga, Status
from tests.unit.saga_histories import (
    DRONE_DELIVERY,
    ORDER_FULFILMENT,
    START,
    Told,
    called_for,
    dispositions,
    entry,
    event,
    facts_of,
    fold,
    lifecycle,
    overdue,
    statuses,
    timed_out,
    told,
    voided,
)

CREATED, RESERVED, PAID, SHIPPED, COMPLETED = (
    "OrderCreated",
    "ItemsReserved",
    "PaymentProcessed",
    "OrderShipped",
    "OrderCompleted",
)
UNDONE = ("PaymentRefunded", "ItemsReleased", "OrderCancelled")
TIME_OUT = timed_out()
ENDED = lifecycle("SagaCompensated", cause=Cause.DEADLINE)


@dataclass(frozen=True)
class Race:
    """A stream's order of the commit event and the time-out, and what it decides."""

    events: tuple[str | Told, ...]
    commit: str
    """The commit event's disposition, and that of the time-out."""
    time_out: str
    status: str
    ship_order: str
    """The pivot's status."""
    at_deadline: str
    """What the correlator tells at the saga's deadline; empty for nothing."""
    calls_for: str = ""
    """The end that the record calls for."""


RACES = {
    # the commit event comes first: it is never timed out, it can only be late
    "commit, time-out": Race(
        (CREATED, RESERVED, PAID, SHIPPED, TIME_OUT), "APPLIED", "LATE", "RUNNING", "SUCCEEDED", "SagaStalled"
    ),
    "commit, time-out, last step": Race(
        (CREATED, RESERVED, PAID, SHIPPED, TIME_OUT, COMPLETED),
        "APPLIED", "LATE", "RUNNING", "SUCCEEDED", "", "SagaCompleted",
    ),
    "commit, end, time-out": Race(
        (CREATED, RESERVED, PAID, SHIPPED, COMPLETED, lifecycle("SagaCompleted"), TIME_OUT),
        "APPLIED", "LATE", "COMPLETED", "SUCCEEDED", "",
    ),
    "commit before its turn, time-out": Race(
        (CREATED, RESERVED, SHIPPED, TIME_OUT), "EARLY", "LATE", "RUNNING", "PENDING", "SagaStalled"
    ),
    "commit before its turn, time-out, its turn": Race(
        (CREATED, RESERVED, SHIPPED, TIME_OUT, PAID), "APPLIED", "LATE", "RUNNING", "SUCCEEDED", "SagaStalled"
    ),
    "commit before its turn, time-out, failure": Race(
        (CREATED, RESERVED, SHIPPED, TIME_OUT, "PaymentFailed"),
        "LATE", "LATE", "COMPENSATING", "COMPENSATING", "SagaStalled",
    ),
    "commit, start, time-out": Race(
        (SHIPPED, CREATED, TIME_OUT), "EARLY", "LATE", "RUNNING", "PENDING", "SagaStalled"
    ),
    "commit, time-out, start": Race(
        (SHIPPED, TIME_OUT, CREATED), "EARLY", "LATE", "RUNNING", "PENDING", "SagaStalled"
    ),
    # the time-out comes first: whatever was done is undone, the commit event's step too
    "time-out, commit": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, SHIPPED), "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", ""
    ),
    "time-out, commit, all undone": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, SHIPPED, *UNDONE, "ShipmentCancelled"),
        "LATE", "APPLIED", "COMPENSATING", "COMPENSATED", "", "SagaCompensated",
    ),
    "time-out, others undone, commit": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, *UNDONE, SHIPPED), "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", ""
    ),
    "time-out, end, commit": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, *UNDONE, ENDED, SHIPPED),
        "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", "",
    ),
    "time-out, end, commit, undone": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, *UNDONE, ENDED, SHIPPED, "ShipmentCancelled"),
        "LATE", "APPLIED", "COMPENSATING", "COMPENSATED", "", "SagaCompensated",
    ),
    "time-out, commit before its turn": Race(
        (CREATED, RESERVED, TIME_OUT, SHIPPED), "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", ""
    ),
    "time-out, void, commit": Race(
        (CREATED, RESERVED, PAID, TIME_OUT, voided("ship-order"), SHIPPED),
        "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", "",
    ),
    "time-out, commit, start": Race(
        (TIME_OUT, SHIPPED, CREATED), "LATE", "APPLIED", "COMPENSATING", "COMPENSATING", ""
    ),
    # a failure came before both
    "failure, time-out, commit": Race(
        (CREATED, RESERVED, "PaymentFailed", TIME_OUT, SHIPPED),
        "LATE", "LATE", "COMPENSATING", "COMPENSATING", "SagaStalled",
    ),
    "failure, commit, time-out": Race(
        (CREATED, RESERVED, "PaymentFailed", SHIPPED, TIME_OUT),
        "LATE", "LATE", "COMPENSATING", "COMPENSATING", "SagaStalled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("race", RACES.values(), ids=RACES)
def test_the_order_in_the_stream_decides(race: Race) -> None:
    facts = facts_of(race.events)
    saga = fold(facts)
    due = [found.type.rpartition(".")[2] for found in due_lifecycle(ORDER_FULFILMENT, saga, START + timedelta(days=1))]
    assert Race(
        events=race.events,
        commit=entry(saga, SHIPPED).disposition.name,
        time_out=entry(saga, "SagaTimedOut").disposition.name,
        status=saga.status.name,
        ship_order=statuses(saga)["ship-order"],
        at_deadline="".join(name for name in due if name != "StepOverdue"),
        calls_for="".join(called_for(saga)),
    ) == race  # fmt: skip
    assert fold(facts[::-1]) == saga


def test_in_every_order_of_the_three_the_commit_stands_exactly_where_no_time_out_came_first() -> None:
    for order in permutations((SHIPPED, "SagaTimedOut", PAID)):
        saga = told(CREATED, RESERVED, *(TIME_OUT if name == "SagaTimedOut" else name for name in order))
        is_first = order.index(SHIPPED) < order.index("SagaTimedOut")
        assert (saga.status is Status.RUNNING) == is_first
        assert (entry(saga, "SagaTimedOut").disposition is Disposition.APPLIED) == (not is_first)


def test_a_time_out_that_was_late_says_which_commit_event_came_first() -> None:
    assert entry(told(*RACES["commit, time-out"].events), "SagaTimedOut").reason == (
        "the saga has committed with shipping.v1.OrderShipped and is not undone any more"
    )
    assert entry(told(*RACES["commit before its turn, time-out"].events), "SagaTimedOut").reason == (
        "the commit event, shipping.v1.OrderShipped at sequence 30, came first and "
        "waits for payments.v1.PaymentProcessed to start ship-order"
    )


class TestTheTurn:
    """What `SagaTimedOut` makes of each step."""

    def test_what_succeeded_is_undone_at_once_and_what_is_open_stays_as_it_is(self) -> None:
        saga = told(CREATED, RESERVED, TIME_OUT)
        assert (saga.status, saga.cause, saga.health) == (Status.COMPENSATING, Cause.DEADLINE, Health.ON_TIME)
        assert saga.cause_detail == "its deadline passed at 2026-11-22T12:30:00Z while it waited for take-payment"
        assert statuses(saga) == {
            "place-order": "COMPENSATING",
            "reserve-items": "COMPENSATING",
            "take-payment": "RUNNING",
            "ship-order": "PENDING",
            "complete-order": "PENDING",
        }

    def test_each_compensation_is_due_its_own_duration_from_there(self) -> None:
        saga = told(CREATED, RESERVED, TIME_OUT)
        assert [step.deadline for step in saga.steps[:2]] == [START + timedelta(seconds=302)] * 2

    def test_a_compensation_without_a_deadline_has_the_duration_of_the_saga(self) -> None:
        saga = told(CREATED, RESERVED, TIME_OUT, definition=_without_deadlines(ORDER_FULFILMENT))
        assert [step.deadline for step in saga.steps[:2]] == [START + timedelta(seconds=1802)] * 2

    def test_an_operator_may_be_the_cause(self) -> None:
        saga = told(CREATED, timed_out(cause=Cause.OPERATOR))
        assert (saga.cause, saga.cause_detail) == (
            Cause.OPERATOR,
            "an operator ended it while it waited for reserve-items",
        )

    def test_a_second_time_out_is_late(self) -> None:
        saga = told(CREATED, TIME_OUT, timed_out(cause=Cause.OPERATOR), TIME_OUT)
        assert dispositions(saga)[1:] == ["SagaTimedOut APPLIED", "SagaTimedOut LATE", "SagaTimedOut DUPLICATE"]
        assert saga.cause is Cause.DEADLINE

    def test_a_participant_that_is_not_there_keeps_nothing_from_ending(self) -> None:
        """Shipping is stopped: everything else is undone, and the saga ends."""
        saga = told(CREATED, RESERVED, PAID, TIME_OUT, *UNDONE)
        assert (statuses(saga)["ship-order"], called_for(saga)) == ("RUNNING", ["SagaCompensated"])
        ended = told(CREATED, RESERVED, PAID, TIME_OUT, *UNDONE, ENDED)
        assert (ended.status, called_for(ended)) == (Status.COMPENSATED, [])
        assert {one.disposition for one in ended.history} == {Disposition.APPLIED}

    def test_a_step_under_way_is_not_awaited_though_something_triggers_its_compensation(self) -> None:
        events = ("ParcelOrdered", _drone_time_out(), "DeliveryFailed", "ParcelOrderCancelled")
        saga = told(*events, definition=DRONE_DELIVERY)
        assert statuses(saga)["prepare-package"] == "RUNNING"
        assert called_for(saga, DRONE_DELIVERY) == ["SagaCompensated"]


class TestLastWords:
    """What the participants of open steps say after a time-out, before the saga's end and after it."""

    BEFORE = (CREATED, RESERVED, PAID, TIME_OUT)
    AFTER = (*BEFORE, *UNDONE, ENDED)

    @pytest.mark.parametrize("events", [BEFORE, AFTER], ids=["before the end", "after the end"])
    @pytest.mark.parametrize(
        ("word", "step"),
        [(voided("ship-order"), "VOIDED"), ("ShippingFailed", "FAILED")],
        ids=["it was voided", "it failed"],
    )
    def test_a_step_that_did_nothing_says_so_and_opens_nothing(
        self, events: tuple[str | Told, ...], word: str | Told, step: str
    ) -> None:
        before, saga = told(*events), told(*events, word)
        assert (saga.history[-1].disposition, statuses(saga)["ship-order"]) == (Disposition.APPLIED, step)
        assert (saga.status, saga.end_time) == (before.status, before.end_time)

    def test_a_step_that_never_had_its_turn_is_voided_too(self) -> None:
        saga = told(*self.AFTER, voided("complete-order"))
        assert (saga.status, statuses(saga)["complete-order"]) == (Status.COMPENSATED, "VOIDED")

    def test_a_late_success_opens_the_saga_again_until_it_is_undone(self) -> None:
        ended = told(*self.AFTER[:-1], _end_of(told(*self.AFTER[:-1])))
        opened = told(*_told_of(ended), SHIPPED)
        assert (ended.status, opened.status, opened.end_time) == (Status.COMPENSATED, Status.COMPENSATING, None)
        assert opened.steps[3].deadline == opened.update_time + timedelta(seconds=300)
        undone = told(*_told_of(ended), SHIPPED, "ShipmentCancelled")
        (pending,) = pending_lifecycle(ORDER_FULFILMENT, undone)
        assert pending.id != pending_lifecycle(ORDER_FULFILMENT, told(*self.AFTER[:-1]))[0].id
        again = told(*_told_of(ended), SHIPPED, "ShipmentCancelled", _end_of(undone))
        assert (again.status, dispositions(again)[-1]) == (Status.COMPENSATED, "SagaCompensated APPLIED")

    def test_a_late_success_opens_a_failed_saga_too(self) -> None:
        events = (CREATED, timed_out(), voided("place-order"), lifecycle("SagaFailed", cause=Cause.DEADLINE))
        assert told(*events).status is Status.FAILED
        assert told(*events, RESERVED).status is Status.COMPENSATING
        assert called_for(told(*events, RESERVED, "ItemsReleased")) == ["SagaCompensated"]

    def test_what_is_undone_without_having_succeeded_is_known_to_be_undone(self) -> None:
        """A participant may answer a time-out with its completion where it can't tell whether it had succeeded."""
        saga = told(*self.BEFORE, "ShipmentCancelled")
        assert (dispositions(saga)[-1], statuses(saga)["ship-order"]) == ("ShipmentCancelled APPLIED", "COMPENSATED")

    def test_after_the_end_such_a_word_is_only_late(self) -> None:
        """The end said already what had been undone, and what had not."""
        before, saga = told(*self.AFTER), told(*self.AFTER, "ShipmentCancelled")
        assert (dispositions(saga)[-1], saga.steps) == ("ShipmentCancelled LATE", before.steps)

    def test_of_a_step_that_leaves_nothing_behind_a_success_is_only_late(self) -> None:
        saga = told(*self.AFTER, COMPLETED)
        assert (dispositions(saga)[-1], saga.status) == ("OrderCompleted LATE", Status.COMPENSATED)


class TestAnActThatCannotBeUndone:
    """The delivery of a drone: it has no compensation, and its participant answers a time-out with its failure."""

    DELIVERING = ("ParcelOrdered", "PackagePrepared", "DroneProvisioned")
    UNDONE = ("DroneReleased", "PackageUnpacked", "ParcelOrderCancelled")

    def record(self, *events: str | Told) -> Saga:
        return told(*events, definition=DRONE_DELIVERY)

    def test_before_it_has_begun_its_failure_ends_the_step(self) -> None:
        saga = self.record(*self.DELIVERING, _drone_time_out(), "DeliveryFailed", *self.UNDONE)
        assert statuses(saga)["deliver-package"] == "FAILED"
        assert called_for(saga, DRONE_DELIVERY) == ["SagaCompensated"]

    def test_its_commit_event_first_and_the_time_out_is_late(self) -> None:
        saga = self.record(*self.DELIVERING, "PackageDelivered", _drone_time_out())
        assert (dispositions(saga)[-1], saga.status) == ("SagaTimedOut LATE", Status.RUNNING)

    def test_its_success_after_the_time_out_is_taken_back_with_its_failure(self) -> None:
        late = (*self.DELIVERING, _drone_time_out(), "PackageDelivered", *self.UNDONE)
        saga = self.record(*late)
        assert dispositions(saga)[4] == "PackageDelivered LATE"
        assert statuses(saga)["deliver-package"] == "COMPENSATING"
        assert called_for(saga, DRONE_DELIVERY) == []
        assert saga.steps[3].deadline == START + timedelta(seconds=4 + 1800), "nobody waits for ever unheard"
        taken_back = self.record(*late, "DeliveryFailed")
        assert dispositions(taken_back)[-1] == "DeliveryFailed APPLIED"
        assert statuses(taken_back)["deliver-package"] == "FAILED"
        assert called_for(taken_back, DRONE_DELIVERY) == ["SagaCompensated"]

    def test_its_success_after_the_end_opens_the_saga_again(self) -> None:
        ended = (
            *self.DELIVERING,
            _drone_time_out(),
            *self.UNDONE,
            lifecycle("SagaCompensated", cause=Cause.DEADLINE, definition="drone-delivery"),
        )
        assert self.record(*ended).status is Status.COMPENSATED
        assert self.record(*ended, "PackageDelivered").status is Status.COMPENSATING

    def test_where_the_definition_knows_no_failure_either_nothing_is_awaited(self) -> None:
        pivot = DRONE_DELIVERY.steps[3]
        silent = replace(DRONE_DELIVERY, steps=(*DRONE_DELIVERY.steps[:3], replace(pivot, failures=())))
        late = (*self.DELIVERING, _drone_time_out(), "PackageDelivered", *self.UNDONE)
        saga = told(*late, definition=silent)
        assert (statuses(saga)["deliver-package"], called_for(saga, silent)) == ("SUCCEEDED", ["SagaCompensated"])


class TestVoided:
    """A participant's word that a step did no work and will do none."""

    def test_a_step_that_was_voided_does_not_start(self) -> None:
        saga = told(CREATED, voided("take-payment"), RESERVED)
        assert (dispositions(saga)[1], statuses(saga)["take-payment"]) == ("StepVoided APPLIED", "VOIDED")

    @pytest.mark.parametrize("events", [(CREATED,), (CREATED, "ReservationFailed"), (CREATED, TIME_OUT)])
    def test_the_step_of_the_initiating_event_is_voided_though_that_came(self, events: tuple[str | Told, ...]) -> None:
        """The event may come from outside: its participant refused to do anything about it."""
        saga = told(*events, voided("place-order"))
        assert (saga.history[-1].disposition, statuses(saga)["place-order"]) == (Disposition.APPLIED, "VOIDED")

    def test_a_saga_of_which_nothing_was_done_has_failed(self) -> None:
        assert called_for(told(CREATED, "ReservationFailed", voided("place-order"))) == ["SagaFailed"]

    @pytest.mark.parametrize(
        "events",
        [
            pytest.param((CREATED, RESERVED), id="succeeded"),
            pytest.param((CREATED, RESERVED, TIME_OUT), id="succeeded and being undone"),
            pytest.param((CREATED, TIME_OUT, RESERVED), id="late success"),
            pytest.param((CREATED, "ReservationFailed"), id="failed"),
            pytest.param((CREATED, RESERVED, TIME_OUT, "ItemsReleased"), id="undone"),
        ],
    )
    def test_a_step_of_which_something_else_is_known_is_not(self, events: tuple[str | Told, ...]) -> None:
        before, saga = told(*events), told(*events, voided("reserve-items"))
        assert saga.history[-1].disposition is Disposition.UNEXPECTED
        assert saga.steps == before.steps

    def test_nor_a_step_that_does_not_exist_nor_one_of_a_completed_saga(self) -> None:
        assert dispositions(told(CREATED, voided("no-such-step")))[1] == "StepVoided UNEXPECTED"
        done = (CREATED, RESERVED, PAID, SHIPPED, COMPLETED, lifecycle("SagaCompleted"))
        assert dispositions(told(*done, voided("place-order")))[-1] == "StepVoided LATE"

    def test_a_commit_event_is_not_taken_back_though_it_started_the_saga(self) -> None:
        place, *_, complete = ORDER_FULFILMENT.steps
        at_once = replace(
            ORDER_FULFILMENT,
            commit_event="orders.v1.OrderCreated",
            steps=(replace(place, compensation=None), replace(complete, triggers=("orders.v1.OrderCreated",))),
        )
        saga = told(CREATED, voided("place-order"), definition=at_once)
        assert (dispositions(saga)[1], statuses(saga)["place-order"]) == ("StepVoided UNEXPECTED", "SUCCEEDED")

    def test_a_saga_that_has_committed_is_not_turned_by_a_failure_of_what_was_voided(self) -> None:
        place, *others = ORDER_FULFILMENT.steps
        may_fail = replace(ORDER_FULFILMENT, steps=(replace(place, failures=("orders.v1.OrderRefused",)), *others))
        refused = (voided("place-order"), event("orders.v1.OrderRefused"))
        saga = told(CREATED, RESERVED, PAID, SHIPPED, *refused, definition=may_fail)
        assert (dispositions(saga)[-1], saga.status) == ("OrderRefused UNEXPECTED", Status.RUNNING)
        assert told(CREATED, *refused, definition=may_fail).status is Status.COMPENSATING

    def test_what_happened_all_the_same_counts_more_than_the_word(self) -> None:
        saga = told(CREATED, voided("reserve-items"), RESERVED)
        assert (dispositions(saga)[2], statuses(saga)["take-payment"]) == ("ItemsReserved APPLIED", "RUNNING")
        waiting = told(CREATED, voided("take-payment"), PAID)
        assert dispositions(waiting)[2] == "PaymentProcessed EARLY"
        due = told(CREATED, voided("take-payment"), PAID, RESERVED)
        assert (dispositions(due)[2], statuses(due)["ship-order"]) == ("PaymentProcessed APPLIED", "RUNNING")
        failed = told(CREATED, voided("reserve-items"), "ReservationFailed")
        assert (failed.status, failed.cause) == (Status.COMPENSATING, Cause.STEP_FAILURE)

    def test_a_success_against_the_word_is_undone_after_a_time_out(self) -> None:
        saga = told(CREATED, voided("take-payment"), PAID, TIME_OUT)
        assert (dispositions(saga)[2], statuses(saga)["take-payment"]) == ("PaymentProcessed LATE", "COMPENSATING")


def test_a_time_out_and_an_overdue_step_may_come_in_either_order() -> None:
    assert dispositions(told(CREATED, overdue("reserve-items"), TIME_OUT))[1:] == [
        "StepOverdue APPLIED",
        "SagaTimedOut APPLIED",
    ]
    assert dispositions(told(CREATED, TIME_OUT, overdue("reserve-items")))[1:] == [
        "SagaTimedOut APPLIED",
        "StepOverdue APPLIED",
    ]


def _without_deadlines(definition: Definition) -> Definition:
    return replace(
        definition,
        steps=tuple(
            replace(step, compensation=step.compensation and replace(step.compensation, deadline=None))
            for step in definition.steps
        ),
    )


def _drone_time_out() -> Told:
    return timed_out(definition=DRONE_DELIVERY)


def _end_of(saga: Saga) -> Told:
    """The end that a record calls for, as the correlator publishes it."""
    (pending,) = pending_lifecycle(ORDER_FULFILMENT, saga)
    return lifecycle(pending.type.rpartition(".")[2], cause=pending.cause, id=pending.id)


def _told_of(saga: Saga) -> list[str | Told]:
    """The events of a history, to be told again with more after them."""
    return [
        event(one.fact.type, id=one.fact.id, source=one.fact.source, lifecycle=one.fact.lifecycle)
        for one in saga.history
    ]
