"""The rules of packaging: what can be packed."""

from __future__ import annotations

from collections.abc import Mapping

OPENING_STOCK: Mapping[str, int] = {"book": 1_000_000, "unicorn": 0}
"""The catalogue, and how many of each item there are on the first day."""


def obstacle(item: str, available: int | None) -> str | None:
    """Why an item can't be packed, or None where it can. `available` is None for what is not in the catalogue."""
    if available is None:
        return f"{item}: not in the catalogue"
    return f"{item}: none left" if available == 0 else None
