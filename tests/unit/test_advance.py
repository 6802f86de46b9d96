"""Given these events, the record is …"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from farandole.advance import HISTORY_LIMIT, advance, pending_lifecycle
from farandole.definition import CompensationDefinition, Definition, StepDefinition, StepKind
from farandole.saga import Cause, Disposition, Health, Saga, Status
from tests.unit.saga_histories import (
    KEY,
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
    statuses,
    timed_out,
    told,
)

SHIPPED = ("OrderCreated", "ItemsReserved", "PaymentProcessed", "OrderShipped")
FINISHED = (*SHIPPED, "OrderCompleted")
SHIPPING_FAILED = (*SHIPPED[:3], event("ShippingFailed", reason="address not found"))
UNDONE = (*SHIPPING_FAILED, "PaymentRefunded", "ItemsReleased", "OrderCancelled")
COMPENSATED = lifecycle("SagaCompensated", cause=Cause.STEP_FAILURE)


def test_each_event_ends_a_step_and_starts_the_next() -> None:
    expected = {"place-order": "SUCCEEDED", "reserve-items": "SUCCEEDED", "take-payment": "RUNNING"}
    saga = told("OrderCreated", "ItemsReserved")
    assert statuses(saga) == {**expected, "ship-order": "PENDING", "complete-order": "PENDING"}
    assert (saga.status, saga.revision, saga.key, saga.version) == (Status.RUNNING, 2, KEY, 1)
    assert saga.start_time == START
    assert saga.deadline == START + timedelta(minutes=30)
    assert saga.update_time == START + timedelta(seconds=1)


def test_a_step_is_due_its_duration_after_its_trigger() -> None:
    saga = told("OrderCreated", "ItemsReserved")
    placed, reserved, paying, shipping, _ = saga.steps
    assert (placed.start_time, placed.end_time, placed.deadline) == (START, START, None)
    assert (reserved.start_time, reserved.end_time) == (START, START + timedelta(seconds=1))
    assert (paying.start_time, paying.end_time) == (START + timedelta(seconds=1), None)
    assert paying.deadline == START + timedelta(seconds=61)
    assert (shipping.start_time, shipping.deadline) == (None, None)


def test_a_compensation_is_due_its_own_duration_after_its_trigger() -> None:
    payment = told(*SHIPPING_FAILED).steps[2]
    assert payment.deadline == START + timedelta(seconds=3 + 300)


def test_it_is_completed_only_once_its_lifecycle_event_is_read_back() -> None:
    saga = told(*FINISHED)
    assert (saga.status, saga.end_time, called_for(saga)) == (Status.RUNNING, None, ["SagaCompleted"])
    saga = told(*FINISHED, lifecycle("SagaCompleted"))
    assert (saga.status, saga.end_time, called_for(saga)) == (Status.COMPLETED, START + timedelta(seconds=5), [])
    assert [one.disposition for one in saga.history] == [Disposition.APPLIED] * 6
    assert (saga.cause, saga.finished_late, saga.health) == (Cause.UNSPECIFIED, False, Health.ON_TIME)


def test_it_finishes_late_where_its_last_step_ends_after_the_deadline() -> None:
    late = told(*SHIPPED, event("OrderCompleted", after=1800), lifecycle("SagaCompleted"))
    in_time = told(*SHIPPED, event("OrderCompleted", after=1797), lifecycle("SagaCompleted", after=1000))
    assert (late.status, late.finished_late) == (Status.COMPLETED, True)
    assert (in_time.status, in_time.finished_late) == (Status.COMPLETED, False)


@pytest.mark.parametrize(
    ("events", "expected", "status", "calls_for"),
    [
        pytest.param(
            ("OrderCreated", "ReservationFailed"),
            {"place-order": "COMPENSATING", "reserve-items": "FAILED"},
            Status.COMPENSATING,
            [],
            id="reservation fails",
        ),
        pytest.param(
            ("OrderCreated", "ReservationFailed", "OrderCancelled"),
            {"place-order": "COMPENSATED", "reserve-items": "FAILED"},
            Status.COMPENSATING,
            ["SagaCompensated"],
            id="reservation fails, cancelled",
        ),
        pytest.param(
            ("OrderCreated", "ItemsReserved", "PaymentFailed"),
            {"place-order": "SUCCEEDED", "reserve-items": "COMPENSATING", "take-payment": "FAILED"},
            Status.COMPENSATING,
            [],
            id="payment fails",
        ),
        pytest.param(
            (*SHIPPING_FAILED, "PaymentRefunded"),
            {
                "place-order": "SUCCEEDED",
                "reserve-items": "COMPENSATING",
                "take-payment": "COMPENSATED",
                "ship-order": "FAILED",
            },
            Status.COMPENSATING,
            [],
            id="shipping fails, refunded",
        ),
        pytest.param(
            UNDONE,
            {
                "place-order": "COMPENSATED",
                "reserve-items": "COMPENSATED",
                "take-payment": "COMPENSATED",
                "ship-order": "FAILED",
            },
            Status.COMPENSATING,
            ["SagaCompensated"],
            id="shipping fails, all undone",
        ),
        pytest.param(
            (*UNDONE, COMPENSATED),
            {
                "place-order": "COMPENSATED",
                "reserve-items": "COMPENSATED",
                "take-payment": "COMPENSATED",
                "ship-order": "FAILED",
            },
            Status.COMPENSATED,
            [],
            id="shipping fails, ended",
        ),
    ],
)
def test_a_failure_is_undone_step_by_step(
    events: tuple[str | Told, ...], expected: dict[str, str], status: Status, calls_for: list[str]
) -> None:
    saga = told(*events)
    assert {name: step for name, step in statuses(saga).items() if step != "PENDING"} == expected
    assert (saga.status, called_for(saga)) == (status, calls_for)
    assert {one.disposition for one in saga.history} == {Disposition.APPLIED}


def test_the_cause_names_the_step_and_its_reason() -> None:
    saga = told(*SHIPPING_FAILED)
    assert (saga.cause, saga.cause_detail) == (Cause.STEP_FAILURE, "ship-order: address not found")
    assert told("OrderCreated", "ReservationFailed").cause_detail == "reserve-items: inventory.v1.ReservationFailed"


class TestIdentity:
    """What the same event, the same fact, and another body of a fact are."""

    def test_the_same_source_and_id_are_a_duplicate(self) -> None:
        saga = told("OrderCreated", event("OrderCreated", body="other", id="event-1"))
        assert dispositions(saga) == ["OrderCreated APPLIED", "OrderCreated DUPLICATE"]
        assert "sequence 10" in saga.history[1].reason

    def test_the_same_type_and_body_are_a_duplicate(self) -> None:
        saga = told("OrderCreated", event("OrderCreated", source="someone-else"))
        assert dispositions(saga) == ["OrderCreated APPLIED", "OrderCreated DUPLICATE"]
        assert statuses(saga) == statuses(told("OrderCreated"))

    def test_the_same_id_of_another_source_is_another_event(self) -> None:
        saga = told("OrderCreated", event("ItemsReserved", id="event-1"))
        assert dispositions(saga) == ["OrderCreated APPLIED", "ItemsReserved APPLIED"]

    def test_another_body_after_one_was_applied_is_unexpected(self) -> None:
        saga = told("OrderCreated", "ItemsReserved", event("OrderCreated", body="other"))
        assert dispositions(saga)[2] == "OrderCreated UNEXPECTED"
        assert saga.history[2].reason == (
            "another body than the orders.v1.OrderCreated at sequence 10, which was applied"
        )
        assert statuses(saga) == statuses(told("OrderCreated", "ItemsReserved"))

    def test_another_body_while_one_waits_is_unexpected_and_does_not_take_its_place(self) -> None:
        saga = told("OrderCreated", "PaymentProcessed", event("PaymentProcessed", body="other"), "ItemsReserved")
        assert dispositions(saga)[1:3] == ["PaymentProcessed APPLIED", "PaymentProcessed UNEXPECTED"]

    def test_a_duplicate_of_what_was_unexpected_is_a_duplicate(self) -> None:
        other = event("OrderCreated", body="other")
        assert dispositions(told("OrderCreated", other, other))[2] == "OrderCreated DUPLICATE"


class TestOutOfTurn:
    """What comes before its turn waits; what belongs to no step says so."""

    def test_an_early_success_waits_and_is_applied_when_due(self) -> None:
        waiting = told("OrderCreated", "PaymentProcessed")
        assert dispositions(waiting)[1] == "PaymentProcessed EARLY"
        assert entry(waiting, "PaymentProcessed").reason == (
            "waits for inventory.v1.ItemsReserved to start take-payment"
        )
        assert statuses(waiting)["take-payment"] == "PENDING"
        due = told("OrderCreated", "PaymentProcessed", "ItemsReserved")
        assert dispositions(due) == ["OrderCreated APPLIED", "PaymentProcessed APPLIED", "ItemsReserved APPLIED"]
        assert entry(due, "PaymentProcessed").reason == ""
        assert (statuses(due)["take-payment"], statuses(due)["ship-order"]) == ("SUCCEEDED", "RUNNING")
        assert due.steps[2].end_time == START + timedelta(seconds=2)

    def test_several_early_events_are_applied_in_a_row(self) -> None:
        saga = told("OrderCreated", "OrderCompleted", "OrderShipped", "PaymentProcessed", "ItemsReserved")
        assert {one.disposition for one in saga.history} == {Disposition.APPLIED}
        assert called_for(saga) == ["SagaCompleted"]

    def test_an_early_failure_turns_the_saga_when_due(self) -> None:
        waiting = told("OrderCreated", event("PaymentFailed", reason="declined"))
        assert (waiting.status, dispositions(waiting)[1]) == (Status.RUNNING, "PaymentFailed EARLY")
        due = told("OrderCreated", event("PaymentFailed", reason="declined"), "ItemsReserved")
        assert (due.status, due.cause_detail) == (Status.COMPENSATING, "take-payment: declined")
        assert statuses(due)["reserve-items"] == "COMPENSATING"

    def test_an_early_completion_is_applied_when_its_compensation_is_triggered(self) -> None:
        early = ("OrderCreated", "ItemsReserved", "ItemsReleased")
        assert dispositions(told(*early))[2] == "ItemsReleased EARLY"
        assert statuses(told(*early))["reserve-items"] == "SUCCEEDED"
        assert dispositions(told(*early, "PaymentFailed"))[2:] == ["ItemsReleased APPLIED", "PaymentFailed APPLIED"]

    def test_before_the_initiating_event_all_waits_unmatched_and_is_judged_once_it_comes(self) -> None:
        before = told("PaymentProcessed", "ItemsReserved")
        assert dispositions(before) == ["PaymentProcessed UNMATCHED", "ItemsReserved UNMATCHED"]
        assert (before.is_started, before.revision, before.deadline) == (False, 2, None)
        assert "orders.v1.OrderCreated" in before.history[0].reason
        after = told("PaymentProcessed", "ItemsReserved", "OrderCreated")
        assert {one.disposition for one in after.history} == {Disposition.APPLIED}
        assert (after.start_time, statuses(after)["ship-order"]) == (START + timedelta(seconds=2), "RUNNING")

    def test_what_still_has_no_turn_when_the_saga_starts_is_early(self) -> None:
        assert dispositions(told("PaymentProcessed", "OrderCreated"))[0] == "PaymentProcessed EARLY"

    def test_a_type_that_the_definition_does_not_mention_is_unmatched(self) -> None:
        saga = told("OrderCreated", event("loyalty.v1.PointsGranted"), "ItemsReserved")
        assert dispositions(saga)[1] == "PointsGranted UNMATCHED"
        assert saga.history[1].reason == "order-fulfilment version 1 does not mention loyalty.v1.PointsGranted"

    def test_what_waits_when_the_saga_ends_is_late(self) -> None:
        saga = told(*SHIPPED, "ItemsReleased", "OrderCompleted")
        assert dispositions(saga)[4] == "ItemsReleased EARLY"
        ended = told(*SHIPPED, "ItemsReleased", "OrderCompleted", lifecycle("SagaCompleted"))
        assert dispositions(ended)[4] == "ItemsReleased LATE"
        assert entry(ended, "ItemsReleased").reason

    def test_a_second_outcome_of_a_step_is_unexpected(self) -> None:
        saga = told("OrderCreated", "ItemsReserved", "ReservationFailed")
        assert dispositions(saga)[2] == "ReservationFailed UNEXPECTED"
        assert saga.status is Status.RUNNING
        saga = told("OrderCreated", "ReservationFailed", "ItemsReserved")
        assert dispositions(saga)[2] == "ItemsReserved UNEXPECTED"
        assert statuses(saga)["reserve-items"] == "FAILED"

    @pytest.mark.parametrize("outcome", ["PaymentFailed", lifecycle("StepVoided", "take-payment", source="payments")])
    def test_what_succeeded_and_is_being_undone_neither_failed_nor_never_ran(self, outcome: str | Told) -> None:
        saga = told(*SHIPPING_FAILED, outcome)
        assert saga.history[4].disposition is Disposition.UNEXPECTED
        assert statuses(saga)["take-payment"] == "COMPENSATING"

    def test_a_completion_of_what_failed_is_unexpected(self) -> None:
        saga = told("OrderCreated", "ReservationFailed", "ItemsReleased")
        assert dispositions(saga)[2] == "ItemsReleased UNEXPECTED"

    def test_a_completion_that_still_waits_when_all_else_is_undone_is_late(self) -> None:
        undone = ("OrderCreated", "ReservationFailed", "PaymentRefunded", "OrderCancelled")
        assert dispositions(told(*undone))[2] == "PaymentRefunded EARLY"
        ended = told(*undone, COMPENSATED)
        assert (ended.status, dispositions(ended)[2]) == (Status.COMPENSATED, "PaymentRefunded LATE")

    def test_a_completion_in_a_turned_saga_is_applied_though_its_trigger_is_missing(self) -> None:
        saga = told("OrderCreated", "ItemsReserved", "PaymentFailed", "OrderCancelled")
        assert dispositions(saga)[3] == "OrderCancelled APPLIED"
        assert (statuses(saga)["place-order"], statuses(saga)["reserve-items"]) == ("COMPENSATED", "COMPENSATING")


class TestLateSuccess:
    """A success after the saga turned happened all the same, and must be undone."""

    def test_it_is_late_and_its_step_is_to_be_undone(self) -> None:
        saga = told("OrderCreated", "ItemsReserved", timed_out(), "PaymentProcessed")
        assert dispositions(saga)[3] == "PaymentProcessed LATE"
        assert statuses(saga)["take-payment"] == "COMPENSATING"
        assert statuses(saga)["ship-order"] == "PENDING"

    def test_what_waited_when_the_saga_turned_must_be_undone_too(self) -> None:
        saga = told("OrderCreated", "PaymentProcessed", "ReservationFailed", "OrderCancelled")
        assert dispositions(saga)[1] == "PaymentProcessed LATE"
        assert statuses(saga)["take-payment"] == "COMPENSATING"
        assert called_for(saga) == []

    def test_it_reopens_a_compensated_saga_visibly_which_ends_again_under_another_id(self) -> None:
        ended = ("OrderCreated", "ReservationFailed", "OrderCancelled")
        first = pending_lifecycle(ORDER_FULFILMENT, told(*ended))[0].id
        compensated = replace(COMPENSATED, id=first)
        reopened = told(*ended, compensated, "PaymentProcessed")
        assert (reopened.status, reopened.end_time) == (Status.COMPENSATING, None)
        assert dispositions(reopened)[4] == "PaymentProcessed LATE"
        undone = told(*ended, compensated, "PaymentProcessed", "PaymentRefunded")
        (pending,) = pending_lifecycle(ORDER_FULFILMENT, undone)
        assert (pending.type, pending.id != first) == ("choreography.v1.SagaCompensated", True)
        again = told(*ended, compensated, "PaymentProcessed", "PaymentRefunded", replace(COMPENSATED, id=pending.id))
        assert (again.status, dispositions(again)[-1]) == (Status.COMPENSATED, "SagaCompensated APPLIED")
        assert called_for(again) == []

    def test_a_second_body_of_a_late_success_is_unexpected(self) -> None:
        saga = told("OrderCreated", timed_out(), "ItemsReserved", event("ItemsReserved", body="other"))
        assert dispositions(saga)[2:] == ["ItemsReserved LATE", "ItemsReserved UNEXPECTED"]

    def test_of_a_step_that_leaves_nothing_behind_it_is_only_late(self) -> None:
        saga = told("OrderCreated", timed_out(), "OrderCompleted")
        assert dispositions(saga)[2] == "OrderCompleted LATE"
        assert statuses(saga)["complete-order"] == "SUCCEEDED"


class TestFailure:
    """A saga that failed, and other words about it."""

    def test_everyone_may_undo_at_once_though_the_failure_came_first(self) -> None:
        """The time-out crossed the failure: participants obey it, and answer in any order."""
        answers = ("OrderCancelled", "ItemsReleased", "PaymentRefunded")
        saga = told(*SHIPPING_FAILED, timed_out(), *answers)
        assert dispositions(saga)[5:] == [f"{answer} APPLIED" for answer in answers]
        assert called_for(saga) == ["SagaCompensated"]

    def test_with_nothing_undone_the_saga_has_failed(self) -> None:
        silent = replace(ORDER_FULFILMENT, steps=tuple(replace(s, compensation=None) for s in ORDER_FULFILMENT.steps))
        saga = fold(facts_of(["OrderCreated", "ReservationFailed"]), silent)
        assert (saga.status, called_for(saga, silent)) == (Status.COMPENSATING, ["SagaFailed"])
        ended = fold(
            facts_of(["OrderCreated", "ReservationFailed", lifecycle("SagaFailed", cause=Cause.STEP_FAILURE)]), silent
        )
        assert (ended.status, ended.end_time) == (Status.FAILED, START + timedelta(seconds=2))


class TestLifecycle:
    """A lifecycle event moves a record only where the record justifies it."""

    @pytest.mark.parametrize("name", ["SagaCompleted", "SagaCompensated", "SagaFailed"])
    def test_an_end_that_the_record_does_not_justify_is_unexpected(self, name: str) -> None:
        saga = told(*SHIPPED, lifecycle(name, cause=Cause.DEADLINE))
        assert dispositions(saga)[4] == f"{name} UNEXPECTED"
        assert (saga.status, saga.end_time) == (Status.RUNNING, None)
        assert saga.history[4].reason

    @pytest.mark.parametrize("name", ["SagaCompensated", "SagaFailed"])
    def test_a_saga_with_something_to_undo_has_not_ended(self, name: str) -> None:
        saga = told(*SHIPPING_FAILED, lifecycle(name, cause=Cause.STEP_FAILURE))
        assert (dispositions(saga)[4], saga.status) == (f"{name} UNEXPECTED", Status.COMPENSATING)

    def test_compensated_is_not_failed(self) -> None:
        saga = told(*UNDONE, lifecycle("SagaFailed", cause=Cause.STEP_FAILURE))
        assert (dispositions(saga)[-1], saga.status) == ("SagaFailed UNEXPECTED", Status.COMPENSATING)

    def test_an_end_after_the_end_is_late(self) -> None:
        saga = told(*FINISHED, lifecycle("SagaCompleted"), lifecycle("SagaCompleted"), COMPENSATED)
        assert dispositions(saga)[6:] == ["SagaCompleted LATE", "SagaCompensated LATE"]
        assert saga.status is Status.COMPLETED

    def test_an_end_that_was_not_justified_does_not_use_up_the_id(self) -> None:
        """A late success may be stored between the correlator's decision and its event."""
        ended = ("OrderCreated", "ReservationFailed", "OrderCancelled")
        too_soon = replace(COMPENSATED, id=pending_lifecycle(ORDER_FULFILMENT, told(*ended))[0].id)
        saga = told(*ended, "PaymentProcessed", too_soon, "PaymentRefunded")
        assert dispositions(saga)[4] == "SagaCompensated UNEXPECTED"
        (pending,) = pending_lifecycle(ORDER_FULFILMENT, saga)
        assert pending.id != too_soon.id
        stored_twice = told(*ended, "PaymentProcessed", too_soon, "PaymentRefunded", too_soon)
        assert pending_lifecycle(ORDER_FULFILMENT, stored_twice) == (pending,)
        again = told(*ended, "PaymentProcessed", too_soon, "PaymentRefunded", replace(COMPENSATED, id=pending.id))
        assert again.status is Status.COMPENSATED

    def test_what_is_about_another_definition_is_unmatched(self) -> None:
        for one in (
            lifecycle("SagaCompleted", definition="loyalty"),
            lifecycle("SagaTimedOut", cause=Cause.DEADLINE, definition="loyalty"),
            lifecycle("StepVoided", "ship-order", definition="loyalty"),
            lifecycle("StepOverdue", "complete-order", definition="loyalty"),
            lifecycle("SagaStalled", definition="loyalty"),
        ):
            saga = told(*SHIPPED, one)
            assert saga.history[4].disposition is Disposition.UNMATCHED
            assert "loyalty" in saga.history[4].reason
            assert (saga.status, saga.health, saga.steps) == (Status.RUNNING, Health.ON_TIME, told(*SHIPPED).steps)

    def test_what_is_pending_is_the_same_each_time_and_says_why(self) -> None:
        saga = told(*UNDONE)
        (pending,) = pending_lifecycle(ORDER_FULFILMENT, saga)
        assert pending_lifecycle(ORDER_FULFILMENT, saga) == (pending,)
        assert (pending.key, pending.definition, pending.version) == (KEY, "order-fulfilment", 1)
        assert (pending.cause, pending.causation_id) == (Cause.STEP_FAILURE, "event-7")
        after_noise = told(*UNDONE, event("OrderCancelled"), event("loyalty.v1.PointsGranted"))
        assert pending_lifecycle(ORDER_FULFILMENT, after_noise) == (pending,)

    def test_nothing_is_pending_before_the_saga_starts(self) -> None:
        assert called_for(told("ItemsReserved")) == []


