"""The lanes that one process of the correlator folds: for each a handler, and the worker that drives it over the
stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial

from farandole.broker.connection import Broker
from farandole.broker.consumers import description_of, remove_consumers
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.correlator.changes import SagaChanges
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.observers import Observe, tell_nobody
from farandole.correlator.snapshots import begin_from_snapshot
from farandole.correlator.store import ALL_PARTITIONS, CorrelatorStore
from farandole.lane_at_work import LaneAtWork, unpublished
from farandole.lanes import Lanes
from farandole.lifecycle import CORRELATOR
from farandole.outbox import OutboxRow
from farandole.registry import Registry
from farandole.telemetry import NO_TELEMETRY, Telemetry
from farandole.worker import Worker


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class FoldedLanes:
    """What a process folds now, by lane."""

    def __init__(
        self,
        store: CorrelatorStore,
        registry: Registry,
        *,
        lanes: Lanes,
        broker: Broker,
        changes: SagaChanges,
        batch_size: int,
        observe: Observe = tell_nobody,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """For the clocks see `CorrelatorBatchHandler`."""
        self.lanes = lanes
        self._store = store
        self._registry = registry
        self._broker = broker
        self._changes = changes
        self._batch_size = batch_size
        self._observe = observe
        self._clock = clock
        self._monotonic = monotonic
        self._telemetry = telemetry
        self._description = description_of(CORRELATOR)
        self._at_work: dict[int, LaneAtWork[CorrelatorBatchHandler]] = {}

    def work_of(self, lane: int, report: Callable[[str, str | None], None]) -> LaneAtWork[CorrelatorBatchHandler]:
        """What folds a lane, for a `LaneKeeper`. `report` takes what health should know, see `Worker`."""
        partitions = self.lanes.partitions(lane)
        handler = self._handler_of(partitions)
        worker = Worker(
            broker=self._broker,
            durable=self.lanes.durable(CORRELATOR, lane),
            description=self._description,
            filters=_filters_of(partitions),
            handler=handler,
            batch_size=self._batch_size,
            report=report,
            hold_until_caught_up=True,
            telemetry=self._telemetry,
        )
        return LaneAtWork(lane, handler, worker, self._at_work)

    def _handler_of(self, partitions: Collection[int]) -> CorrelatorBatchHandler:
        return CorrelatorBatchHandler(
            store=self._store,
            registry=self._registry,
            partitions=partitions,
            changes=self._changes,
            observe=self._observe,
            last_stored_on=partial(last_stored_on, self._broker),
            stored_on=partial(stored_on, self._broker),
            stored_at=partial(stored_at, self._broker),
            begin=partial(begin_from_snapshot, self._broker),
            clock=self._clock,
            monotonic=self._monotonic,
            telemetry=self._telemetry,
        )

    async def remove_left_over_consumers(self) -> None:
        """Removes the durable consumers of another number of lanes, which nobody reads once all replicas have this
        one."""
        await remove_consumers(self._broker, self.lanes.left_over(CORRELATOR), description=self._description)

    @property
    def unpublished(self) -> list[OutboxRow]:
        """The outbox rows that the broker has not acknowledged, in the order in which they were written."""
        return unpublished(self._at_work.values())


def _filters_of(partitions: Collection[int]) -> list[str]:
    if len(partitions) == len(ALL_PARTITIONS):
        return ["events.>"]
    return [f"events.{partition}.>" for partition in sorted(partitions)]
