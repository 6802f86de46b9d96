"""The four services of the drone saga as processes of their own, on a real broker, as clients see them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import grpc
import nats
import pytest
from google.protobuf import json_format

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from choreography.v1.saga_pb2 import SagaCause
from delivery.v1.delivery_service_pb2 import Delivery, DeliveryStatus, GetDeliveryRequest
from delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from drones.v1.drone_service_pb2 import Drone, DroneStatus, GetDroneRequest, GetFleetRequest
from drones.v1.drone_service_pb2_grpc import DroneServiceStub
from packaging_contracts.v1.packaging_service_pb2 import GetStockRequest
from packaging_contracts.v1.packaging_service_pb2_grpc import PackagingServiceStub
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from parcels.v1.parcel_service_pb2 import GetParcelRequest, OrderParcelRequest, Parcel, ParcelStatus
from parcels.v1.parcel_service_pb2_grpc import ParcelServiceStub
from tests.integration.service_processes import (
    PARCEL_SERVICES,
    Services,
    answered,
    channels_to,
    eventually,
    refusal,
    running,
)

MILLION = 1_000_000

Books = tuple[int, int, int, int]
"""(books available, books packed, drones available, drones provisioned)."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running(tmp_path_factory, *PARCEL_SERVICES) as services:
        yield services


