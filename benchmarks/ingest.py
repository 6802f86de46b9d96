"""The correlator taking in what the stream holds, beside loops over the same stream that do nothing, in one run.

Each goes over the events of whole order sagas, stored before it begins. `raw pull` is Farandole's own reading, in order
and with overlapping pulls, with no work behind it; `correlator` is the real worker in front of a real store.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nats
from nats.aio.msg import Msg
from rich.table import Table

from benchmarks.order_events import ORDER_EVENTS, order_event
from benchmarks.workbench import ROOT, Workbench
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import EVENTS, events_state
from farandole.broker.subscription import Subscription
from farandole.correlator.changes import SagaChanges
from farandole.correlator.folded_lanes import folded_lanes
from farandole.correlator.main import open_store, read_registry
from farandole.correlator.observers import Transition
from farandole.correlator.stores import sql_store
from farandole.definition_files import load_definitions
from farandole.lanes import Lanes
from farandole.testing.brokers import EmbeddedBroker, connect, provision_streams

_FETCH = 500
_WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Figure:
    """How fast one of them went."""

    name: str
    events_per_second: float
    told_per_second: float | None = None
    """Of a correlator: sagas a second, until it has told the end of each."""


async def run(bench: Workbench) -> Table:
    """Measures all of them."""
    sagas = 100 if bench.quick else 4000
    events = sagas * len(ORDER_EVENTS)
    original = bench.place("ingest")
    bench.say(f"ingest: storing {events:,} events")
    await _fill(original, sagas)
    figures: list[Figure] = []
    for name, loop in (("nats-py fetch and ack", _fetch), ("raw pull", _pull)):
        bench.say(f"ingest: {name}")
        async with _copy_of(original, bench.place("broker")) as url:
            figures.append(Figure(name, events / await loop(url, events)))
    for database in bench.databases():
        bench.say(f"ingest: correlator, {database.kind}")
        async with _copy_of(original, bench.place("broker")) as url:
            figures.append(await _correlate(f"correlator, {database.kind}", url, database.url, sagas))
    return _table(figures, events)


def _table(figures: list[Figure], events: int) -> Table:
    fetching, pulling = figures[0].events_per_second, figures[1].events_per_second
    columns = ("", "events/s", "of fetch", "of raw pull", "sagas/s, ends told")
    table = Table(*columns, title=f"ingest: {events:,} events of order sagas")
    for figure in figures:
        rate = figure.events_per_second
        told = "" if figure.told_per_second is None else f"{figure.told_per_second:,.0f}"
        table.add_row(figure.name, f"{rate:,.0f}", f"{rate / fetching:.2f}", f"{rate / pulling:.2f}", told)
    return table


async def _fill(directory: Path, sagas: int) -> None:
    """Stores the events of so many sagas, which take turns."""
    broker = EmbeddedBroker(directory)
    broker.start()
    try:
        await provision_streams(broker.url)
        connection = await connect(broker.url, service="bench")
        publisher = Publisher(connection)
        for name, body in ORDER_EVENTS:
            await asyncio.gather(*(publisher.publish(order_event(f"order-{n}", name, body)) for n in range(sagas)))
        await publisher.stop()
        await connection.close()
    finally:
        broker.stop()


@asynccontextmanager
async def _copy_of(original: Path, directory: Path) -> AsyncIterator[str]:
    """A broker that holds what the original held; gives its address."""
    broker = EmbeddedBroker(directory)
    shutil.copytree(original / "jetstream", broker.store)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()


async def _fetch(url: str, events: int) -> float:
    """How many seconds a loop of nats-py takes that fetches and acknowledges."""
    client = await nats.connect(url)
    consumer = await client.jetstream().pull_subscribe("events.>", durable="bench", stream=EVENTS)
    taken = 0
    began = time.perf_counter()
    while taken < events:
        messages = await consumer.fetch(_FETCH, timeout=5)
        for message in messages:
            await message.ack()
        taken += len(messages)
    await client.flush()
    seconds = time.perf_counter() - began
    await client.close()
    return seconds


async def _pull(url: str, events: int) -> float:
    """How many seconds Farandole's own reading takes, with nothing behind it."""
    connection = await connect(url, service="bench")
    state = await events_state(connection)
    subscription = Subscription(connection, "bench", ["events.>"])
    taken = 0
    began = time.perf_counter()
    await subscription.start(after=0, incarnation=state.incarnation)
    while taken < events:
        batch = await subscription.next_batch(_FETCH)
        await subscription.acknowledge(batch)
        taken += len(batch.messages)
    seconds = time.perf_counter() - began
    await subscription.stop()
    await connection.close()
    return seconds


async def _correlate(name: str, url: str, database_url: str, sagas: int) -> Figure:
    """The correlator's worker over a new store: until the stored events are folded, and until all ends are told."""
    events = sagas * len(ORDER_EVENTS)
    registry = read_registry(ROOT / "generated/descriptors.binpb")
    definitions = load_definitions(ROOT / "services/correlator/sagas", registry)
    store = sql_store(database_url, application_name="bench")
    connection = await connect(url, service="bench")
    try:
        await open_store(store, definitions, replica="bench")
        committed: list[int] = [0]

        def observe(transitions: Sequence[Transition]) -> None:
            committed[0] = max((transition.event.sequence for transition in transitions), default=committed[0])

        lanes = folded_lanes(
            store,
            registry,
            lanes=Lanes(),
            broker=connection,
            changes=SagaChanges(),
            batch_size=_FETCH,
            observe=observe,
        )
        work = lanes.work_of(0, lambda _check, _problem: None)
        ended = await _watch_ends(connection)
        began = time.perf_counter()
        working = asyncio.create_task(work.run())
        try:
            await _until(lambda: committed[0] >= events, working)
            folded = time.perf_counter() - began
            await _until(partial(_has_all, ended, sagas), working)
            told = time.perf_counter() - began
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    finally:
        await connection.close()
        await store.close()
    return Figure(name, events / folded, sagas / told)


async def _watch_ends(connection: Broker) -> set[str]:
    """The sagas of which the end has been told, as they come."""
    ended: set[str] = set()

    async def on_end(message: Msg) -> None:
        ended.add(message.subject)

    await connection.client.subscribe("events.*.choreography.v1.SagaCompleted", cb=on_end)
    return ended


def _has_all(ended: set[str], sagas: int) -> bool:
    return len(ended) >= sagas


async def _until(condition: Callable[[], bool], working: asyncio.Task[None]) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while not condition():
            if working.done():
                working.result()
            await asyncio.sleep(0.005)
