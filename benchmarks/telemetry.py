"""What telemetry costs: the order saga with all of it off, with metrics, and with traces, side by side in one run.

Each variant is a broker, the correlator and four services of its own, all started at once; the load goes round them in
turns, so that whatever else the machine does meets all of them. What is compared is the processor time that a
variant's processes took for a saga, the lower quartile of the rounds, since whatever else runs only adds to it; and the
throughput, round by round, since the machine is not as fast in each.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nats
import psutil
from rich.table import Table

from benchmarks.correlator_process import until_serving
from benchmarks.order_saga import Finished, order
from benchmarks.workbench import ROOT, Workbench
from farandole.broker.publisher import Publisher
from farandole.testing.brokers import EmbeddedBroker, connect, free_port, provision_streams

_SERVICES = ("correlator", "orders", "inventory", "payments", "shipping")
_SCRAPE_SECONDS = 5.0
"""Prometheus scrapes once a minute where it is told nothing else."""
_START_SECONDS = 180.0


@dataclass
class Variant:
    """The order saga's processes, with some telemetry on."""

    name: str
    environment: Mapping[str, str]
    metrics: bool = False
    """Whether each process shows its metrics, and they are scraped."""
    seconds: list[float] = field(default_factory=list)
    """Of processor time for a saga, round by round."""
    rates: list[float] = field(default_factory=list)
    """Sagas a second, round by round."""


class Stack:
    """A variant's processes."""

    def __init__(self, variant: Variant, directory: Path) -> None:
        self.variant = variant
        self.broker = EmbeddedBroker(directory / "broker")
        self.metrics_ports: list[int] = []
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Starts all, and waits until each of them serves."""
        self.broker.start()
        await provision_streams(self.broker.url)
        addresses = [f"127.0.0.1:{free_port()}" for _ in _SERVICES]
        for service, address in zip(_SERVICES, addresses, strict=True):
            environment = os.environ | {
                "FARANDOLE_NATS_URL": self.broker.url,
                "FARANDOLE_DATABASE_URL": f"sqlite:///{self._directory / service}.db",
                "FARANDOLE_GRPC_ADDRESS": address,
                "FARANDOLE_LOG_LEVEL": "warning",
                **self.variant.environment,
            }
            if self.variant.metrics:
                self.metrics_ports.append(free_port())
                environment["FARANDOLE_METRICS_ADDRESS"] = str(self.metrics_ports[-1])
            with (self._directory / f"{service}.log").open("wb") as log:
                command = [sys.executable, "-m", f"services.{service}"]
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220
                self._processes.append(process)
        for service, address, process in zip(_SERVICES, addresses, self._processes, strict=True):
            await until_serving(address, process, self._directory / f"{service}.log")

    def stop(self) -> None:
        """Ends all."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        self.broker.stop()

    def processor_seconds(self) -> float:
        """The processor time that the services have taken so far."""
        return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in self._processes)


async def measure(stack: Stack, name: str, sagas: int) -> None:
    """One round: so many sagas at once, until the correlator has recorded all of them."""
    watcher = await nats.connect(stack.broker.url)
    known = Finished()
    await watcher.subscribe("events.*.choreography.v1.SagaCompleted", cb=known.on_message)
    broker = await connect(stack.broker.url, service="bench")
    publisher = Publisher(broker)
    stop = threading.Event()
    scraping = threading.Thread(target=_scrape, args=(stack.metrics_ports, stop))
    scraping.start()
    before, began = stack.processor_seconds(), time.perf_counter()
    receipts = [await publisher.submit(order(f"{name}-{number}")) for number in range(sagas)]
    await asyncio.gather(*receipts)
    ended = await known.wait(lambda keys: len(keys) == sagas)
    await asyncio.sleep(0.5)  # what is exported a moment later was caused by these sagas too
    stack.variant.seconds.append((stack.processor_seconds() - before) / sagas)
    stack.variant.rates.append(sagas / (ended - began))
    stop.set()
    scraping.join()
    await publisher.stop()
    await broker.close()
    await watcher.close()


def _scrape(ports: Sequence[int], stop: threading.Event) -> None:
    while ports and not stop.wait(_SCRAPE_SECONDS):
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()


@contextmanager
def sink() -> Iterator[str]:
    """Takes spans and forgets them; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def variants(endpoint: str) -> list[Variant]:
    """What is compared; the first has all off."""
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    return [
        Variant("off", {}),
        Variant("metrics", {}, metrics=True),
        Variant("traces, of one saga in a hundred (the default)", traces),
        Variant("metrics and traces", traces, metrics=True),
        Variant("traces of every saga", {**traces, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}),
    ]


async def compare(found: Sequence[Variant], stacks: Sequence[Stack], *, rounds: int, sagas: int) -> None:
    """Goes round the variants, a first time that does not count."""
    for stack in stacks:
        await measure(stack, "warm-up", sagas)
    for variant in found:
        variant.seconds.clear()
        variant.rates.clear()
    for number in range(rounds):
        turn = number % len(stacks)
        for stack in (*stacks[turn:], *stacks[:turn]):
            await measure(stack, f"round{number}", sagas)


def cost(variant: Variant, off: Variant) -> float:
    """By how much more processor time a variant takes, as a part of what is taken with all off."""
    return typical(variant) / typical(off) - 1


def gain(variant: Variant, off: Variant) -> float:
    """By how much a variant's throughput is above that with all off, as a part of it: below 0 for a loss."""
    return statistics.median(own / without for own, without in zip(variant.rates, off.rates, strict=True)) - 1


def typical(variant: Variant) -> float:
    """The seconds of processor time that a saga takes."""
    return statistics.quantiles(variant.seconds, n=4)[0]


async def run(bench: Workbench) -> Table:
    """Measures all variants; where small sizes do, only one that has all on, and so nothing to compare it with."""
    rounds, sagas = (2, 5) if bench.quick else (8, 200)
    with ExitStack() as running:
        found = variants(running.enter_context(sink()))
        if bench.quick:
            found = found[-2:-1]
        stacks = []
        for variant in found:
            bench.say(f"telemetry: starting the stack with {variant.name}")
            stack = Stack(variant, bench.place("telemetry"))
            running.callback(stack.stop)
            await stack.start()
            stacks.append(stack)
        bench.say(f"telemetry: {rounds} rounds of {sagas} sagas with each")
        await compare(found, stacks, rounds=rounds, sagas=sagas)
    return table_of(found)


def table_of(found: Sequence[Variant]) -> Table:
    """What was measured, and against the first, which has all off, what the others cost."""
    table = Table(
        "",
        "ms of processor a saga",
        "processor, against off",
        "sagas/s",
        "throughput, against off",
        title="telemetry: the order saga, four hops",
    )
    off = found[0]
    for variant in found:
        processor, throughput = (f"{of(variant, off):+.1%}" if variant is not off else "" for of in (cost, gain))
        rate = f"{statistics.median(variant.rates):.0f}"
        table.add_row(variant.name, f"{typical(variant) * 1000:.2f}", processor, rate, throughput)
    return table
