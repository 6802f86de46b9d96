"""A stockroom whose gate jams, for tests: run as `python -m tests.e2e.jamming_stockroom`.

FARANDOLE_TEST_JAMS  a directory: while it holds a file `reserve`, nothing can be reserved; while it holds a file
                     `release`, nothing can be released; while it holds `power`, there is none; while it holds
                     `night`, everybody sleeps
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import DependencyDown, Participant, Snooze, Transaction, run, step
from inventory.v1.inventory_events_pb2 import ItemsReleased, ItemsReserved
from orders.v1.order_events_pb2 import OrderCreated
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed
from shipping.v1.shipping_events_pb2 import OrderShipped

METADATA = sa.MetaData()
WORK = sa.Table(
    "work", METADATA, sa.Column("number", sa.Integer, primary_key=True), sa.Column("done", sa.Text, nullable=False)
)
"""What was done, in order: `reserve KEY`, `release KEY`, `pack-CENTS KEY`."""


class GateJammedError(Exception):
    """Trouble that goes away by itself, or when somebody sees to it."""


def reserve(event: OrderCreated, tx: Transaction) -> ItemsReserved:
    """Sets the items aside."""
    work(tx, "reserve", f"on the way to {event.address}, paid by {event.card!r}")
    return ItemsReserved(
        order_id=event.order_id,
        reservation_id=tx.step_id,
        amount_cents=sum(line.quantity * line.unit_price_cents for line in event.lines),
        currency=event.currency,
        card=event.card,
        address=event.address,
    )


def release(_event: PaymentFailed | SagaTimedOut, tx: Transaction) -> ItemsReleased:
    """Puts them back."""
    work(tx, "release", "on the way back")
    return ItemsReleased(order_id=tx.key, reservation_id=tx.step_id, reason="nobody pays for it")


def pack(event: PaymentProcessed, tx: Transaction) -> OrderShipped:
    """Hands them over, against what was paid."""
    work(tx, f"pack-{event.amount_cents}", "out of the door")
    return OrderShipped(order_id=event.order_id, tracking_number="collected")


def work(tx: Transaction, what: str, where: str) -> None:
    """Writes down that something was done, and only then looks at the gate: a try that fails must leave nothing."""
    tx.execute(sa.insert(WORK), {"done": f"{what} {tx.key}"})
    jams = Path(os.environ["FARANDOLE_TEST_JAMS"])
    if (jams / "power").exists():
        raise DependencyDown("power", f"the lights are out {where}")
    if (jams / "night").exists():
        raise Snooze(timedelta(seconds=2), "it is night")
    if (jams / what).exists():
        raise GateJammedError(f"the gate is jammed {where}")


if __name__ == "__main__":
    run(
        Participant(
            "stockroom",
            step("reserve", reserve, undo=release, saga="stock-keeping"),
            step("pack", pack, saga="stock-keeping"),
            metadata=METADATA,
        ),
        grpc_port=50052,
    )
