"""What Farandole relies on in its broker: nats-server does it, and the simulated broker does the same."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from farandole.broker.connection import Broker, NatsClient
from farandole.settings import Settings
from farandole.testing.broker_conformance import BrokerConformance, Test
from farandole.testing.brokers import EmbeddedBroker, connect
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.loop import VirtualTimeLoop


class _RealServer:
    def __init__(self, server: EmbeddedBroker) -> None:
        self._server = server
        self._connections: list[Broker] = []

    async def connect(self, name: str = "test") -> NatsClient:
        broker = await connect(self._server.url, service=name)
        self._connections.append(broker)
        return broker.client

    async def restart(self) -> None:
        self._server.kill()
        self._server.start()

    async def close(self) -> None:
        for broker in self._connections:
            await broker.close()


class TestNatsServer(BrokerConformance):
    @pytest.fixture(autouse=True)
    def _server(self, embedded_nats_server: EmbeddedBroker) -> None:
        self._embedded = embedded_nats_server

    def run(self, test: Test) -> None:
        async def run() -> None:
            server = _RealServer(self._embedded)
            try:
                await test(server)
            finally:
                await server.close()

        asyncio.run(run())


class _SimulatedServer:
    def __init__(self, broker: SimulatedBroker) -> None:
        self._broker = broker

    async def connect(self, name: str = "test") -> NatsClient:
        broker = Broker(Settings.load(name, grpc_port=1), self._broker.client(name))
        broker.start()
        await broker.connected()
        return broker.client

    async def restart(self) -> None:
        self._broker.restart(0.5)


@pytest.mark.parametrize("seed", range(5))
class TestSimulatedBroker(BrokerConformance):
    @pytest.fixture(autouse=True)
    def _seed(self, seed: int) -> None:
        self._random = Random(seed)

    def run(self, test: Test) -> None:
        async def run() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            await test(_SimulatedServer(SimulatedBroker(loop, self._random)))

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(run())
