"""What the delivery service does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneProvisioned
from farandole import Transaction
from services.delivery import domain, store
from services.delivery.domain import DeliveryStatus


def deliver(event: DroneProvisioned, tx: Transaction) -> PackageDelivered | DeliveryFailed:
    """Decides that the package is delivered. No drone leaves yet: see `hand_over`."""
    obstacle = domain.obstacle(event.address)
    tx.execute(
        store.INSERT_DELIVERY,
        {
            "parcel_id": event.parcel_id,
            "delivery_id": "" if obstacle else tx.step_id,
            "drone_id": event.drone_id,
            "status": DeliveryStatus.UNDELIVERABLE if obstacle else DeliveryStatus.PLANNED,
            "delivery_time": None,
        },
    )
    if obstacle:
        return DeliveryFailed(parcel_id=event.parcel_id, reason=obstacle)
    return PackageDelivered(parcel_id=event.parcel_id, delivery_id=tx.step_id, drone_id=event.drone_id)


def hand_over(event: PackageDelivered, tx: Transaction) -> None:
    """Has the drone hand the package over, which nothing can undo: the stream has the event, and no time-out before it.

    A real one writes down here that the drone is to leave, and sends it after the commit, with `tx.step_id` as the
    idempotency key: nothing inside a transaction calls the network.
    """
    tx.execute(store.HAND_OVER, {"parcel": event.parcel_id, "time": tx.time})


def call_off(event: SagaTimedOut, tx: Transaction) -> DeliveryFailed:
    """Calls a delivery off whose drone has not left, also where it was not even planned."""
    tx.execute(store.CALL_OFF, {"parcel": event.saga_id})
    return DeliveryFailed(parcel_id=event.saga_id, reason="the parcel took too long")
