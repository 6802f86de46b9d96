"""`kill -9` of anything in the middle of 300 orders: all of them complete, and the books add up to exactly 300."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser

import grpc
import pytest

from inventory.v1 import inventory_service_pb2, inventory_service_pb2_grpc
from orders.v1 import order_service_pb2, order_service_pb2_grpc
from payments.v1 import payment_service_pb2, payment_service_pb2_grpc
from shipping.v1 import shipping_service_pb2, shipping_service_pb2_grpc
from tests.e2e.running_stack import (
    JSON,
    ORDERS,
    PARTS,
    SAGAS,
    Stack,
    eventually,
    in_parallel,
    order,
    order_subject,
)

ORDERS_PLACED = 300
PIECES = 2
AMOUNT_CENTS = 2500
IN_THE_MIDDLE = 40
"""So many must have completed before the kill; far fewer than 300, so that many are at every step."""
RECOVERY_SECONDS = 90.0


@contextmanager
def publishing(stack: Stack, prefix: str) -> Iterator[None]:
    """300 orders published by one `nats pub`, each acknowledged by the stream; all of them are out at the end."""
    template = json.dumps(order(f"{prefix}-COUNT")).replace("COUNT", "{{Count}}")
    subject = order_subject(f"{prefix}-{{{{Count}}}}")
    command = ["pub", "--jetstream", "--count", str(ORDERS_PLACED), "--sleep", "10ms", subject, template]
    with subprocess.Popen(
        [str(stack.tools.nats), "-s", stack.nats.url, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as publisher:
        try:
            yield
            said = publisher.communicate(timeout=60)[0]
        finally:
            publisher.kill()
    assert publisher.returncode == 0, said
    assert said.count("Published ") == ORDERS_PLACED


@contextmanager
def placing(stack: Stack, prefix: str) -> Iterator[None]:
    """300 orders by `PlaceOrder`, which needs no broker: what it has accepted is not lost, whatever dies."""
    with grpc.insecure_channel(stack.address("orders"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = order_service_pb2_grpc.OrderServiceStub(channel)
        calls = []
        for number in range(1, ORDERS_PLACED + 1):
            body = order(f"{prefix}-{number}")
            request = order_service_pb2.PlaceOrderRequest(
                order_id=body["orderId"],
                customer_id=body["customerId"],
                currency=body["currency"],
                card=body["card"],
                address=body["address"],
            )
            request.lines.add(sku="widget", quantity=PIECES, unit_price_cents=AMOUNT_CENTS // PIECES)
            calls.append(stub.PlaceOrder.future(request, timeout=60))
        yield
        for call in calls:
            call.result()


def keys(prefix: str) -> list[str]:
    """Their order ids."""
    return [f"{prefix}-{number}" for number in range(1, ORDERS_PLACED + 1)]


def completed_count(stack: Stack) -> int:
    """How many sagas have completed, by `SummarizeSagas`."""
    counts = stack.ask(f"{SAGAS}/SummarizeSagas").get("counts", [])
    return sum(int(count["count"]) for count in counts if count["status"] == "SAGA_STATUS_COMPLETED")


def kill(stack: Stack, part: str) -> None:
    os.kill(stack.pid(part), signal.SIGKILL)


def wait_for_all(stack: Stack, expected: int) -> None:
    """Until so many sagas have completed; the correlator may be the one that is being restarted."""

    def look() -> bool:
        done = stack.grpcurl("correlator").run(f"{SAGAS}/SummarizeSagas", {}, seconds=5)
        return done.returncode == 0 and completed_count(stack) >= expected

    eventually(look, f"{expected} sagas have completed", RECOVERY_SECONDS)


def assert_the_books_add_up(stack: Stack, prefix: str, stock_before: tuple[int, int]) -> None:
    """What every service says about each of the 300 orders, and the stock."""
    ids = keys(prefix)
    options = [("grpc.enable_http_proxy", 0)]
    with (
        grpc.insecure_channel(stack.address("orders"), options=options) as orders_channel,
        grpc.insecure_channel(stack.address("inventory"), options=options) as inventory_channel,
        grpc.insecure_channel(stack.address("payments"), options=options) as payments_channel,
        grpc.insecure_channel(stack.address("shipping"), options=options) as shipping_channel,
    ):
        orders_stub = order_service_pb2_grpc.OrderServiceStub(orders_channel)
        inventory_stub = inventory_service_pb2_grpc.InventoryServiceStub(inventory_channel)
        payments_stub = payment_service_pb2_grpc.PaymentServiceStub(payments_channel)
        shipping_stub = shipping_service_pb2_grpc.ShippingServiceStub(shipping_channel)
        orders = in_parallel(
            lambda id_: orders_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id=id_), timeout=20).order, ids
        )
        payments = in_parallel(
            lambda id_: (
                payments_stub.GetPayment(payment_service_pb2.GetPaymentRequest(order_id=id_), timeout=20).payment
            ),
            ids,
        )
        shipments = in_parallel(
            lambda id_: (
                shipping_stub.GetShipment(shipping_service_pb2.GetShipmentRequest(order_id=id_), timeout=20).shipment
            ),
            ids,
        )
        stock = inventory_stub.GetStock(inventory_service_pb2.GetStockRequest(sku="widget"), timeout=20)
    assert Counter(one.status for one in orders) == {order_service_pb2.ORDER_STATUS_COMPLETED: ORDERS_PLACED}
    assert Counter(one.status for one in payments) == {payment_service_pb2.PAYMENT_STATUS_PROCESSED: ORDERS_PLACED}
    assert sum(one.amount_cents for one in payments) == ORDERS_PLACED * AMOUNT_CENTS
    assert len({one.payment_id for one in payments}) == ORDERS_PLACED
    assert Counter(one.status for one in shipments) == {shipping_service_pb2.SHIPMENT_STATUS_SHIPPED: ORDERS_PLACED}
    assert {one.tracking_number for one in shipments} == {one.tracking_number for one in orders}
    assert len({one.tracking_number for one in shipments}) == ORDERS_PLACED
    available, reserved = stock_before
    taken = ORDERS_PLACED * PIECES
    assert (stock.available, stock.reserved) == (available - taken, reserved + taken)


def assert_the_histories_are_whole(stack: Stack, prefix: str) -> None:
    """Every saga has each event of the flow applied exactly once; what came again shows as a duplicate."""
    sagas = {saga["saga_id"]: saga for saga in stack.sagas("status = COMPLETED")}
    assert sagas.keys() >= set(keys(prefix))
    assert len(stack.sagas("status != COMPLETED")) == 0
    for saga_id in keys(prefix)[:: ORDERS_PLACED // 15]:
        history = stack.saga(saga_id)["history"]
        applied = Counter(e["event_type"] for e in history if e["disposition"] == "DISPOSITION_APPLIED")
        assert list(applied.values()) == [1] * 6, history
        assert {e["disposition"] for e in history} <= {"DISPOSITION_APPLIED", "DISPOSITION_DUPLICATE"}


@pytest.mark.parametrize("part", [part for part in PARTS if part != "nats"])
def test_a_service_killed_in_the_middle_of_300_orders(own_stack: Stack, part: str) -> None:
    stack, prefix = own_stack, f"kill-{part}"
    stock_before, completed_before = stack.stock(), completed_count(stack)
    restarts = stack.status()[part]["restarts"]

    with publishing(stack, prefix):
        eventually(lambda: completed_count(stack) >= completed_before + IN_THE_MIDDLE, "the middle is reached")
        kill(stack, part)
        assert completed_count_where(stack, part, completed_before) < ORDERS_PLACED
    wait_for_all(stack, completed_before + ORDERS_PLACED)

    eventually(lambda: stack.health()[part].status == "SERVING", f"{part} serves again")
    assert stack.status()[part]["restarts"] == restarts + 1
    assert_the_books_add_up(stack, prefix, stock_before)
    assert_the_histories_are_whole(stack, prefix)
    assert stack.dead_letters() == []


def completed_count_where(stack: Stack, killed: str, before: int) -> int:
    """How many of this run's sagas have completed; 0 while there is nobody to ask."""
    return 0 if killed == "correlator" else completed_count(stack) - before


