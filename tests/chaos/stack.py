"""The stack under test: the real one, in a directory of its own, each service behind a link of the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from farandole.stack.health import Probe, ask
from farandole.stack.plan import Plan
from farandole.stack.planning import make_plan
from farandole.stack.shape import Shape
from farandole.stack.stack_file import POSTGRES, STACK_FILE
from tests.chaos.checker.choreographies import SERVICES
from tests.chaos.checker.evidence import database_file
from tests.chaos.databases import Databases, PostgresDatabases, SqliteDatabases
from tests.chaos.disks import Disk
from tests.e2e.running_stack import ROOT, definitions, free_ports

_COMMAND_SECONDS = 200.0
_UP_SECONDS = 180
_STOP_SECONDS = 20.0
_LOG_LIMIT_BYTES = 1 << 30
"""Evidence is counted in the logs, so none is rotated away."""
CHANNEL_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 500)]


@dataclass(frozen=True)
class Durations:
    """Of both definitions, in seconds."""

    saga: float
    step: float
    compensation: float


class Stack:
    """The stack of `farandole.yaml` in a shape, with a home, ports and deadlines of its own."""

    def __init__(self, directory: Path, durations: Durations, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape
        self._home = directory / "home"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
            "FARANDOLE_HOME": str(self._home),
            "FARANDOLE_SAGAS": str(
                definitions(
                    directory / "sagas",
                    s1800=f"{durations.saga:g}s",
                    s60=f"{durations.step:g}s",
                    s300=f"{durations.compensation:g}s",
                )
            ),
            "FARANDOLE_DESCRIPTORS": str(ROOT / "generated" / "descriptors.binpb"),
        }
        ports = [port for service in self._planned().services for port in service.ports]
        first = free_ports(len(ports) + 1)
        self._environment |= {port.variable: str(first + number) for number, port in enumerate(ports, 1)}
        self.second_address = f"127.0.0.1:{first}"
        """Of a process that the stack does not know of."""
        self._services = {service.name: service for service in self._planned().services}
        self.processes = tuple(self._services)
        """Everything that runs, by name."""
        self.brokers = tuple(name for name, service in self._services.items() if service.kind == "broker")
        self.replicas = tuple(name for name, service in self._services.items() if service.kind == "service")
        """Every process of a service."""
        data = self._home / "data"
        self.databases: Databases
        if self.shape.database == "postgres":
            self.databases = PostgresDatabases(data, self._services[POSTGRES].port.number)
            stores: tuple[str, ...] = (POSTGRES,)
        else:
            self.databases = SqliteDatabases(data)
            stores = SERVICES
        self.disks = [Disk(name, data / name) for name in (*self.brokers, *stores)]
        """The broker's, and one for each store."""

    def _planned(self) -> Plan:
        return make_plan(ROOT / STACK_FILE, self._environment, self.shape)

    @property
    def broker_ports(self) -> tuple[int, ...]:
        """Of the broker itself, or of each server of the cluster."""
        return tuple(self._services[name].port.number for name in self.brokers)

    @property
    def nats_url(self) -> str:
        """The broker itself, past the proxy."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.broker_ports)

    @property
    def logs(self) -> Path:
        """Where every process logs."""
        return self._home / "logs"

    def address(self, name: str) -> str:
        """HOST:PORT of a process of a service; under the service's name, of the first."""
        return self._services[name].port.address

    def service_of(self, name: str) -> str:
        """The service of which a process is a replica."""
        return self._services[name].database

    def processes_of(self, service: str) -> list[str]:
        """All replicas of a service."""
        return [name for name in self.replicas if self.service_of(name) == service]

    def up(self, nats_urls: Mapping[str, str]) -> None:
        """Starts everything; `nats_urls` says where each service finds the broker. Raises `StackFailedError`."""
        described = yaml.safe_load((ROOT / STACK_FILE).read_text(encoding="utf-8"))
        for service in described["services"]:
            if "broker" not in service:
                name = service["name"]
                service["environment"] = {"FARANDOLE_NATS_URL": nats_urls[name], **self.databases.placing(name)}
        described.pop("next_steps", None)
        described["logs"] = {"limit_bytes": _LOG_LIMIT_BYTES}
        (self.directory / STACK_FILE).write_text(yaml.safe_dump(described), encoding="utf-8")
        shape = self.shape
        options = ("--replicas", str(shape.replicas), "--database", shape.database, "--nats", shape.nats)
        self.farandole("up", "--timeout", str(_UP_SECONDS), *options)

    def down(self) -> None:
        """Stops everything."""
        self.farandole("down")

    def farandole(self, *arguments: str) -> str:
        """Runs the command line; returns what it printed. Raises `StackFailedError`."""
        done = subprocess.run(
            [sys.executable, "-m", "farandole", *arguments],
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
            cwd=self.directory,
            env=self._environment,
        )
        if done.returncode:
            raise StackFailedError(f"farandole {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    @contextmanager
    def second_process(self, service: str, nats_url: str, *, database: str = "") -> Iterator[SecondProcess]:
        """Another process of a service beside or in place of the first, on the same file or on one named."""
        file = database_file(self._home / "data", database or service)
        file.parent.mkdir(parents=True, exist_ok=True)
        command = ["farandole", "correlator"] if service == "correlator" else [f"services.{service}"]
        environment = {
            **self._environment,
            "FARANDOLE_NATS_URL": nats_url,
            "FARANDOLE_DATABASE_URL": f"sqlite:///{file}",
            "FARANDOLE_REPLICA": service,
            "FARANDOLE_GRPC_ADDRESS": self.second_address,
        }
        with (self.logs / f"second-{database or service}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
            )
            try:
                yield SecondProcess(process, self.second_address)
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    # Processes

    def pid(self, name: str) -> int | None:
        """The process of a service, if it runs."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._home / "run" / f"{name}.pid").read_text(encoding="utf-8"))
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            # an id is used again: what has another home, or none, is not this stack's
            if f"FARANDOLE_HOME={self._home}\0".encode() in environment:
                return pid
        return None

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Signals a service's process; returns its id, or None where it does not run."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return pid
        return None

    # What is said and logged

    async def problem_of(self, name: str) -> str:
        """Why a process does not serve; nothing where it does."""
        match self._services[name].kind:
            case "broker":
                return await self._broker_problem(name)
            case "database":
                return ask(Probe(self.address(name), "database")).reason
            case "service":
                return await problem_at(self.address(name))

    async def _broker_problem(self, name: str) -> str:
        url = f"http://{self._services[name].health_address}/healthz"

        def look() -> str:
            try:
                with urlopen(url, timeout=2) as answer:
                    found: dict[str, Any] = json.load(answer)
            except OSError as error:
                return _said(error)
            return "" if found.get("status") == "ok" else str(found)

        return await asyncio.to_thread(look)

    def log(self, name: str) -> str:
        """All that a process has logged."""
        path = self.logs / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class StackFailedError(Exception):
    """Raised where the stack can't be brought up or commanded."""


@dataclass(frozen=True)
class SecondProcess:
    """A process of a service that the stack does not know of."""

    process: subprocess.Popen[bytes]
    address: str


async def problem_at(address: str) -> str:
    """Why nobody serves at an address; nothing where somebody does."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _said(error: OSError) -> str:
    read = getattr(error, "read", None)
    return read().decode(errors="replace") if read is not None else str(error)
