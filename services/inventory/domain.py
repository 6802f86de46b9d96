"""The rules of the inventory: what can be set aside for an order, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orders.v1.order_pb2 import OrderLine

OPENING_STOCK: Mapping[str, int] = {"widget": 1_000_000, "gadget": 1_000_000, "unicorn": 0}
"""The catalogue, and how many pieces of each article there are on the first day."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """An article of which an order wants more than there is."""

    sku: str
    wanted: int
    left: int

    def __str__(self) -> str:
        return f"{self.sku}: {self.wanted} wanted, {self.left} left"


def pieces(lines: Iterable[OrderLine]) -> dict[str, int]:
    """How many pieces of each article the lines want; several lines of one article add up."""
    wanted: Counter[str] = Counter()
    for line in lines:
        wanted[line.sku] += line.quantity
    return dict(wanted)


def shortage(wanted: Mapping[str, int], available: Mapping[str, int]) -> Shortage | None:
    """The first article of which there is too little, or None. Of what is not in `available` there is nothing."""
    for sku, quantity in wanted.items():
        left = available.get(sku, 0)
        if quantity > left:
            return Shortage(sku, wanted=quantity, left=left)
    return None


def amount_cents(lines: Iterable[OrderLine]) -> int:
    """What the lines cost together, in hundredths of the order's currency."""
    return sum(line.quantity * line.unit_price_cents for line in lines)
