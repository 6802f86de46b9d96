"""An order, from a bare `nats pub` or from `PlaceOrder`, to a saga that is completed and says how."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.e2e.running_stack import JSON, ORDERS, SAGAS, Stack, assert_no_secrets, dispositions, order, order_subject

FLOW = [
    ("orders.v1.OrderCreated", "orders"),
    ("inventory.v1.ItemsReserved", "inventory"),
    ("payments.v1.PaymentProcessed", "payments"),
    ("shipping.v1.OrderShipped", "shipping"),
    ("orders.v1.OrderCompleted", "orders"),
    ("choreography.v1.SagaCompleted", "correlator"),
]


def publish_bare(stack: Stack, order_id: str) -> None:
    """As a person types it: no header, no waiting for the stream."""
    stack.nats.publish(order_subject(order_id), order(order_id))


def place(stack: Stack, order_id: str) -> None:
    """Over gRPC."""
    assert stack.ask(f"{ORDERS}/PlaceOrder", order(order_id)) == {"order_id": order_id}


CHANNELS = pytest.mark.parametrize(
    ("send", "source", "order_id"), [(publish_bare, "anonymous", "flow-bare"), (place, "orders", "flow-placed")]
)


@CHANNELS
def test_an_order_is_carried_out_and_its_saga_says_how(
    stack: Stack, send: Callable[[Stack, str], None], source: str, order_id: str
) -> None:
    available, reserved = stack.stock()
    send(stack, order_id)
    saga = stack.completed(order_id)

    assert (saga["saga_id"], saga["definition"], saga["version"]) == (order_id, "order-fulfilment", 1)
    assert saga["health"] == "SAGA_HEALTH_ON_TIME"
    assert "cause" not in saga
    assert [step["status"] for step in saga["steps"]] == ["STEP_STATUS_SUCCEEDED"] * 5
    history = saga["history"]
    assert [(entry["event_type"], entry["source"]) for entry in history] == [(FLOW[0][0], source), *FLOW[1:]]
    assert {entry["disposition"] for entry in history} == {"DISPOSITION_APPLIED"}
    assert int(saga["revision"]) == len(history)
    sequences = [int(entry["sequence"]) for entry in history]
    assert sequences == sorted(set(sequences))
    ids = [entry["id"] for entry in history]
    assert len(set(ids)) == len(ids)
    assert [entry.get("causation_id", "") for entry in history] == ["", *ids[:-1]]
    times = [datetime.fromisoformat(entry["time"]) for entry in history]
    assert times == sorted(times)
    assert saga["end_time"] == history[-1]["stream_time"]
    if send is publish_bare:
        assert history[0]["time"] == history[0]["stream_time"], "an event without a time has the stream's"

    created, reservation, charge, shipped, completed, _ = (entry["payload"] for entry in history)
    assert created["lines"] == [{"sku": "widget", "quantity": 2, "unitPriceCents": "1250"}]
    assert (created["card"], created["address"]) == ("[REDACTED]", "[REDACTED]")
    assert (reservation["card"], reservation["address"]) == ("[REDACTED]", "[REDACTED]")
    assert_no_secrets(saga)

    placed, payment, shipment = stack.order(order_id), stack.payment(order_id), stack.shipment(order_id)
    assert (placed["status"], placed["amount_cents"]) == ("ORDER_STATUS_COMPLETED", "2500")
    assert (payment["status"], payment["amount_cents"]) == ("PAYMENT_STATUS_PROCESSED", "2500")
    assert payment["payment_id"] == charge["paymentId"]
    assert shipment["status"] == "SHIPMENT_STATUS_SHIPPED"
    numbers = {placed["tracking_number"], shipment["tracking_number"]}
    assert numbers == {shipped["trackingNumber"], completed["trackingNumber"]}
    assert len(numbers) == 1
    assert stack.stock() == (available - 2, reserved + 2)


def test_an_order_that_is_placed_without_an_id_is_given_one(stack: Stack) -> None:
    first, second = (stack.ask(f"{ORDERS}/PlaceOrder", order(""))["order_id"] for _ in range(2))
    assert first != second
    for order_id in (first, second):
        assert stack.completed(order_id)["saga_id"] == order_id


def test_events_are_seen_live_under_their_saga(stack: Stack) -> None:
    """`nats sub` on a saga's key gets what is published, though the stream stores it by partition."""
    command = [str(stack.tools.nats), "-s", stack.nats.url, "sub", "events.live-1.>", "--count", "6", "--headers-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watching:
        assert watching.stdout is not None
        try:
            said = watching.stdout.readline()
            assert "Subscribing on events.live-1.>" in said
            publish_bare(stack, "live-1")
            said = watching.communicate(timeout=30)[0]
        finally:
            watching.kill()
    for event_type, _ in FLOW:
        assert f"events.live-1.{event_type}" in said


@pytest.mark.parametrize(
    ("order_id", "changes", "flow", "reason"),
    [
        (
            "fails-stock",
            {"lines": [{"sku": "unicorn", "quantity": 1, "unitPriceCents": 1}]},
            ["inventory.v1.ReservationFailed", "orders.v1.OrderCancelled"],
            "unicorn",
        ),
        (
            "fails-payment",
            {"card": "card-declined"},
            [
                "inventory.v1.ItemsReserved",
                "payments.v1.PaymentFailed",
                "inventory.v1.ItemsReleased",
                "orders.v1.OrderCancelled",
            ],
            "declined",
        ),
        (
            "fails-shipping",
            {"address": "nowhere"},
            [
                "inventory.v1.ItemsReserved",
                "payments.v1.PaymentProcessed",
                "shipping.v1.ShippingFailed",
                "payments.v1.PaymentRefunded",
                "inventory.v1.ItemsReleased",
                "orders.v1.OrderCancelled",
            ],
            "",
        ),
    ],
)
def test_an_order_that_fails_leaves_nothing_behind(
    stack: Stack, order_id: str, changes: JSON, flow: list[str], reason: str
) -> None:
    before = stack.stock()
    stack.nats.publish(order_subject(order_id), order(order_id, **changes))
    saga = stack.ended(order_id)

    assert (saga["status"], saga["cause"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_CAUSE_STEP_FAILURE")
    types = ["orders.v1.OrderCreated", *flow, "choreography.v1.SagaCompensated"]
    assert dispositions(saga) == [(event_type, "APPLIED") for event_type in types]
    assert reason in saga["cause_detail"]
    cancelled = stack.order(order_id)
    assert cancelled["status"] == "ORDER_STATUS_CANCELLED"
    assert reason in cancelled["cancel_reason"]
    assert stack.stock() == before


def test_sagas_of_both_channels_are_found_again_in_lists(stack: Stack) -> None:
    stack.nats.publish(order_subject("listed-1"), order("listed-1"))
    stack.completed("listed-1")
    [found] = stack.ask(f"{SAGAS}/ListSagas", {"filter": 'saga_id = "listed-1"'})["sagas"]
    assert "history" not in found
    assert found["status"] == "SAGA_STATUS_COMPLETED"
