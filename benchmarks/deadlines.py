"""A hundred thousand sagas whose deadline passes at the same moment: how late each is timed out, and by what memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import nats
import sqlalchemy as sa
from nats.aio.msg import Msg
from rich.table import Table

from benchmarks.correlator_process import CorrelatorProcess, correlating
from benchmarks.many_sagas import engine_of, key_of
from benchmarks.order_events import ORDER_EVENTS, order_body
from benchmarks.workbench import ROOT, NewDatabase, Workbench
from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
from farandole.advance import advance
from farandole.correlator.main import open_store, read_registry
from farandole.correlator.store import FoldedBatch, SagaChange
from farandole.correlator.stores import sql_store
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.envelope import Event, StoredMessage, decode
from farandole.partitions import partition_of
from farandole.registry import Registry
from farandole.testing.brokers import EmbeddedBroker, provision_streams

_TIMED_OUT = "choreography.v1.SagaTimedOut"
_AT_ONCE = 5_000
_WAIT_SECONDS = 400.0
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Figures:
    """What was seen with one kind of database. Times in seconds after the deadline."""

    kind: str
    late: Sequence[float]
    """For each saga, until its time-out was stored."""
    folded: float
    """Until the records of all say so."""
    bytes_before: int
    bytes_peak: int


async def run(bench: Workbench) -> Table:
    """Has them pass with each kind of database."""
    sagas = 500 if bench.quick else 100_000
    registry = read_registry(ROOT / "generated/descriptors.binpb")
    sagas_directory = bench.place("sagas")
    definition = _one_deadline(sagas_directory, registry)
    figures: list[Figures] = []
    for database in [bench.sqlite()] if bench.quick else bench.databases():
        bench.say(f"deadlines: making {sagas:,} sagas in {database.kind}")
        await _fill(database, sagas, registry, definition)
        bench.settle(database)
        bench.say(f"deadlines: {database.kind}")
        figures.append(await _measure(bench, database, sagas, sagas_directory))
    title = f"{sagas:,} deadlines due at once"
    table = Table(
        "", "late p50 s", "p99 s", "all stored s", "all folded s", "a second", "MiB before", "peak", title=title
    )
    for one in figures:
        ordered = sorted(one.late)
        table.add_row(
            one.kind,
            f"{statistics.median(ordered):.1f}",
            f"{ordered[len(ordered) * 99 // 100]:.1f}",
            f"{ordered[-1]:.1f}",
            f"{one.folded:.1f}",
            f"{sagas / one.folded:,.0f}",
            f"{one.bytes_before >> 20}",
            f"{one.bytes_peak >> 20}",
        )
    return table


def _one_deadline(directory: Path, registry: Registry) -> Definition:
    """The order saga with a deadline of its own and none of its steps, so that each saga is due for one thing."""
    text = (ROOT / "services/correlator/sagas/order-fulfilment.yaml").read_text()
    lines = [line for line in text.splitlines() if "deadline:" not in line or line.startswith("deadline:")]
    (directory / "order-fulfilment.yaml").write_text("\n".join(lines))
    [definition] = load_definitions(directory, registry)
    return definition


async def _fill(database: NewDatabase, sagas: int, registry: Registry, definition: Definition) -> None:
    """Records so many orders that have begun, and of which nothing more was heard."""
    store = sql_store(database.url, application_name="bench")
    await open_store(store, [definition], replica="bench")
    claim = await store.claim("bench")
    for first in range(0, sagas, _AT_ONCE):
        changes = [
            SagaChange(None, advance(definition, None, event.fact, key=event.key))
            for event in (_created(registry, key_of(n)) for n in range(first, min(first + _AT_ONCE, sagas)))
        ]
        claim = (await store.commit(claim, FoldedBatch(0, changes))).claim
    await store.close()


def _created(registry: Registry, key: str) -> Event:
    """The beginning of an order, before all that the stream holds."""
    name, body = ORDER_EVENTS[0]
    stored = StoredMessage(
        f"events.{partition_of(key)}.{name}", {}, order_body(key, body), 0, datetime.now(UTC) + timedelta(days=1)
    )
    event = decode(registry, stored)
    assert isinstance(event, Event), event
    return event


def _set_deadline(database: NewDatabase, deadline: datetime) -> None:
    """Has all sagas be due at one moment, and the store be taken as one that has read nothing of the stream."""
    micros = int(deadline.timestamp() * 1_000_000)
    engine = engine_of(database.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE saga SET deadline = :due, next_deadline = :due"), {"due": micros})
        connection.execute(sa.text("DELETE FROM correlator_position"))
    engine.dispose()


async def _measure(bench: Workbench, database: NewDatabase, sagas: int, definitions: Path) -> Figures:
    broker = EmbeddedBroker(bench.place("broker"))
    broker.start()
    client = None
    try:
        await provision_streams(broker.url)
        client = await nats.connect(broker.url)
        arrived: dict[str, float] = {}
        everything = asyncio.Event()

        async def on_time_out(message: Msg) -> None:
            arrived.setdefault(message.subject, time.time())
            if len(arrived) == sagas:
                everything.set()

        await client.subscribe(f"events.*.{_TIMED_OUT}", cb=on_time_out, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        due = datetime.now(UTC) + timedelta(seconds=2 if bench.quick else 8)
        _set_deadline(database, due)
        environment = {"FARANDOLE_SAGAS": str(definitions)}
        place = bench.place("correlator")
        async with correlating(
            place, nats_url=broker.url, database_url=database.url, environment=environment
        ) as correlator:
            sampled = [correlator.resident_bytes]
            sampling = asyncio.create_task(_sample(correlator, sampled))
            async with asyncio.timeout(_WAIT_SECONDS):
                await everything.wait()
                await _until_folded(correlator, sagas)
            folded = time.time() - due.timestamp()
            sampling.cancel()
        late = [moment - due.timestamp() for moment in arrived.values()]
        return Figures(database.kind, late, folded, sampled[0], max(sampled))
    finally:
        if client is not None:
            await client.close()
        broker.stop()


async def _sample(correlator: CorrelatorProcess, sampled: list[int]) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        sampled.append(correlator.resident_bytes)


async def _until_folded(correlator: CorrelatorProcess, sagas: int) -> None:
    async with grpc.aio.insecure_channel(correlator.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        request = saga_service_pb2.SummarizeSagasRequest(filter="cause = DEADLINE")
        while (await stub.SummarizeSagas(request)).total < sagas:  # noqa: ASYNC110 - the correlator does not tell when
            await asyncio.sleep(0.2)
