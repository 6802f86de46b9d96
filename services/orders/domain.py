"""The rules of orders: what they cost, and where they stand."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from orders.v1.order_pb2 import OrderLine


class OrderStatus(enum.StrEnum):
    """Where an order stands (`orders.v1.OrderStatus`)."""

    PLACED = "PLACED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


def amount_cents(lines: Iterable[OrderLine]) -> int:
    """What the lines cost together, in hundredths of the order's currency."""
    return sum(line.quantity * line.unit_price_cents for line in lines)
