"""What the orders service does when something has happened, or when someone asks for it."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import CommandTransaction, Transaction
from farandole.errors import AlreadyExistsError
from farandole.ids import canonical_digest
from inventory.v1.inventory_events_pb2 import ItemsReleased, ReservationFailed
from orders.v1.order_events_pb2 import OrderCancelled, OrderCompleted, OrderCreated
from services.orders import domain, store
from services.orders.domain import OrderStatus
from shipping.v1.shipping_events_pb2 import OrderShipped


def place(order: OrderCreated, tx: CommandTransaction) -> None:
    """Accepts an order: publishes its event, and nothing else. `record` makes the order, as of any published event.

    Placing the same order again does nothing. Raises `AlreadyExistsError` where another order has the id.
    """
    digest = canonical_digest(order)
    known = tx.execute(store.SELECT_DIGEST, {"order": order.order_id}).scalar_one()
    if known is None:
        tx.execute(store.INSERT_PLACEMENT, {"order_id": order.order_id, "digest": digest})
        tx.publish(order)
    elif known != digest:
        raise AlreadyExistsError(f"another order has the id {order.order_id}", metadata={"order_id": order.order_id})


def record(event: OrderCreated, tx: Transaction) -> None:
    """Makes the order."""
    tx.execute(
        store.INSERT_ORDER,
        {
            "order_id": event.order_id,
            "customer_id": event.customer_id,
            "currency": event.currency,
            "amount_cents": domain.amount_cents(event.lines),
            "status": OrderStatus.PLACED,
            "tracking_number": "",
            "cancel_reason": "",
            "create_time": tx.time,
            "digest": canonical_digest(event),
        },
    )
    tx.execute(
        store.INSERT_LINES,
        [
            {
                "order_id": event.order_id,
                "position": position,
                "sku": line.sku,
                "quantity": line.quantity,
                "unit_price_cents": line.unit_price_cents,
            }
            for position, line in enumerate(event.lines)
        ],
    )


def cancel(event: ReservationFailed | ItemsReleased | SagaTimedOut, tx: Transaction) -> OrderCancelled:
    """Calls the order off."""
    reason = "the order took too long" if isinstance(event, SagaTimedOut) else event.reason
    tx.execute(store.CANCEL, {"order": tx.key, "reason": reason})
    return OrderCancelled(order_id=tx.key, reason=reason)


def complete(event: OrderShipped, tx: Transaction) -> OrderCompleted | None:
    """Closes the order; nothing where there is none, or where it was called off before the parcel was sent."""
    parameters = {"order": event.order_id, "tracking": event.tracking_number}
    if tx.execute(store.COMPLETE, parameters).rowcount == 0:
        return None
    return OrderCompleted(order_id=event.order_id, tracking_number=event.tracking_number)
