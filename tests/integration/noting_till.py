"""A participant that writes down what it handles: `python -m tests.integration.noting_till`, in several replicas.

Some addresses end the process that handles their event, and the first of some others to be handled waits for a file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import sqlalchemy as sa
from google.protobuf.message import Message

from farandole import Participant, Transaction, run, step
from inventory.v1.inventory_events_pb2 import ItemsReserved
from orders.v1.order_events_pb2 import OrderCompleted, OrderCreated
from payments.v1.payment_events_pb2 import PaymentProcessed
from shipping.v1.shipping_events_pb2 import OrderShipped

DEADLY = "7 Bomb Lane"
SLOW = "Slow Street "
"""With the path of a directory behind it: the first who comes there makes the file `inside`, and waits for `go-on`."""
EXIT_CODE = 7

metadata = sa.MetaData()
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)


def _note(event: Message, tx: Transaction) -> None:
    tx.execute(notes.insert(), {"key": tx.key, "what": type(event).__name__})


def created(event: OrderCreated, tx: Transaction) -> None:
    _note(event, tx)


def reserved(event: ItemsReserved, tx: Transaction) -> None:
    _note(event, tx)


def paid(event: PaymentProcessed, tx: Transaction) -> None:
    _note(event, tx)
    if event.address == DEADLY:
        os._exit(EXIT_CODE)
    if event.address.startswith(SLOW):
        _wait_in(Path(event.address.removeprefix(SLOW)))


def _wait_in(directory: Path) -> None:
    try:
        (directory / "inside").touch(exist_ok=False)
    except FileExistsError:
        return
    while not (directory / "go-on").exists():
        time.sleep(0.01)


def shipped(event: OrderShipped, tx: Transaction) -> OrderCompleted:
    _note(event, tx)
    return OrderCompleted(order_id=tx.key, tracking_number=event.tracking_number)


PARTICIPANT = Participant(
    "till",
    step("note-created", created, saga="order-fulfilment"),
    step("note-reserved", reserved, saga="order-fulfilment"),
    step("note-paid", paid, saga="order-fulfilment"),
    step("note-shipped", shipped, saga="order-fulfilment"),
    metadata=metadata,
)

if __name__ == "__main__":
    run(PARTICIPANT, grpc_port=50070)
