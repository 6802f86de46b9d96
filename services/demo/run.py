"""One run of the demo: place everything, watch the sagas to their end, make up the books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from services.demo.books import Entry, Traces, balance
from services.demo.clients import Clients
from services.demo.plan import Placement
from services.demo.progress import Progress

T = TypeVar("T")

_PARALLEL_CALLS = 32
_POLL_SECONDS = 0.25
_CLOCK_TOLERANCE = timedelta(seconds=60)
"""By how much this machine's clock may differ from the broker's."""


async def run(
    clients: Clients, placements: Sequence[Placement], progress: Progress, show: Callable[[Progress], None]
) -> list[Entry]:
    """The books of a run, after every saga has ended; takes as long as that takes. `show` is called at each look."""
    before = await clients.levels()
    placing = asyncio.create_task(in_parallel(clients.place, placements))
    try:
        await _watch(clients, placing, progress, show)
    finally:
        placing.cancel()
        await asyncio.gather(placing, return_exceptions=True)
    traces: dict[str, Traces] = {}

    async def collect(placement: Placement) -> None:
        traces[placement.saga_id] = await clients.traces(placement.event)

    await in_parallel(collect, placements)
    in_order = [traces[placement.saga_id] for placement in placements]
    return balance(placements, in_order, before, await clients.levels())


async def _watch(
    clients: Clients, placing: asyncio.Task[None], progress: Progress, show: Callable[[Progress], None]
) -> None:
    """Looks at the sagas until all have ended. Raises what `placing` raises."""
    started = datetime.now(UTC).replace(tzinfo=None) - _CLOCK_TOLERANCE
    while not progress.is_over:
        if placing.done():
            placing.result()
        since = progress.oldest_open or started
        progress.see([saga async for saga in clients.sagas_updated_since(since)])
        show(progress)
        if not progress.is_over:
            await asyncio.sleep(_POLL_SECONDS)
    await placing


async def in_parallel(work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Does the work for each item, several at a time. Raises the first error, and stops there."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:  # shared: each worker takes the next one
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_PARALLEL_CALLS):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
