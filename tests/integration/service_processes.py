"""The sample services and the correlator as processes of their own, for tests, and how their clients wait and ask."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from farandole.rpc import Problem, read_problem
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker, free_port

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
ORDER_SERVICES = ("orders", "inventory", "payments", "shipping")
PARCEL_SERVICES = ("parcels", "packaging", "drones", "delivery")
SAMPLES = (*ORDER_SERVICES, *PARCEL_SERVICES)
CORRELATOR = "correlator"
PATIENCE_SECONDS = 30.0


@dataclass
class Services:
    """Services as processes; each can be killed and started again on its own database and port."""

    directory: Path
    nats_url: str
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (*SAMPLES, CORRELATOR)})
    environment: Mapping[str, str] = field(default_factory=dict)
    """What their environment has besides."""
    own_environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By service: what its environment has besides that."""
    modules: dict[str, str] = field(default_factory=dict)
    """By service: what is run for it, where that is not `services.<name>`."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def address(self, service: str) -> str:
        """HOST:PORT where a service answers."""
        return f"127.0.0.1:{self.ports[service]}"

    def database_url(self, service: str) -> str:
        """The service's own database."""
        return f"sqlite:///{self.directory / service}.db"

    def start(self, *services: str) -> None:
        """Starts services, and waits until each of them serves."""
        for service in services:
            self.begin(service)
        for service in services:
            self.wait_until_serving(service)

    def begin(self, service: str) -> None:
        """Starts a service, and does not wait."""
        environment = os.environ | {
            "FARANDOLE_NATS_URL": self.nats_url,
            "FARANDOLE_DATABASE_URL": self.database_url(service),
            "FARANDOLE_GRPC_ADDRESS": self.address(service),
            **self.environment,
            **self.own_environment.get(service, {}),
        }
        with (self.directory / f"{service}.log").open("ab") as log:
            module = self.modules.get(service, f"services.{service}")
            self.processes[service] = subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def kill(self, service: str) -> None:
        """Ends a service at once, as a crash would."""
        process = self.processes.pop(service)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait_until_serving(self, service: str) -> None:
        """Waits until a service says that it serves."""
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address(service), options=options) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS, wait_for_ready=True
            )
            for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return

    def stop(self) -> None:
        """Ends all that run, in order."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            assert process.wait(timeout=PATIENCE_SECONDS) == 0, "an orderly stop"


@contextmanager
def running(factory: pytest.TempPathFactory, *names: str) -> Iterator[Services]:
    """Services on a broker of their own. For a whole module: starting processes for each test would take too long."""
    broker = EmbeddedBroker(factory.mktemp("broker"))
    broker.start()
    services = Services(factory.mktemp("services"), broker.url)
    try:
        provision_broker(broker.url)
        services.start(*names)
        yield services
    finally:
        services.stop()
        broker.stop()


@asynccontextmanager
async def channels_to(services: Services, names: Collection[str]) -> AsyncIterator[Mapping[str, grpc.aio.Channel]]:
    """Channels that find a service soon after it was restarted, by its name."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 200)]
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(services.address(name), options=options))
            for name in names
        }


async def eventually(look: Callable[[], Awaitable[T | None]]) -> T:
    """What `look` finds, as soon as it finds something."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.05)


async def answered(call: Callable[[], Awaitable[T]]) -> T | None:
    """What a call answers; None where there is no such thing yet, or the service is away."""
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        if error.code() not in {
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }:
            raise
        return None


async def refusal(call: Awaitable[object]) -> Problem:
    """How a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return read_problem(refused.value)