class TestJoin:
    """A step with `all_of` starts once all of them have happened."""

    DEFINITION = Definition(
        name="join",
        version=1,
        description="",
        deadline=timedelta(hours=1),
        initiating_event="t.v1.Asked",
        commit_event="t.v1.Joined",
        steps=(
            StepDefinition("left", "a", StepKind.COMPENSATABLE, ("t.v1.Asked",), (), "t.v1.Left", ("t.v1.LeftFailed",)),
            StepDefinition("right", "b", StepKind.COMPENSATABLE, ("t.v1.Asked",), (), "t.v1.Right", ()),
            StepDefinition("join", "c", StepKind.PIVOT, (), ("t.v1.Left", "t.v1.Right"), "t.v1.Joined", ()),
        ),
    )

    def record(self, *names: str) -> Saga:
        return fold(facts_of(f"t.v1.{name}" for name in names), self.DEFINITION)

    def test_it_starts_with_the_last_of_them(self) -> None:
        for first, second in (("Left", "Right"), ("Right", "Left")):
            assert statuses(self.record("Asked", first))["join"] == "PENDING"
            assert statuses(self.record("Asked", first, second))["join"] == "RUNNING"

    def test_a_saga_with_an_initiating_event_from_outside_completes(self) -> None:
        saga = self.record("Asked", "Right", "Left", "Joined")
        assert called_for(saga, self.DEFINITION) == ["SagaCompleted"]

    def test_a_turned_saga_waits_for_what_is_still_running(self) -> None:
        assert called_for(self.record("Asked", "LeftFailed"), self.DEFINITION) == []
        late = self.record("Asked", "LeftFailed", "Right")
        assert dispositions(late)[2] == "Right LATE"
        assert called_for(late, self.DEFINITION) == ["SagaFailed"]


