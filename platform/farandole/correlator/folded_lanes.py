"""The lanes that one process of the correlator folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

from farandole.broker.connection import Broker
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.clock import utc_now
from farandole.correlator.changes import SagaChanges
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.observers import Observe, tell_nobody
from farandole.correlator.snapshots import begin_from_snapshot
from farandole.correlator.store import ALL_PARTITIONS, CorrelatorStore
from farandole.lanes import Lanes
from farandole.lanes_at_work import LanesAtWork
from farandole.lifecycle import CORRELATOR
from farandole.registry import Registry
from farandole.telemetry import NO_TELEMETRY, Telemetry


def folded_lanes(
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
) -> LanesAtWork[CorrelatorBatchHandler]:
    """Those of one process. For the clocks see `CorrelatorBatchHandler`."""

    def handler_of(partitions: Collection[int]) -> CorrelatorBatchHandler:
        return CorrelatorBatchHandler(
            store=store,
            registry=registry,
            partitions=partitions,
            changes=changes,
            observe=observe,
            last_stored_on=partial(last_stored_on, broker),
            stored_on=partial(stored_on, broker),
            stored_at=partial(stored_at, broker),
            begin=partial(begin_from_snapshot, broker),
            clock=clock,
            monotonic=monotonic,
            telemetry=telemetry,
        )

    return LanesAtWork(
        CORRELATOR,
        lanes=lanes,
        broker=broker,
        handler_of=handler_of,
        filters_of=_filters_of,
        batch_size=batch_size,
        hold_until_caught_up=True,
        telemetry=telemetry,
    )


def _filters_of(partitions: Collection[int]) -> list[str]:
    if len(partitions) == len(ALL_PARTITIONS):
        return ["events.>"]
    return [f"events.{partition}.>" for partition in sorted(partitions)]
