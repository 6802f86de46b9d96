"""The two sagas as their definitions and the services' pages have them: written down again, to check against.

Nothing here is read from the code that is checked, nor from its definitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orders.v1.order_events_pb2 import OrderCreated
from parcels.v1.parcel_events_pb2 import ParcelOrdered

ORDERS = "order-fulfilment"
PARCELS = "drone-delivery"

SAGA_TIMED_OUT = "choreography.v1.SagaTimedOut"
STEP_VOIDED = "choreography.v1.StepVoided"
DEAD_LETTER_REDRIVEN = "choreography.v1.DeadLetterRedriven"
PARTITION_TICK = "choreography.v1.PartitionTick"
DEFINITION_ACTIVATED = "choreography.v1.DefinitionActivated"
OF_PARTITIONS = frozenset(
    {PARTITION_TICK, DEFINITION_ACTIVATED, "choreography.v1.DefinitionRetired", "choreography.v1.EventUnreadable"}
)
"""Event types under keys that no saga has."""

COMPLETED, COMPENSATED, FAILED = "COMPLETED", "COMPENSATED", "FAILED"
ENDS = frozenset({COMPLETED, COMPENSATED, FAILED})

OPENING_STOCK: Mapping[str, int] = {"widget": 1_000_000, "gadget": 1_000_000, "unicorn": 0}
OPENING_ITEMS: Mapping[str, int] = {"book": 1_000_000, "unicorn": 0}
FLEET = 1_000_000
MOST_GRAMS = 5_000


@dataclass(frozen=True, slots=True)
class Step:
    """One step: who does it, what it answers to, and what it says."""

    name: str
    participant: str
    triggers: tuple[str, ...]
    success: str
    failure: str = ""
    undone_by: tuple[str, ...] = ()
    """What undoes it besides a time-out of its saga."""
    undone: str = ""
    """The event that says that it was undone; empty where it has no compensation."""


@dataclass(frozen=True, slots=True)
class Choreography:
    """One saga definition."""

    name: str
    start: str
    commit: str
    steps: tuple[Step, ...]
    irrevocable: str = ""
    """The step whose act waits for its own success to be read back, and can't be undone then."""

    @property
    def participants(self) -> frozenset[str]:
        """Who takes part."""
        return frozenset(step.participant for step in self.steps)

    @property
    def failures(self) -> frozenset[str]:
        """The events by which the saga leaves the way to its success."""
        return frozenset(step.failure for step in self.steps if step.failure)

    def consumed_by(self, participant: str) -> frozenset[str]:
        """The event types of this saga that a participant takes in."""
        return frozenset(self._consumed(participant))

    def _consumed(self, participant: str) -> Iterator[str]:
        for step in self.steps:
            if step.participant == participant:
                yield SAGA_TIMED_OUT
                yield from step.triggers
                yield from step.undone_by
                if step.name == self.irrevocable:
                    yield step.success


ORDER_FULFILMENT = Choreography(
    name=ORDERS,
    start="orders.v1.OrderCreated",
    commit="shipping.v1.OrderShipped",
    steps=(
        Step(
            "place-order",
            "orders",
            triggers=("orders.v1.OrderCreated",),
            success="orders.v1.OrderCreated",
            undone_by=("inventory.v1.ReservationFailed", "inventory.v1.ItemsReleased"),
            undone="orders.v1.OrderCancelled",
        ),
        Step(
            "reserve-items",
            "inventory",
            triggers=("orders.v1.OrderCreated",),
            success="inventory.v1.ItemsReserved",
            failure="inventory.v1.ReservationFailed",
            undone_by=("payments.v1.PaymentFailed", "payments.v1.PaymentRefunded"),
            undone="inventory.v1.ItemsReleased",
        ),
        Step(
            "take-payment",
            "payments",
            triggers=("inventory.v1.ItemsReserved",),
            success="payments.v1.PaymentProcessed",
            failure="payments.v1.PaymentFailed",
            undone_by=("shipping.v1.ShippingFailed",),
            undone="payments.v1.PaymentRefunded",
        ),
        Step(
            "ship-order",
            "shipping",
            triggers=("payments.v1.PaymentProcessed",),
            success="shipping.v1.OrderShipped",
            failure="shipping.v1.ShippingFailed",
            undone="shipping.v1.ShipmentCancelled",
        ),
        Step(
            "complete-order",
            "orders",
            triggers=("shipping.v1.OrderShipped",),
            success="orders.v1.OrderCompleted",
        ),
    ),
)

