"""The order saga at saturation and idle, beside a bare nats-py choreography on the same broker settings, in one run.

Both run on an embedded nats-server that syncs each write to disk before it acknowledges it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.msg import Msg
from rich.table import Table

from benchmarks import bare_choreography
from benchmarks.workbench import ROOT, Workbench
from farandole.broker.publisher import Publisher
from farandole.envelope import Publication
from farandole.testing.brokers import EmbeddedBroker, connect, free_port

_WAIT_SECONDS = 300.0
_SERVICES = ("CORRELATOR", "ORDERS", "INVENTORY", "PAYMENTS", "SHIPPING", "NATS", "NATS_MONITORING")


@dataclass(frozen=True)
class Figures:
    """What was measured of one implementation."""

    name: str
    sagas_per_second: float
    recorded_per_second: float | None
    """Sagas a second until the correlator has recorded each as completed; None where nobody records."""
    idle_milliseconds: float
    """Median from the first event's publication to the last event, one saga at a time."""


class Finished:
    """Counts the sagas whose last event was seen."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self._changed = asyncio.Event()

    async def on_message(self, message: Msg) -> None:
        """Takes an event `<prefix>.<key>.…` as the end of its saga."""
        self.keys.add(message.subject.split(".")[1])
        self._changed.set()

    async def wait(self, reached: Callable[[set[str]], bool]) -> float:
        """Waits; returns the time at which it was reached."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not reached(self.keys):
                self._changed.clear()
                await self._changed.wait()
        return time.perf_counter()


async def measure(
    name: str, url: str, *, sagas: int, idle: int, start: Callable[[str], Publication], last: str, recorded: str | None
) -> Figures:
    """Runs sagas at saturation, then one at a time. `last` and `recorded` are subjects of events that end one."""
    watcher = await nats.connect(url)
    finished, known = Finished(), Finished()
    await watcher.subscribe(last, cb=finished.on_message)
    if recorded:
        await watcher.subscribe(recorded, cb=known.on_message)
    broker = await connect(url, service="bench")
    publisher = Publisher(broker)
    await publisher.publish(start("warm-up"))
    await finished.wait(lambda keys: "warm-up" in keys)

    began = time.perf_counter()
    receipts = [await publisher.submit(start(f"s{number}")) for number in range(sagas)]
    await asyncio.gather(*receipts)
    ended = await finished.wait(lambda keys: len(keys) > sagas)
    rate = sagas / (ended - began)
    recorded_rate = None
    if recorded:
        recorded_rate = sagas / (await known.wait(lambda keys: len(keys) > sagas) - began)

    latencies = []
    for number in range(idle):
        key = f"idle{number}"
        began = time.perf_counter()
        await publisher.publish(start(key))
        latencies.append((await finished.wait(lambda keys, key=key: key in keys)) - began)  # type: ignore[misc]
    await publisher.stop()
    await broker.close()
    await watcher.close()
    return Figures(name, rate, recorded_rate, statistics.median(latencies) * 1000)


def order(key: str) -> Publication:
    body = {
        "orderId": key,
        "customerId": "ada",
        "currency": "EUR",
        "card": "card-1",
        "address": "1 Main Street",
        "lines": [{"sku": "widget", "quantity": 1, "unitPriceCents": 1250}],
    }
    return Publication(key, f"events.{key}.orders.v1.OrderCreated", {}, json.dumps(body).encode())


def _bare(key: str) -> Publication:
    return Publication(key, f"bare.{key}.orders", {}, json.dumps({"order": key, "cents": 1250}).encode())


async def bare(directory: Path, sagas: int, idle: int) -> Figures:
    """The bare choreography: four processes."""
    broker = EmbeddedBroker(directory)
    broker.start()
    hops: list[subprocess.Popen[bytes]] = []
    try:
        await bare_choreography.make_stream(broker.url)
        for number in range(len(bare_choreography.HOPS) - 1):
            command = [sys.executable, "-m", "benchmarks.bare_choreography", broker.url, str(number)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)  # noqa: ASYNC220
            assert process.stdout is not None
            process.stdout.readline()
            hops.append(process)
        last = f"bare.*.{bare_choreography.HOPS[-1]}"
        return await measure("bare nats-py", broker.url, sagas=sagas, idle=idle, start=_bare, last=last, recorded=None)
    finally:
        for process in hops:
            process.kill()
            process.wait()
        broker.stop()


@asynccontextmanager
async def stack(directory: Path) -> AsyncIterator[str]:
    """The embedded stack on free ports; gives the broker's address."""
    ports = {f"FARANDOLE_PORT_{service}": str(free_port()) for service in _SERVICES}
    environment = {**os.environ, **ports, "FARANDOLE_HOME": str(directory)}
    command = [sys.executable, "-m", "farandole"]
    subprocess.run([*command, "up"], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)  # noqa: ASYNC221
    try:
        yield f"nats://127.0.0.1:{ports['FARANDOLE_PORT_NATS']}"
    finally:
        subprocess.run([*command, "down"], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)  # noqa: ASYNC221


async def farandole(directory: Path, sagas: int, idle: int) -> Figures:
    """The order saga: four services with their databases, outboxes and barriers, and the correlator."""
    async with stack(directory) as url:
        return await measure(
            "Farandole",
            url,
            sagas=sagas,
            idle=idle,
            start=order,
            last="events.*.orders.v1.OrderCompleted",
            recorded="events.*.choreography.v1.SagaCompleted",
        )


async def run(bench: Workbench) -> Table:
    """Measures both."""
    sagas, idle = (20, 5) if bench.quick else (2000, 100)
    bench.say("order saga: bare nats-py")
    base = await bare(bench.place("bare"), sagas, idle)
    bench.say("order saga: Farandole")
    ours = await farandole(bench.place("farandole"), sagas, idle)
    table = Table("", "sagas/s", "recorded/s", "idle p50 ms", title="the order saga, four hops")
    for figures in (base, ours):
        recorded = "" if figures.recorded_per_second is None else f"{figures.recorded_per_second:.0f}"
        table.add_row(figures.name, f"{figures.sagas_per_second:.0f}", recorded, f"{figures.idle_milliseconds:.1f}")
    table.add_row(
        "ratio",
        f"{ours.sagas_per_second / base.sagas_per_second:.2f}",
        "",
        f"{ours.idle_milliseconds / base.idle_milliseconds:.2f}",
    )
    return table