class Clients:
    """What a client asks of the services, and publishes."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], connection: Any) -> None:
        self.parcels = ParcelServiceStub(channels["parcels"])
        self.packaging = PackagingServiceStub(channels["packaging"])
        self.drones = DroneServiceStub(channels["drones"])
        self.deliveries = DeliveryServiceStub(channels["delivery"])
        self._connection = connection

    async def order(self, parcel: ParcelOrdered) -> str:
        """Orders a parcel; asks again where the service is away."""
        request = request_of(parcel)
        ordered = await eventually(lambda: answered(lambda: self.parcels.OrderParcel(request, timeout=5)))
        return ordered.parcel_id

    async def publish(self, parcel_id: str, event: Any) -> None:
        """Publishes an event as JSON with no header at all."""
        body = json.dumps(json_format.MessageToDict(event)).encode()
        subject = f"events.{parcel_id}.{event.DESCRIPTOR.full_name}"
        await self._connection.jetstream().publish(subject, body)

    async def published(self, event_type: str) -> set[str]:
        """The parcels for which the stream has an event of that type."""
        stream = self._connection.jetstream()
        info = await stream.stream_info("EVENTS", subjects_filter=f"events.*.{event_type}")
        subscription = await stream.subscribe(f"events.*.{event_type}", ordered_consumer=True)
        messages = [await subscription.next_msg() for _ in range(sum((info.state.subjects or {}).values()))]
        await subscription.unsubscribe()
        return {message.headers["ce-correlationid"] for message in messages}

    async def parcel(self, parcel_id: str) -> Parcel:
        return (await self.parcels.GetParcel(GetParcelRequest(parcel_id=parcel_id))).parcel

    async def ended(self, parcel_id: str) -> Parcel:
        """The parcel, once it is completed or cancelled."""

        async def look() -> Parcel | None:
            parcel = await answered(lambda: self.parcel(parcel_id))
            return parcel if parcel is not None and parcel.status != ParcelStatus.PARCEL_STATUS_ORDERED else None

        return await eventually(look)

    async def drone(self, parcel_id: str) -> Drone:
        return (await self.drones.GetDrone(GetDroneRequest(parcel_id=parcel_id))).drone

    async def delivery(self, parcel_id: str) -> Delivery:
        return (await self.deliveries.GetDelivery(GetDeliveryRequest(parcel_id=parcel_id))).delivery

    async def delivered(self, parcel_id: str) -> Delivery:
        """The delivery, once the package is handed over."""

        async def look() -> Delivery | None:
            delivery = await answered(lambda: self.delivery(parcel_id))
            is_over = delivery is not None and delivery.status == DeliveryStatus.DELIVERY_STATUS_DELIVERED
            return delivery if is_over else None

        return await eventually(look)

    async def books(self) -> Books:
        stock = await self.packaging.GetStock(GetStockRequest(item="book"))
        fleet = await self.drones.GetFleet(GetFleetRequest())
        return stock.available, stock.packed, fleet.available, fleet.provisioned

    async def balance(self, expected: Books) -> None:
        """Waits until the books are so: everyone undoes their own at their own pace."""

        async def look() -> bool | None:
            return True if await self.books() == expected else None

        await eventually(look)


@pytest.fixture
async def clients(services: Services) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(channels_to(services, PARCEL_SERVICES))
        connection = await nats.connect(services.nats_url)
        stack.push_async_callback(connection.close)
        yield Clients(channels, connection)


def new_parcel(*, item: str = "book", weight_grams: int = 500, address: str = "1 Main Street") -> ParcelOrdered:
    return ParcelOrdered(parcel_id=f"par-{uuid.uuid4()}", item=item, weight_grams=weight_grams, address=address)


def request_of(parcel: ParcelOrdered) -> OrderParcelRequest:
    return OrderParcelRequest(
        parcel_id=parcel.parcel_id, item=parcel.item, weight_grams=parcel.weight_grams, address=parcel.address
    )


def with_delivered(before: Books, parcels: int = 1) -> Books:
    available, packed, idle, provisioned = before
    return available - parcels, packed + parcels, idle - parcels, provisioned + parcels


async def test_an_ordered_parcel_is_packed_given_a_drone_delivered_and_completed(clients: Clients) -> None:
    before = await clients.books()
    parcel = new_parcel(weight_grams=5000)
    assert await clients.order(parcel) == parcel.parcel_id
    ended = await clients.ended(parcel.parcel_id)
    assert ended.status == ParcelStatus.PARCEL_STATUS_COMPLETED
    assert (ended.item, ended.weight_grams, ended.cancel_reason) == ("book", 5000, "")
    assert ended.HasField("create_time")
    delivery = await clients.delivered(parcel.parcel_id)
    assert delivery.delivery_id == ended.delivery_id != ""
    assert delivery.delivery_time.ToDatetime() >= ended.create_time.ToDatetime()
    drone = await clients.drone(parcel.parcel_id)
    assert (drone.drone_id, drone.status) == (delivery.drone_id, DroneStatus.DRONE_STATUS_PROVISIONED)
    after = await clients.books()
    assert after == with_delivered(before)
    assert (after[0] + after[1], after[2] + after[3]) == (MILLION, MILLION)


async def test_a_bare_event_is_a_parcel_like_any_other(clients: Clients) -> None:
    parcel = new_parcel()
    await clients.publish(parcel.parcel_id, parcel)
    assert (await clients.ended(parcel.parcel_id)).status == ParcelStatus.PARCEL_STATUS_COMPLETED
    assert await clients.order(parcel) == parcel.parcel_id
    parcel.weight_grams += 1
    problem = await refusal(clients.parcels.OrderParcel(request_of(parcel)))
    assert (problem.code, problem.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_a_parcel_without_an_id_gets_one(clients: Clients) -> None:
    parcel = new_parcel()
    parcel.parcel_id = ""
    one, other = await clients.order(parcel), await clients.order(parcel)
    assert one != other
    assert (await clients.ended(one)).status == ParcelStatus.PARCEL_STATUS_COMPLETED
    assert (await clients.ended(other)).status == ParcelStatus.PARCEL_STATUS_COMPLETED


@pytest.mark.parametrize(
    ("parcel", "reason"),
    [
        (new_parcel(item="unicorn"), "unicorn: none left"),
        (new_parcel(weight_grams=9000), "the package weighs 9000 g, and a drone carries 5000 g"),
        (new_parcel(address="nowhere"), "the address is not found"),
    ],
    ids=["not in stock", "too heavy", "not found"],
)
async def test_a_parcel_that_fails_is_cancelled_and_everything_is_as_before(
    clients: Clients, parcel: ParcelOrdered, reason: str
) -> None:
    before = await clients.books()
    await clients.order(parcel)
    ended = await clients.ended(parcel.parcel_id)
    assert (ended.status, ended.cancel_reason) == (ParcelStatus.PARCEL_STATUS_CANCELLED, reason)
    assert ended.delivery_id == ""
    await clients.balance(before)
    delivery = await answered(lambda: clients.delivery(parcel.parcel_id))
    if parcel.address == "nowhere":
        assert delivery is not None
        assert delivery.status == DeliveryStatus.DELIVERY_STATUS_UNDELIVERABLE
        assert (await clients.drone(parcel.parcel_id)).status == DroneStatus.DRONE_STATUS_RELEASED
    else:
        assert delivery is None


async def test_a_time_out_before_the_delivery_is_answered_and_nothing_is_delivered(
    services: Services, clients: Clients
) -> None:
    """Delivery is down meanwhile; when it is back, it hears the time-out before the backlog."""
    before = await clients.books()
    parcel, behind = new_parcel(), new_parcel()
    services.kill("delivery")
    await clients.order(parcel)
    await eventually(lambda: answered(lambda: clients.drone(parcel.parcel_id)))
    timed_out = SagaTimedOut(
        saga_id=parcel.parcel_id,
        definition="drone-delivery",
        version=1,
        cause=SagaCause.SAGA_CAUSE_DEADLINE,
        steps=["order-parcel", "prepare-package", "provision-drone", "deliver-package", "complete-parcel"],
    )
    timed_out.deadline.FromDatetime(datetime.now(UTC))
    await clients.publish(parcel.parcel_id, timed_out)
    cancelled = await clients.ended(parcel.parcel_id)
    assert (cancelled.status, cancelled.cancel_reason) == (
        ParcelStatus.PARCEL_STATUS_CANCELLED,
        "the parcel took too long",
    )
    await clients.balance(before)
    await asyncio.to_thread(services.start, "delivery")
    await clients.order(behind)
    await clients.delivered(behind.parcel_id)
    assert (await refusal(clients.delivery(parcel.parcel_id))).reason == "DELIVERY_NOT_FOUND"
    assert parcel.parcel_id in await clients.published("delivery.v1.DeliveryFailed")
    assert parcel.parcel_id not in await clients.published("delivery.v1.PackageDelivered")
    assert await clients.books() == with_delivered(before)


async def test_what_is_not_there_is_not_found_with_a_reason(clients: Clients) -> None:
    for call, reason in (
        (clients.parcel("par-none"), "PARCEL_NOT_FOUND"),
        (clients.drone("par-none"), "DRONE_NOT_FOUND"),
        (clients.delivery("par-none"), "DELIVERY_NOT_FOUND"),
    ):
        problem = await refusal(call)
        assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, reason)
        assert problem.metadata == {"parcel_id": "par-none"}
    problem = await refusal(clients.packaging.GetStock(GetStockRequest(item="dragon")))
    assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "ITEM_NOT_FOUND")
    assert problem.metadata == {"item": "dragon"}


async def test_a_wrong_parcel_is_refused_and_each_wrong_field_is_named(clients: Clients) -> None:
    problem = await refusal(clients.parcels.OrderParcel(request_of(new_parcel(weight_grams=0, item=""))))
    assert problem.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in problem.fields} == {"weight_grams", "item"}


async def test_services_that_are_killed_in_the_middle_lose_and_double_nothing(
    services: Services, clients: Clients
) -> None:
    before = await clients.books()
    fine: list[ParcelOrdered] = []
    for service in PARCEL_SERVICES:
        wave = [new_parcel() for _ in range(20)]
        fine += wave
        ordering = [asyncio.create_task(clients.order(p)) for p in [*wave, new_parcel(address="nowhere")]]
        await ordering[len(wave) // 2]
        services.kill(service)
        await asyncio.to_thread(services.start, service)
        await asyncio.gather(*ordering)
    ended = [await clients.ended(parcel.parcel_id) for parcel in fine]
    assert {parcel.status for parcel in ended} == {ParcelStatus.PARCEL_STATUS_COMPLETED}
    deliveries = [await clients.delivered(parcel.parcel_id) for parcel in fine]
    assert [delivery.delivery_id for delivery in deliveries] == [parcel.delivery_id for parcel in ended]
    assert len({delivery.drone_id for delivery in deliveries}) == len(fine)
    await clients.balance(with_delivered(before, len(fine)))
