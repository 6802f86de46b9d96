"""Times as files and databases keep them here: whole microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds_of(time: datetime) -> int:
    """How many whole microseconds of the epoch have passed by then."""
    return (time - EPOCH_START) // _MICROSECOND


def time_of(microseconds: int) -> datetime:
    """The time, in UTC, that so many microseconds since 1970 are."""
    return EPOCH_START + timedelta(microseconds=microseconds)


def maybe_microseconds_of(time: datetime | None) -> int | None:
    """As `microseconds_of`, of what may have no time."""
    return None if time is None else (time - EPOCH_START) // _MICROSECOND


def maybe_time_of(microseconds: int | None) -> datetime | None:
    """As `time_of`, of what may have no time."""
    return None if microseconds is None else EPOCH_START + timedelta(microseconds=microseconds)
