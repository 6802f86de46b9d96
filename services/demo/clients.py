"""The demo's connections: to the stack's services, and to the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

import grpc
import nats.errors
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from choreography.v1.saga_pb2 import Saga
from choreography.v1.saga_service_pb2 import ListSagasRequest
from choreography.v1.saga_service_pb2_grpc import SagaServiceStub
from farandole.broker.connection import Broker
from farandole.errors import BrokerError
from farandole.settings import Settings
from inventory.v1.inventory_service_pb2 import GetStockRequest
from inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_service_pb2 import GetOrderRequest, PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from payments.v1.payment_service_pb2 import GetPaymentRequest
from payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.demo.books import Traces
from services.demo.plan import SKUS, Channel, Placement
from shipping.v1.shipping_service_pb2 import GetShipmentRequest
from shipping.v1.shipping_service_pb2_grpc import ShippingServiceStub

T = TypeVar("T")

SERVICES = ("correlator", "orders", "inventory", "payments", "shipping")
_CALL_SECONDS = 10.0
_CONNECT_SECONDS = 3.0
_PAUSE_SECONDS = 0.2
_PAGE_SIZE = 1000
_TRY_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class StackDownError(Exception):
    """Part of the stack does not serve; the message says which, line by line."""


class StuckError(Exception):
    """A run was given up; the message says, line by line, what does not serve. Empty where everything does."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the stack is."""

    nats_url: str
    services: Mapping[str, str]
    """HOST:PORT of each of `SERVICES`."""


class Clients:
    """What the demo asks of the stack. A service that is away is asked again and again, until the caller gives up."""

    def __init__(self, addresses: Addresses, channels: Mapping[str, grpc.aio.Channel], broker: Broker) -> None:
        self._addresses = addresses
        self._channels = channels
        self._broker = broker
        self._sagas = SagaServiceStub(channels["correlator"])
        self._orders = OrderServiceStub(channels["orders"])
        self._inventory = InventoryServiceStub(channels["inventory"])
        self._payments = PaymentServiceStub(channels["payments"])
        self._shipping = ShippingServiceStub(channels["shipping"])

    async def problems(self) -> str:
        """What does not serve, line by line; empty where everything does."""
        problems = await asyncio.gather(self._broker_problem(), *map(self._service_problem, SERVICES))
        return "\n".join(filter(None, problems))

    async def _broker_problem(self) -> str | None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._broker.connected(), _CONNECT_SECONDS)
        return self._broker.problem

    async def _service_problem(self, service: str) -> str | None:
        health = health_pb2_grpc.HealthStub(self._channels[service])
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=_CONNECT_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"{service} does not answer at {self._addresses.services[service]}: {error.code().name}"
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return None if answer.status == health_pb2.HealthCheckResponse.SERVING else f"{service} says {status}"

    async def place(self, placement: Placement) -> None:
        """Places an order, the way it says. Placing it again, after a lost answer, changes nothing."""
        order = placement.order
        if placement.channel is Channel.BARE_EVENT:
            await self._publish_bare(order)
            return
        request = PlaceOrderRequest(
            order_id=order.order_id,
            customer_id=order.customer_id,
            lines=order.lines,
            currency=order.currency,
            card=order.card,
            address=order.address,
        )
        await _patiently(partial(self._orders.PlaceOrder, request, timeout=_CALL_SECONDS))

    async def _publish_bare(self, order: OrderCreated) -> None:
        """What `nats pub --jetstream` sends: JSON, and no header at all."""
        subject = f"events.{order.order_id}.{order.DESCRIPTOR.full_name}"
        body = json_format.MessageToJson(order, indent=None).encode()
        await _patiently(partial(self._broker.client.jetstream().publish, subject, body))

    async def sagas_updated_since(self, time: datetime) -> AsyncIterator[Saga]:
        """The records of order-fulfilment that have changed since a time in UTC, without their histories."""
        request = ListSagasRequest(
            filter=f'definition = "order-fulfilment" AND update_time >= "{time.isoformat()}Z"', page_size=_PAGE_SIZE
        )
        while True:
            page = await _patiently(partial(self._sagas.ListSagas, request, timeout=_CALL_SECONDS))
            for saga in page.sagas:
                yield saga
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stock(self) -> dict[str, int]:
        """How many pieces of each of `SKUS` can still be reserved."""
        return {
            sku: (
                await _patiently(partial(self._inventory.GetStock, GetStockRequest(sku=sku), timeout=_CALL_SECONDS))
            ).available
            for sku in SKUS
        }

    async def traces(self, order_id: str) -> Traces:
        """What an order has left in the services."""
        order = await _found(partial(self._orders.GetOrder, GetOrderRequest(order_id=order_id)))
        payment = await _found(partial(self._payments.GetPayment, GetPaymentRequest(order_id=order_id)))
        shipment = await _found(partial(self._shipping.GetShipment, GetShipmentRequest(order_id=order_id)))
        return Traces(
            order=order.order if order else None,
            payment=payment.payment if payment else None,
            shipment=shipment.shipment if shipment else None,
        )


@asynccontextmanager
async def connected(addresses: Addresses) -> AsyncIterator[Clients]:
    """Clients of the stack, closed on exit."""
    async with AsyncExitStack() as stack:
        channels = {
            service: await stack.enter_async_context(
                grpc.aio.insecure_channel(addresses.services[service], options=[("grpc.enable_http_proxy", 0)])
            )
            for service in SERVICES
        }
        broker = Broker(Settings.load("demo", grpc_port=1, nats_url=addresses.nats_url))
        broker.start()
        stack.push_async_callback(broker.close)
        yield Clients(addresses, channels, broker)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRY_AGAIN:
                raise
        except (nats.errors.Error, BrokerError):
            pass  # the broker is away; the caller's own time limit ends the trying
        await asyncio.sleep(_PAUSE_SECONDS)


async def _found(call: Callable[..., Awaitable[T]]) -> T | None:
    try:
        return await _patiently(partial(call, timeout=_CALL_SECONDS))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
