"""What a process finds out about its reading and publishing, for gauges: how far it lags, and what it has yet to
publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS
from farandole.outbox import OutboxRow
from farandole.telemetry import catalogue
from farandole.telemetry.readings import Reading, Source


def of_lag(broker: Broker, consumers: Sequence[str], monotonic: Callable[[], float] = time.monotonic) -> Source:
    """Reads how far durable consumers are behind, those too that another replica reads, or nobody; and for how long
    the one has stood still that has for longest.
    """
    standstills = {consumer: _Standstill(monotonic) for consumer in consumers}

    async def read() -> Sequence[Reading]:
        readings = []
        ages = []
        for consumer, standstill in standstills.items():
            info = await broker.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.{consumer}")
            lag = info["num_pending"] + info["num_ack_pending"]
            ages.append(standstill.age(lag, info["delivered"]["stream_seq"], info["ack_floor"]["stream_seq"]))
            readings.append(Reading(catalogue.CONSUMER_LAG, (consumer,), lag))
        readings.append(Reading(catalogue.POSITION_AGE, (), max(ages)))
        return readings

    return read


def of_outbox(unpublished: Callable[[], Sequence[OutboxRow]], now: Callable[[], datetime]) -> Source:
    """Reads how much is decided and not published yet. `unpublished` gives it, what was decided first coming first."""

    async def read() -> Sequence[Reading]:
        rows = unpublished()
        times = (_time_of(row) for row in rows)
        first = next((decided for decided in times if decided is not None), None)
        waited = 0.0 if first is None else max(0.0, (now() - first).total_seconds())
        return [Reading(catalogue.OUTBOX_DEPTH, (), len(rows)), Reading(catalogue.OUTBOX_OLDEST, (), waited)]

    return read


class _Standstill:
    """For how long a consumer has not moved though something waits."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._delivered = 0
        """The farthest: whoever takes nothing in may be given the same again and again."""
        self._acknowledged = 0
        self._since = monotonic()

    def age(self, waiting: int, delivered: int, acknowledged: int) -> float:
        now = self._monotonic()
        if not waiting or delivered > self._delivered or acknowledged != self._acknowledged:
            self._since = now
        self._delivered = max(delivered, self._delivered) if waiting else delivered
        self._acknowledged = acknowledged
        return now - self._since


def _time_of(row: OutboxRow) -> datetime | None:
    """When an event was decided; None of what is no event: the copy of a dead letter has the times of its original."""
    if not row.publication.subject.startswith("events."):
        return None
    with suppress(KeyError, ValueError):
        return datetime.fromisoformat(row.publication.headers["ce-time"]).astimezone(UTC)
    return None
