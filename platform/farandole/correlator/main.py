"""The correlator's process: definitions and descriptors from files, the fold behind, the queries in front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from choreography.v1 import dead_letter_service_pb2, plugin_service_pb2, saga_service_pb2
from choreography.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from choreography.v1.plugin_service_pb2_grpc import add_PluginServiceServicer_to_server
from choreography.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server
from farandole.broker.connection import Broker
from farandole.broker.consumers import description_of, remove_consumers
from farandole.broker.nudges import Nudges
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.correlator.changes import CHANGES_SUBJECT, SagaChanges
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.events_stream import BrokerEventsStream
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.inquiry import BrokerInquiry
from farandole.correlator.observers import Observe, tell_nobody
from farandole.correlator.plugin_service import PluginService
from farandole.correlator.plugins_in_use import use_plugins
from farandole.correlator.readings import of_dead_letters, of_sagas
from farandole.correlator.saga_service import SagaService
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.snapshots import begin_from_snapshot
from farandole.correlator.store import ALL_PARTITIONS, CorrelatorStore
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.errors import ConfigurationError, Fault, StoreError
from farandole.lane_keeper import LaneKeeper, Report
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.lifecycle import CORRELATOR
from farandole.outbox import OutboxRow
from farandole.process import CHECKS, close_or_exit, run_process, when_available, work_until_stopped
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.telemetry import NO_TELEMETRY, Telemetry
from farandole.telemetry.readings import of_health
from farandole.telemetry.start import telemetry as telemetry_of
from farandole.worker import Worker
from farandole.worker_readings import of_lag, of_outbox

GRPC_PORT = 50051

_LEAVING_SECONDS = 2.0

_log = structlog.get_logger(__name__)


def main() -> None:
    """Runs the correlator until SIGTERM. Exits with what is wrong where a setting, a file or a definition is."""
    run_process(lambda: CorrelatorSettings.load(CORRELATOR, grpc_port=GRPC_PORT), _serve)


def read_registry(descriptors: Path) -> Registry:
    """The events of a descriptor set in a file. Raises `ConfigurationError` where it can't be read."""
    try:
        serialized = descriptors.read_bytes()
    except OSError as error:
        reason = f"the descriptor set {descriptors} can't be read: {error.strerror}; `buf build` makes one"
        raise ConfigurationError([Fault("FARANDOLE_DESCRIPTORS", reason)]) from None
    return Registry.of_descriptor_set(serialized, where=str(descriptors))


async def _serve(settings: CorrelatorSettings) -> None:
    registry = read_registry(settings.descriptors)
    definitions = load_definitions(settings.sagas, registry)
    async with telemetry_of(settings, registry.types) as telemetry:
        await _serve_observed(settings, registry, definitions, telemetry)


async def _serve_observed(
    settings: CorrelatorSettings, registry: Registry, definitions: Sequence[Definition], telemetry: Telemetry
) -> None:
    monitor = HealthMonitor(CHECKS)
    replica = Replica.begun(settings.replica)
    plugins = await use_plugins(settings, application_name=replica.application_name(CORRELATOR))
    store = plugins.store
    try:
        broker = Broker(settings)
        changes = SagaChanges(Nudges(broker, CHANGES_SUBJECT))
        events = BrokerEventsStream(broker, telemetry)
        sagas, dead_letters = saga_service_pb2.DESCRIPTOR, dead_letter_service_pb2.DESCRIPTOR
        rpcs: list[Rpc[Any]] = [
            Rpc(
                sagas.services_by_name["SagaService"],
                add_SagaServiceServicer_to_server,
                SagaService(store, registry, changes, BrokerInquiry(broker)),
            ),
            Rpc(
                dead_letters.services_by_name["DeadLetterService"],
                add_DeadLetterServiceServicer_to_server,
                DeadLetterService(store, registry, events),
            ),
            Rpc(
                plugin_service_pb2.DESCRIPTOR.services_by_name["PluginService"],
                add_PluginServiceServicer_to_server,
                PluginService(lambda: plugins.standings),
            ),
        ]
        lanes = Lanes(settings.lanes)
        work_of = correlator_work_of(
            store,
            lanes,
            broker=broker,
            registry=registry,
            changes=changes,
            batch_size=settings.batch_size,
            observe=plugins.observe,
            telemetry=telemetry,
        )
        workers: dict[int, Worker] = {}

        def work_on(lane: int, report: Report) -> Worker:
            workers[lane] = work_of(lane, report)
            return workers[lane]

        def unpublished() -> list[OutboxRow]:
            rows = (row for lane in keeper.lanes if lane in workers for row in workers[lane].unpublished)
            return sorted(rows, key=lambda row: row.id)

        keeper = LaneKeeper(
            CORRELATOR,
            lanes=lanes,
            replica=replica,
            leases=store.leases,
            broker=broker,
            work_of=work_on,
            report=monitor.set,
        )
        readings = telemetry.beside(
            of_health(CHECKS, lambda: monitor.problems),
            of_lag(broker, [lanes.durable(CORRELATOR, lane) for lane in lanes.all]),
            of_outbox(unpublished, utc_now),
            of_sagas(store),
            of_dead_letters(store),
        )
        async with serve(settings.grpc_address, rpcs, monitor, guard=telemetry.rpc_guard):
            await when_available(lambda: open_store(store, definitions, replica=replica.name), monitor)
            try:
                await work_until_stopped(
                    broker=broker,
                    work=keeper,
                    monitor=monitor,
                    check_store=store.check,
                    beside=[
                        changes.listen,
                        lambda: _tidy(keeper, broker, lanes),
                        *plugins.beside(broker, registry),
                        *readings,
                    ],
                )
            finally:
                await events.stop()
            await _leave(store, keeper)
    finally:
        await plugins.stop()
        await close_or_exit(store.close())


