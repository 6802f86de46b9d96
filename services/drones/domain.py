"""The rules of drones: how many there are, and what they carry."""

from __future__ import annotations

import enum

FLEET_SIZE = 1_000_000
"""How many drones there are on the first day; none is built or lost later."""

MOST_GRAMS = 5_000
"""What a drone carries."""


class DroneStatus(enum.StrEnum):
    """Where the drone of a parcel stands (`drones.v1.DroneStatus`)."""

    PROVISIONED = "PROVISIONED"
    UNAVAILABLE = "UNAVAILABLE"
    RELEASED = "RELEASED"


def obstacle(weight_grams: int, available: int) -> str | None:
    """Why no drone can carry a package, or None where one can. `available` is how many stand idle."""
    if weight_grams > MOST_GRAMS:
        return f"the package weighs {weight_grams} g, and a drone carries {MOST_GRAMS} g"
    return "no drone stands idle" if available == 0 else None
