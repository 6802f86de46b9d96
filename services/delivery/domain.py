"""The rules of delivery: where packages can go, and how far a delivery has come."""

from __future__ import annotations

import enum

UNKNOWN_ADDRESS = "nowhere"


class DeliveryStatus(enum.StrEnum):
    """Where a delivery stands (`delivery.v1.DeliveryStatus`)."""

    PLANNED = "PLANNED"
    DELIVERED = "DELIVERED"
    UNDELIVERABLE = "UNDELIVERABLE"
    CALLED_OFF = "CALLED_OFF"


def obstacle(address: str) -> str | None:
    """Why nothing can be delivered to an address, or None where it can."""
    return "the address is not found" if address == UNKNOWN_ADDRESS else None
