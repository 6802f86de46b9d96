"""What is late, what is stalled, and what dead letters hold up: shown as long as it lasts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farandole.lifecycle import OpenDeadLetter, open_dead_letters
from farandole.saga import Cause, Disposition, Health, Lifecycle, Status
from tests.unit.saga_histories import (
    ORDER_FULFILMENT,
    Told,
    called_for,
    dead_letter,
    dispositions,
    event,
    facts_of,
    fold,
    lifecycle,
    overdue,
    statuses,
    timed_out,
    told,
)

SHIPPED = ("OrderCreated", "ItemsReserved", "PaymentProcessed", "OrderShipped")
SHIPPING_FAILED = (*SHIPPED[:3], "ShippingFailed")
STALLED = lifecycle("SagaStalled")
REFUND_GIVEN_UP = dead_letter("Recorded", "take-payment", 40, compensation=True)
REFUND_REDRIVEN = dead_letter("Redriven", "take-payment", 40)


class TestOverdue:
    """`StepOverdue` counts as long as what it names is open."""

    def test_a_step_is_overdue_until_it_ends(self) -> None:
        late = ("OrderCreated", overdue("reserve-items", after=60))
        assert told(*late).health is Health.OVERDUE
        assert told(*late, "PaymentProcessed").health is Health.OVERDUE
        assert told(*late, "ItemsReserved").health is Health.ON_TIME

    def test_a_compensation_is_overdue_until_it_ends(self) -> None:
        late = (*SHIPPING_FAILED, overdue("take-payment", compensation=True))
        assert told(*late).health is Health.OVERDUE
        assert told(*late, "PaymentRefunded").health is Health.ON_TIME

    def test_of_two_late_steps_one_is_still_late(self) -> None:
        late = (
            overdue("take-payment", compensation=True),
            "PaymentRefunded",
            overdue("reserve-items", compensation=True),
        )
        assert told(*SHIPPING_FAILED, *late).health is Health.OVERDUE
        assert told(*SHIPPING_FAILED, *late, "ItemsReleased").health is Health.ON_TIME

    def test_what_is_not_open_is_not_late(self) -> None:
        for one in (
            overdue("place-order"),
            overdue("ship-order"),
            overdue("reserve-items", compensation=True),
        ):
            saga = told("OrderCreated", one)
            assert (dispositions(saga)[1], saga.health) == ("StepOverdue LATE", Health.ON_TIME)
        assert dispositions(told("OrderCreated", overdue("no-such-step")))[1] == "StepOverdue UNEXPECTED"

    def test_who_tells_it_too_soon_does_not_keep_the_correlator_from_telling_it(self) -> None:
        soon = ("OrderCreated", "ShippingFailed", overdue("take-payment", source="someone"), "ItemsReserved")
        saga = told(*soon, overdue("take-payment"))
        assert dispositions(saga)[2::2] == ["StepOverdue LATE", "StepOverdue APPLIED"]
        assert saga.health is Health.OVERDUE

    def test_a_compensation_of_a_timed_out_saga_that_is_late_has_stalled_it(self) -> None:
        """The saga's deadline has passed already, so that nothing else would tell."""
        late = ("OrderCreated", "ItemsReserved", timed_out(), overdue("reserve-items", compensation=True))
        assert told(*late).health is Health.STALLED
        assert told(*late, "ItemsReleased").health is Health.ON_TIME

    def test_a_step_that_was_late_when_the_saga_was_timed_out_is_still_shown(self) -> None:
        late = ("OrderCreated", overdue("reserve-items"), timed_out())
        assert told(*late).health is Health.OVERDUE
        assert (
            told(*late, "OrderCancelled", lifecycle("SagaCompensated", cause=Cause.DEADLINE)).health is Health.ON_TIME
        )


