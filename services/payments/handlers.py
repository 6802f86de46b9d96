"""What payments does when something has happened."""

from __future__ import annotations

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Reject, Transaction
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed, PaymentRefunded
from services.payments import domain, store
from services.payments.domain import PaymentStatus
from shipping.v1.shipping_events_pb2 import ShippingFailed


def charge(event: ItemsReserved, tx: Transaction) -> PaymentProcessed | PaymentFailed:
    """Charges the card.

    A real one writes down here what to charge, and asks the provider after the commit, with `tx.step_id` as the
    idempotency key: nothing inside a transaction calls the network.
    """
    refusal = domain.refusal(event.card)
    tx.execute(
        store.INSERT_PAYMENT,
        {
            "order_id": event.order_id,
            "payment_id": "" if refusal else tx.step_id,
            "amount_cents": event.amount_cents,
            "currency": event.currency,
            "status": PaymentStatus.DECLINED if refusal else PaymentStatus.PROCESSED,
        },
    )
    if refusal:
        return PaymentFailed(order_id=event.order_id, reason=refusal)
    if domain.is_frozen(event.card):
        tx.execute(store.INSERT_FROZEN, {"payment_id": tx.step_id})
    return PaymentProcessed(
        order_id=event.order_id,
        payment_id=tx.step_id,
        amount_cents=event.amount_cents,
        currency=event.currency,
        address=event.address,
    )


def refund(event: ShippingFailed | SagaTimedOut, tx: Transaction) -> PaymentRefunded:
    """Gives back what `charge` took. Raises `Reject` where the bank takes nothing: trying again would not help."""
    if tx.execute(store.SELECT_FROZEN, {"payment": tx.step_id}).first() is not None:
        raise Reject("the bank has frozen the account that the money came from")
    payment = tx.execute(store.UPDATE_STATUS, {"order": tx.key, "new_status": PaymentStatus.REFUNDED}).one()
    return PaymentRefunded(
        order_id=tx.key,
        payment_id=payment.payment_id,
        amount_cents=payment.amount_cents,
        reason="the order took too long" if isinstance(event, SagaTimedOut) else event.reason,
    )