DRONE_DELIVERY = Choreography(
    name=PARCELS,
    start="parcels.v1.ParcelOrdered",
    commit="delivery.v1.PackageDelivered",
    irrevocable="deliver-package",
    steps=(
        Step(
            "order-parcel",
            "parcels",
            triggers=("parcels.v1.ParcelOrdered",),
            success="parcels.v1.ParcelOrdered",
            undone_by=("packaging.v1.PackagingFailed", "drones.v1.DroneUnavailable", "delivery.v1.DeliveryFailed"),
            undone="parcels.v1.ParcelOrderCancelled",
        ),
        Step(
            "prepare-package",
            "packaging",
            triggers=("parcels.v1.ParcelOrdered",),
            success="packaging.v1.PackagePrepared",
            failure="packaging.v1.PackagingFailed",
            undone_by=("drones.v1.DroneUnavailable", "delivery.v1.DeliveryFailed"),
            undone="packaging.v1.PackageUnpacked",
        ),
        Step(
            "provision-drone",
            "drones",
            triggers=("packaging.v1.PackagePrepared",),
            success="drones.v1.DroneProvisioned",
            failure="drones.v1.DroneUnavailable",
            undone_by=("delivery.v1.DeliveryFailed",),
            undone="drones.v1.DroneReleased",
        ),
        Step(
            "deliver-package",
            "delivery",
            triggers=("drones.v1.DroneProvisioned",),
            success="delivery.v1.PackageDelivered",
            failure="delivery.v1.DeliveryFailed",
        ),
        Step(
            "complete-parcel",
            "parcels",
            triggers=("delivery.v1.PackageDelivered",),
            success="parcels.v1.ParcelOrderCompleted",
        ),
    ),
)

CHOREOGRAPHIES: Mapping[str, Choreography] = {
    choreography.name: choreography for choreography in (ORDER_FULFILMENT, DRONE_DELIVERY)
}
PARTICIPANTS = tuple(
    dict.fromkeys(step.participant for choreography in CHOREOGRAPHIES.values() for step in choreography.steps)
)
SERVICES = ("correlator", *PARTICIPANTS)


def choreography_of(event_type: str) -> Choreography | None:
    """The saga that an event type starts; None where it starts none."""
    return next((found for found in CHOREOGRAPHIES.values() if found.start == event_type), None)


@dataclass(frozen=True, slots=True)
class Fate:
    """What must become of a saga that nothing delays."""

    end: str
    """`COMPLETED` or `COMPENSATED`; empty where only its time-out can end it."""
    failure: str = ""
    """The failure event that turns it; empty where none does."""


Start = OrderCreated | ParcelOrdered
"""What begins a saga."""


def fate(start: Start) -> Fate:
    """What an initiating event leads to, by the rules that the services promise."""
    return _fate_of_order(start) if isinstance(start, OrderCreated) else _fate_of_parcel(start)


def _fate_of_order(order: OrderCreated) -> Fate:
    if any(pieces > OPENING_STOCK.get(sku, 0) for sku, pieces in wanted_pieces(order).items()):
        return Fate(COMPENSATED, "inventory.v1.ReservationFailed")
    if order.card == "card-declined":
        return Fate(COMPENSATED, "payments.v1.PaymentFailed")
    if order.address == "nowhere":
        return Fate(COMPENSATED, "shipping.v1.ShippingFailed")
    return Fate("" if order.address == "illegible" else COMPLETED)


def _fate_of_parcel(parcel: ParcelOrdered) -> Fate:
    if OPENING_ITEMS.get(parcel.item, 0) == 0:
        return Fate(COMPENSATED, "packaging.v1.PackagingFailed")
    if parcel.weight_grams > MOST_GRAMS:
        return Fate(COMPENSATED, "drones.v1.DroneUnavailable")
    if parcel.address == "nowhere":
        return Fate(COMPENSATED, "delivery.v1.DeliveryFailed")
    return Fate(COMPLETED)


def wanted_pieces(order: OrderCreated) -> dict[str, int]:
    """How many pieces of each article an order wants."""
    wanted: dict[str, int] = {}
    for line in order.lines:
        wanted[line.sku] = wanted.get(line.sku, 0) + line.quantity
    return wanted


def amount_cents(order: OrderCreated) -> int:
    """What an order costs."""
    return sum(line.quantity * line.unit_price_cents for line in order.lines)
