"""Which orders the demo places, and what must become of them."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine

SKUS = ("widget", "gadget")
"""The articles whose stock the demo follows."""
_BARE_EVERY = 10
_GADGETS_EVERY = 3
_FAILURES: Sequence[Mapping[str, str]] = ({"sku": "unicorn"}, {"card": "card-declined"}, {"address": "nowhere"})
"""Nothing in stock; a card that is declined; an address that can't be delivered to."""


class Channel(enum.Enum):
    """How an order is placed."""

    RPC = "PlaceOrder"
    BARE_EVENT = "an event published to NATS with no headers"


@dataclass(frozen=True, slots=True)
class Placement:
    """One order of the demo."""

    order: OrderCreated
    channel: Channel
    succeeds: bool
    """Whether it must end shipped; otherwise it must end cancelled, with everything undone."""


def plan(run: str, orders: int, failing: int) -> list[Placement]:
    """The orders of one run, named `<run>-00001` and so on; the last `failing` of them can't be fulfilled."""
    return [_placement(run, number, fails=number >= orders - failing) for number in range(orders)]


def _placement(run: str, number: int, *, fails: bool) -> Placement:
    wish = {"sku": "widget", "card": "card-demo", "address": "1 Demo Street"}
    if fails:
        wish |= _FAILURES[number % len(_FAILURES)]
    lines = [OrderLine(sku=wish["sku"], quantity=1, unit_price_cents=1250)]
    if number % _GADGETS_EVERY == 0:
        lines.append(OrderLine(sku="gadget", quantity=2, unit_price_cents=399))
    return Placement(
        OrderCreated(
            order_id=f"{run}-{number + 1:05}",
            customer_id="demo",
            lines=lines,
            currency="EUR",
            card=wish["card"],
            address=wish["address"],
        ),
        Channel.BARE_EVENT if number % _BARE_EVERY == _BARE_EVERY - 1 else Channel.RPC,
        succeeds=not fails,
    )


def pieces_taken(placements: Sequence[Placement]) -> Mapping[str, int]:
    """How many pieces of each article the orders that succeed take."""
    taken = Counter(dict.fromkeys(SKUS, 0))
    for placement in placements:
        if placement.succeeds:
            for line in placement.order.lines:
                taken[line.sku] += line.quantity
    return taken


def amount_cents(order: OrderCreated) -> int:
    """What an order costs."""
    return sum(line.quantity * line.unit_price_cents for line in order.lines)
