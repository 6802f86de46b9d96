"""What the parcels service does when something has happened, or when someone asks for it."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneUnavailable
from farandole import CommandTransaction, Transaction
from farandole.errors import AlreadyExistsError
from farandole.ids import canonical_digest
from packaging_contracts.v1.packaging_events_pb2 import PackagingFailed
from parcels.v1.parcel_events_pb2 import ParcelOrderCancelled, ParcelOrderCompleted, ParcelOrdered
from services.parcels import store
from services.parcels.domain import ParcelStatus


def accept(parcel: ParcelOrdered, tx: CommandTransaction) -> None:
    """Accepts a parcel: publishes its event, and nothing else. `record` makes the parcel, as of any published event.

    Ordering the same parcel again does nothing. Raises `AlreadyExistsError` where another parcel has the id.
    """
    digest = canonical_digest(parcel)
    known = tx.execute(store.SELECT_DIGEST, {"parcel": parcel.parcel_id}).scalar_one()
    if known is None:
        tx.execute(store.INSERT_ACCEPTANCE, {"parcel_id": parcel.parcel_id, "digest": digest})
        tx.publish(parcel)
    elif known != digest:
        raise AlreadyExistsError(
            f"another parcel has the id {parcel.parcel_id}", metadata={"parcel_id": parcel.parcel_id}
        )


def record(event: ParcelOrdered, tx: Transaction) -> None:
    """Makes the parcel."""
    tx.execute(
        store.INSERT_PARCEL,
        {
            "parcel_id": event.parcel_id,
            "item": event.item,
            "weight_grams": event.weight_grams,
            "status": ParcelStatus.ORDERED,
            "delivery_id": "",
            "cancel_reason": "",
            "create_time": tx.time,
            "digest": canonical_digest(event),
        },
    )


def cancel(
    event: PackagingFailed | DroneUnavailable | DeliveryFailed | SagaTimedOut, tx: Transaction
) -> ParcelOrderCancelled:
    """Calls the parcel off."""
    reason = "the parcel took too long" if isinstance(event, SagaTimedOut) else event.reason
    tx.execute(store.CANCEL, {"parcel": tx.key, "reason": reason})
    return ParcelOrderCancelled(parcel_id=tx.key, reason=reason)


def complete(event: PackageDelivered, tx: Transaction) -> ParcelOrderCompleted | None:
    """Closes the parcel's order; nothing where there is none, or where it was called off before."""
    parameters = {"parcel": event.parcel_id, "delivery": event.delivery_id}
    if tx.execute(store.COMPLETE, parameters).rowcount == 0:
        return None
    return ParcelOrderCompleted(parcel_id=event.parcel_id, delivery_id=event.delivery_id)
