"""A small choreography beside the sample sagas: an order is picked and paid at the same time, and dispatched once it is
both. One of its handlers may end its process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from random import Random

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Participant, Transaction, step
from farandole.definition import CompensationDefinition, Definition, StepDefinition, StepKind
from farandole.errors import StoreUnavailableError
from farandole.participant.crashes import MOST_CRASHES
from farandole.saga import Status
from farandole.testing.simulation import Faults, Scenario, ScenarioOf, Start, World
from farandole.testing.simulation.process import CURRENT
from farandole.testing.simulation.stage import Stage
from inventory.v1.inventory_events_pb2 import ItemsReleased, ItemsReserved
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped, ShipmentCancelled

DISPATCHING = "dispatching"
_ENDS_ITS_PROCESS = "card-fatal"
_ORDERS = 4
_UNCOUNTED = 1
"""The first process that ends so leaves no count: what may have ended it is counted from then on."""
_ended: Counter[str] = Counter()
"""How often in this run a process has ended, by the order with which it did."""


def _end_process(tx: Transaction) -> None:
    """Ends the process that runs this, with its transaction."""
    process = CURRENT.get()
    assert process is not None, "handlers run in simulated processes"
    stage = process.witness
    assert isinstance(stage, Stage)
    for service in stage.services.values():
        for running in [one for one in service.processes if one.process is process]:
            stage.kill(service, running)
    _ended[tx.key] += 1
    raise StoreUnavailableError("its process has ended")


def pick(event: OrderCreated, tx: Transaction) -> ItemsReserved:
    """Picks what was ordered."""
    return ItemsReserved(
        order_id=tx.key, reservation_id=tx.step_id, amount_cents=100, currency="EUR", card="card", address=event.address
    )


def put_back(event: SagaTimedOut, tx: Transaction) -> ItemsReleased:
    """Puts it back."""
    return ItemsReleased(order_id=tx.key, reservation_id=tx.step_id, reason="it took too long")


def charge(event: OrderCreated, tx: Transaction) -> PaymentProcessed:
    """Takes the money; with one card it ends its process, each time."""
    if event.card == _ENDS_ITS_PROCESS:
        _end_process(tx)
    return PaymentProcessed(
        order_id=tx.key, payment_id=tx.step_id, amount_cents=100, currency="EUR", address=event.address
    )


def refund(event: SagaTimedOut, tx: Transaction) -> PaymentRefunded:
    """Gives it back."""
    return PaymentRefunded(order_id=tx.key, payment_id=tx.step_id, amount_cents=100, reason="it took too long")


def dispatch(picked: ItemsReserved, paid: PaymentProcessed, tx: Transaction) -> OrderShipped:
    """Sends it, once it is picked and paid."""
    return OrderShipped(order_id=tx.key, tracking_number=tx.step_id)


def call_back(event: SagaTimedOut, tx: Transaction) -> ShipmentCancelled:
    """Has it sent back."""
    return ShipmentCancelled(order_id=tx.key, tracking_number=tx.step_id, reason="it took too long")


PARTICIPANTS = (
    Participant("store-room", step("pick-items", pick, undo=put_back, saga=DISPATCHING)),
    Participant("till", step("charge-card", charge, undo=refund, saga=DISPATCHING)),
    Participant("dispatch", step("dispatch-order", dispatch, undo=call_back, saga=DISPATCHING)),
)
_CREATED, _PICKED, _PUT_BACK, _PAID, _REFUNDED, _SHIPPED, _CALLED_BACK = (
    one.DESCRIPTOR.full_name
    for one in (
        OrderCreated, ItemsReserved, ItemsReleased, PaymentProcessed, PaymentRefunded, OrderShipped, ShipmentCancelled,
    )
)  # fmt: skip


def _definition() -> Definition:
    return Definition(
        name=DISPATCHING,
        version=1,
        description="An order is picked and paid at the same time, and dispatched once it is both.",
        deadline=timedelta(seconds=60),
        initiating_event=_CREATED,
        commit_event=_SHIPPED,
        steps=(
            _step("pick-items", "store-room", _PICKED, _PUT_BACK, triggers=(_CREATED,)),
            _step("charge-card", "till", _PAID, _REFUNDED, triggers=(_CREATED,)),
            _step("dispatch-order", "dispatch", _SHIPPED, _CALLED_BACK, all_of=(_PICKED, _PAID), kind=StepKind.PIVOT),
        ),
    )


def _step(
    name: str,
    participant: str,
    success: str,
    completion: str,
    *,
    triggers: tuple[str, ...] = (),
    all_of: tuple[str, ...] = (),
    kind: StepKind = StepKind.COMPENSATABLE,
) -> StepDefinition:
    return StepDefinition(
        name=name,
        participant=participant,
        kind=kind,
        triggers=triggers,
        all_of=all_of,
        success=success,
        failures=(),
        compensation=CompensationDefinition(triggers=(), completion=completion),
    )


DEFINITION = _definition()
"""What the participants have agreed on."""


def dispatching(faults: Faults) -> ScenarioOf:
    """Scenarios of a few orders with so much time that each is completed."""

    def scenario(random: Random) -> Scenario:
        return _scenario([_order(f"ord-{number}") for number in range(_ORDERS)], faults)

    return scenario


def dispatching_with_a_fatal_order(random: Random) -> Scenario:
    """A few orders, of which one ends the process that charges its card, each time; nothing else goes wrong."""
    orders = [_order(f"ord-{number}") for number in range(_ORDERS - 1)]
    orders.insert(random.randint(0, len(orders)), _order("ord-fatal", card=_ENDS_ITS_PROCESS))
    return _scenario(orders, Faults(seconds=2.0, rates={}))


def _scenario(orders: Sequence[Start], faults: Faults) -> Scenario:
    _ended.clear()
    return Scenario(participants=PARTICIPANTS, definitions=[DEFINITION], starts=orders, check=_check, faults=faults)


def _check(world: World) -> Iterable[str]:
    """All orders are completed but the fatal one, which has ended no more processes than it may."""
    for key, times in _ended.items():
        if times > _UNCOUNTED + MOST_CRASHES:
            yield f"{key}: has ended {times} processes"
    for (_, key), saga in world.sagas.items():
        wanted = Status.COMPENSATED if _ended[key] else Status.COMPLETED
        if saga.status is not wanted:
            yield f"{key}: is {saga.status.name}, not {wanted.name}"


def _order(key: str, *, card: str = "card") -> Start:
    line = OrderLine(sku="widget", quantity=1, unit_price_cents=100)
    return Start(
        OrderCreated(order_id=key, customer_id="ada", lines=[line], currency="EUR", card=card, address="1 Main Street")
    )