class TestStalled:
    """`SagaStalled` counts until the saga ends."""

    def test_a_saga_that_has_committed_is_stalled_until_it_completes(self) -> None:
        late = (*SHIPPED, replace(STALLED, after=1800))
        assert (dispositions(told(*late))[4], told(*late).health) == ("SagaStalled APPLIED", Health.STALLED)
        done = told(*late, "OrderCompleted", lifecycle("SagaCompleted"))
        assert (done.status, done.health, done.finished_late) == (Status.COMPLETED, Health.ON_TIME, True)

    def test_a_saga_whose_commit_event_waits_for_its_turn_is_stalled(self) -> None:
        saga = told("OrderCreated", "OrderShipped", STALLED)
        assert (dispositions(saga)[2], saga.health) == ("SagaStalled APPLIED", Health.STALLED)

    def test_a_saga_that_a_failure_turned_is_stalled_until_it_ends(self) -> None:
        late = (*SHIPPING_FAILED, lifecycle("SagaStalled", cause=Cause.STEP_FAILURE))
        assert told(*late).health is Health.STALLED
        undone = (*late, "PaymentRefunded", "ItemsReleased", "OrderCancelled")
        assert told(*undone).health is Health.STALLED
        assert told(*undone, lifecycle("SagaCompensated", cause=Cause.STEP_FAILURE)).health is Health.ON_TIME

    def test_stalled_is_worse_than_overdue(self) -> None:
        assert told(*SHIPPED, overdue("complete-order"), STALLED).health is Health.STALLED
        assert told(*SHIPPED, STALLED, overdue("complete-order")).health is Health.STALLED

    @pytest.mark.parametrize(
        ("events", "disposition"),
        [
            pytest.param(("OrderCreated",), "UNEXPECTED", id="can be timed out"),
            pytest.param(("OrderCreated", timed_out()), "LATE", id="timed out already"),
            pytest.param((*SHIPPED, STALLED), "LATE", id="known already"),
            pytest.param((*SHIPPED, "OrderCompleted", lifecycle("SagaCompleted")), "LATE", id="ended"),
        ],
    )
    def test_it_counts_only_where_the_record_justifies_it(
        self, events: tuple[str | Told, ...], disposition: str
    ) -> None:
        before, saga = told(*events), told(*events, STALLED)
        assert (saga.history[-1].disposition.name, saga.health) == (disposition, before.health)
        assert saga.history[-1].reason


RESERVING = "participant-of-reserve-items"


class TestDeadLetters:
    """A dead letter holds its saga up until somebody closes it."""

    @pytest.mark.parametrize("verb", ["Redriven", "Discarded", "Superseded"])
    def test_a_saga_is_quarantined_until_its_dead_letter_is_closed(self, verb: str) -> None:
        given_up = ("OrderCreated", dead_letter("Recorded", "reserve-items"))
        saga = told(*given_up)
        assert (dispositions(saga)[1], saga.health) == ("DeadLetterRecorded APPLIED", Health.QUARANTINED)
        assert open_dead_letters(saga) == (("participant-of-reserve-items", 10, "reserve-items", False),)
        closed = told(*given_up, dead_letter(verb, "reserve-items"))
        assert (dispositions(closed)[2], closed.health) == (f"DeadLetter{verb} APPLIED", Health.ON_TIME)
        assert open_dead_letters(closed) == ()

    def test_it_may_be_given_up_on_and_redriven_again_and_again(self) -> None:
        """The bodies are the same each time: only the ids tell these events apart."""
        round_ = (dead_letter("Recorded", "reserve-items"), dead_letter("Redriven", "reserve-items"))
        saga = told("OrderCreated", *round_, *round_, *round_)
        assert {one.disposition for one in saga.history} == {Disposition.APPLIED}
        assert told("OrderCreated", *round_, round_[0]).health is Health.QUARANTINED
        again = told("OrderCreated", *round_, replace(round_[1], id="event-3"), round_[0])
        assert dispositions(again)[3:] == ["DeadLetterRedriven DUPLICATE", "DeadLetterRecorded APPLIED"]

    def test_of_two_one_is_still_open(self) -> None:
        saga = told(
            "OrderCreated",
            dead_letter("Recorded", "reserve-items"),
            dead_letter("Recorded", "place-order"),
            dead_letter("Discarded", "reserve-items"),
        )
        assert saga.health is Health.QUARANTINED
        assert open_dead_letters(saga) == (OpenDeadLetter("participant-of-place-order", 10, "place-order", False),)

    @pytest.mark.parametrize("verb", ["Redriven", "Discarded", "Superseded"])
    def test_what_names_another_step_closes_nothing(self, verb: str) -> None:
        recorded = dead_letter("Recorded", "reserve-items")
        about = Lifecycle("order-fulfilment", 0, Cause.UNSPECIFIED, ("place-order",), dead_letter=(RESERVING, 10))
        saga = told("OrderCreated", recorded, replace(dead_letter(verb, "place-order"), lifecycle=about))
        assert (dispositions(saga)[2], saga.health) == (f"DeadLetter{verb} UNEXPECTED", Health.QUARANTINED)

    def test_what_opens_or_closes_nothing_says_so(self) -> None:
        recorded = dead_letter("Recorded", "reserve-items")
        saga = told("OrderCreated", recorded, recorded, dead_letter("Redriven", "reserve-items", 20))
        assert dispositions(saga)[2:] == ["DeadLetterRecorded UNEXPECTED", "DeadLetterRedriven LATE"]
        assert [one.reason for one in saga.history[2:]] == [
            "the dead letter of 'participant-of-reserve-items' at sequence 10 is open already",
            "the dead letter of 'participant-of-reserve-items' at sequence 20 is not open",
        ]

    def test_a_saga_that_has_ended_is_quarantined_too_and_stays_ended(self) -> None:
        done = (*SHIPPED, "OrderCompleted", lifecycle("SagaCompleted"), dead_letter("Recorded", "complete-order"))
        saga = told(*done)
        assert (saga.status, saga.health) == (Status.COMPLETED, Health.QUARANTINED)
        assert told(*done, dead_letter("Discarded", "complete-order")).health is Health.ON_TIME

    def test_before_the_initiating_event_it_waits_with_the_others(self) -> None:
        early = (dead_letter("Recorded", "reserve-items"), dead_letter("Redriven", "reserve-items"))
        assert (dispositions(told(*early[:1])), told(*early[:1]).health) == (
            ["DeadLetterRecorded UNMATCHED"],
            Health.ON_TIME,
        )
        assert told(early[0], "OrderCreated").health is Health.QUARANTINED
        both = told(*early, "OrderCreated")
        assert (both.health, {one.disposition for one in both.history}) == (Health.ON_TIME, {Disposition.APPLIED})

    def test_quarantined_is_worse_than_stalled(self) -> None:
        saga = told(*SHIPPED, STALLED, dead_letter("Recorded", "complete-order", 40))
        assert saga.health is Health.QUARANTINED
        assert told(*SHIPPED, dead_letter("Recorded", "complete-order", 40), STALLED).health is Health.QUARANTINED

    def test_they_move_no_step_and_cause_no_end(self) -> None:
        done = (*SHIPPED, "OrderCompleted")
        saga = told(*done, dead_letter("Recorded", "complete-order"), dead_letter("Redriven", "complete-order"))
        assert saga.steps == told(*done).steps
        assert called_for(saga) == ["SagaCompleted"]


