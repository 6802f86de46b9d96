"""A gRPC server that is run the same way in every process: limits, health, reflection, errors, an orderly stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from farandole.errors import ConfigurationError, Fault
from farandole.rpc.errors import error_interceptor
from farandole.rpc.guarding import Guard, GuardInterceptor
from farandole.rpc.health import HealthMonitor, HealthServicer
from farandole.rpc.validation import validation_interceptor

S = TypeVar("S")

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_CONCURRENT_CALLS = 1000
"""Of all methods together, open streams included; beyond it a call gets RESOURCE_EXHAUSTED."""
STOP_GRACE_SECONDS = 3.0

_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # one process a port: with reuse, a second one would bind it too and take half of the calls
    ("grpc.so_reuseport", 0),
    # a client that is gone without a word is noticed within 40 s; one that asks more often than every 10 s is cut off
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[S]):
    """One service to serve.

    `Rpc(saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"], add_SagaServiceServicer_to_server, servicer)`
    """

    service: ServiceDescriptor
    add_to_server: Callable[[S, grpc.aio.Server], None]
    """The generated `add_…Servicer_to_server`."""
    servicer: S


class RpcServer:
    """A server that is bound to its address and answers."""

    def __init__(self, server: grpc.aio.Server, address: str, monitor: HealthMonitor) -> None:
        self._server = server
        self._monitor = monitor
        self.address = address
        """HOST:PORT with the real port, also where port 0 was asked for."""

    async def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Says NOT_SERVING, takes no new calls, waits so long for those that run, then cancels them."""
        self._monitor.stop()
        await self._server.stop(grace_seconds)
        _log.info("stopped serving", address=self.address)


async def start(
    address: str, rpcs: Iterable[Rpc[Any]], monitor: HealthMonitor, guard: Guard | None = None
) -> RpcServer:
    """Binds `address` (HOST:PORT) and serves `rpcs`, `grpc.health.v1.Health` over `monitor`, and reflection.

    Every call runs in the `guard`, where one is given, which sees the status with which it ends.

    Raises `ConfigurationError` that names the address where it can't be bound.
    """
    rpcs = tuple(rpcs)
    outermost = () if guard is None else (GuardInterceptor(guard),)
    server = grpc.aio.server(
        # the first is the outermost: what validation raises by mistake becomes a readable INTERNAL too
        interceptors=(*outermost, error_interceptor(), validation_interceptor()),
        options=_OPTIONS,
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
    )
    names = [rpc.service.full_name for rpc in rpcs]
    for rpc in rpcs:
        rpc.add_to_server(rpc.servicer, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(monitor, [*names, health_name]), server)
    reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], server, pool=_ReflectedPool())
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise _not_bound(address) from None
    await server.start()
    bound = f"{address.rpartition(':')[0]}:{port}"
    _log.info("serving", address=bound, services=names)
    return RpcServer(server, bound, monitor)


@asynccontextmanager
async def serve(
    address: str,
    rpcs: Iterable[Rpc[Any]],
    monitor: HealthMonitor,
    *,
    guard: Guard | None = None,
    grace_seconds: float = STOP_GRACE_SECONDS,
) -> AsyncIterator[RpcServer]:
    """`start` on entry, `stop` on exit."""
    server = await start(address, rpcs, monitor, guard)
    try:
        yield server
    finally:
        await server.stop(grace_seconds)


class _ReflectedPool:
    """The descriptor pool as reflection reads it. The pool itself finds no file by the name of a method, which is what
    `grpcurl describe package.Service.Method` asks for."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the pool has
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the pool's own name
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def _not_bound(address: str) -> ConfigurationError:
    reason = f"{address} can't be bound: its port is taken, or the host is not this machine; set another address"
    return ConfigurationError([Fault("FARANDOLE_GRPC_ADDRESS", reason)])
