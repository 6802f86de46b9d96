"""The rules of parcels: where they stand."""

from __future__ import annotations

import enum


class ParcelStatus(enum.StrEnum):
    """Where a parcel stands (`parcels.v1.ParcelStatus`)."""

    ORDERED = "ORDERED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
