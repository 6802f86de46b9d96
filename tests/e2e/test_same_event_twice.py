"""The same event twice is the work once; another event in its place is no work at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.running_stack import (
    JSON,
    ORDERS,
    Stack,
    dispositions,
    eventually,
    in_parallel,
    order,
    order_subject,
)

CREATED = "orders.v1.OrderCreated"
APPLIED = [
    (CREATED, "APPLIED"),
    ("inventory.v1.ItemsReserved", "APPLIED"),
    ("payments.v1.PaymentProcessed", "APPLIED"),
    ("shipping.v1.OrderShipped", "APPLIED"),
    ("orders.v1.OrderCompleted", "APPLIED"),
    ("choreography.v1.SagaCompleted", "APPLIED"),
]
ALREADY_EXISTS = 6


@pytest.fixture
def brief_window(stack: Stack) -> Iterator[None]:
    """The broker forgets message ids after a moment, which operators may choose."""
    stack.nats("stream", "edit", "EVENTS", "--dupe-window=200ms", "--force")
    yield
    stack.nats("stream", "edit", "EVENTS", "--dupe-window=2m", "--force")


def books(stack: Stack, order_id: str) -> JSON:
    """What all services have of an order, and the stock."""
    return {
        "stock": stack.stock(),
        "order": stack.order(order_id),
        "payment": stack.payment(order_id),
        "shipment": stack.shipment(order_id),
    }


def assert_no_work(stack: Stack, order_id: str, before: JSON) -> None:
    """Nothing has changed but the stock, and that by the marker's two pieces, once everyone has read on."""
    marker = f"{order_id}-after"
    stack.all_taken_in(marker)
    available, reserved = before["stock"]
    assert books(stack, order_id) == before | {"stock": (available - 2, reserved + 2)}


def test_the_same_bare_event_again_is_a_duplicate(stack: Stack) -> None:
    stack.nats.publish(order_subject("twice-bare"), order("twice-bare"))
    stack.completed("twice-bare")
    before = books(stack, "twice-bare")

    stack.nats.publish(order_subject("twice-bare"), order("twice-bare"))
    saga = stack.with_history_of("twice-bare", 7)
    assert dispositions(saga) == [*APPLIED, (CREATED, "DUPLICATE")]
    assert saga["status"] == "SAGA_STATUS_COMPLETED"
    assert saga["history"][0]["id"] == saga["history"][-1]["id"]
    assert_no_work(stack, "twice-bare", before)


def test_several_copies_at_once_are_one_order(stack: Stack) -> None:
    available, reserved = stack.stock()
    body = order("twice-burst")
    in_parallel(lambda _: stack.nats.store(order_subject("twice-burst"), body), range(4))
    saga = stack.with_history_of("twice-burst", len(APPLIED) + 3)
    assert sorted(dispositions(saga)) == sorted([*APPLIED, *[(CREATED, "DUPLICATE")] * 3])
    assert stack.completed("twice-burst")
    stack.all_taken_in("twice-burst-after")
    assert stack.stock() == (available - 4, reserved + 4)


def test_the_same_id_again_within_the_window_is_not_stored(stack: Stack) -> None:
    headers = {"ce-id": "one", "ce-source": "shop", "Nats-Msg-Id": "shop/one"}
    first = stack.nats.store(order_subject("twice-window"), order("twice-window"), headers)
    again = stack.nats.store(order_subject("twice-window"), order("twice-window"), headers)
    assert (again.sequence, again.is_duplicate) == (first.sequence, True)
    assert dispositions(stack.completed("twice-window")) == APPLIED


@pytest.mark.usefixtures("brief_window")
def test_the_same_event_again_after_the_window_is_a_duplicate(stack: Stack) -> None:
    subject, body = order_subject("twice-late"), order("twice-late")
    headers = {"ce-id": "two", "ce-source": "shop", "Nats-Msg-Id": "shop/two"}
    first = stack.nats.store(subject, body, headers)
    stack.completed("twice-late")
    before = books(stack, "twice-late")

    again = eventually(
        lambda: receipt if not (receipt := stack.nats.store(subject, body, headers)).is_duplicate else None,
        "the broker has forgotten the message id",
    )
    assert again.sequence > first.sequence
    saga = stack.with_history_of("twice-late", len(APPLIED) + 1)
    assert dispositions(saga) == [*APPLIED, (CREATED, "DUPLICATE")]
    assert [(entry["id"], entry["source"]) for entry in saga["history"] if entry["event_type"] == CREATED] == [
        ("two", "shop"),
        ("two", "shop"),
    ]
    assert_no_work(stack, "twice-late", before)


def test_the_same_id_without_a_message_id_is_a_duplicate(stack: Stack) -> None:
    subject, body = order_subject("twice-id"), order("twice-id")
    for _ in range(2):
        stack.nats.store(subject, body, {"ce-id": "three", "ce-source": "shop"})
    saga = stack.with_history_of("twice-id", len(APPLIED) + 1)
    assert sorted(dispositions(saga)) == sorted([*APPLIED, (CREATED, "DUPLICATE")])