class TestParallel:
    """Two branches of which one fails."""

    DEFINITION = replace(
        TestJoin.DEFINITION,
        steps=tuple(
            replace(step, compensation=CompensationDefinition(triggers, f"{step.success}Undone", timedelta(seconds=9)))
            for step, triggers in zip(TestJoin.DEFINITION.steps, ((), ("t.v1.LeftFailed",), ()), strict=True)
        ),
    )

    def record(self, *events: str | Told) -> Saga:
        named = [event(f"t.v1.{one}") if isinstance(one, str) else one for one in events]
        return fold(facts_of(named), self.DEFINITION)

    def test_the_other_is_to_be_undone_while_it_still_runs(self) -> None:
        saga = self.record("Asked", "LeftFailed")
        assert statuses(saga) == {"left": "FAILED", "right": "COMPENSATING", "join": "PENDING"}
        assert saga.steps[1].deadline == START + timedelta(seconds=10)

    @pytest.mark.parametrize(
        ("answers", "status", "calls_for"),
        [
            (("Right", "RightUndone"), "COMPENSATED", "SagaCompensated"),
            (("RightUndone",), "COMPENSATED", "SagaCompensated"),
            ((lifecycle("StepVoided", "right", definition="join"),), "VOIDED", "SagaFailed"),
        ],
    )
    def test_it_answers_that_it_is_undone_or_that_it_never_ran(
        self, answers: tuple[str | Told, ...], status: str, calls_for: str
    ) -> None:
        saga = self.record("Asked", "LeftFailed", *answers)
        assert statuses(saga)["right"] == status
        assert called_for(saga, self.DEFINITION) == [calls_for]

    def test_what_nothing_undoes_keeps_the_saga_open(self) -> None:
        stuck = replace(self.DEFINITION, steps=tuple(_without_triggers(step) for step in self.DEFINITION.steps))
        saga = fold(facts_of(["t.v1.Asked", "t.v1.Right", "t.v1.LeftFailed"]), stuck)
        assert (saga.status, statuses(saga)["right"]) == (Status.COMPENSATING, "SUCCEEDED")
        assert called_for(saga, stuck) == []


