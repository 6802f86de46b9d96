"""The correlator's process: definitions and descriptors from files, the fold behind, the queries in front."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from choreography.v1 import dead_letter_service_pb2, saga_service_pb2
from choreography.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from choreography.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server
from farandole.broker.connection import Broker
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.correlator.changes import SagaChanges
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.definitions import Definitions
from farandole.correlator.events_stream import BrokerEventsStream
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.inquiry import BrokerInquiry
from farandole.correlator.readings import of_dead_letters, of_sagas
from farandole.correlator.saga_service import SagaService
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.database import Database
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.errors import ConfigurationError, Fault
from farandole.lifecycle import CORRELATOR
from farandole.process import CHECKS, close_or_exit, run_process, when_available, work_until_stopped
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.settings import Settings
from farandole.telemetry import NO_TELEMETRY, Telemetry
from farandole.telemetry.readings import of_health
from farandole.telemetry.start import telemetry as telemetry_of
from farandole.worker import Worker
from farandole.worker_readings import of_lag, of_outbox

GRPC_PORT = 50051


def main() -> None:
    """Runs the correlator until SIGTERM. Exits with what is wrong where a setting, a file or a definition is."""
    run_process(lambda: Settings.load(CORRELATOR, grpc_port=GRPC_PORT), _serve)


def read_registry(descriptors: Path) -> Registry:
    """The events of a descriptor set in a file. Raises `ConfigurationError` where it can't be read."""
    try:
        serialized = descriptors.read_bytes()
    except OSError as error:
        reason = f"the descriptor set {descriptors} can't be read: {error.strerror}; `buf build` makes one"
        raise ConfigurationError([Fault("FARANDOLE_DESCRIPTORS", reason)]) from None
    return Registry.of_descriptor_set(serialized, where=str(descriptors))


async def _serve(settings: Settings) -> None:
    registry = read_registry(settings.descriptors)
    active = load_definitions(settings.sagas, registry)
    async with telemetry_of(settings, registry.types) as telemetry:
        await _serve_observed(settings, registry, active, telemetry)


async def _serve_observed(
    settings: Settings, registry: Registry, active: Sequence[Definition], telemetry: Telemetry
) -> None:
    monitor = HealthMonitor(CHECKS)
    store = SqlCorrelatorStore(Database(settings.database_url))
    try:
        broker = Broker(settings)
        changes = SagaChanges()
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
        ]
        async with serve(settings.grpc_address, rpcs, monitor, guard=telemetry.rpc_guard):
            definitions = await when_available(lambda: open_store(store, active), monitor)
            handler = correlator_handler(
                store, definitions, broker=broker, registry=registry, changes=changes, telemetry=telemetry
            )
            worker = correlator_worker(
                handler, broker=broker, batch_size=settings.batch_size, report=monitor.set, telemetry=telemetry
            )
            readings = telemetry.beside(
                of_health(CHECKS, lambda: monitor.problems),
                of_lag(broker, [CORRELATOR]),
                of_outbox(lambda: worker.unpublished, utc_now),
                of_sagas(store),
                of_dead_letters(store),
            )
            try:
                await work_until_stopped(
                    broker=broker, worker=worker, monitor=monitor, check_store=store.check, beside=readings
                )
            finally:
                await events.stop()
    finally:
        await close_or_exit(store.close())


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def correlator_handler(
    store: CorrelatorStore,
    definitions: Definitions,
    *,
    broker: Broker,
    registry: Registry,
    changes: SagaChanges,
    clock: Callable[[], datetime] = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    telemetry: Telemetry = NO_TELEMETRY,
) -> CorrelatorBatchHandler:
    """The correlator's handler, which asks this broker what `EVENTS` holds. For the clocks see the handler."""
    return CorrelatorBatchHandler(
        store=store,
        registry=registry,
        definitions=definitions,
        changes=changes,
        last_stored_on=partial(last_stored_on, broker),
        stored_on=partial(stored_on, broker),
        stored_at=partial(stored_at, broker),
        clock=clock,
        monotonic=monotonic,
        telemetry=telemetry,
    )


def correlator_worker(
    handler: CorrelatorBatchHandler,
    *,
    broker: Broker,
    batch_size: int,
    report: Callable[[str, str | None], None],
    telemetry: Telemetry = NO_TELEMETRY,
) -> Worker:
    """What drives the correlator's handler over the stream. `report` takes what health should know, see `Worker`."""
    return Worker(
        broker=broker,
        durable=CORRELATOR,
        description="Farandole correlator",
        filters=["events.>"],
        handler=handler,
        batch_size=batch_size,
        report=report,
        hold_until_caught_up=True,
        telemetry=telemetry,
    )


async def open_store(store: CorrelatorStore, active: Sequence[Definition]) -> Definitions:
    """Opens the store with these definitions as the active ones; returns all that it knows."""
    await store.open()
    await store.activate(active)
    return Definitions(active, [version.definition() for version in await store.definitions()])
