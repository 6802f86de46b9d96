"""Readings: what a process finds out about itself now and then, to be shown as gauges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from farandole.errors import FarandoleError
from farandole.telemetry import catalogue
from farandole.telemetry.catalogue import Metric

READ_SECONDS = 5.0
"""How often readings are taken, so that scraping costs the stores and the broker nothing."""
_SHARE = 20
"""What takes long is read less often: of the time at most one part in so many goes into readings."""
_PATIENCE_SECONDS = 10.0
"""A reading that takes longer is given up."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a gauge, now."""

    metric: Metric
    labels: tuple[str, ...]
    """The values of the metric's own labels, in its order."""
    value: float


Source = Callable[[], Awaitable[Sequence[Reading]]]
"""Takes readings. Raises `FarandoleError` where it can't now: then there are none."""


class Display(Protocol):
    """Where readings are shown."""

    def read(self, readings: Sequence[Reading]) -> None:
        """Shows these from now on, in place of those before."""
        ...


async def keep_reading(sources: Sequence[Source], display: Display) -> None:
    """Takes readings until it is cancelled, each source's in its own time. Trouble of one leaves out its own."""
    latest: dict[int, Sequence[Reading]] = {}

    async def keep(number: int, source: Source) -> None:
        while True:
            began = time.monotonic()
            latest[number] = await _read(source)
            display.read([reading for of_source in latest.values() for reading in of_source])
            took = time.monotonic() - began
            await asyncio.sleep(max(READ_SECONDS, took * _SHARE))

    async with asyncio.TaskGroup() as tasks:
        for number, source in enumerate(sources):
            tasks.create_task(keep(number, source), name=f"reading-{number}")


async def _read(source: Source) -> Sequence[Reading]:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await source()
    except (FarandoleError, TimeoutError) as error:
        _log.debug("no reading", error=str(error) or type(error).__name__)
        return ()


def of_health(checks: Sequence[str], problems: Callable[[], Mapping[str, str]]) -> Source:
    """Reads which checks of the process are well."""

    async def read() -> Sequence[Reading]:
        unwell = problems()
        return [Reading(catalogue.HEALTH, (check,), 0.0 if check in unwell else 1.0) for check in checks]

    return read
