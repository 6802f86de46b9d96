"""Which orders and parcels the demo places, and what must become of them."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, zip_longest

from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from parcels.v1.parcel_events_pb2 import ParcelOrdered

SKUS = ("widget", "gadget")
"""The articles of orders whose stock the demo follows."""
ITEM = "book"
"""What is in its parcels."""
DRONE = "drone"

_GADGETS_EVERY = 4
_BARE_EVERY = 7  # no divisor of how often one fails, so that some of both kinds are bare events


class Channel(enum.Enum):
    """How something is ordered."""

    RPC = "a gRPC call"
    BARE_EVENT = "an event published to NATS with no headers"


Initiating = OrderCreated | ParcelOrdered
"""The event that starts a saga of the demo."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of saga: what is ordered, and how it must end."""

    definition: str
    name: str
    make: Callable[[str, int], Initiating]
    """The initiating event of a saga, by its id and its number."""
    succeeds: bool = False

    @property
    def expected(self) -> str:
        """The status with which it must end: completed, or with everything undone."""
        return "COMPLETED" if self.succeeds else "COMPENSATED"


def _order(
    order_id: str, number: int, *, sku: str = "widget", card: str = "card-demo", address: str = "1 Demo Street"
) -> OrderCreated:
    lines = [OrderLine(sku=sku, quantity=1, unit_price_cents=1250)]
    if number % _GADGETS_EVERY == 0:
        lines.append(OrderLine(sku="gadget", quantity=2, unit_price_cents=399))
    return OrderCreated(order_id=order_id, customer_id="demo", lines=lines, currency="EUR", card=card, address=address)


def _parcel(
    parcel_id: str, _number: int, *, item: str = ITEM, weight_grams: int = 500, address: str = "1 Demo Street"
) -> ParcelOrdered:
    return ParcelOrdered(parcel_id=parcel_id, item=item, weight_grams=weight_grams, address=address)


_ORDERS, _PARCELS = "order-fulfilment", "drone-delivery"

FINE_ORDER = Kind(_ORDERS, "fine", _order, succeeds=True)
UNICORN_ORDER = Kind(_ORDERS, "unicorn", lambda key, number: _order(key, number, sku="unicorn"))
DECLINED_ORDER = Kind(_ORDERS, "card-declined", lambda key, number: _order(key, number, card="card-declined"))
NOWHERE_ORDER = Kind(_ORDERS, "nowhere", lambda key, number: _order(key, number, address="nowhere"))

FINE_PARCEL = Kind(_PARCELS, "fine", _parcel, succeeds=True)
UNICORN_PARCEL = Kind(_PARCELS, "unicorn", lambda key, number: _parcel(key, number, item="unicorn"))
HEAVY_PARCEL = Kind(_PARCELS, "9000 g", lambda key, number: _parcel(key, number, weight_grams=9000))
NOWHERE_PARCEL = Kind(_PARCELS, "nowhere", lambda key, number: _parcel(key, number, address="nowhere"))

FAILING_ORDERS = (UNICORN_ORDER, DECLINED_ORDER, NOWHERE_ORDER)
FAILING_PARCELS = (UNICORN_PARCEL, HEAVY_PARCEL, NOWHERE_PARCEL)
KINDS = (FINE_ORDER, *FAILING_ORDERS, FINE_PARCEL, *FAILING_PARCELS)


@dataclass(frozen=True, slots=True)
class Placement:
    """One order or parcel of the demo."""

    kind: Kind
    event: Initiating
    channel: Channel

    @property
    def saga_id(self) -> str:
        """The correlation key."""
        return self.event.order_id if isinstance(self.event, OrderCreated) else self.event.parcel_id


def plan(run: str, *, orders: int, parcels: int, failing_percent: int) -> list[Placement]:
    """The orders and parcels of one run, taking turns, named `<run>-order-00001`, `<run>-parcel-00001` and so on.

    Of each, `failing_percent` fail, evenly among the others, in every way in turn.
    """
    turns = zip_longest(
        _placements(f"{run}-order", orders, failing_percent, FINE_ORDER, FAILING_ORDERS),
        _placements(f"{run}-parcel", parcels, failing_percent, FINE_PARCEL, FAILING_PARCELS),
    )
    return [placement for placement in chain.from_iterable(turns) if placement is not None]


def _placements(
    prefix: str, count: int, failing_percent: int, fine: Kind, failing: Sequence[Kind]
) -> Iterator[Placement]:
    ways = cycle(failing)
    for number in range(count):
        fails = (number + 1) * failing_percent // 100 > number * failing_percent // 100
        kind = next(ways) if fails else fine
        yield Placement(
            kind,
            kind.make(f"{prefix}-{number + 1:05}", number),
            Channel.BARE_EVENT if number % _BARE_EVERY == _BARE_EVERY - 1 else Channel.RPC,
        )


def taken(placements: Sequence[Placement]) -> Mapping[str, int]:
    """How much of each thing the sagas that succeed take: pieces by SKU, items, drones."""
    found = Counter(dict.fromkeys((*SKUS, ITEM, DRONE), 0))
    for placement in placements:
        if not placement.kind.succeeds:
            continue
        match placement.event:
            case OrderCreated(lines=lines):
                for line in lines:
                    found[line.sku] += line.quantity
            case ParcelOrdered():
                found.update((ITEM, DRONE))
    return found


def amount_cents(order: OrderCreated) -> int:
    """What an order costs."""
    return sum(line.quantity * line.unit_price_cents for line in order.lines)
