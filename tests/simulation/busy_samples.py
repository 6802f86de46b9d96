"""The sample sagas as a scenario in which a few kinds of faults strike often: several sagas at a time, and little time
for each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

from farandole.testing.simulation import Fault, Faults, Scenario, ScenarioOf, Start, with_deadlines
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from services.orders import handlers as orders_handlers
from services.orders.service import orders
from services.parcels import handlers as parcels_handlers
from services.parcels.service import parcels
from services.simulation import DRONE_DELIVERY, ORDER_FULFILMENT, PARTICIPANTS, check, definitions

_SAGAS = 5
_SAGA_SECONDS = (1.5, 2.0, 3.0)
_FAULT_SECONDS = 1.5


class FaultsOfEveryRun(Faults):
    """Faults of which no kind is left out of any run."""

    def drawn(self, random: Random, *given: Any, **named: Any) -> list[tuple[float, Fault]]:
        """See `Faults.drawn`."""
        while True:
            strikes = super().drawn(random, *given, **named)
            if {fault for _, fault in strikes} == set(self.rates):
                return strikes


def busy(
    rates: Mapping[Fault, float],
    *,
    names: tuple[str, ...] = (ORDER_FULFILMENT, DRONE_DELIVERY),
    by_command: float = 0.4,
) -> ScenarioOf:
    """Scenarios of one of the sample sagas, with faults at these rates; `by_command` is the share of the sagas
    that a participant starts."""

    def scenario(random: Random) -> Scenario:
        name = random.choice(names)
        make = _order if name == ORDER_FULFILMENT else _parcel
        starts = []
        for number in range(_SAGAS):
            start = make(number)
            starts.append(start if random.random() < by_command else Start(start.event))
        return Scenario(
            participants=PARTICIPANTS[name],
            definitions=[with_deadlines(definitions()[name], saga=timedelta(seconds=random.choice(_SAGA_SECONDS)))],
            starts=starts,
            check=check,
            faults=FaultsOfEveryRun(seconds=_FAULT_SECONDS, rates=rates),
        )

    return scenario


def _order(number: int) -> Start:
    order = OrderCreated(
        order_id=f"ord-{number}",
        customer_id="ada",
        lines=[OrderLine(sku="widget", quantity=1 + number, unit_price_cents=100)],
        currency="EUR",
        card="card-1",
        address="1 Main Street",
    )
    return Start(order, orders.name, partial(orders_handlers.place, order))


def _parcel(number: int) -> Start:
    parcel = ParcelOrdered(parcel_id=f"par-{number}", item="book", weight_grams=500, address="1 Main Street")
    return Start(parcel, parcels.name, partial(parcels_handlers.accept, parcel))