def test_the_broker_killed_in_the_middle_of_300_orders(own_stack: Stack) -> None:
    stack, prefix = own_stack, "kill-nats"
    stock_before, completed_before = stack.stock(), completed_count(stack)
    before = stack.status()

    with placing(stack, prefix):
        eventually(lambda: completed_count(stack) > completed_before, "some have completed")
        kill(stack, "nats")
        assert completed_count(stack) - completed_before < ORDERS_PLACED
    wait_for_all(stack, completed_before + ORDERS_PLACED)

    after = stack.status()
    assert after["nats"]["restarts"] == before["nats"]["restarts"] + 1
    assert [after[s]["pid"] for s in PARTS[1:]] == [before[s]["pid"] for s in PARTS[1:]], "no service was restarted"
    assert_the_books_add_up(stack, prefix, stock_before)
    assert_the_histories_are_whole(stack, prefix)


def test_everything_killed_at_once_in_the_middle_of_300_orders(own_stack: Stack) -> None:
    stack, prefix = own_stack, "kill-all"
    stock_before, completed_before = stack.stock(), completed_count(stack)

    with publishing(stack, prefix):
        pass
    for part in PARTS:
        kill(stack, part)
    eventually(lambda: all(one.status == "SERVING" for one in stack.health().values()), "all serve again", 60)
    wait_for_all(stack, completed_before + ORDERS_PLACED)
    assert_the_books_add_up(stack, prefix, stock_before)
    assert_the_histories_are_whole(stack, prefix)


