"""Honest health: `grpc.health.v1.Health` says SERVING only while every part of the process says that it is well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

REASON_METADATA = "farandole-health-reason"
"""Trailing metadata of `Check` and `List` while NOT_SERVING: why, percent-encoded UTF-8."""

_STARTING = "has not reported yet"
_REASON_CHARACTERS = 500
_REASON_PLAIN = " !\"#$&'()*+,/:;<=>?@[]^`{|}"

_log = structlog.get_logger(__name__)


class HealthMonitor:
    """What each part of a process says of itself.

    A process serves while all its named checks are well, and until a check has reported, it is not. To be used from
    the event loop's thread.
    """

    def __init__(self, checks: Iterable[str] = ()) -> None:
        self._problems: dict[str, str] = dict.fromkeys(checks, _STARTING)
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, name: str, problem: str | None) -> None:
        """Reports that the check `name` is well (`None`), or what is wrong with it, for an operator to read."""
        before = self._problems.get(name)
        if problem is None:
            self._problems.pop(name, None)
        else:
            self._problems[name] = problem
        if problem != before:
            if problem is None:
                _log.info("a check is well", check=name)
            else:
                _log.warning("a check is not well", check=name, problem=problem)
            self._wake()

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong now, by check."""
        return MappingProxyType(self._problems)

    @property
    def is_serving(self) -> bool:
        """Whether the process can do its work."""
        return not self._problems and not self._stopping

    @property
    def is_stopping(self) -> bool:
        """Whether the process is about to end."""
        return self._stopping

    @property
    def reason(self) -> str:
        """Why the process does not serve; empty where it does."""
        if self._stopping:
            return "stopping"
        return "; ".join(f"{name}: {problem}" for name, problem in sorted(self._problems.items()))

    def stop(self) -> None:
        """Says NOT_SERVING for good: the process is about to end."""
        self._stopping = True
        self._wake()

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of anything above. Take it before you look, and no change is missed."""
        return self._changed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # has no types
    """`grpc.health.v1.Health` over a `HealthMonitor`: the same answer for "" and for every service that is served."""

    def __init__(self, monitor: HealthMonitor, services: Iterable[str]) -> None:
        self._monitor = monitor
        self._services = ("", *services)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802, ANN401 - gRPC's names
        """The status now; NOT_FOUND for a service that is not served here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.service} is not served here")
        self._say_why(context)
        return health_pb2.HealthCheckResponse(status=self._status())

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802, ANN401, ARG002 - gRPC's names
        """The status of every service now."""
        self._say_why(context)
        response = health_pb2.HealthCheckResponse(status=self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._services, response))

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: N802, ANN401 - gRPC's names
        """The status now and whenever it changes; SERVICE_UNKNOWN for a service that is not served here.

        Ends with UNAVAILABLE, after NOT_SERVING, when the process stops: a watcher that waited would hold it up.
        """
        known = request.service in self._services
        told = None
        while True:
            change = self._monitor.change
            status = self._status() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._monitor.is_stopping:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
            await change.wait()

    def _status(self) -> Any:  # noqa: ANN401 - an untyped enumeration
        serving = self._monitor.is_serving
        response = health_pb2.HealthCheckResponse
        return response.SERVING if serving else response.NOT_SERVING

    def _say_why(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if reason := self._monitor.reason:
            context.set_trailing_metadata(((REASON_METADATA, quote(reason[:_REASON_CHARACTERS], safe=_REASON_PLAIN)),))
