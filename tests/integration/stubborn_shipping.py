"""A shipping service that can't ship everything, for tests: run as `python -m tests.integration.stubborn_shipping`.

What goes to `JAMMED` raises at each try; what goes to `ILLEGIBLE` is given up on at once; what goes to `OFFLINE` finds
that something is down.
"""

from __future__ import annotations

from datetime import timedelta

from farandole import DependencyDown, Participant, Reject, Retries, Transaction, run, step
from payments.v1.payment_events_pb2 import PaymentProcessed
from shipping.v1.shipping_events_pb2 import OrderShipped

JAMMED, ILLEGIBLE, OFFLINE = "7 Jam Lane", "7 Blot Lane", "7 Lonely Lane"
"""Addresses."""
DEPENDENCY = "label-printer"


def ship(event: PaymentProcessed, _tx: Transaction) -> OrderShipped:
    """Ships, or fails as the address asks for."""
    if event.address == JAMMED:
        raise RuntimeError("the label printer is jammed")
    if event.address == ILLEGIBLE:
        raise Reject("nobody can read the label")
    if event.address == OFFLINE:
        raise DependencyDown(DEPENDENCY, "nothing answers")
    return OrderShipped(order_id=event.order_id, tracking_number="TRACK-1")


if __name__ == "__main__":
    run(
        Participant(
            "shipping",
            step("ship-order", ship, saga="order-fulfilment"),
            retries=Retries(tries=100, first=timedelta(seconds=600), longest=timedelta(seconds=600)),
        ),
        grpc_port=50055,
    )
