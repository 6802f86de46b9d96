"""The books of a run: what the four services say, against what must be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orders.v1.order_service_pb2 import Order, OrderStatus
from payments.v1.payment_service_pb2 import Payment, PaymentStatus
from services.demo.plan import SKUS, Placement, amount_cents, pieces_taken
from shipping.v1.shipping_service_pb2 import Shipment, ShipmentStatus


@dataclass(frozen=True, slots=True)
class Traces:
    """What one order has left in the services; None where a service has nothing about it."""

    order: Order | None
    payment: Payment | None
    shipment: Shipment | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the books."""

    name: str
    expected: int
    found: int

    @property
    def balances(self) -> bool:
        """Whether what was found is what must be there."""
        return self.expected == self.found


def balance(
    placements: Sequence[Placement],
    traces: Sequence[Traces],
    stock_before: Mapping[str, int],
    stock_after: Mapping[str, int],
) -> list[Entry]:
    """The books, line by line. `traces` are in the order of `placements`; stock is the available pieces by article."""
    succeeding = [placement.order for placement in placements if placement.succeeds]
    orders = Counter(trace.order.status for trace in traces if trace.order)
    payments = [
        trace.payment
        for trace in traces
        if trace.payment and trace.payment.status == PaymentStatus.PAYMENT_STATUS_PROCESSED
    ]
    shipments = [
        trace.shipment
        for trace in traces
        if trace.shipment and trace.shipment.status == ShipmentStatus.SHIPMENT_STATUS_SHIPPED
    ]
    followed = {
        trace.shipment.tracking_number
        for trace in traces
        if trace.shipment and trace.order and trace.shipment.tracking_number == trace.order.tracking_number != ""
    }
    taken = pieces_taken(placements)
    return [
        Entry("orders completed", len(succeeding), orders[OrderStatus.ORDER_STATUS_COMPLETED]),
        Entry("orders cancelled", len(placements) - len(succeeding), orders[OrderStatus.ORDER_STATUS_CANCELLED]),
        *(Entry(f"{sku}s taken from stock", taken[sku], stock_before[sku] - stock_after[sku]) for sku in SKUS),
        Entry("payments that stand", len(succeeding), len(payments)),
        Entry("cents that they add up to", sum(map(amount_cents, succeeding)), sum(p.amount_cents for p in payments)),
        Entry("parcels on their way", len(succeeding), len(shipments)),
        Entry("tracking numbers, each in its order", len(succeeding), len(followed)),
    ]
