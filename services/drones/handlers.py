"""What the drones service does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed
from drones.v1.drone_events_pb2 import DroneProvisioned, DroneReleased, DroneUnavailable
from farandole import Transaction
from packaging_contracts.v1.packaging_events_pb2 import PackagePrepared
from services.drones import domain, store
from services.drones.domain import DroneStatus


def provision(event: PackagePrepared, tx: Transaction) -> DroneProvisioned | DroneUnavailable:
    """Has an idle drone stand by for a package."""
    obstacle = domain.obstacle(event.weight_grams, tx.execute(store.SELECT_AVAILABLE).scalar_one())
    tx.execute(
        store.INSERT_DRONE,
        {
            "parcel_id": event.parcel_id,
            "drone_id": "" if obstacle else tx.step_id,
            "status": DroneStatus.UNAVAILABLE if obstacle else DroneStatus.PROVISIONED,
        },
    )
    if obstacle:
        return DroneUnavailable(parcel_id=event.parcel_id, reason=obstacle)
    tx.execute(store.PROVISION)
    return DroneProvisioned(
        parcel_id=event.parcel_id, drone_id=tx.step_id, package_id=event.package_id, address=event.address
    )


def release(event: DeliveryFailed | SagaTimedOut, tx: Transaction) -> DroneReleased:
    """Lets the drone go that `provision` had stand by."""
    drone_id = tx.execute(store.MARK_RELEASED, {"parcel": tx.key}).scalar_one()
    tx.execute(store.RELEASE)
    reason = "the parcel took too long" if isinstance(event, SagaTimedOut) else event.reason
    return DroneReleased(parcel_id=tx.key, drone_id=drone_id, reason=reason)
