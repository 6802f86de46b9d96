"""The events of a whole order saga that goes well, as anyone may publish them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from farandole.envelope import Publication

ORDER_EVENTS: Sequence[tuple[str, Mapping[str, object]]] = (
    (
        "orders.v1.OrderCreated",
        {
            "customerId": "ada",
            "currency": "EUR",
            "card": "card-1",
            "address": "1 Main Street",
            "lines": [{"sku": "widget", "quantity": 1, "unitPriceCents": 1250}],
        },
    ),
    (
        "inventory.v1.ItemsReserved",
        {"reservationId": "r", "amountCents": 1250, "currency": "EUR", "card": "card-1", "address": "1 Main Street"},
    ),
    (
        "payments.v1.PaymentProcessed",
        {"paymentId": "p", "amountCents": 1250, "currency": "EUR", "address": "1 Main Street"},
    ),
    ("shipping.v1.OrderShipped", {"trackingNumber": "t"}),
    ("orders.v1.OrderCompleted", {"trackingNumber": "t"}),
)
"""Type, and body without the key."""


def order_body(key: str, body: Mapping[str, object]) -> bytes:
    """The ProtoJSON of one of them, of the order `key`."""
    return json.dumps({"orderId": key, **body}).encode()


def order_event(key: str, name: str, body: Mapping[str, object]) -> Publication:
    """One of them, of the order `key`, with no headers."""
    return Publication(key, f"events.{key}.{name}", {}, order_body(key, body))
