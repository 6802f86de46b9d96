"""The two sample sagas as a scenario of the simulation, with what must hold of their money, stock and drones.

`python -m farandole.testing.simulation services.simulation:scenario` runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from random import Random

import sqlalchemy as sa

from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.participant.participant import Participant
from farandole.registry import Registry
from farandole.saga import Status
from farandole.testing.simulation import Scenario, Start, World, with_deadlines
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from services.delivery.domain import DeliveryStatus
from services.delivery.service import delivery
from services.delivery.store import deliveries
from services.drones.domain import FLEET_SIZE
from services.drones.service import drones
from services.drones.store import fleet
from services.inventory import domain as inventory_domain
from services.inventory import store as inventory_store
from services.inventory.service import inventory
from services.orders import domain as orders_domain
from services.orders import handlers as orders_handlers
from services.orders import store as orders_store
from services.orders.domain import OrderStatus
from services.orders.service import orders
from services.packaging import domain as packaging_domain
from services.packaging import store as packaging_store
from services.packaging.service import packaging
from services.parcels import handlers as parcels_handlers
from services.parcels import store as parcels_store
from services.parcels.domain import ParcelStatus
from services.parcels.service import parcels
from services.payments.domain import PaymentStatus
from services.payments.service import payments
from services.payments.store import payments as payments_table
from services.shipping.domain import ShipmentStatus
from services.shipping.service import shipping
from services.shipping.store import shipments

ORDER_FULFILMENT, DRONE_DELIVERY = "order-fulfilment", "drone-delivery"
PARTICIPANTS: Mapping[str, tuple[Participant, ...]] = {
    ORDER_FULFILMENT: (orders, inventory, payments, shipping),
    DRONE_DELIVERY: (parcels, packaging, drones, delivery),
}
_SAGAS = Path(__file__).parent / "correlator" / "sagas"
_MIXES = (*2 * [(ORDER_FULFILMENT,)], *2 * [(DRONE_DELIVERY,)], (ORDER_FULFILMENT, DRONE_DELIVERY))
"""Both at a time less often: a run then has twice as many processes to wait for."""
_BY_COMMAND = 0.4
_SAGA_SECONDS = (2, 3, 4, 6, 9)
_STEP_SECONDS = (1, 5)


def scenario(random: Random) -> Scenario:
    """A few orders, a few parcels, or both; of all kinds, most of which go well. Their deadlines are seconds."""
    names = random.choice(_MIXES)
    starts = [
        _order(f"ord-{number}", random)
        if random.choice(names) == ORDER_FULFILMENT
        else _parcel(f"par-{number}", random)
        for number in range(random.randint(1, 3))
    ]
    return Scenario(
        participants=[participant for name in names for participant in PARTICIPANTS[name]],
        definitions=[_definition(name, random.choice(_SAGA_SECONDS), random.choice(_STEP_SECONDS)) for name in names],
        starts=starts,
        check=check,
    )


@cache
def _definition(name: str, saga_seconds: int, step_seconds: int) -> Definition:
    """A sample definition with deadlines that fit a run. Few of them: a run with known ones begins sooner."""
    step = timedelta(seconds=step_seconds)
    return with_deadlines(definitions()[name], saga=timedelta(seconds=saga_seconds), step=step, compensation=step)


@cache
def definitions() -> Mapping[str, Definition]:
    """The sample definitions, by name, as the correlator has them."""
    everyone = [participant for group in PARTICIPANTS.values() for participant in group]
    registry = Registry({name: one for participant in everyone for name, one in participant.registry.types.items()})
    return {definition.name: definition for definition in load_definitions(_SAGAS, registry)}


def _order(key: str, random: Random) -> Start:
    lines = [
        OrderLine(
            sku=random.choice(("widget", "gadget", "widget", "gadget", "unicorn")),
            quantity=random.randint(1, 9),
            unit_price_cents=random.randint(1, 10_000),
        )
        for _ in range(random.randint(1, 3))
    ]
    order = OrderCreated(
        order_id=key,
        customer_id="ada",
        lines=lines,
        currency="EUR",
        card=random.choice(("card-1", "card-2", "card-3", "card-declined")),
        address=random.choice(("1 Main Street", "2 Side Street", "3 Back Street", "nowhere")),
    )
    if random.random() < _BY_COMMAND:
        return Start(order, participant=orders.name, command=partial(orders_handlers.place, order))
    return Start(order)


def _parcel(key: str, random: Random) -> Start:
    parcel = ParcelOrdered(
        parcel_id=key,
        item=random.choice(("book", "book", "book", "unicorn")),
        weight_grams=random.choice((200, 1_000, 5_000, 9_000)),
        address=random.choice(("1 Main Street", "2 Side Street", "3 Back Street", "nowhere")),
    )
    if random.random() < _BY_COMMAND:
        return Start(parcel, participant=parcels.name, command=partial(parcels_handlers.accept, parcel))
    return Start(parcel)


def check(world: World) -> Iterator[str]:
    """Money adds up, stock and drones are where they belong, and each order is what its saga says."""
    names = {definition.name for definition in world.scenario.definitions}
    if ORDER_FULFILMENT in names:
        yield from _check_orders(world)
    if DRONE_DELIVERY in names:
        yield from _check_parcels(world)


def _check_orders(world: World) -> Iterator[str]:
    first = {order.order_id: order for order in reversed(world.bodies(OrderCreated))}
    completed = {
        key for (name, key), saga in world.sagas.items() if saga.status is Status.COMPLETED if name == ORDER_FULFILMENT
    }
    placed = world.read(orders.name, lambda connection: connection.execute(sa.select(orders_store.orders)).all())
    for order in placed:
        wanted = OrderStatus.COMPLETED if order.order_id in completed else OrderStatus.CANCELLED
        if order.status != wanted:
            yield f"{order.order_id}: the order is {order.status}, not {wanted}"
    paid = world.read(payments.name, lambda connection: connection.execute(sa.select(payments_table)).all())
    taken = {row.order_id: row.amount_cents for row in paid if row.status == PaymentStatus.PROCESSED}
    owed = {key: orders_domain.amount_cents(first[key].lines) for key in completed}
    if taken != owed:
        yield f"money: {taken} cents were taken and kept, {owed} are owed"
    sent = world.read(shipping.name, lambda connection: connection.execute(sa.select(shipments)).all())
    shipped = {row.order_id for row in sent if row.status == ShipmentStatus.SHIPPED}
    if shipped != completed:
        yield f"shipments: {sorted(shipped)} are under way, {sorted(completed)} were ordered and completed"
    pieces: Counter[str] = Counter()
    for key in completed:
        pieces.update(inventory_domain.pieces(first[key].lines))
    stock = world.read(inventory.name, lambda connection: connection.execute(sa.select(inventory_store.stock)).all())
    for row in stock:
        if row.reserved != pieces[row.sku]:
            yield f"stock: {row.reserved} {row.sku} are set aside, {pieces[row.sku]} are sold"
        if row.available + row.reserved != inventory_domain.OPENING_STOCK[row.sku]:
            yield f"stock: {row.available} {row.sku} and {row.reserved} set aside are not what there was"


def _check_parcels(world: World) -> Iterator[str]:
    first = {parcel.parcel_id: parcel for parcel in reversed(world.bodies(ParcelOrdered))}
    completed = {
        key for (name, key), saga in world.sagas.items() if saga.status is Status.COMPLETED if name == DRONE_DELIVERY
    }
    ordered = world.read(parcels.name, lambda connection: connection.execute(sa.select(parcels_store.parcels)).all())
    for parcel in ordered:
        wanted = ParcelStatus.COMPLETED if parcel.parcel_id in completed else ParcelStatus.CANCELLED
        if parcel.status != wanted:
            yield f"{parcel.parcel_id}: the parcel is {parcel.status}, not {wanted}"
    made = world.read(delivery.name, lambda connection: connection.execute(sa.select(deliveries)).all())
    delivered = {row.parcel_id for row in made if row.status == DeliveryStatus.DELIVERED}
    if delivered != completed:
        yield f"deliveries: {sorted(delivered)} were handed over, {sorted(completed)} were ordered and completed"
    [drones_now] = world.read(drones.name, lambda connection: connection.execute(sa.select(fleet)).all())
    if (drones_now.available, drones_now.provisioned) != (FLEET_SIZE - len(completed), len(completed)):
        yield f"drones: {drones_now.available} are idle and {drones_now.provisioned} out, for {len(completed)} parcels"
    items = Counter(first[key].item for key in completed)
    stock = world.read(packaging.name, lambda connection: connection.execute(sa.select(packaging_store.stock)).all())
    for row in stock:
        if (row.available, row.packed) != (packaging_domain.OPENING_STOCK[row.item] - items[row.item], items[row.item]):
            yield f"stock: {row.available} {row.item} and {row.packed} packed, of which {items[row.item]} were sent"
