"""The checker finds nothing in an end state in which everything holds, and finds each thing that is spoilt in it."""

from __future__ import annotations

import ast
import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.chaos.checker.__main__ import check
from tests.chaos.checker.evidence import LEDGER, REBUILT, STREAM, read_end_state
from tests.chaos.checker.invariants import INVARIANTS, judge
from tests.chaos.end_state import BEGAN, TIMED_OUT, Body, EndState, write_end_state

CHECKER = Path(__file__).with_name("checker")
ALLOWED_IMPORTS = {"tests", "google", "rich", "nats"}
"""Beside the standard library and the generated message classes."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> EndState:
    return write_end_state(tmp_path_factory.mktemp("good"))


@pytest.fixture
def spoilt(good: EndState, tmp_path: Path) -> Iterator[EndState]:
    yield good.copy_to(tmp_path / "spoilt")
    shutil.rmtree(tmp_path / "spoilt")


def broken(state: EndState) -> dict[str, list[str]]:
    """What is found broken, by invariant."""
    verdicts = judge(read_end_state(state.directory, state.databases))
    return {verdict.invariant.name: list(verdict.broken) for verdict in verdicts if not verdict.holds}


def test_in_a_good_end_state_everything_holds(good: EndState) -> None:
    assert broken(good) == {}


Spoil = Callable[[EndState], None]
SPOILS: dict[str, list[tuple[str, Spoil]]] = {name: [] for name in (invariant.name for invariant in INVARIANTS)}


def spoils(invariant: str) -> Callable[[Spoil], Spoil]:
    """Says which invariant must notice what a function does."""

    def add(spoil: Spoil) -> Spoil:
        SPOILS[invariant].append((spoil.__name__.removeprefix("_"), spoil))
        return spoil

    return add


def change_event(state: EndState, sequence: int, **changes: Any) -> None:
    """Changes a stored message; `body` are fields of its body, `headers` headers."""

    def change(lines: list[Body]) -> list[Body]:
        [line] = [line for line in lines if line["sequence"] == sequence]
        body = json.loads(base64.b64decode(line["data"])) | changes.pop("body", {})
        line |= {"data": base64.b64encode(json.dumps(body).encode()).decode()} | changes
        return lines

    state.change_lines(STREAM, change)


def add_event(state: EndState, like: int, **changes: Any) -> None:
    """Stores another message like one, at the end, and notes it wherever that one is noted."""
    last = state.events()[-1]["sequence"]

    def add(lines: list[Body]) -> list[Body]:
        [line] = [line for line in lines if line["sequence"] == like]
        return [*lines, line | {"sequence": last + 1, "time": lines[-1]["time"]} | changes]

    state.change_lines(STREAM, add)
    for store in ("correlator", REBUILT):
        state.execute(
            store,
            "INSERT INTO saga_history SELECT saga, ?, disposition, disposition_reason, stream_time, type, source, "
            "event_id, digest, time, causation_id, reason, lifecycle, payload FROM saga_history WHERE sequence = ?",
            (last + 1, like),
        )


def in_both_stores(state: EndState, statement: str) -> None:
    for store in ("correlator", REBUILT):
        state.execute(store, statement)


# Nothing lost


@spoils("stored")
def _an_acknowledged_event_is_not_in_the_stream(state: EndState) -> None:
    lost = state.sequence_of("ord-2", "orders.v1.OrderCreated")
    state.change_lines(STREAM, lambda lines: [line for line in lines if line["sequence"] != lost])


@spoils("stored")
def _the_last_of_what_was_acknowledged_was_cut_off(state: EndState) -> None:
    first = state.sequence_of("par-3", "parcels.v1.ParcelOrdered")
    state.change_lines(STREAM, lambda lines: [line for line in lines if line["sequence"] < first])


@spoils("stored")
def _garbage_that_was_acknowledged_is_not_in_the_stream(state: EndState) -> None:
    garbage = state.events()[-2]["sequence"]
    state.change_lines(STREAM, lambda lines: [line for line in lines if line["sequence"] < garbage])


@spoils("stored")
def _an_event_is_gone_that_a_participant_published(state: EndState) -> None:
    lost = state.sequence_of("ord-1", "choreography.v1.SagaCompleted")
    state.change_lines(STREAM, lambda lines: [line for line in lines if line["sequence"] != lost])


@spoils("stored")
def _something_else_stands_where_it_was_acknowledged(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-2", "orders.v1.OrderCreated"), body={"customerId": "mallory"})


@spoils("stored")
def _an_accepted_call_led_to_no_event(state: EndState) -> None:
    def call(lines: list[Body]) -> list[Body]:
        return [
            *lines,
            {**lines[0], "body": lines[0]["body"] | {"customerId": "grace"}, "how": "call", "sequence": None},
        ]

    state.change_lines(LEDGER, call)


@spoils("stored")
def _a_message_can_not_be_read_that_was_to_be_one(state: EndState) -> None:
    last = state.events()[-1]
    garbage = last | {"sequence": last["sequence"] + 1, "data": base64.b64encode(b"{").decode()}
    state.change_lines(STREAM, lambda lines: [*lines, garbage])


@spoils("processed")
def _an_event_was_skipped_by_a_participant(state: EndState) -> None:
    state.execute(
        "payments", "DELETE FROM farandole_inbox WHERE sequence = (SELECT min(sequence) FROM farandole_inbox)"
    )


@spoils("processed")
def _an_event_is_missing_in_the_history(state: EndState) -> None:
    in_both_stores(
        state, f"DELETE FROM saga_history WHERE sequence = {state.sequence_of('ord-1', 'orders.v1.OrderCreated')}"
    )


@spoils("processed")
def _a_saga_has_no_record(state: EndState) -> None:
    in_both_stores(state, "DELETE FROM saga_history WHERE saga IN (SELECT id FROM saga WHERE key = 'ord-1')")
    in_both_stores(state, "DELETE FROM saga WHERE key = 'ord-1'")


@spoils("processed")
def _a_record_is_of_nobody(state: EndState) -> None:
    for store in ("correlator", REBUILT):
        state.insert(store, "saga", id=77, key="ghost", definition="order-fulfilment", status=2)


@spoils("processed")
def _an_event_still_waits(state: EndState) -> None:
    state.insert("shipping", "farandole_queue", sequence=3, key="ord-1", subject="events.0.x", error="no luck")


@spoils("processed")
def _an_event_was_given_up_on_and_never_closed(state: EndState) -> None:
    closed = state.sequence_of("ord-3", "choreography.v1.DeadLetterSuperseded")
    change_event(state, closed, subject="events.0.choreography.v1.DeadLetterRecorded")


@spoils("dead letters")
def _a_dead_letter_is_still_open(state: EndState) -> None:
    in_both_stores(state, "UPDATE dead_letter SET state = 1 WHERE participant = 'shipping'")


@spoils("dead letters")
def _what_no_one_can_read_is_no_dead_letter(state: EndState) -> None:
    in_both_stores(state, "DELETE FROM dead_letter WHERE participant = 'correlator'")


@spoils("dead letters")
def _nobody_was_told_that_an_event_can_not_be_read(state: EndState) -> None:
    last = state.events()[-1]
    assert last["subject"].endswith("EventUnreadable")
    state.change_lines(STREAM, lambda lines: lines[:-1])


@spoils("dead letters")
def _what_can_be_read_is_a_dead_letter_of_the_correlator(state: EndState) -> None:
    for store in ("correlator", REBUILT):
        state.insert(store, "dead_letter", participant="correlator", sequence=3, state=1)


@spoils("published")
def _a_participant_has_not_published_all(state: EndState) -> None:
    state.insert("drones", "farandole_outbox", id=1, key="par-1")


@spoils("published")
def _the_correlator_has_not_published_all(state: EndState) -> None:
    state.insert("correlator", "farandole_outbox", id=1, key="par-1")


# Nothing twice


@spoils("effects once")
def _a_card_is_charged_twice(state: EndState) -> None:
    state.insert("payments", "chaos_effect", id=99, step="take-payment", direction="done", subject="ord-1")


@spoils("effects once")
def _a_payment_is_refunded_twice(state: EndState) -> None:
    state.execute("payments", "UPDATE payments SET status = 'REFUNDED' WHERE order_id = 'ord-3'")


@spoils("effects once")
def _a_step_is_done_again_after_it_was_undone(state: EndState) -> None:
    statement = "UPDATE chaos_effect SET id = id + 100 WHERE step = 'provision-drone' AND direction = 'done'"
    state.execute("drones", f"{statement} AND subject = 'par-2'")


@spoils("effects once")
def _an_order_is_reserved_by_two_runs(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-3", "inventory.v1.ItemsReserved"), body={"orderId": "ord-1"})
    state.execute("inventory", "UPDATE chaos_effect SET part = 'gadget' WHERE subject = 'res-ord-3'")


@spoils("events once")
def _a_step_succeeds_twice(state: EndState) -> None:
    success = state.sequence_of("ord-1", "payments.v1.PaymentProcessed")
    add_event(state, success, headers={"ce-id": "another", "ce-source": "payments"})
    state.insert("shipping", "farandole_inbox", identity="payments/another", sequence=99)


@spoils("events once")
def _a_delivery_is_called_off_without_a_time_out(state: EndState) -> None:
    failed = state.sequence_of("par-2", "delivery.v1.DeliveryFailed")
    change_event(state, failed, body={"parcelId": "par-1"})


@spoils("events once")
def _a_step_is_undone_twice(state: EndState) -> None:
    undone = state.sequence_of("ord-3", "inventory.v1.ItemsReleased")
    add_event(state, undone, headers={"ce-id": "another", "ce-source": "inventory"})
    state.insert("orders", "farandole_inbox", identity="inventory/another", sequence=99)


@spoils("events once")
def _a_step_is_voided_twice(state: EndState) -> None:
    voided = state.sequence_of("ord-3", "choreography.v1.StepVoided")
    add_event(state, voided, headers={"ce-id": "another", "ce-source": "shipping"})


@spoils("said and done")
def _an_event_tells_what_was_never_done(state: EndState) -> None:
    state.execute("payments", "DELETE FROM chaos_effect WHERE subject = 'ord-1'")


@spoils("said and done")
def _what_was_done_is_told_by_no_event(state: EndState) -> None:
    change_event(state, state.sequence_of("par-1", "drones.v1.DroneProvisioned"), headers={"ce-source": "someone"})


@spoils("said and done")
def _an_undoing_is_told_by_no_event(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-2", "inventory.v1.ItemsReleased"), headers={"ce-source": "someone"})


@spoils("said and done")
def _a_refusal_is_told_by_no_event(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-2", "payments.v1.PaymentFailed"), headers={"ce-source": "someone"})


@spoils("said and done")
def _an_order_was_never_written_down(state: EndState) -> None:
    state.execute("orders", "DELETE FROM chaos_effect WHERE step = 'place-order' AND subject = 'ord-1'")


@spoils("said and done")
def _an_undeliverable_parcel_is_told_by_no_event(state: EndState) -> None:
    change_event(state, state.sequence_of("par-2", "delivery.v1.DeliveryFailed"), headers={"ce-source": "someone"})


@spoils("said and done")
def _a_step_that_was_done_is_said_to_have_failed(state: EndState) -> None:
    done = state.sequence_of("ord-1", "inventory.v1.ItemsReserved")
    failed = {"ce-id": "another", "ce-source": "inventory"}
    add_event(state, done, subject="events.0.inventory.v1.ReservationFailed", headers=failed)


@spoils("said and done")
def _a_step_that_was_done_is_said_to_be_void(state: EndState) -> None:
    voided = state.sequence_of("ord-3", "choreography.v1.StepVoided")
    change_event(
        state,
        voided,
        body={"sagaId": "ord-1", "step": "take-payment"},
        headers={"ce-id": "another", "ce-source": "payments"},
    )


@spoils("said and done")
def _an_effect_is_of_nobody(state: EndState) -> None:
    state.insert("packaging", "chaos_effect", id=99, step="prepare-package", direction="done", subject="pack-ghost")


@spoils("said and done")
def _a_voided_step_was_done(state: EndState) -> None:
    state.insert("shipping", "chaos_effect", id=99, step="ship-order", direction="done", subject="ord-3")


@spoils("said and done")
def _a_delivery_was_made_that_is_said_to_have_failed(state: EndState) -> None:
    state.insert("delivery", "chaos_effect", id=99, step="deliver-package", direction="acted", subject="par-3")


# Every saga ends, and ends well


@spoils("all end")
def _a_saga_has_not_ended(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 3 WHERE key = 'par-2'")


@spoils("all end")
def _a_saga_ended_too_late(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET end_time = end_time + 120000000 WHERE key = 'par-2'")


@spoils("all end")
def _the_run_never_came_to_rest(state: EndState) -> None:
    state.change_run(unsettled="the outbox of payments")


@spoils("ends")
def _a_good_order_was_compensated(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 4 WHERE key = 'ord-1'")


@spoils("ends")
def _a_declined_order_completed(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 2 WHERE key = 'ord-2'")


@spoils("ends")
def _a_timed_out_saga_completed(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 2 WHERE key = 'ord-3'")


@spoils("ends")
def _a_saga_failed_for_another_reason_than_its_order_gives(state: EndState) -> None:
    failure = state.sequence_of("ord-2", "payments.v1.PaymentFailed")
    change_event(state, failure, subject="events.0.shipping.v1.ShippingFailed")


@spoils("ends")
def _a_timed_out_saga_failed_for_another_reason(state: EndState) -> None:
    paid = state.sequence_of("ord-3", "payments.v1.PaymentProcessed")
    add_event(state, paid, subject="events.0.payments.v1.PaymentFailed", headers={})


@spoils("ends")
def _a_saga_completed_without_its_commit_event(state: EndState) -> None:
    committed = state.sequence_of("ord-1", "shipping.v1.OrderShipped")
    change_event(state, committed, subject="events.0.shipping.v1.ShipmentCancelled")


@spoils("ends")
def _an_order_that_only_a_time_out_can_end_has_ended_without(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-3", TIMED_OUT), subject="events.0.choreography.v1.StepOverdue")


@spoils("undone")
def _a_step_of_a_compensated_saga_is_not_undone(state: EndState) -> None:
    state.execute("inventory", "DELETE FROM chaos_effect WHERE subject = 'res-ord-2' AND direction = 'undone'")


@spoils("undone")
def _a_step_is_undone_that_was_never_done(state: EndState) -> None:
    state.insert("payments", "chaos_effect", id=99, step="take-payment", direction="undone", subject="ord-2")


@spoils("undone")
def _a_step_of_a_completed_saga_is_undone(state: EndState) -> None:
    state.insert("drones", "chaos_effect", id=99, step="provision-drone", direction="undone", subject="par-1")


@spoils("undone")
def _a_step_of_a_completed_saga_was_not_done(state: EndState) -> None:
    state.execute("parcels", "DELETE FROM chaos_effect WHERE step = 'complete-parcel'")


@spoils("undone")
def _a_completed_parcel_was_never_handed_over(state: EndState) -> None:
    state.execute("delivery", "DELETE FROM chaos_effect WHERE direction = 'acted' AND subject = 'par-1'")


@spoils("undone")
def _a_compensated_parcel_was_delivered(state: EndState) -> None:
    state.insert("delivery", "chaos_effect", id=99, step="deliver-package", direction="acted", subject="par-2")


@spoils("undone")
def _a_saga_failed_with_something_to_undo(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 6 WHERE key = 'ord-2'")


# Books


@spoils("books")
def _a_piece_is_lost(state: EndState) -> None:
    state.execute("inventory", "UPDATE stock SET available = available - 1 WHERE sku = 'gadget'")


@spoils("books")
def _more_is_reserved_than_ordered(state: EndState) -> None:
    state.execute(
        "inventory", "UPDATE stock SET available = available - 1, reserved = reserved + 1 WHERE sku = 'widget'"
    )


@spoils("books")
def _too_much_was_paid(state: EndState) -> None:
    state.execute("payments", "UPDATE payments SET amount_cents = 301 WHERE order_id = 'ord-1'")


@spoils("books")
def _an_order_was_paid_by_another(state: EndState) -> None:
    state.execute("payments", "UPDATE payments SET order_id = 'ord-9' WHERE order_id = 'ord-1'")


@spoils("books")
def _an_order_has_another_tracking_number_than_its_shipment(state: EndState) -> None:
    state.execute("orders", "UPDATE orders SET tracking_number = 'FD9' WHERE order_id = 'ord-1'")


@spoils("books")
def _a_compensated_order_is_not_cancelled(state: EndState) -> None:
    state.execute("orders", "UPDATE orders SET status = 'PLACED' WHERE order_id = 'ord-2'")


@spoils("books")
def _a_compensated_parcel_is_not_cancelled(state: EndState) -> None:
    state.execute("parcels", "UPDATE parcels SET status = 'ORDERED' WHERE parcel_id = 'par-2'")


@spoils("books")
def _a_book_is_lost(state: EndState) -> None:
    state.execute("packaging", "UPDATE stock SET available = available - 1 WHERE item = 'book'")


@spoils("books")
def _a_cancelled_order_keeps_its_money(state: EndState) -> None:
    state.execute("payments", "UPDATE payments SET status = 'PROCESSED' WHERE order_id = 'ord-3'")


@spoils("books")
def _an_order_does_not_know_that_it_is_completed(state: EndState) -> None:
    state.execute("orders", "UPDATE orders SET status = 'PLACED' WHERE order_id = 'ord-1'")


@spoils("books")
def _a_cancelled_order_was_shipped(state: EndState) -> None:
    state.insert("shipping", "shipments", order_id="ord-2", tracking_number="FD2", status="SHIPPED")


@spoils("books")
def _a_drone_is_lost(state: EndState) -> None:
    state.execute("drones", "UPDATE fleet SET available = available - 1")


@spoils("books")
def _a_drone_stands_by_for_nobody(state: EndState) -> None:
    state.execute("drones", "UPDATE fleet SET available = available - 1, provisioned = provisioned + 1")


@spoils("books")
def _a_book_is_packed_for_nobody(state: EndState) -> None:
    state.execute("packaging", "UPDATE stock SET available = available - 1, packed = packed + 1 WHERE item = 'book'")


@spoils("books")
def _a_parcel_is_delivered_that_was_cancelled(state: EndState) -> None:
    state.execute("delivery", "UPDATE deliveries SET status = 'DELIVERED' WHERE parcel_id = 'par-2'")


# Time


@spoils("time-outs")
def _a_saga_is_timed_out_twice(state: EndState) -> None:
    add_event(state, state.sequence_of("ord-3", TIMED_OUT))


@spoils("time-outs")
def _a_saga_is_timed_out_after_its_commit_event(state: EndState) -> None:
    body = {"sagaId": "ord-1", "definition": "order-fulfilment", "version": 1}
    data = base64.b64encode(json.dumps(body).encode()).decode()
    add_event(state, state.sequence_of("ord-3", TIMED_OUT), data=data)


@spoils("time-outs")
def _a_saga_is_timed_out_before_its_deadline(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-3", TIMED_OUT), time=BEGAN.isoformat())


@spoils("time-outs")
def _a_late_saga_is_never_timed_out(state: EndState) -> None:
    change_event(state, state.sequence_of("ord-3", TIMED_OUT), subject="events.0.choreography.v1.StepOverdue")


@spoils("time-outs")
def _somebody_else_times_a_saga_out(state: EndState) -> None:
    change_event(state, state.sequence_of("par-3", TIMED_OUT), headers={"ce-id": "id", "ce-source": "payments"})


# The records


@spoils("records")
def _a_rebuilt_record_differs(state: EndState) -> None:
    state.execute(REBUILT, "UPDATE saga SET cause_detail = 'another' WHERE key = 'ord-2'")


@spoils("records")
def _a_rebuilt_history_differs(state: EndState) -> None:
    state.execute(REBUILT, "UPDATE saga_history SET disposition = 2 WHERE sequence = 3")


@spoils("records")
def _a_dead_letter_is_only_in_the_rebuilt_records(state: EndState) -> None:
    state.insert(REBUILT, "dead_letter", participant="payments", sequence=3, state=4)


@spoils("records")
def _the_rebuild_published_something(state: EndState) -> None:
    state.change_run(published_by_rebuild=["choreography.v1.SagaCompleted"])


@spoils("records")
def _the_rebuild_would_publish_something(state: EndState) -> None:
    state.insert(REBUILT, "farandole_outbox", id=1, key="par-1")


# The run itself


@spoils("the run")
def _too_few_sagas_were_begun(state: EndState) -> None:
    state.change_run(wanted_sagas=7)


@spoils("the run")
def _too_few_sagas_have_ended(state: EndState) -> None:
    in_both_stores(state, "UPDATE saga SET status = 1 WHERE key = 'par-2'")


@spoils("the run")
def _too_few_processes_were_killed(state: EndState) -> None:
    state.change_run(wanted_kills=4)


@spoils("the run")
def _too_few_leaders_were_killed_or_succeeded(state: EndState) -> None:
    killed = {"kind": "leader killed", "brought_about": 5, "observed": 1, "by": "the next leader's own word"}
    state.change_run(wanted_leader_kills=2, strikes=[killed])


@spoils("the run")
def _a_process_was_never_killed(state: EndState) -> None:
    state.change_run(kills={"nats": 3, "payments": 0})


@spoils("the run")
def _a_fault_was_never_seen_to_strike(state: EndState) -> None:
    state.change_run(strikes=[{"kind": "SIGSTOP", "brought_about": 5, "observed": 0, "by": "the process"}])


@spoils("the run")
def _a_fault_could_not_be_brought_about(state: EndState) -> None:
    strike = {"kind": "disk full", "brought_about": 0, "observed": 0, "by": "the log", "problem": "it takes root"}
    state.change_run(strikes=[strike])


def test_a_fault_that_the_machine_does_not_allow_may_be_missing_outside_of_ci(spoilt: EndState) -> None:
    _a_fault_could_not_be_brought_about(spoilt)
    spoilt.change_run(must_be_complete=False)
    assert broken(spoilt) == {}


@spoils("the run")
def _no_parcel_was_begun(state: EndState) -> None:
    first = state.sequence_of("par-1", "parcels.v1.ParcelOrdered")
    garbage = state.events()[-2]["sequence"]
    state.change_lines(STREAM, lambda lines: [line for line in lines if not first <= line["sequence"] < garbage])
    state.change_run(wanted_sagas=3)


@spoils("the run")
def _no_saga_was_begun_twice(state: EndState) -> None:
    again = state.sequence_of("ord-1", "orders.v1.OrderCreated") + 1
    state.change_lines(STREAM, lambda lines: [line for line in lines if line["sequence"] != again])


@spoils("the run")
def _no_dead_letter_was_redriven(state: EndState) -> None:
    redriven = state.sequence_of("ord-3", "choreography.v1.DeadLetterRedriven")
    change_event(state, redriven, subject="events.0.choreography.v1.DeadLetterRecorded")


@spoils("the run")
def _nothing_unreadable_was_published(state: EndState) -> None:
    state.change_lines(STREAM, lambda lines: lines[:-2])


@spoils("the run")
def _no_saga_was_late(state: EndState) -> None:
    for key in ("ord-3", "par-3"):
        change_event(state, state.sequence_of(key, TIMED_OUT), subject="events.0.choreography.v1.StepOverdue")


@pytest.mark.parametrize(
    ("invariant", "spoil"),
    [
        pytest.param(invariant, spoil, id=f"{invariant}: {name}")
        for invariant, found in SPOILS.items()
        for name, spoil in found
    ],
)
def test_what_is_spoilt_is_found(spoilt: EndState, invariant: str, spoil: Spoil) -> None:
    spoil(spoilt)
    assert broken(spoilt).get(invariant), f"nothing is found by {invariant}"


def test_every_invariant_is_tried() -> None:
    assert [name for name, found in SPOILS.items() if not found] == []


def test_an_invariant_that_looked_at_nothing_does_not_hold(spoilt: EndState) -> None:
    for name in (STREAM, LEDGER):
        spoilt.change_lines(name, lambda lines: [])
    found = judge(read_end_state(spoilt.directory, spoilt.databases))
    verdicts = {verdict.invariant.name: verdict for verdict in found}
    assert not verdicts["events once"].holds
    assert not verdicts["all end"].looked_at > 1


def test_the_verdict_is_told_and_returned(good: EndState, spoilt: EndState) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    assert check(good.directory, good.databases, console)
    assert "BROKEN" not in console.export_text()
    _a_card_is_charged_twice(spoilt)
    assert not check(spoilt.directory, spoilt.databases, console)
    assert "ord-1: take-payment was done 2 times" in console.export_text()


def test_a_run_that_left_no_evidence_is_no_good_run(good: EndState, spoilt: EndState) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    (spoilt.directory / STREAM).unlink()
    assert not check(spoilt.directory, spoilt.databases, console)
    assert "can't be judged" in console.export_text()


def test_the_checker_shares_nothing_with_what_it_checks() -> None:
    generated = {path.name for path in (CHECKER.parents[2] / "generated/python").iterdir()}
    for path in CHECKER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names | ALLOWED_IMPORTS | generated, f"{path.name} imports {name}"
                assert top != "tests" or name.startswith("tests.chaos.checker"), f"{path.name} imports {name}"


def test_loading_the_checker_loads_nothing_of_what_it_checks() -> None:
    modules = [f"tests.chaos.checker.{path.stem}" for path in CHECKER.glob("*.py")]
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('farandole', 'services')])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKER.parents[2])
    assert done.stdout.strip() == "[]"