def test_an_order_placed_while_the_broker_is_gone_is_carried_out_later(own_stack: Stack) -> None:
    stack = own_stack
    stack.farandole("stop", "nats")
    assert stack.ask(f"{ORDERS}/PlaceOrder", order("placed-in-the-dark")) == {"order_id": "placed-in-the-dark"}
    kill(stack, "orders")
    stack.farandole("start", "nats")
    stack.completed("placed-in-the-dark")
    eventually(lambda: all(one.status == "SERVING" for one in stack.health().values()), "all serve again")


def test_dead_letters_are_published_once_though_the_correlator_is_killed(own_stack: Stack) -> None:
    stack = own_stack
    copies_before = stack.nats.stream("DEADLETTERS")["state"]["last_seq"]
    count = 200
    subject = "events.poison-{{Count}}.orders.v1.OrderCreated"
    command = ["pub", "--count", str(count), "--sleep", "2ms", subject, "garbage"]
    with subprocess.Popen(
        [str(stack.tools.nats), "-s", stack.nats.url, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as publisher:
        eventually(
            lambda: stack.nats.stream("DEADLETTERS")["state"]["last_seq"] > copies_before + 20, "some are published"
        )
        kill(stack, "correlator")
        assert publisher.wait(30) == 0
    eventually(lambda: stack.health()["correlator"].status == "SERVING", "the correlator serves again")
    eventually(lambda: len(_by_participant(stack)["correlator"]) == count, "all are listed")
    eventually(
        lambda: stack.nats.stream("DEADLETTERS")["state"]["last_seq"] >= copies_before + count, "all are published"
    )
    stack.all_taken_in("after-the-garbage")
    last = stack.nats.stream("DEADLETTERS")["state"]["last_seq"]
    copies = in_parallel(lambda n: _copied(stack, n), range(copies_before + 1, last + 1), workers=4)
    listed = _by_participant(stack)
    of_correlator = Counter(sequence for participant, sequence in copies if participant == "correlator")
    assert of_correlator == Counter(int(letter["sequence"]) for letter in listed["correlator"])
    # who gave up while nobody said that no one can read them was told so later
    eventually(
        lambda: all(
            letter["state"] == "DEAD_LETTER_STATE_SUPERSEDED"
            for participant, letters in _by_participant(stack).items()
            if participant != "correlator"
            for letter in letters
        ),
        "no participant holds on to one",
    )


def _by_participant(stack: Stack) -> dict[str, list[JSON]]:
    """The dead letters of each participant."""
    found: dict[str, list[JSON]] = {"correlator": []}
    for letter in stack.dead_letters():
        found.setdefault(letter["participant"], []).append(letter)
    return found


def _copied(stack: Stack, number: int) -> tuple[str, int]:
    """Who gave up on the message in `EVENTS` that a message of `DEADLETTERS` is the copy of, and its sequence there."""
    copy: JSON = json.loads(stack.nats("stream", "get", "DEADLETTERS", str(number), "--json"))
    block = base64.b64decode(copy["hdrs"]).partition(b"\r\n")[2]
    headers = BytesParser().parsebytes(block)
    return headers["farandole-participant"], int(headers["farandole-sequence"])
