"""One lane of a service, in the process that works on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from farandole.outbox import OutboxRow
from farandole.worker import BatchHandler, Worker

Handler = TypeVar("Handler", bound=BatchHandler)


class LaneAtWork(Generic[Handler]):
    """A handler, and the worker that drives it over the stream. It is among those at work while it runs."""

    def __init__(self, lane: int, handler: Handler, worker: Worker, at_work: dict[int, LaneAtWork[Handler]]) -> None:
        """`at_work` are the lanes that the process works on now, by number."""
        self.handler = handler
        self.worker = worker
        self._lane = lane
        self._at_work = at_work

    async def run(self) -> None:
        """See `Worker.run`."""
        self._at_work[self._lane] = self
        try:
            await self.worker.run()
        finally:
            if self._at_work.get(self._lane) is self:
                del self._at_work[self._lane]


def unpublished(at_work: Iterable[LaneAtWork[Handler]]) -> list[OutboxRow]:
    """The outbox rows that the broker has not acknowledged, in the order in which they were written."""
    return sorted((row for one in at_work for row in one.worker.unpublished), key=lambda row: row.id)
