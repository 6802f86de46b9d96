"""The rules of shipping: where parcels can go, and how they are followed."""

from __future__ import annotations

import enum
import hashlib

UNKNOWN_ADDRESS = "nowhere"
ILLEGIBLE_ADDRESS = "illegible"


class ShipmentStatus(enum.StrEnum):
    """Where a shipment stands (`shipping.v1.ShipmentStatus`)."""

    SHIPPED = "SHIPPED"
    UNDELIVERABLE = "UNDELIVERABLE"
    CANCELLED = "CANCELLED"


def obstacle(address: str) -> str | None:
    """Why nothing can be delivered to an address, or None where it can."""
    return "the address can't be delivered to" if address == UNKNOWN_ADDRESS else None


def is_legible(address: str) -> bool:
    """Whether anybody can read an address, so as to say whether it can be delivered to."""
    return address != ILLEGIBLE_ADDRESS


def tracking_number(shipment_id: str) -> str:
    """How a customer follows a shipment; the same shipment always has the same number."""
    return "FD" + hashlib.sha256(shipment_id.encode()).hexdigest()[:16].upper()
