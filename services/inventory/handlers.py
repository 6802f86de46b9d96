"""What the inventory does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Transaction
from inventory.v1.inventory_events_pb2 import ItemsReleased, ItemsReserved, ReservationFailed
from orders.v1.order_events_pb2 import OrderCreated
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentRefunded
from services.inventory import domain, store


def reserve(event: OrderCreated, tx: Transaction) -> ItemsReserved | ReservationFailed:
    """Sets every line of an order aside, or none."""
    wanted = domain.pieces(event.lines)
    available = {row.sku: row.available for row in tx.execute(store.SELECT_AVAILABLE, {"skus": list(wanted)})}
    shortage = domain.shortage(wanted, available)
    if shortage:
        return ReservationFailed(order_id=event.order_id, reason=str(shortage))
    tx.execute(
        store.INSERT_LINES,
        [{"reservation_id": tx.step_id, "sku": sku, "quantity": quantity} for sku, quantity in wanted.items()],
    )
    tx.execute(store.SET_ASIDE, [{"article": sku, "quantity": quantity} for sku, quantity in wanted.items()])
    return ItemsReserved(
        order_id=event.order_id,
        reservation_id=tx.step_id,
        amount_cents=domain.amount_cents(event.lines),
        currency=event.currency,
        card=event.card,
        address=event.address,
    )


def release(event: PaymentFailed | PaymentRefunded | SagaTimedOut, tx: Transaction) -> ItemsReleased:
    """Frees what `reserve` set aside."""
    lines = tx.execute(store.DELETE_LINES, {"reservation": tx.step_id}).all()
    tx.execute(store.SET_ASIDE, [{"article": line.sku, "quantity": -line.quantity} for line in lines])
    reason = "the order took too long" if isinstance(event, SagaTimedOut) else event.reason
    return ItemsReleased(order_id=tx.key, reservation_id=tx.step_id, reason=reason)
