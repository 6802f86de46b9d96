"""Asking services whether they serve, and why not."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg.pq import PGconn, Ping

from farandole.rpc.health import REASON_METADATA
from farandole.stack.plan import Kind

ANSWER_TIMEOUT_SECONDS = 2.0

_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0),)
"""Services are on this machine; a proxy that the environment names is not meant for them."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a service answered."""

    status: Literal["SERVING", "NOT_SERVING", "UNREACHABLE"]
    reason: str = ""
    """Why it does not serve."""

    @property
    def is_serving(self) -> bool:
        """Whether it does its work."""
        return self.status == "SERVING"


@dataclass(frozen=True, slots=True)
class Probe:
    """Where to ask, and how: gRPC health of a service, a broker's monitoring, or a question to a database."""

    address: str
    kind: Kind


def ask_all(probes: Sequence[Probe]) -> list[Health]:
    """Asks all at the same time; the answers are in the order of the probes."""
    if not probes:
        return []
    with ThreadPoolExecutor(max_workers=min(len(probes), 16), thread_name_prefix="health") as pool:
        return list(pool.map(ask, probes))


def ask(probe: Probe) -> Health:
    """Asks one service; never raises."""
    match probe.kind:
        case "broker":
            return _ask_broker(probe.address)
        case "database":
            return _ask_database(probe.address)
        case "service":
            return ask_service(probe.address)


def ask_service(address: str, timeout_seconds: float = ANSWER_TIMEOUT_SECONDS) -> Health:
    """`grpc.health.v1.Health/Check`, with the reason from the trailing metadata; never raises."""
    with grpc.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        try:
            response, call = health_pb2_grpc.HealthStub(channel).Check.with_call(
                health_pb2.HealthCheckRequest(), timeout=timeout_seconds
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return Health("UNREACHABLE", f"does not listen on {address} yet")
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return Health("UNREACHABLE", f"gave no answer within {timeout_seconds:g} s")
            return Health("UNREACHABLE", f"{error.code().name}: {error.details()}")
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return Health("SERVING")
    metadata = dict(call.trailing_metadata() or ())
    return Health("NOT_SERVING", unquote(str(metadata.get(REASON_METADATA, "it gives no reason"))))


def _ask_database(address: str) -> Health:
    """Whether PostgreSQL takes connections, which it says to anyone."""
    host, _, port = address.rpartition(":")
    match PGconn.ping(f"host={host} port={port} connect_timeout={ANSWER_TIMEOUT_SECONDS:.0f}".encode()):
        case Ping.OK:
            return Health("SERVING")
        case Ping.REJECT:
            return Health("NOT_SERVING", "it takes no connections: it starts, recovers or stops")
        case _:
            return Health("UNREACHABLE", f"no answer at {address}")


def _ask_broker(address: str) -> Health:
    """`/healthz` of nats-server, which also says no while JetStream recovers."""
    connection = http.client.HTTPConnection(address, timeout=ANSWER_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return Health("UNREACHABLE", f"no answer at http://{address}/healthz: {error}")
    finally:
        connection.close()
    if response.status == http.client.OK:
        return Health("SERVING")
    try:
        reason = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        reason = f"HTTP {response.status}"
    return Health("NOT_SERVING", reason)
