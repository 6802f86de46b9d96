"""What shipping does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Reject, Transaction
from payments.v1.payment_events_pb2 import PaymentProcessed
from services.shipping import domain, store
from services.shipping.domain import ShipmentStatus
from shipping.v1.shipping_events_pb2 import OrderShipped, ShipmentCancelled, ShippingFailed


def ship(event: PaymentProcessed, tx: Transaction) -> OrderShipped | ShippingFailed:
    """Sends the parcel. Raises `Reject` where nobody can read the address: somebody must look, and decide."""
    if not domain.is_legible(event.address):
        raise Reject("nobody can read the address")
    obstacle = domain.obstacle(event.address)
    tracking_number = "" if obstacle else domain.tracking_number(tx.step_id)
    tx.execute(
        store.INSERT_SHIPMENT,
        {
            "order_id": event.order_id,
            "tracking_number": tracking_number,
            "status": ShipmentStatus.UNDELIVERABLE if obstacle else ShipmentStatus.SHIPPED,
        },
    )
    if obstacle:
        return ShippingFailed(order_id=event.order_id, reason=obstacle)
    return OrderShipped(order_id=event.order_id, tracking_number=tracking_number)


def call_back(event: SagaTimedOut, tx: Transaction) -> ShipmentCancelled:
    """Calls a parcel back that was sent after its order had timed out."""
    shipment = tx.execute(store.UPDATE_STATUS, {"order": event.saga_id, "new_status": ShipmentStatus.CANCELLED}).one()
    return ShipmentCancelled(
        order_id=event.saga_id, tracking_number=shipment.tracking_number, reason="the order took too long"
    )
