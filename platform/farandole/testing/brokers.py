"""Real brokers for tests: the wheel's nats-server as a child process, or a container where a Docker engine answers."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import socket
import subprocess
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from nats.aio.client import Client

from farandole.broker.connection import Broker
from farandole.broker.streams import provision
from farandole.settings import Settings
from farandole.stack.embedded_broker import Routes, find_nats_server, render_configuration

_START_SECONDS = 15.0
_PORTS = range(12_000, 32_000)
"""Below those that Linux and macOS give to outgoing connections."""


class BrokerUnderTest(Protocol):
    """A broker that a test may treat badly. Its data stays over `kill` and `start`."""

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`; the same after a restart."""
        ...

    def start(self) -> None:
        """Starts it, or starts it again; returns once it takes connections."""
        ...

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        ...

    def stop(self) -> None:
        """Ends it for good."""
        ...


class EmbeddedBroker:
    """nats-server as a child process on a free loopback port."""

    def __init__(
        self, directory: Path, *, store: str = "jetstream", name: str = "test", routes: Routes | None = None
    ) -> None:
        """With `routes` it is one server of a cluster."""
        self._directory = directory
        self._name = name
        self._routes = routes
        self.store = directory / store
        self._port = free_port()
        self._monitoring_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """See `BrokerUnderTest.url`."""
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """See `BrokerUnderTest.start`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        configuration = self._directory / "nats.conf"
        configuration.write_text(
            render_configuration(
                server_name=self._name,
                port=self._port,
                monitoring_port=self._monitoring_port,
                store=self.store,
                routes=self._routes,
            )
        )
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the installed nats-server
                [find_nats_server(os.environ), "-c", configuration], stdout=log, stderr=log
            )
        wait_for_port(self._port, _START_SECONDS)

    def kill(self) -> None:
        """See `BrokerUnderTest.kill`."""
        self._signal(signal.SIGKILL)
        self._wait()

    def suspend(self) -> None:
        """Stops its work without ending it: connections stay and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on after `suspend`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """See `BrokerUnderTest.stop`."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            self._wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "start() comes first"
        self._process.send_signal(number)

    def _wait(self) -> None:
        assert self._process is not None, "start() comes first"
        self._process.wait(_START_SECONDS)


class EmbeddedCluster:
    """Three nats-servers that are one cluster, each of which a test may treat badly."""

    def __init__(self, directory: Path) -> None:
        ports = (free_port(), free_port(), free_port())
        password = secrets.token_urlsafe()
        self.servers = {
            name: EmbeddedBroker(directory / name, name=name, routes=Routes("test", port, ports, password))
            for name, port in zip(("nats-1", "nats-2", "nats-3"), ports, strict=True)
        }
        """By the name that the cluster knows each by."""

    @property
    def url(self) -> str:
        """All three, as `FARANDOLE_NATS_URL` has them."""
        return ",".join(server.url for server in self.servers.values())

    def start(self) -> None:
        """Starts all; returns once they take connections. A leader for JetStream is elected within seconds of that."""
        for server in self.servers.values():
            server.start()

    def stop(self) -> None:
        """Ends all for good."""
        for server in self.servers.values():
            server.stop()


class ContainerBroker:
    """nats-server in a container, for where a Docker engine answers (`pytest --broker=container`)."""

    IMAGE = "nats:2.15.1"

    def __init__(self, directory: Path) -> None:
        from testcontainers.core.container import DockerContainer

        directory.mkdir(parents=True, exist_ok=True)
        (directory / "jetstream").mkdir(exist_ok=True)
        self._port = free_port()
        configuration = directory / "nats.conf"
        text = render_configuration(server_name="test", port=4222, monitoring_port=8222, store=Path("/data"))
        configuration.write_text(text.replace("127.0.0.1", "0.0.0.0"))  # noqa: S104 - inside the container
        self._container = (
            DockerContainer(self.IMAGE)
            .with_bind_ports(4222, ("127.0.0.1", self._port))  # type: ignore[arg-type]  # the engine takes (host, port)
            .with_volume_mapping(str(configuration), "/etc/nats.conf", "ro")
            .with_volume_mapping(str(directory / "jetstream"), "/data", "rw")
            .with_command("-c /etc/nats.conf")
        )
        self._created = False

    @property
    def url(self) -> str:
        """See `BrokerUnderTest.url`."""
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """See `BrokerUnderTest.start`."""
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        wait_for_port(self._port, _START_SECONDS)

    def kill(self) -> None:
        """See `BrokerUnderTest.kill`."""
        self._container.get_wrapped_container().kill()

    def stop(self) -> None:
        """See `BrokerUnderTest.stop`."""
        self._container.stop()


@lru_cache(maxsize=1)
def docker_problem() -> str | None:
    """Why containers can't be used here; None where a Docker engine answers. Asked once."""
    import docker

    problem: str | None = None
    with warnings.catch_warnings():
        # where nothing answers, the Docker client leaves a socket open, of which Python warns when it is collected
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = docker.from_env()
            client.ping()
            client.close()
        except Exception as error:  # noqa: BLE001 - whatever keeps the engine from answering is the answer
            problem = f"no Docker engine answers: {type(error).__name__}"
        gc.collect()
    return problem


async def connect(url: str, *, service: str = "test") -> Broker:
    """A connection to a test's broker."""
    broker = Broker(Settings.load(service, grpc_port=1, nats_url=url))
    broker.start()
    await broker.connected()
    return broker


def nats_py(broker: Broker) -> Client:
    """The client behind a connection, for what Farandole itself does not need of one."""
    assert isinstance(broker.client, Client), "this connection is simulated"
    return broker.client


async def provision_streams(url: str) -> None:
    """Makes Farandole's streams on a test's broker."""
    broker = await connect(url, service="provision")
    try:
        async with asyncio.timeout(_START_SECONDS):
            await provision(broker)
    finally:
        await broker.close()


def free_port() -> int:
    """A loopback port that nothing listened on just now, and that the system gives to no outgoing connection.

    Else a client that tries to connect to a server that is not there could be given its port, and be connected to
    itself.
    """
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - any will do
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_port(port: int, seconds: float) -> None:
    """Waits until something accepts connections on a loopback port. Raises `TimeoutError`."""
    import time

    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > until:
                raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after {seconds} s") from None
            time.sleep(0.01)