class TestCompensationFailed:
    """The compensation of a step that is being undone was given up on."""

    def test_it_lasts_until_the_dead_letter_is_redriven(self) -> None:
        saga = told(*SHIPPING_FAILED, REFUND_GIVEN_UP)
        assert (saga.status, saga.health, saga.end_time) == (Status.COMPENSATION_FAILED, Health.QUARANTINED, None)
        assert called_for(saga) == []
        redriven = told(*SHIPPING_FAILED, REFUND_GIVEN_UP, REFUND_REDRIVEN)
        assert (redriven.status, redriven.health) == (Status.COMPENSATING, Health.ON_TIME)
        undone = ("PaymentRefunded", "ItemsReleased", "OrderCancelled")
        ended = told(
            *SHIPPING_FAILED,
            REFUND_GIVEN_UP,
            REFUND_REDRIVEN,
            *undone,
            lifecycle("SagaCompensated", cause=Cause.STEP_FAILURE),
        )
        assert (ended.status, ended.health) == (Status.COMPENSATED, Health.ON_TIME)

    def test_given_up_on_again_it_is_failed_again(self) -> None:
        saga = told(*SHIPPING_FAILED, REFUND_GIVEN_UP, REFUND_REDRIVEN, REFUND_GIVEN_UP)
        assert saga.status is Status.COMPENSATION_FAILED

    def test_what_else_happens_meanwhile_is_folded_as_ever(self) -> None:
        stuck = (*SHIPPING_FAILED, REFUND_GIVEN_UP)
        saga = told(*stuck, "ItemsReleased", event("PaymentProcessed", body="other"))
        assert saga.status is Status.COMPENSATION_FAILED
        assert statuses(saga)["reserve-items"] == "COMPENSATED"
        assert fold(facts_of((*stuck, "ItemsReleased"))[::-1]).status is Status.COMPENSATION_FAILED

    def test_once_the_step_is_undone_all_the_same_it_is_only_quarantined(self) -> None:
        saga = told(*SHIPPING_FAILED, REFUND_GIVEN_UP, "PaymentRefunded")
        assert (saga.status, saga.health) == (Status.COMPENSATING, Health.QUARANTINED)

    def test_a_dead_letter_of_the_step_itself_is_another_thing(self) -> None:
        saga = told(*SHIPPING_FAILED, dead_letter("Recorded", "take-payment", 20))
        assert (saga.status, saga.health) == (Status.COMPENSATING, Health.QUARANTINED)

    def test_a_saga_that_runs_has_no_failed_compensation(self) -> None:
        saga = told(*SHIPPED[:3], dead_letter("Recorded", "take-payment", 30, compensation=True))
        assert (saga.status, saga.health) == (Status.RUNNING, Health.QUARANTINED)

    def test_an_act_that_cannot_be_taken_back_fails_so_too(self) -> None:
        """A step without compensation that succeeded after the time-out is to be taken back by its participant."""
        pivot = replace(ORDER_FULFILMENT.steps[3], compensation=None)
        definition = replace(ORDER_FULFILMENT, steps=(*ORDER_FULFILMENT.steps[:3], pivot, *ORDER_FULFILMENT.steps[4:]))
        given_up = dead_letter("Recorded", "ship-order", 50, compensation=True)
        saga = told(*SHIPPED[:3], timed_out(), "OrderShipped", given_up, definition=definition)
        assert saga.status is Status.COMPENSATION_FAILED
