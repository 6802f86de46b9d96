"""The stack file: which services make a stack, in start order. What a team writes; every fault is told at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from farandole.errors import ConfigurationError, Fault
from farandole.stack.ports import BROKER_PORT, HIGHEST_PORT, MONITORING_PORT, ROUTES_PORT
from farandole.stack.shape import MOST_REPLICAS

STACK_FILE = "farandole.yaml"
POSTGRES = "postgres"
"""The PostgreSQL of `up --database postgres`, which no stack file names."""

RESERVED_NAMES = frozenset({"supervisor", "offset", POSTGRES})
"""Taken by the supervisor's own files, by `FARANDOLE_PORT_OFFSET`, and by the PostgreSQL that a stack may bring."""

ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
PortNumber = Annotated[int, Field(ge=1, le=HIGHEST_PORT, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BrokerEntry(_Entry):
    """The embedded broker: the nats-server that the installation brings."""

    name: ServiceName
    broker: Literal["embedded"]
    port: PortNumber = BROKER_PORT
    monitoring_port: PortNumber = MONITORING_PORT
    routes_port: PortNumber = ROUTES_PORT
    """Where the first server of a cluster waits for the others; each other one has the next of each of these ports."""
    stop_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The broker comes first."""
        return ()


class ServiceEntry(_Entry):
    """A service that answers `grpc.health.v1` on its port."""

    name: ServiceName
    command: Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], Field(min_length=1)]
    """`python` and `farandole` as the first word mean those that run the stack."""
    grpc_port: PortNumber
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS, strict=True)] | None = None
    """How many of it run, whatever `up` is told: 1 for what can't share its work out."""
    depends_on: tuple[str, ...] = ()
    """Services that must be healthy before this one is first started; each stands earlier in the file."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Set for this service, over what the caller's environment says."""
    stop_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """How long it may take to end after SIGTERM."""


class NextStep(_Entry):
    """Something to try once the stack runs. `${orders}` in it stands for the address of the service `orders`."""

    say: str
    run: str


class LogSettings(_Entry):
    """When a service's log is rotated."""

    limit_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    keep: Annotated[int, Field(ge=1, le=100)] = 3
    """How many older pieces stay: `orders.log.1` is the youngest."""


class StackFile(_Entry):
    """A valid stack file."""

    services: tuple[BrokerEntry | ServiceEntry, ...]
    next_steps: tuple[NextStep, ...] = ()
    logs: LogSettings = LogSettings()


def find_stack_file(start: Path) -> Path:
    """The stack file in a directory or the nearest one above it. Raises `ConfigurationError` where there is none."""
    found = nearest_stack_file(start)
    if found is None:
        raise ConfigurationError(
            [Fault(str(start / STACK_FILE), "is not here, nor in a directory above; name it by --file")]
        )
    return found


def nearest_stack_file(start: Path) -> Path | None:
    """The stack file in a directory or the nearest one above it; None where there is none."""
    files = (directory / STACK_FILE for directory in (start, *start.parents))
    return next((file for file in files if file.is_file()), None)


def read_stack_file(path: Path) -> StackFile:
    """Reads and checks a stack file. Raises `ConfigurationError` that lists every fault with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([Fault(str(path), f"can't be read: {error}")]) from None
    return parse_stack_file(text, where=path.name)


def parse_stack_file(text: str, *, where: str) -> StackFile:
    """Parses and checks a stack file; `where` names it in faults."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError([Fault(where, f"is not YAML: {error}")]) from None
    if not isinstance(data, dict) or not isinstance(data.get("services"), list) or not data["services"]:
        raise ConfigurationError([Fault(where, "needs `services`, a list with one entry for each service")])

    def fault(location: Sequence[str | int], reason: str) -> Fault:
        return Fault(f"{where}:{_line(node, location)} {_spelled(location)}", reason)

    faults: list[Fault] = []
    entries: list[BrokerEntry | ServiceEntry] = []
    for index, raw in enumerate(data["services"]):
        model = BrokerEntry if isinstance(raw, dict) and "broker" in raw else ServiceEntry
        try:
            entries.append(model.model_validate(raw))
        except ValidationError as error:
            faults += [fault(("services", index, *f["loc"]), _reason(f["msg"])) for f in error.errors()]
    try:
        rest = StackFile.model_validate({**data, "services": ()})
    except ValidationError as error:
        faults += [fault(f["loc"], _reason(f["msg"])) for f in error.errors()]
        rest = StackFile(services=())
    faults += [fault(location, reason) for location, reason in _contradictions(data["services"], rest.next_steps)]
    if faults:
        raise ConfigurationError(faults)
    return rest.model_copy(update={"services": tuple(entries)})


def _contradictions(
    services: Sequence[object], next_steps: Sequence[NextStep]
) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong between entries, told from what was written, so that it is told beside an entry's own faults."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    names: list[str] = []
    ports: dict[object, str] = {}
    brokers = 0
    for index, raw in enumerate(services):
        if not isinstance(raw, dict):
            continue
        here = ("services", index)
        name = str(raw.get("name"))
        if name in names:
            found.append(((*here, "name"), f"{name} is there twice"))
        if name in RESERVED_NAMES:
            found.append(((*here, "name"), f"{name} is the stack's own; choose another name"))
        depends_on = raw.get("depends_on")
        for position, dependency in enumerate(depends_on if isinstance(depends_on, list) else ()):
            if dependency not in names:
                hint = did_you_mean(str(dependency), names)
                found.append(
                    ((*here, "depends_on", position), f"{dependency} does not stand earlier in the file{hint}")
                )
        if "broker" in raw:
            brokers += 1
            if brokers > 1:
                found.append(((*here, "broker"), "a stack has one embedded broker"))
            used = {
                "port": raw.get("port", BROKER_PORT),
                "monitoring_port": raw.get("monitoring_port", MONITORING_PORT),
            }
        else:
            used = {"grpc_port": raw.get("grpc_port")}
        for field, port in used.items():
            if isinstance(port, int) and port in ports:
                found.append(((*here, field), f"port {port} is {ports[port]}'s already"))
            elif isinstance(port, int):
                ports[port] = name
        names.append(name)
    known = [placeholder(name) for name in names]
    for index, step in enumerate(next_steps):
        template = Template(step.run)
        if not template.is_valid():
            found.append(
                (("next_steps", index, "run"), "has a `$` that begins no `${service}`; write `$$` for a dollar")
            )
            continue
        for identifier in template.get_identifiers():
            if identifier not in known:
                hint = did_you_mean(identifier, known)
                found.append((("next_steps", index, "run"), f"${{{identifier}}} is no service of this file{hint}"))
    return found


def placeholder(service: str) -> str:
    """How a service is named in `${...}`."""
    return service.replace("-", "_")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean orders?` where one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")


def _spelled(location: Sequence[str | int]) -> str:
    """`services[2].grpc_port`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _line(node: yaml.Node | None, location: Sequence[str | int]) -> int:
    """The line, from 1, of the deepest part of a location that the file has."""
    line = 1
    for part in location:
        following: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line = key.start_mark.line + 1
                    following = value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            following = node.value[part]
            line = following.start_mark.line + 1
        if following is None:
            break
        node = following
    return line
