"""The correlator's process: definitions and descriptors from files, the fold behind, the queries in front."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from choreography.v1 import dead_letter_service_pb2, plugin_service_pb2, saga_service_pb2
from choreography.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from choreography.v1.plugin_service_pb2_grpc import add_PluginServiceServicer_to_server
from choreography.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server
from farandole.broker.connection import Broker
from farandole.broker.nudges import Nudges
from farandole.clock import utc_now
from farandole.correlator.changes import CHANGES_SUBJECT, SagaChanges
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.events_stream import BrokerEventsStream
from farandole.correlator.folded_lanes import folded_lanes
from farandole.correlator.inquiry import BrokerInquiry
from farandole.correlator.plugin_service import PluginService
from farandole.correlator.plugins_in_use import use_plugins
from farandole.correlator.readings import foreseen_of, of_dead_letters, of_sagas
from farandole.correlator.saga_service import SagaService
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.store import CorrelatorStore
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.errors import ConfigurationError, Fault, StoreError
from farandole.lane_keeper import LaneKeeper
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.lifecycle import CORRELATOR
from farandole.process import CHECKS, close_or_exit, run_process, when_available, work_until_stopped
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.telemetry import Telemetry
from farandole.telemetry.readings import of_health
from farandole.telemetry.start import telemetry as telemetry_of
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
    async with telemetry_of(settings, foreseen_of(registry, definitions)) as telemetry:
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
                DeadLetterService(store, registry, events, telemetry),
            ),
            Rpc(
                plugin_service_pb2.DESCRIPTOR.services_by_name["PluginService"],
                add_PluginServiceServicer_to_server,
                PluginService(lambda: plugins.standings),
            ),
        ]
        lanes = folded_lanes(
            store,
            registry,
            lanes=Lanes(settings.lanes),
            broker=broker,
            changes=changes,
            batch_size=settings.batch_size,
            observe=plugins.observe,
            telemetry=telemetry,
        )
        keeper = LaneKeeper(
            CORRELATOR,
            lanes=lanes.lanes,
            replica=replica,
            leases=store.leases,
            broker=broker,
            work_of=lanes.work_of,
            report=monitor.set,
        )
        readings = telemetry.beside(
            of_health(CHECKS, lambda: monitor.problems),
            of_lag(broker, [lanes.lanes.durable(CORRELATOR, lane) for lane in lanes.lanes.all]),
            of_outbox(lambda: lanes.unpublished, utc_now),
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
                        lambda: lanes.remove_left_over_consumers(keeper.joined),
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


async def _leave(store: CorrelatorStore, keeper: LaneKeeper) -> None:
    """Tells the store that this replica ends in order, unless another process has its name by now."""
    try:
        keeper.check_turn()
        async with asyncio.timeout(_LEAVING_SECONDS):
            await store.leave(keeper.replica)
    except (StoreError, TimeoutError) as error:
        _log.info("the store was not told that this replica ends", error=str(error))


async def open_store(store: CorrelatorStore, definitions: Sequence[Definition], *, replica: str) -> None:
    """Opens the store for a replica that starts with these definitions, see `CorrelatorStore.activate`."""
    await store.open()
    if not await store.activate(definitions, replica=replica):
        _log.warning(
            "another replica has been started with other definitions since; those stay the active ones",
            replica=replica,
        )
