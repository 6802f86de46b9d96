"""The books of a run: what the services say, against what must be there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from delivery.v1.delivery_service_pb2 import Delivery, DeliveryStatus
from drones.v1.drone_service_pb2 import Drone, DroneStatus
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_service_pb2 import Order, OrderStatus
from parcels.v1.parcel_service_pb2 import Parcel, ParcelStatus
from payments.v1.payment_service_pb2 import Payment, PaymentStatus
from services.demo.plan import NOWHERE_ORDER, NOWHERE_PARCEL, Placement, amount_cents, taken
from shipping.v1.shipping_service_pb2 import Shipment, ShipmentStatus


@dataclass(frozen=True, slots=True)
class OrderTraces:
    """What one order has left in the services; None where a service has nothing about it."""

    order: Order | None
    payment: Payment | None
    shipment: Shipment | None


@dataclass(frozen=True, slots=True)
class ParcelTraces:
    """What one parcel has left in the services; None where a service has nothing about it."""

    parcel: Parcel | None
    drone: Drone | None
    delivery: Delivery | None


Traces = OrderTraces | ParcelTraces


@dataclass(frozen=True, slots=True)
class Level:
    """How much there is of one thing."""

    available: int
    taken: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the books."""

    name: str
    expected: int
    found: int
    before: int | None = None
    """What was there before the run; None for what is counted in the run alone."""

    @property
    def balances(self) -> bool:
        """Whether what was found is what must be there."""
        return self.expected == self.found


def balance(
    placements: Sequence[Placement],
    traces: Sequence[Traces],
    before: Mapping[str, Level],
    after: Mapping[str, Level],
) -> list[Entry]:
    """The books, line by line. `traces` are in the order of `placements`; levels are by the names that `taken` has."""
    pairs = list(zip(placements, traces, strict=True))
    orders = [(placement, found) for placement, found in pairs if isinstance(found, OrderTraces)]
    parcels = [(placement, found) for placement, found in pairs if isinstance(found, ParcelTraces)]
    return [
        *_stock_entries(taken(placements), before, after),
        *(_order_entries(orders) if orders else ()),
        *(_parcel_entries(parcels) if parcels else ()),
    ]


def _stock_entries(used: Mapping[str, int], before: Mapping[str, Level], after: Mapping[str, Level]) -> Iterator[Entry]:
    for thing, count in used.items():
        old, new = before[thing], after[thing]
        yield Entry(f"{thing}s available", old.available - count, new.available, before=old.available)
        yield Entry(f"{thing}s taken", old.taken + count, new.taken, before=old.taken)


def _order_entries(pairs: Sequence[tuple[Placement, OrderTraces]]) -> Iterator[Entry]:
    succeeding = _succeeding([placement for placement, _ in pairs])
    statuses = [found.order.status for _, found in pairs if found.order]
    yield Entry("orders completed", succeeding, statuses.count(OrderStatus.ORDER_STATUS_COMPLETED))
    yield Entry("orders cancelled", len(pairs) - succeeding, statuses.count(OrderStatus.ORDER_STATUS_CANCELLED))

    due = [_cents(placement) for placement, _ in pairs if placement.kind.succeeds]
    standing = _payments(pairs, PaymentStatus.PAYMENT_STATUS_PROCESSED)
    yield Entry("payments that stand", len(due), len(standing))
    yield Entry("cents that they add up to", sum(due), sum(standing))
    to_refund = [_cents(placement) for placement, _ in pairs if placement.kind is NOWHERE_ORDER]
    refunded = _payments(pairs, PaymentStatus.PAYMENT_STATUS_REFUNDED)
    yield Entry("payments given back", len(to_refund), len(refunded))
    yield Entry("cents given back", sum(to_refund), sum(refunded))

    shipped = [
        found
        for _, found in pairs
        if found.shipment and found.shipment.status == ShipmentStatus.SHIPMENT_STATUS_SHIPPED
    ]
    numbers = {
        found.shipment.tracking_number
        for found in shipped
        if found.shipment and found.order and found.shipment.tracking_number == found.order.tracking_number != ""
    }
    yield Entry("orders on their way", succeeding, len(shipped))
    yield Entry("tracking numbers, each in its order", succeeding, len(numbers))


def _parcel_entries(pairs: Sequence[tuple[Placement, ParcelTraces]]) -> Iterator[Entry]:
    succeeding = _succeeding([placement for placement, _ in pairs])
    statuses = [found.parcel.status for _, found in pairs if found.parcel]
    yield Entry("parcels completed", succeeding, statuses.count(ParcelStatus.PARCEL_STATUS_COMPLETED))
    yield Entry("parcels cancelled", len(pairs) - succeeding, statuses.count(ParcelStatus.PARCEL_STATUS_CANCELLED))

    to_release = sum(placement.kind is NOWHERE_PARCEL for placement, _ in pairs)
    drones = [found.drone.status for _, found in pairs if found.drone]
    yield Entry("drones with a parcel", succeeding, drones.count(DroneStatus.DRONE_STATUS_PROVISIONED))
    yield Entry("drones released", to_release, drones.count(DroneStatus.DRONE_STATUS_RELEASED))

    delivered = [
        found
        for _, found in pairs
        if found.delivery
        and found.delivery.status == DeliveryStatus.DELIVERY_STATUS_DELIVERED
        and found.delivery.HasField("delivery_time")
    ]
    deliveries = {
        found.delivery.delivery_id
        for found in delivered
        if found.delivery and found.parcel and found.delivery.delivery_id == found.parcel.delivery_id != ""
    }
    yield Entry("packages handed over", succeeding, len(delivered))
    yield Entry("deliveries, each in its parcel", succeeding, len(deliveries))


def _succeeding(placements: Sequence[Placement]) -> int:
    return sum(placement.kind.succeeds for placement in placements)


def _cents(placement: Placement) -> int:
    return amount_cents(placement.event) if isinstance(placement.event, OrderCreated) else 0


def _payments(pairs: Sequence[tuple[Placement, OrderTraces]], status: PaymentStatus.ValueType) -> list[int]:
    """What each payment of that status comes to, in cents."""
    return [found.payment.amount_cents for _, found in pairs if found.payment and found.payment.status == status]
