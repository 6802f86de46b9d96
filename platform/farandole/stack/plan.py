"""A stack as it is to run: the stack file with ports moved, paths made absolute and each service's environment."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from farandole.errors import ConfigurationError, Fault, StackError
from farandole.stack.home import HOME_VARIABLE, Home
from farandole.stack.ports import OFFSET_VARIABLE, Port, resolve_port
from farandole.stack.stack_file import (
    BrokerEntry,
    LogSettings,
    NextStep,
    ServiceEntry,
    did_you_mean,
    placeholder,
    read_stack_file,
)

PATH_VARIABLES = ("FARANDOLE_SAGAS", "FARANDOLE_DESCRIPTORS")
"""Paths of the caller that services, which run in the stack file's directory, must still find."""


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One service, ready to be started."""

    name: str
    command: tuple[str, ...]
    """As the stack file has it; empty for the embedded broker."""
    port: Port
    """Where it serves: gRPC, or NATS clients."""
    monitoring: Port | None
    """Of the broker only: where it answers `/healthz`."""
    depends_on: tuple[str, ...]
    environment: Mapping[str, str]
    """What is set over the caller's environment."""
    stop_timeout_seconds: float

    @property
    def is_broker(self) -> bool:
        """Whether this is the embedded broker."""
        return self.monitoring is not None

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every port that it listens on."""
        return (self.port,) if self.monitoring is None else (self.port, self.monitoring)


@dataclass(frozen=True, slots=True)
class Plan:
    """A stack, ready to be started."""

    file: Path
    home: Home
    services: tuple[PlannedService, ...]
    """In start order."""
    next_steps: tuple[NextStep, ...]
    logs: LogSettings

    @property
    def root(self) -> Path:
        """Where the services run: the stack file's directory."""
        return self.file.parent

    @property
    def broker(self) -> PlannedService | None:
        """The embedded broker, where the stack has one."""
        return next((service for service in self.services if service.is_broker), None)

    @property
    def nats_url(self) -> str | None:
        """The embedded broker's URL."""
        return f"nats://{self.broker.port.address}" if self.broker else None

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

    def suggestions(self) -> list[tuple[str, str]]:
        """What to try next: (what it does, the command with this stack's addresses)."""
        addresses = {placeholder(service.name): service.port.address for service in self.services}
        return [(step.say, Template(step.run).substitute(addresses)) for step in self.next_steps]


def make_plan(file: Path, environment: Mapping[str, str]) -> Plan:
    """The plan of a stack file under a caller's environment. Raises `ConfigurationError` that lists every fault."""
    path = file.resolve()
    written = read_stack_file(path)
    home = Home.of(path.parent, environment)
    faults: list[Fault] = []
    resolved: list[tuple[BrokerEntry | ServiceEntry, Port, Port | None]] = []
    for entry in written.services:
        try:
            if isinstance(entry, BrokerEntry):
                port = resolve_port(entry.name, entry.port, environment)
                monitoring = resolve_port(entry.name, entry.monitoring_port, environment, "monitoring")
                resolved.append((entry, port, monitoring))
            else:
                resolved.append((entry, resolve_port(entry.name, entry.grpc_port, environment), None))
        except ConfigurationError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    users: dict[int, Port] = {}
    for port in (port for _, first, second in resolved for port in (first, second) if port is not None):
        if port.number in users:
            faults.append(Fault(port.variable, f"port {port.number} is {users[port.number].variable}'s too"))
        users.setdefault(port.number, port)
    if faults:
        raise ConfigurationError(faults)
    nats_url = next((f"nats://{port.address}" for _, port, monitoring in resolved if monitoring), None)
    return Plan(
        file=path,
        home=home,
        services=tuple(_planned(entry, port, monitoring, home, nats_url) for entry, port, monitoring in resolved),
        next_steps=written.next_steps,
        logs=written.logs,
    )


def _planned(
    entry: BrokerEntry | ServiceEntry, port: Port, monitoring: Port | None, home: Home, nats_url: str | None
) -> PlannedService:
    if isinstance(entry, BrokerEntry):
        command: tuple[str, ...] = ()
        environment: dict[str, str] = {}
    else:
        command = entry.command
        environment = {
            "FARANDOLE_GRPC_ADDRESS": port.address,
            "FARANDOLE_DATABASE_URL": home.database_url(entry.name),
            **({"FARANDOLE_NATS_URL": nats_url} if nats_url else {}),
            **entry.environment,
        }
    return PlannedService(
        name=entry.name,
        command=command,
        port=port,
        monitoring=monitoring,
        depends_on=tuple(entry.depends_on),
        environment=environment,
        stop_timeout_seconds=entry.stop_timeout_seconds,
    )


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
