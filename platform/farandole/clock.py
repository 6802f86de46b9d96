"""The machine's clock, as what works in real time is given it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time that the machine shows, in UTC."""
    return datetime.now(UTC)
