"""The stack under test: the real one, in a directory of its own, each service behind a link of the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
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

from tests.chaos.checker.__main__ import DATABASES
from tests.chaos.checker.choreographies import SERVICES
from tests.chaos.checker.evidence import REBUILT, database_file
from tests.chaos.disks import Disk
from tests.e2e.running_stack import ROOT, definitions, free_ports

NATS = "nats"
PROCESSES = (NATS, *SERVICES)
"""Everything that is killed."""

_COMMAND_SECONDS = 120.0
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
    """The stack of `farandole.yaml` with a home, ports and deadlines of its own."""

    def __init__(self, directory: Path, durations: Durations) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.databases = self.home / "data"
        self.disks = [Disk(name, self.databases / name) for name in PROCESSES]
        self._sagas = definitions(
            directory / "sagas",
            s1800=f"{durations.saga:g}s",
            s60=f"{durations.step:g}s",
            s300=f"{durations.compensation:g}s",
        )
        parts = (*PROCESSES, "nats_monitoring", "second")
        first = free_ports(len(parts))
        self.ports = {name: first + number for number, name in enumerate(parts)}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
            "FARANDOLE_HOME": str(self.home),
            "FARANDOLE_SAGAS": str(self._sagas),
            "FARANDOLE_DESCRIPTORS": str(ROOT / "generated" / "descriptors.binpb"),
            **{f"FARANDOLE_PORT_{name.upper()}": str(port) for name, port in self.ports.items() if name != "second"},
        }

    @property
    def nats_url(self) -> str:
        """The broker itself, past the proxy."""
        return f"nats://127.0.0.1:{self.ports[NATS]}"

    def address(self, service: str) -> str:
        """HOST:PORT of a service."""
        return f"127.0.0.1:{self.ports[service]}"

    def database(self, service: str) -> Path:
        """A service's database, on a disk of its own."""
        return database_file(self.databases, service)

    def up(self, nats_urls: Mapping[str, str]) -> None:
        """Starts everything; `nats_urls` says where each service finds the broker. Raises `StackFailedError`."""
        described = yaml.safe_load((ROOT / "farandole.yaml").read_text(encoding="utf-8"))
        for service in described["services"]:
            if "broker" not in service:
                service["environment"] = self._placing(service["name"], nats_urls[service["name"]])
        described.pop("next_steps", None)
        described["logs"] = {"limit_bytes": _LOG_LIMIT_BYTES}
        (self.directory / "farandole.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        self.farandole("up")

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

    def _placing(self, service: str, nats_url: str, database: str = "") -> dict[str, str]:
        return {
            "FARANDOLE_NATS_URL": nats_url,
            "FARANDOLE_DATABASE_URL": f"sqlite:///{self.database(database or service)}",
        }

    @contextmanager
    def second_process(self, service: str, nats_url: str, *, database: str = "") -> Iterator[SecondProcess]:
        """Another process of a service beside or in place of the first, on the same database or on one named."""
        command = ["farandole", "correlator"] if service == "correlator" else [f"services.{service}"]
        environment = {
            **self._environment,
            **self._placing(service, nats_url, database),
            "FARANDOLE_GRPC_ADDRESS": self.address("second"),
        }
        with (self.home / "logs" / f"second-{database or service}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
            )
            try:
                yield SecondProcess(process, self.address("second"))
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
            pid = int((self.home / "run" / f"{name}.pid").read_text(encoding="utf-8"))
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            # an id is used again: what has another home, or none, is not this stack's
            if f"FARANDOLE_HOME={self.home}\0".encode() in environment:
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

    async def problem_of(self, service: str) -> str:
        """Why a service does not serve; nothing where it does."""
        return await problem_at(self.address(service))

    async def broker_problem(self) -> str:
        """Why the broker is not well; nothing where it is."""
        url = f"http://127.0.0.1:{self.ports['nats_monitoring']}/healthz"

        def ask() -> str:
            try:
                with urlopen(url, timeout=2) as answer:
                    found: dict[str, Any] = json.load(answer)
            except OSError as error:
                return _said(error)
            return "" if found.get("status") == "ok" else str(found)

        return await asyncio.to_thread(ask)

    def log(self, name: str) -> str:
        """All that a process has logged."""
        path = self.home / "logs" / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def keep_databases(self) -> None:
        """Copies the databases off the disks in memory, which go when the run ends."""
        for disk in self.disks:
            if disk.name != NATS and disk.directory.exists():
                shutil.copytree(disk.directory, self.directory / DATABASES / disk.name, dirs_exist_ok=True)
        if self.database(REBUILT).exists():
            shutil.copytree(self.database(REBUILT).parent, self.directory / DATABASES / REBUILT, dirs_exist_ok=True)


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
