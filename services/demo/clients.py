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
from delivery.v1.delivery_service_pb2 import Delivery, DeliveryStatus, GetDeliveryRequest
from delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from drones.v1.drone_service_pb2 import GetDroneRequest, GetFleetRequest
from drones.v1.drone_service_pb2_grpc import DroneServiceStub
from farandole.broker.connection import Broker, read_answer
from farandole.errors import BrokerError
from farandole.settings import Settings
from inventory.v1 import inventory_service_pb2
from inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_service_pb2 import GetOrderRequest, PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from packaging_contracts.v1 import packaging_service_pb2
from packaging_contracts.v1.packaging_service_pb2_grpc import PackagingServiceStub
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from parcels.v1.parcel_service_pb2 import GetParcelRequest, OrderParcelRequest
from parcels.v1.parcel_service_pb2_grpc import ParcelServiceStub
from payments.v1.payment_service_pb2 import GetPaymentRequest
from payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.demo.books import Level, OrderTraces, ParcelTraces, Traces
from services.demo.plan import DRONE, ITEM, SKUS, Channel, Initiating, Placement
from shipping.v1.shipping_service_pb2 import GetShipmentRequest
from shipping.v1.shipping_service_pb2_grpc import ShippingServiceStub

Request = TypeVar("Request")
Answer = TypeVar("Answer")

SERVICES = (
    "correlator",
    *("orders", "inventory", "payments", "shipping"),
    *("parcels", "packaging", "drones", "delivery"),
)
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
        self._parcels = ParcelServiceStub(channels["parcels"])
        self._packaging = PackagingServiceStub(channels["packaging"])
        self._drones = DroneServiceStub(channels["drones"])
        self._delivery = DeliveryServiceStub(channels["delivery"])

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
        """Places an order or a parcel, the way it says. Placing it again, after a lost answer, changes nothing."""
        match placement.channel, placement.event:
            case Channel.BARE_EVENT, event:
                await self._publish_bare(placement.saga_id, event)
            case Channel.RPC, OrderCreated() as order:
                await _answer(self._orders.PlaceOrder, _order_request(order))
            case Channel.RPC, ParcelOrdered() as parcel:
                await _answer(self._parcels.OrderParcel, _parcel_request(parcel))

    async def _publish_bare(self, saga_id: str, event: Initiating) -> None:
        """What `nats pub --jetstream` sends: JSON, and no header at all."""
        subject = f"events.{saga_id}.{event.DESCRIPTOR.full_name}"
        body = json_format.MessageToJson(event, indent=None).encode()
        await _patiently(partial(self._publish_acknowledged, subject, body))

    async def _publish_acknowledged(self, subject: str, body: bytes) -> None:
        answer = await self._broker.client.request(subject, body, timeout=_CALL_SECONDS)
        read_answer(answer.data, subject)

    async def sagas_updated_since(self, time: datetime) -> AsyncIterator[Saga]:
        """The records that have changed since a time in UTC, without their histories."""
        request = ListSagasRequest(filter=f'update_time >= "{time.isoformat()}Z"', page_size=_PAGE_SIZE)
        while True:
            page = await _answer(self._sagas.ListSagas, request)
            for saga in page.sagas:
                yield saga
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def levels(self) -> dict[str, Level]:
        """How much there is of each thing that sagas take."""
        levels = {}
        for sku in SKUS:
            pieces = await _answer(self._inventory.GetStock, inventory_service_pb2.GetStockRequest(sku=sku))
            levels[sku] = Level(available=pieces.available, taken=pieces.reserved)
        items = await _answer(self._packaging.GetStock, packaging_service_pb2.GetStockRequest(item=ITEM))
        fleet = await _answer(self._drones.GetFleet, GetFleetRequest())
        return levels | {
            ITEM: Level(available=items.available, taken=items.packed),
            DRONE: Level(available=fleet.available, taken=fleet.provisioned),
        }

    async def traces(self, event: Initiating) -> Traces:
        """What an order or a parcel has left in the services."""
        if isinstance(event, OrderCreated):
            return await self._order_traces(event.order_id)
        return await self._parcel_traces(event.parcel_id)

    async def _order_traces(self, order_id: str) -> OrderTraces:
        order = await _found(self._orders.GetOrder, GetOrderRequest(order_id=order_id))
        payment = await _found(self._payments.GetPayment, GetPaymentRequest(order_id=order_id))
        shipment = await _found(self._shipping.GetShipment, GetShipmentRequest(order_id=order_id))
        return OrderTraces(
            order=order.order if order else None,
            payment=payment.payment if payment else None,
            shipment=shipment.shipment if shipment else None,
        )

    async def _parcel_traces(self, parcel_id: str) -> ParcelTraces:
        parcel = await _found(self._parcels.GetParcel, GetParcelRequest(parcel_id=parcel_id))
        drone = await _found(self._drones.GetDrone, GetDroneRequest(parcel_id=parcel_id))
        return ParcelTraces(
            parcel=parcel.parcel if parcel else None,
            drone=drone.drone if drone else None,
            delivery=await self._decided_delivery(parcel_id),
        )

    async def _decided_delivery(self, parcel_id: str) -> Delivery | None:
        """The delivery of a parcel, asked for until it is no longer planned: the saga may end a moment before that."""
        while True:
            answer = await _found(self._delivery.GetDelivery, GetDeliveryRequest(parcel_id=parcel_id))
            if answer is None:
                return None
            if answer.delivery.status != DeliveryStatus.DELIVERY_STATUS_PLANNED:
                return answer.delivery
            await asyncio.sleep(_PAUSE_SECONDS)


def _order_request(order: OrderCreated) -> PlaceOrderRequest:
    return PlaceOrderRequest(
        order_id=order.order_id,
        customer_id=order.customer_id,
        lines=order.lines,
        currency=order.currency,
        card=order.card,
        address=order.address,
    )


def _parcel_request(parcel: ParcelOrdered) -> OrderParcelRequest:
    return OrderParcelRequest(
        parcel_id=parcel.parcel_id, item=parcel.item, weight_grams=parcel.weight_grams, address=parcel.address
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


async def _patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRY_AGAIN:
                raise
        except (nats.errors.Error, BrokerError):
            pass  # the broker is away; the caller's own time limit ends the trying
        await asyncio.sleep(_PAUSE_SECONDS)


async def _answer(procedure: grpc.aio.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer:
    return await _patiently(lambda: procedure(request, timeout=_CALL_SECONDS))


async def _found(procedure: grpc.aio.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer | None:
    """The answer; None where there is no such thing."""
    try:
        return await _answer(procedure, request)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
