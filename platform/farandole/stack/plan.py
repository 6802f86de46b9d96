"""A stack as it is to run: services with ports moved, paths made absolute and each one's environment."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from string import Template
from typing import Literal

from farandole.errors import ConfigurationError, Fault, StackError
from farandole.stack.embedded_postgres import PostgresCluster
from farandole.stack.home import HOME_VARIABLE, Home
from farandole.stack.ports import OFFSET_VARIABLE, Port
from farandole.stack.shape import Shape
from farandole.stack.stack_file import LogSettings, NextStep, did_you_mean

PATH_VARIABLES = ("FARANDOLE_SAGAS", "FARANDOLE_DESCRIPTORS")
"""Paths of the caller that services, which run in the stack file's directory, must still find."""


Kind = Literal["service", "broker", "database"]
"""What a planned service is: a team's own, an embedded nats-server, or the embedded PostgreSQL."""


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One process, ready to be started."""

    name: str
    """Of a replica, or of a server of a cluster, its own: `payments-2`."""
    kind: Kind
    command: tuple[str, ...]
    """As the stack file has it; empty for what the stack brings itself."""
    port: Port
    """Where it serves: gRPC, NATS clients, or PostgreSQL's."""
    depends_on: tuple[str, ...]
    """What must serve before it is first started."""
    environment: Mapping[str, str]
    """What is set over the caller's environment."""
    stop_timeout_seconds: float
    database: str = ""
    """Of a service only: the name of its database, the same for all its replicas."""
    monitoring: Port | None = None
    """Of a broker only: where it answers `/healthz`."""
    routes: Port | None = None
    """Of a broker in a cluster only: where it waits for the others."""
    metrics: Port | None = None
    """Of a service only: where it shows its metrics, if it does."""
    stop_signal: Signals = Signals.SIGTERM
    """What tells it to end in order."""

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every port that it listens on."""
        return tuple(port for port in (self.port, self.monitoring, self.routes, self.metrics) if port is not None)

    @property
    def health_address(self) -> str:
        """Where it is asked for its health."""
        return (self.monitoring or self.port).address


@dataclass(frozen=True, slots=True)
class Plan:
    """A stack, ready to be started."""

    file: Path
    home: Home
    services: tuple[PlannedService, ...]
    """In start order."""
    shape: Shape
    postgres: PostgresCluster | None
    """The embedded PostgreSQL, where the services have their data in it."""
    addresses: Mapping[str, str]
    """By what stands for a service in `${...}`: the address of its first replica, or of a cluster's first server."""
    next_steps: tuple[NextStep, ...]
    logs: LogSettings

    @property
    def root(self) -> Path:
        """Where the services run: the stack file's directory."""
        return self.file.parent

    @property
    def brokers(self) -> tuple[PlannedService, ...]:
        """The embedded broker, or the servers of the embedded cluster; none where the stack uses another broker."""
        return tuple(service for service in self.services if service.kind == "broker")

    @property
    def nats_url(self) -> str | None:
        """The embedded broker's URL, all servers of a cluster in it."""
        return ",".join(f"nats://{broker.port.address}" for broker in self.brokers) or None

    @property
    def databases(self) -> tuple[str, ...]:
        """The database of each service, which its replicas share."""
        return tuple(dict.fromkeys(service.database for service in self.services if service.kind == "service"))

    def replicas(self, name: str) -> tuple[PlannedService, ...]:
        """The replicas of a service of the stack file, the first one first; none where it has no such service."""
        return tuple(service for service in self.services if service.kind == "service" and service.database == name)

    @property
    def longest_stop_seconds(self) -> float:
        """How long the slowest service may take to end."""
        return max(service.stop_timeout_seconds for service in self.services)

    def service(self, name: str) -> PlannedService:
        """The service of that name. Raises `ConfigurationError` that says which one may have been meant."""
        for service in self.services:
            if service.name == name:
                return service
        names = [service.name for service in self.services]
        raise ConfigurationError(
            [Fault(name, f"is no service of {self.file.name}, which has {', '.join(names)}{did_you_mean(name, names)}")]
        )

    def overruled(self, environment: Mapping[str, str]) -> list[str]:
        """The caller's variables that count for no service, or not for all: the stack sets them to something else."""
        return sorted(
            name
            for name, value in environment.items()
            if name.startswith("FARANDOLE_")
            and any(service.environment.get(name, value) != value for service in self.services)
        )

    def suggestions(self) -> list[tuple[str, str]]:
        """What to try next: (what it does, the command with this stack's addresses)."""
        return [(step.say, Template(step.run).substitute(self.addresses)) for step in self.next_steps]


def passed_on(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """A caller's environment as services get it: paths that count from the caller's directory become absolute."""
    passed = dict(environment)
    for variable in PATH_VARIABLES:
        if passed.get(variable):
            passed[variable] = str((directory / passed[variable]).absolute())
    return passed


def overriding(environment: Mapping[str, str]) -> dict[str, str]:
    """What `start` of one service takes from its own caller: `FARANDOLE_*`, but not what places the whole stack."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("FARANDOLE_") and not name.startswith("FARANDOLE_PORT_") and name != HOME_VARIABLE
    }


def places(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment decides where a stack stands."""
    return {
        name: value
        for name, value in environment.items()
        if name in {HOME_VARIABLE, OFFSET_VARIABLE} or name.startswith("FARANDOLE_PORT_")
    }


def resolve_command(command: Sequence[str], search_path: str) -> list[str]:
    """The command with its program found: `python` and `farandole` are those that run this.

    Raises `StackError` where there is no such program.
    """
    program, *arguments = command
    if program in {"python", "python3"}:
        return [sys.executable, *arguments]
    if program == "farandole":
        return [sys.executable, "-m", "farandole", *arguments]
    found = shutil.which(program, path=f"{sysconfig.get_path('scripts')}:{search_path}")
    if found is None:
        raise StackError(f"there is no program {program!r} on the PATH")
    return [found, *arguments]
