"""Which ports a stack uses, what moves them, and who has one that is taken."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from farandole.errors import ConfigurationError, Fault, StackError

LOOPBACK = "127.0.0.1"
OFFSET_VARIABLE = "FARANDOLE_PORT_OFFSET"
BROKER_PORT = 4222
MONITORING_PORT = 8222
ROUTES_PORT = 6222
POSTGRES_PORT = 55432
"""Not PostgreSQL's own: a machine for development often has one there."""
CORRELATOR_PORT = 50051
HIGHEST_PORT = 65535

_VARIABLE_PREFIX = "FARANDOLE_PORT_"


@dataclass(frozen=True, slots=True)
class Port:
    """One port on the loopback interface, and the variable that moves it."""

    number: int
    variable: str

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"{LOOPBACK}:{self.number}"


@dataclass(frozen=True, slots=True)
class TakenPort:
    """A port that another process has."""

    port: Port
    holder: str
    """The process's name and id, as far as this user may see them."""

    def __str__(self) -> str:
        return (
            f"port {self.port.number} is taken by {self.holder}; stop it, or set {self.port.variable} to another port "
            f"({OFFSET_VARIABLE} moves all)"
        )


def port_variable(service: str, purpose: str = "") -> str:
    """The variable that moves a service's port: `FARANDOLE_PORT_NATS`, `FARANDOLE_PORT_NATS_MONITORING`."""
    return _VARIABLE_PREFIX + "_".join(part for part in (service, purpose) if part).upper().replace("-", "_")


def resolve_port(service: str, default: int, environment: Mapping[str, str], purpose: str = "") -> Port:
    """The port of a service: what its variable says, else the default moved by `FARANDOLE_PORT_OFFSET`.

    Raises `ConfigurationError` where a variable is no number, or the port is out of range.
    """
    variable = port_variable(service, purpose)
    faults: list[Fault] = []
    own = _number(environment, variable, faults)
    offset = _number(environment, OFFSET_VARIABLE, faults)
    if faults:
        raise ConfigurationError(faults)
    number = own if own is not None else default + (offset or 0)
    if not 0 < number <= HIGHEST_PORT:
        where = variable if own is not None else OFFSET_VARIABLE
        raise ConfigurationError([Fault(where, f"puts {service} on port {number}; a port is 1 to {HIGHEST_PORT}")])
    return Port(number, variable)


def _number(environment: Mapping[str, str], variable: str, faults: list[Fault]) -> int | None:
    text = environment.get(variable, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        faults.append(Fault(variable, f"must be a whole number, not {text!r}"))
        return None


def taken_ports(ports: Iterable[Port]) -> list[TakenPort]:
    """Those of the ports that can't be listened on now, with who has them.

    Raises `StackError` where a port can't be tried for another reason, such as a privileged port.
    """
    return [TakenPort(port, _holder(port.number)) for port in ports if not _is_free(port)]


def _is_free(port: Port) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that are only winding down do not count; a listener does, whatever options it has set.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port.number))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise StackError(
                f"port {port.number} can't be used: {error.strerror}; set {port.variable} to another port"
            ) from error
    return True


def _holder(number: int) -> str:
    holders = {
        pid: status == psutil.CONN_LISTEN
        for pid, local_port, status in sorted(_connections(), key=lambda found: found[2] == psutil.CONN_LISTEN)
        if local_port == number
    }
    for pid in sorted(holders, key=lambda pid: not holders[pid]):
        with contextlib.suppress(psutil.Error):
            return f"{psutil.Process(pid).name()} (pid {pid})"
    return "a process that this user may not see"


def _connections() -> list[tuple[int, int, str]]:
    """The (process id, local port, status) of every TCP connection that this user may see."""
    try:
        of_all = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows them process by process only
        return [seen for process in psutil.process_iter() for seen in _connections_of(process)]
    # A connection that winds down belongs to no process.
    return [(found.pid, found.laddr.port, found.status) for found in of_all if found.pid and found.laddr]


def _connections_of(process: psutil.Process) -> list[tuple[int, int, str]]:
    try:
        return [(process.pid, found.laddr.port, found.status) for found in process.net_connections("tcp")]
    except psutil.Error:
        return []
