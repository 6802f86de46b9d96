"""A service as small as a service can be: it answers `grpc.health.v1`, and does as its environment says.

FARANDOLE_TEST_FAILS         it ends at once, with this as its last word
FARANDOLE_TEST_UNWELL        NOT_SERVING, with this reason
FARANDOLE_TEST_DEAF          SIGTERM does nothing
FARANDOLE_TEST_SHOWS         the names of variables that it writes into its log, with what they are
FARANDOLE_TEST_LAST_WORDS    a file to which it adds a line as it ends: its name, and whether the broker still listens
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # has no types
    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        unwell = os.environ.get("FARANDOLE_TEST_UNWELL")
        if unwell:
            context.set_trailing_metadata((("farandole-health-reason", unwell),))
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def broker_listens() -> bool:
    host, port = os.environ["FARANDOLE_NATS_URL"].removeprefix("nats://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def main(name: str) -> None:
    if fails := os.environ.get("FARANDOLE_TEST_FAILS"):
        sys.exit(fails)
    ending = threading.Event()

    def end(*_: object) -> None:
        if not os.environ.get("FARANDOLE_TEST_DEAF"):
            ending.set()

    signal.signal(signal.SIGTERM, end)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    server.add_insecure_port(os.environ["FARANDOLE_GRPC_ADDRESS"])
    server.start()
    sys.stdout.write(f"{name} serves, its database is {os.environ['FARANDOLE_DATABASE_URL']}\n")
    shown = os.environ.get("FARANDOLE_TEST_SHOWS", "").split()
    sys.stdout.write(" ".join(f"{variable}={os.environ.get(variable, '')}" for variable in shown) + "\n" * bool(shown))
    sys.stdout.flush()
    ending.wait()
    if last_words := os.environ.get("FARANDOLE_TEST_LAST_WORDS"):
        with Path(last_words).open("a", encoding="utf-8") as file:
            file.write(f"{name} broker={broker_listens()}\n")
    server.stop(None).wait()


if __name__ == "__main__":
    main(sys.argv[1])
