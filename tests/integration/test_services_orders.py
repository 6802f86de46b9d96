"""The four services of orders as processes of their own, on a real broker, as clients see them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import nats
import pytest
from google.protobuf import json_format
from nats.js.errors import NotFoundError

from inventory.v1.inventory_service_pb2 import GetStockRequest, GetStockResponse
from inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2 import GetOrderRequest, Order, OrderStatus, PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from payments.v1.payment_service_pb2 import GetPaymentRequest, Payment, PaymentStatus
from payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from shipping.v1.shipping_service_pb2 import GetShipmentRequest, Shipment, ShipmentStatus
from shipping.v1.shipping_service_pb2_grpc import ShippingServiceStub
from tests.integration.service_processes import (
    ORDER_SERVICES,
    Services,
    answered,
    channels_to,
    eventually,
    refusal,
    running,
)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running(tmp_path_factory, *ORDER_SERVICES) as services:
        yield services


class Clients:
    """What a client asks of the services, and publishes."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], connection: Any) -> None:
        self.orders = OrderServiceStub(channels["orders"])
        self.inventory = InventoryServiceStub(channels["inventory"])
        self.payments = PaymentServiceStub(channels["payments"])
        self.shipping = ShippingServiceStub(channels["shipping"])
        self._connection = connection

    async def place(self, order: OrderCreated) -> str:
        """Places an order; asks again where the service is away."""

        request = request_of(order)
        placed = await eventually(lambda: answered(lambda: self.orders.PlaceOrder(request, timeout=5)))
        return placed.order_id

    async def publish(self, order: OrderCreated, headers: dict[str, str] | None = None) -> None:
        """Publishes an order's event as JSON, by default with no header at all."""
        body = json.dumps(json_format.MessageToDict(order)).encode()
        subject = f"events.{order.order_id}.orders.v1.OrderCreated"
        await self._connection.jetstream().publish(subject, body, headers=headers)

    async def order(self, order_id: str) -> Order:
        return (await self.orders.GetOrder(GetOrderRequest(order_id=order_id))).order

    async def ended(self, order_id: str) -> Order:
        """The order, once it is completed or cancelled."""

        async def look() -> Order | None:
            order = await answered(lambda: self.order(order_id))
            return order if order is not None and order.status != OrderStatus.ORDER_STATUS_PLACED else None

        return await eventually(look)

    async def payment(self, order_id: str) -> Payment:
        return (await self.payments.GetPayment(GetPaymentRequest(order_id=order_id))).payment

    async def shipment(self, order_id: str) -> Shipment:
        return (await self.shipping.GetShipment(GetShipmentRequest(order_id=order_id))).shipment

    async def order_of_dead_letter(self, subject: str) -> str:
        """The order that the last dead letter of a subject belongs to, as soon as there is one."""

        async def look() -> str | None:
            with suppress(NotFoundError):
                letter = await self._connection.jetstream().get_last_msg("DEADLETTERS", subject)
                return str(letter.headers["ce-correlationid"])
            return None

        return await eventually(look)

    async def stock(self, sku: str) -> GetStockResponse:
        return await self.inventory.GetStock(GetStockRequest(sku=sku))


@pytest.fixture
async def clients(services: Services) -> AsyncIterator[Clients]:
    async with connected(services) as clients:
        yield clients


@asynccontextmanager
async def connected(services: Services) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(channels_to(services, ORDER_SERVICES))
        connection = await nats.connect(services.nats_url)
        stack.push_async_callback(connection.close)
        yield Clients(channels, connection)


def new_order(*lines: tuple[str, int, int], **fields: str) -> OrderCreated:
    values = {"customer_id": "cust-1", "currency": "EUR", "card": "card-1", "address": "1 Main Street"} | fields
    return OrderCreated(
        order_id=f"ord-{uuid.uuid4()}",
        lines=[
            OrderLine(sku=sku, quantity=quantity, unit_price_cents=price)
            for sku, quantity, price in lines or [("widget", 2, 1250)]
        ],
        **values,
    )


def request_of(order: OrderCreated) -> PlaceOrderRequest:
    return PlaceOrderRequest(
        order_id=order.order_id,
        customer_id=order.customer_id,
        lines=order.lines,
        currency=order.currency,
        card=order.card,
        address=order.address,
    )


async def test_a_placed_order_is_reserved_paid_shipped_and_completed(clients: Clients) -> None:
    before = await clients.stock("widget")
    order = new_order(("widget", 2, 1250), ("gadget", 1, 99))
    assert await clients.place(order) == order.order_id
    ended = await clients.ended(order.order_id)
    assert ended.status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (ended.customer_id, ended.currency, ended.amount_cents) == ("cust-1", "EUR", 2599)
    assert list(ended.lines) == list(order.lines)
    assert ended.HasField("create_time")
    payment = await clients.payment(order.order_id)
    assert payment.payment_id
    assert (payment.amount_cents, payment.currency) == (2599, "EUR")
    assert payment.status == PaymentStatus.PAYMENT_STATUS_PROCESSED
    shipment = await clients.shipment(order.order_id)
    assert shipment.status == ShipmentStatus.SHIPMENT_STATUS_SHIPPED
    assert shipment.tracking_number == ended.tracking_number != ""
    after = await clients.stock("widget")
    assert (after.available, after.reserved) == (before.available - 2, before.reserved + 2)