def test_the_same_fact_under_another_id_is_a_duplicate(stack: Stack) -> None:
    """Another source, another id, another spelling of the same JSON: still the same order."""
    stack.nats.store(order_subject("twice-fact"), order("twice-fact"))
    stack.completed("twice-fact")
    before = books(stack, "twice-fact")
    respelled = {"order_id": "twice-fact", **{k: v for k, v in reversed(order("twice-fact").items()) if k != "orderId"}}
    stack.nats.store(order_subject("twice-fact"), respelled, {"ce-id": "other", "ce-source": "elsewhere"})
    saga = stack.with_history_of("twice-fact", len(APPLIED) + 1)
    assert dispositions(saga) == [*APPLIED, (CREATED, "DUPLICATE")]
    assert_no_work(stack, "twice-fact", before)


@pytest.mark.parametrize("headers", [{}, {"ce-id": "fresh", "ce-source": "shop"}], ids=["bare", "with-an-id"])
def test_another_body_is_unexpected_and_does_no_work(stack: Stack, headers: JSON) -> None:
    order_id = f"twice-other-{len(headers)}"
    stack.nats.store(order_subject(order_id), order(order_id))
    stack.completed(order_id)
    before = books(stack, order_id)

    larger = order(order_id, lines=[{"sku": "widget", "quantity": 500, "unitPriceCents": 9999}])
    stack.nats.store(order_subject(order_id), larger, headers)
    saga = stack.with_history_of(order_id, len(APPLIED) + 1)
    assert dispositions(saga) == [*APPLIED, (CREATED, "UNEXPECTED")]
    assert saga["history"][-1]["reason"]
    assert saga["status"] == "SAGA_STATUS_COMPLETED"
    assert_no_work(stack, order_id, before)


def test_another_body_while_the_order_is_under_way_does_no_work(stack: Stack) -> None:
    larger = order("twice-race", lines=[{"sku": "gadget", "quantity": 500, "unitPriceCents": 9999}])
    gadgets = stack.stock("gadget")
    for body in (order("twice-race"), larger):
        stack.nats.publish(order_subject("twice-race"), body)
    saga = stack.with_history_of("twice-race", len(APPLIED) + 1)
    assert sorted(dispositions(saga)) == sorted([*APPLIED, (CREATED, "UNEXPECTED")])
    stack.all_taken_in("twice-race-after")
    assert stack.order("twice-race")["amount_cents"] == stack.payment("twice-race")["amount_cents"] == "2500"
    assert stack.stock("gadget") == gadgets


def test_placing_a_known_order_again(stack: Stack) -> None:
    """The same body has the same answer, at once and later; another body is refused, and says so."""
    body = order("placed-twice")
    for _ in range(2):
        assert stack.ask(f"{ORDERS}/PlaceOrder", body) == {"order_id": "placed-twice"}
    stack.completed("placed-twice")
    before = books(stack, "placed-twice")
    assert stack.ask(f"{ORDERS}/PlaceOrder", body) == {"order_id": "placed-twice"}

    refusal = stack.refusal(f"{ORDERS}/PlaceOrder", body | {"customerId": "eve"})
    assert refusal.code == ALREADY_EXISTS
    assert "placed-twice" in refusal.message
    assert refusal.info["reason"] == "ALREADY_EXISTS"
    assert refusal.info["metadata"] == {"order_id": "placed-twice"}
    assert dispositions(stack.saga("placed-twice")) == APPLIED
    assert_no_work(stack, "placed-twice", before)


def test_a_published_order_and_a_placed_one_are_one_order(stack: Stack) -> None:
    stack.nats.publish(order_subject("both-1"), order("both-1"))
    stack.completed("both-1")
    before = books(stack, "both-1")
    assert stack.ask(f"{ORDERS}/PlaceOrder", order("both-1")) == {"order_id": "both-1"}
    assert stack.refusal(f"{ORDERS}/PlaceOrder", order("both-1", customerId="eve")).code == ALREADY_EXISTS
    assert_no_work(stack, "both-1", before)
    assert dispositions(stack.saga("both-1")) == APPLIED


def test_a_placed_order_and_a_published_one_are_one_order(stack: Stack) -> None:
    assert stack.ask(f"{ORDERS}/PlaceOrder", order("both-2")) == {"order_id": "both-2"}
    stack.completed("both-2")
    before = books(stack, "both-2")
    stack.nats.publish(order_subject("both-2"), order("both-2"))
    saga = stack.with_history_of("both-2", len(APPLIED) + 1)
    assert dispositions(saga) == [*APPLIED, (CREATED, "DUPLICATE")]
    assert_no_work(stack, "both-2", before)


def test_placed_and_published_at_the_same_time_are_one_order(stack: Stack) -> None:
    available, reserved = stack.stock()
    keys = [f"both-at-once-{number}" for number in range(5)]

    def send(number: int) -> None:
        key = keys[number // 2]
        if number % 2:
            stack.nats.store(order_subject(key), order(key))
        else:
            stack.ask(f"{ORDERS}/PlaceOrder", order(key))

    in_parallel(send, range(2 * len(keys)))
    for key in keys:
        saga = stack.completed(key)
        assert [one for one in dispositions(saga) if one[1] == "APPLIED"] == APPLIED
    stack.all_taken_in("both-at-once-after")
    pieces = 2 * (len(keys) + 1)
    assert stack.stock() == (available - pieces, reserved + pieces)
