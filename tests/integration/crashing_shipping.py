"""A shipping service that ends at certain parcels: run as `python -m tests.integration.crashing_shipping`."""

from __future__ import annotations

import os

from farandole import Participant, Transaction, run, step
from payments.v1.payment_events_pb2 import PaymentProcessed
from shipping.v1.shipping_events_pb2 import OrderShipped

DEADLY = "7 Bomb Lane"
"""An address."""
EXIT_CODE = 7


def ship(event: PaymentProcessed, _tx: Transaction) -> OrderShipped:
    """Ships, or ends the process at once, as a fault in a native library would."""
    if event.address == DEADLY:
        os._exit(EXIT_CODE)
    return OrderShipped(order_id=event.order_id, tracking_number="TRACK-1")


if __name__ == "__main__":
    run(Participant("shipping", step("ship-order", ship, saga="order-fulfilment")), grpc_port=50055)