def _without_triggers(step: StepDefinition) -> StepDefinition:
    return replace(step, compensation=step.compensation and replace(step.compensation, triggers=()))


class TestArrival:
    """Stream order decides, not the order of arrival; folding a fact again changes nothing."""

    def test_a_fact_that_arrives_out_of_order_is_put_in_its_place(self) -> None:
        facts = facts_of(["OrderCreated", "ItemsReserved", timed_out(), "PaymentProcessed"])
        created, reserved, time_out, paid = facts
        assert fold([paid, time_out, created, reserved]) == fold(facts)

    def test_a_fact_that_is_there_gives_the_same_record_back(self) -> None:
        facts = facts_of(FINISHED)
        saga = fold(facts)
        assert all(advance(ORDER_FULFILMENT, saga, fact, key=KEY) is saga for fact in facts)


class TestLongHistory:
    """A history has a limit, which what matters passes."""

    NOISE = (event("OrderCreated", source="again"),) * (HISTORY_LIMIT + 500)

    def test_beyond_the_limit_noise_is_only_counted(self) -> None:
        saga = told("OrderCreated", *self.NOISE)
        assert (saga.revision, len(saga.history)) == (1 + len(self.NOISE), HISTORY_LIMIT)
        assert saga.history_omitted == saga.revision - HISTORY_LIMIT
        assert saga.history[-1].fact.sequence == saga.revision * 10

    def test_what_moves_the_saga_is_kept_all_the_same(self) -> None:
        saga = told("OrderCreated", *self.NOISE, *FINISHED[1:], lifecycle("SagaCompleted"), *self.NOISE[:20])
        assert (saga.status, saga.revision) == (Status.COMPLETED, len(self.NOISE) + 26)
        applied = [one.split()[0] for one in dispositions(saga) if one.endswith("APPLIED")]
        assert applied == [*FINISHED, "SagaCompleted"]
        assert len(saga.history) + saga.history_omitted == saga.revision
        assert len(saga.history) <= HISTORY_LIMIT + 6

    def test_what_waits_is_kept_and_applied_when_due(self) -> None:
        saga = told("PaymentProcessed", *(event("a.v1.B"),) * 1200, "ItemsReserved", "OrderCreated")
        assert statuses(saga)["ship-order"] == "RUNNING"
        early = told("OrderCreated", *self.NOISE, "PaymentProcessed", *self.NOISE[:5], "ItemsReserved")
        assert statuses(early)["ship-order"] == "RUNNING"

    def test_an_omitted_fact_that_comes_again_is_not_counted_again(self) -> None:
        facts = facts_of(("OrderCreated", *self.NOISE))
        saga = fold(facts)
        assert fold([facts[HISTORY_LIMIT + 100], facts[3], facts[-1]], saga=saga) is saga

    def test_a_fact_among_the_first_is_put_in_its_place(self) -> None:
        facts = facts_of(("OrderCreated", "ItemsReserved", *self.NOISE))
        saga = fold([fact for fact in facts if fact.sequence != 20])
        assert fold([facts[1]], saga=saga) == fold(facts)

    def test_an_id_that_an_end_used_is_not_used_again(self) -> None:
        ended: tuple[str | Told, ...] = ("OrderCreated", "ReservationFailed", *self.NOISE, "OrderCancelled")
        too_soon = replace(COMPENSATED, id=pending_lifecycle(ORDER_FULFILMENT, told(*ended))[0].id)
        saga = told(*ended, "PaymentProcessed", too_soon, *self.NOISE[:3], "PaymentRefunded")
        (pending,) = pending_lifecycle(ORDER_FULFILMENT, saga)
        assert pending.id != too_soon.id


def test_every_entry_that_was_not_applied_says_why() -> None:
    saga = told(
        "OrderCreated", "OrderCreated", event("OrderCreated", body="other"), "PaymentProcessed", event("a.v1.B"),
        "ReservationFailed", "OrderShipped", "ItemsReleased", lifecycle("StepOverdue", "x"), COMPENSATED, timed_out(),
    )  # fmt: skip
    assert len({one.disposition for one in saga.history}) == 5
    assert all(bool(one.reason) == (one.disposition is not Disposition.APPLIED) for one in saga.history)
