"""The lanes of a service that one process works on: for each a handler, and the worker that drives it over the
stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

from farandole.broker.connection import Broker
from farandole.broker.consumers import description_of, remove_consumers
from farandole.broker.relay import Refused
from farandole.lanes import Lanes
from farandole.outbox import OutboxRow
from farandole.telemetry import NO_TELEMETRY, Telemetry
from farandole.worker import BatchHandler, Worker

Handler = TypeVar("Handler", bound=BatchHandler)


class LaneAtWork(Generic[Handler]):
    """One lane. It is among those at work while it runs."""

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


class LanesAtWork(Generic[Handler]):
    """What a process works on now, by lane."""

    def __init__(
        self,
        service: str,
        *,
        lanes: Lanes,
        broker: Broker,
        handler_of: Callable[[Collection[int]], Handler],
        filters_of: Callable[[Collection[int]], Sequence[str]],
        batch_size: int,
        hold_until_caught_up: bool,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """`handler_of` makes what handles some partitions, `filters_of` tells which subjects it reads of them. For the
        rest see `Worker`."""
        self.lanes = lanes
        self._service = service
        self._broker = broker
        self._handler_of = handler_of
        self._filters_of = filters_of
        self._batch_size = batch_size
        self._hold = hold_until_caught_up
        self._telemetry = telemetry
        self._description = description_of(service)
        self._at_work: dict[int, LaneAtWork[Handler]] = {}

    def work_of(self, lane: int, report: Callable[[str, str | None], None]) -> LaneAtWork[Handler]:
        """What works on a lane, for a `LaneKeeper`. `report` takes what health should know, see `Worker`."""
        partitions = self.lanes.partitions(lane)
        handler = self._handler_of(partitions)
        worker = Worker(
            broker=self._broker,
            durable=self.lanes.durable(self._service, lane),
            description=self._description,
            filters=self._filters_of(partitions),
            handler=handler,
            batch_size=self._batch_size,
            report=report,
            hold_until_caught_up=self._hold,
            telemetry=self._telemetry,
        )
        return LaneAtWork(lane, handler, worker, self._at_work)

    @property
    def at_work(self) -> Mapping[int, LaneAtWork[Handler]]:
        """By lane, as they are now."""
        return dict(sorted(self._at_work.items()))

    async def remove_left_over_consumers(self, joined: Callable[[], Awaitable[None]]) -> None:
        """Removes the durable consumers of another number of lanes, once nobody reads them: all replicas have this one
        when `joined` returns, see `LaneKeeper.joined`."""
        await joined()
        await remove_consumers(self._broker, self.lanes.left_over(self._service), description=self._description)

    @property
    def unpublished(self) -> list[OutboxRow]:
        """The outbox rows that the broker has not acknowledged, in the order in which they were written."""
        return sorted((row for one in self._at_work.values() for row in one.worker.unpublished), key=lambda row: row.id)

    @property
    def refused(self) -> list[Refused]:
        """The outbox rows that the broker refuses, the one refused for longest first."""
        refused = [refused for one in self._at_work.values() for refused in one.worker.refused]
        return sorted(refused, key=lambda one: -one.seconds)