async def _tidy(keeper: LaneKeeper, broker: Broker, lanes: Lanes) -> None:
    await keeper.joined()
    await remove_consumers(broker, lanes.left_over(CORRELATOR), description=description_of(CORRELATOR))


async def _leave(store: CorrelatorStore, keeper: LaneKeeper) -> None:
    """Tells the store that this replica ends in order, unless another process has its name by now."""
    try:
        keeper.check_turn()
        async with asyncio.timeout(_LEAVING_SECONDS):
            await store.leave(keeper.replica)
    except (StoreError, TimeoutError) as error:
        _log.info("the store was not told that this replica ends", error=str(error))


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def correlator_work_of(
    store: CorrelatorStore,
    lanes: Lanes,
    *,
    broker: Broker,
    registry: Registry,
    changes: SagaChanges,
    batch_size: int,
    observe: Observe = tell_nobody,
    clock: Callable[[], datetime] = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    telemetry: Telemetry = NO_TELEMETRY,
) -> Callable[[int, Report], Worker]:
    """What makes the worker of each lane, for a `LaneKeeper`. For the clocks see the handler."""

    def work_of(lane: int, report: Report) -> Worker:
        handler = correlator_handler(
            store,
            partitions=lanes.partitions(lane),
            broker=broker,
            registry=registry,
            changes=changes,
            observe=observe,
            clock=clock,
            monotonic=monotonic,
            telemetry=telemetry,
        )
        durable = lanes.durable(CORRELATOR, lane)
        return correlator_worker(
            handler, durable=durable, broker=broker, batch_size=batch_size, report=report, telemetry=telemetry
        )

    return work_of


def correlator_handler(
    store: CorrelatorStore,
    *,
    partitions: Collection[int] = ALL_PARTITIONS,
    broker: Broker,
    registry: Registry,
    changes: SagaChanges,
    observe: Observe = tell_nobody,
    clock: Callable[[], datetime] = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    telemetry: Telemetry = NO_TELEMETRY,
) -> CorrelatorBatchHandler:
    """The correlator's handler, which asks this broker what `EVENTS` holds. For the clocks see the handler."""
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


def correlator_worker(
    handler: CorrelatorBatchHandler,
    *,
    durable: str = CORRELATOR,
    broker: Broker,
    batch_size: int,
    report: Report,
    telemetry: Telemetry = NO_TELEMETRY,
) -> Worker:
    """What drives a handler over its partitions. `report` takes what health should know, see `Worker`."""
    is_alone = handler.partitions == ALL_PARTITIONS
    return Worker(
        broker=broker,
        durable=durable,
        description=description_of(CORRELATOR),
        filters=["events.>"] if is_alone else [f"events.{partition}.>" for partition in sorted(handler.partitions)],
        handler=handler,
        batch_size=batch_size,
        report=report,
        hold_until_caught_up=True,
        telemetry=telemetry,
    )


async def open_store(store: CorrelatorStore, definitions: Sequence[Definition], *, replica: str) -> None:
    """Opens the store for a replica that starts with these definitions, see `CorrelatorStore.activate`."""
    await store.open()
    if not await store.activate(definitions, replica=replica):
        _log.warning(
            "another replica has been started with other definitions since; those stay the active ones",
            replica=replica,
        )
