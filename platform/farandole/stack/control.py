"""How a command talks to the supervisor: one line of JSON each way over a Unix socket that only its owner can open."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from farandole.errors import StackError
from farandole.stack.home import Home
from farandole.stack.plan import Kind

State = Literal["running", "restarting", "stopping", "stopped"]

ANSWER_TIMEOUT_SECONDS = 5.0
START_TIMEOUT_SECONDS = 60.0
"""A start waits for a stop that is under way."""
LONGEST_LINE_BYTES = 1024 * 1024

_ENDING_TRIES = 40
_ENDING_TRY_SECONDS = 0.05
"""The system closes the socket of a killed process a moment after the process is gone."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the supervisor knows of one service."""

    name: str
    state: State
    pid: int | None
    restarts: int
    """How often it was started again after it had ended by itself, since the supervisor started."""
    uptime_seconds: float | None
    """Of the process that runs now."""
    address: str
    kind: Kind
    health_address: str
    reason: str
    """Why it does not run, in words; empty while it does."""


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """What the supervisor knows."""

    pid: int
    services: tuple[ServiceState, ...]
    places: Mapping[str, str]
    """The variables that decided where this stack stands."""

    def to_json(self) -> dict[str, Any]:
        """As it goes over the socket."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SupervisorState:
        """As it came over the socket."""
        services = tuple(ServiceState(**service) for service in data["services"])
        return cls(pid=data["pid"], services=services, places=data["places"])


class _ConnectionLostError(StackError):
    """The supervisor was there, and went before it had answered."""


class SupervisorClient:
    """Asks the supervisor of one home."""

    def __init__(self, home: Home) -> None:
        self._path = home.control_socket

    def state(self) -> SupervisorState | None:
        """What the supervisor knows; None where no supervisor runs. Raises `StackError` where it does not answer."""
        for _ in range(_ENDING_TRIES):
            try:
                answer = self._ask({"command": "status"})
            except _ConnectionLostError:
                time.sleep(_ENDING_TRY_SECONDS)  # it is ending; soon nobody listens any more
                continue
            return None if answer is None else SupervisorState.from_json(answer["state"])
        raise StackError(f"the supervisor closes every connection to {self._path}")

    def start(self, service: str, environment: Mapping[str, str] | None = None) -> bool:
        """Starts a service, with these variables over the ones that it had; returns whether it was not running.

        Raises `StackError` where it can't be started.
        """
        request = {"command": "start", "service": service, "environment": dict(environment or {})}
        return bool(self._asked(request, START_TIMEOUT_SECONDS)["changed"])

    def stop(self, service: str, *, timeout_seconds: float) -> bool:
        """Stops a service and waits until it has ended; returns whether it was running."""
        return bool(self._asked({"command": "stop", "service": service}, timeout_seconds)["changed"])

    def down(self, *, timeout_seconds: float) -> None:
        """Stops every service; returns when all have ended and the supervisor is about to."""
        self._asked({"command": "down"}, timeout_seconds)

    def _asked(self, request: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        answer = self._ask(request, timeout_seconds)
        if answer is None:
            raise StackError("the stack is not running; `farandole up` starts it")
        return answer

    def _ask(
        self, request: Mapping[str, Any], timeout_seconds: float = ANSWER_TIMEOUT_SECONDS
    ) -> dict[str, Any] | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            try:
                connection.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except OSError as error:
                raise StackError(f"the supervisor can't be reached at {self._path}: {error}") from error
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as reader:
                    line = reader.readline(LONGEST_LINE_BYTES)
            except ConnectionError as error:
                raise _ConnectionLostError(f"the supervisor ended before it had answered: {error}") from error
            except OSError as error:
                raise StackError(f"the supervisor does not answer {request['command']!r}: {error}") from error
        if not line:
            raise _ConnectionLostError(f"the supervisor ended before it had answered {request['command']!r}")
        answer: dict[str, Any] = json.loads(line)
        if error_text := answer.get("error"):
            raise StackError(error_text)
        return answer