async def test_a_bare_event_is_an_order_like_any_other(clients: Clients) -> None:
    order = new_order()
    await clients.publish(order)
    ended = await clients.ended(order.order_id)
    assert ended.status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (await clients.orders.PlaceOrder(request_of(order))).order_id == order.order_id
    order.card = "card-2"
    problem = await refusal(clients.orders.PlaceOrder(request_of(order)))
    assert (problem.code, problem.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_an_order_without_an_id_gets_one(clients: Clients) -> None:
    order = new_order()
    order.order_id = ""
    one = await clients.place(order)
    other = await clients.place(order)
    assert one != other
    assert (await clients.ended(one)).status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (await clients.ended(other)).status == OrderStatus.ORDER_STATUS_COMPLETED


async def test_an_order_that_comes_several_times_is_carried_out_once(clients: Clients) -> None:
    before = await clients.stock("gadget")
    order = new_order(("gadget", 3, 100))
    await clients.publish(order)
    await clients.publish(order)
    await clients.publish(order, headers={"ce-id": "another-id", "ce-source": "another-source"})
    await clients.place(order)
    last = new_order(("gadget", 1, 100))
    await clients.publish(last)
    assert (await clients.ended(order.order_id)).status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (await clients.ended(last.order_id)).status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (await clients.stock("gadget")).available == before.available - 4
    assert (await clients.payment(order.order_id)).amount_cents == 300


@pytest.mark.parametrize(
    ("line", "fields", "reason"),
    [
        (("unicorn", 1, 100), {}, "unicorn: 1 wanted, 0 left"),
        (("widget", 1, 100), {"card": "card-declined"}, "the card was declined"),
        (("widget", 1, 100), {"address": "nowhere"}, "the address can't be delivered to"),
    ],
    ids=["not in stock", "card declined", "not deliverable"],
)
async def test_an_order_that_fails_is_cancelled_and_everything_is_as_before(
    clients: Clients, line: tuple[str, int, int], fields: dict[str, str], reason: str
) -> None:
    before = await clients.stock("widget"), await clients.stock("gadget")
    order = new_order(("gadget", 2, 10), line, **fields)
    await clients.place(order)
    ended = await clients.ended(order.order_id)
    assert (ended.status, ended.cancel_reason) == (OrderStatus.ORDER_STATUS_CANCELLED, reason)
    assert (await clients.stock("widget"), await clients.stock("gadget")) == before
    if line[0] == "unicorn":
        problem = await refusal(clients.payment(order.order_id))
        assert problem.reason == "PAYMENT_NOT_FOUND"
    else:
        payment = await clients.payment(order.order_id)
        assert payment.status in {PaymentStatus.PAYMENT_STATUS_DECLINED, PaymentStatus.PAYMENT_STATUS_REFUNDED}


@pytest.mark.parametrize(
    ("fields", "dead_letter"),
    [
        ({"card": "card-frozen", "address": "nowhere"}, "deadletters.payments.shipping.v1.ShippingFailed"),
        ({"address": "illegible"}, "deadletters.shipping.payments.v1.PaymentProcessed"),
    ],
    ids=["the money can't be given back", "the address can't be read"],
)
async def test_an_order_that_somebody_must_decide_about_is_a_dead_letter_and_others_go_on(
    clients: Clients, fields: dict[str, str], dead_letter: str
) -> None:
    order, other = new_order(**fields), new_order()
    await clients.publish(order)
    await clients.publish(other)
    assert await clients.order_of_dead_letter(dead_letter) == order.order_id
    assert (await clients.ended(other.order_id)).status == OrderStatus.ORDER_STATUS_COMPLETED
    assert (await clients.order(order.order_id)).status == OrderStatus.ORDER_STATUS_PLACED
    assert (await clients.payment(order.order_id)).status == PaymentStatus.PAYMENT_STATUS_PROCESSED


async def test_what_is_not_there_is_not_found_with_a_reason(clients: Clients) -> None:
    for call, reason in (
        (clients.order("ord-none"), "ORDER_NOT_FOUND"),
        (clients.payment("ord-none"), "PAYMENT_NOT_FOUND"),
        (clients.shipment("ord-none"), "SHIPMENT_NOT_FOUND"),
    ):
        problem = await refusal(call)
        assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, reason)
        assert problem.metadata == {"order_id": "ord-none"}
    problem = await refusal(clients.stock("dragon"))
    assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "SKU_NOT_FOUND")
    assert problem.metadata == {"sku": "dragon"}


async def test_a_wrong_order_is_refused_and_each_wrong_field_is_named(clients: Clients) -> None:
    order = new_order(("widget", 0, 100), currency="euro")
    problem = await refusal(clients.orders.PlaceOrder(request_of(order)))
    assert problem.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in problem.fields} == {"lines[0].quantity", "currency"}


async def test_services_that_are_killed_in_the_middle_lose_and_double_nothing(
    services: Services, clients: Clients
) -> None:
    before = await clients.stock("widget")
    orders: list[OrderCreated] = []
    for service in ORDER_SERVICES:
        wave = [new_order(("widget", 1, 100)) for _ in range(40)]
        orders += wave
        placing = [asyncio.create_task(clients.place(order)) for order in wave]
        await placing[len(wave) // 2]
        services.kill(service)
        await asyncio.to_thread(services.start, service)
        await asyncio.gather(*placing)
    ended = [await clients.ended(order.order_id) for order in orders]
    assert [order.status for order in ended] == [OrderStatus.ORDER_STATUS_COMPLETED] * len(orders)
    payments = [await clients.payment(order.order_id) for order in orders]
    assert sum(payment.amount_cents for payment in payments) == 100 * len(orders)
    assert {payment.status for payment in payments} == {PaymentStatus.PAYMENT_STATUS_PROCESSED}
    shipments = [await clients.shipment(order.order_id) for order in orders]
    assert [shipment.tracking_number for shipment in shipments] == [order.tracking_number for order in ended]
    assert len({shipment.tracking_number for shipment in shipments}) == len(orders)
    assert (await clients.stock("widget")).available == before.available - len(orders)
