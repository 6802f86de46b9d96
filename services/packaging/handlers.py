"""What packaging does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed
from drones.v1.drone_events_pb2 import DroneUnavailable
from farandole import Transaction
from packaging_contracts.v1.packaging_events_pb2 import PackagePrepared, PackageUnpacked, PackagingFailed
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from services.packaging import domain, store


def prepare(event: ParcelOrdered, tx: Transaction) -> PackagePrepared | PackagingFailed:
    """Takes the item from stock and packs it."""
    available = tx.execute(store.SELECT_AVAILABLE, {"item": event.item}).scalar_one_or_none()
    obstacle = domain.obstacle(event.item, available)
    if obstacle:
        return PackagingFailed(parcel_id=event.parcel_id, reason=obstacle)
    tx.execute(store.INSERT_PACKAGE, {"package_id": tx.step_id, "item": event.item})
    tx.execute(store.PACK, {"packed_item": event.item})
    return PackagePrepared(
        parcel_id=event.parcel_id, package_id=tx.step_id, weight_grams=event.weight_grams, address=event.address
    )


def unpack(event: DroneUnavailable | DeliveryFailed | SagaTimedOut, tx: Transaction) -> PackageUnpacked:
    """Puts back into stock what `prepare` took."""
    item = tx.execute(store.DELETE_PACKAGE, {"package": tx.step_id}).scalar_one()
    tx.execute(store.UNPACK, {"packed_item": item})
    reason = "the parcel took too long" if isinstance(event, SagaTimedOut) else event.reason
    return PackageUnpacked(parcel_id=tx.key, package_id=tx.step_id, reason=reason)
