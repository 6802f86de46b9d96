"""The sample services and the correlator as processes of their own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from farandole.testing.brokers import free_port

ROOT = Path(__file__).parents[2]
ORDER_SERVICES = ("orders", "inventory", "payments", "shipping")
PARCEL_SERVICES = ("parcels", "packaging", "drones", "delivery")
SAMPLES = (*ORDER_SERVICES, *PARCEL_SERVICES)
CORRELATOR = "correlator"
PATIENCE_SECONDS = 30.0


@dataclass
class Services:
    """Services as processes; each can be killed and started again on its own database and port."""

    directory: Path
    nats_url: str
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (*SAMPLES, CORRELATOR)})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def address(self, service: str) -> str:
        """HOST:PORT where a service answers."""
        return f"127.0.0.1:{self.ports[service]}"

    def start(self, *services: str) -> None:
        """Starts services, and waits until each of them serves."""
        for service in services:
            self._start(service)
        for service in services:
            self._wait_until_serving(service)

    def _start(self, service: str) -> None:
        environment = os.environ | {
            "FARANDOLE_NATS_URL": self.nats_url,
            "FARANDOLE_DATABASE_URL": f"sqlite:///{self.directory / service}.db",
            "FARANDOLE_GRPC_ADDRESS": self.address(service),
        }
        with (self.directory / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                [sys.executable, "-m", f"services.{service}"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def kill(self, service: str) -> None:
        """Ends a service at once, as a crash would."""
        process = self.processes.pop(service)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _wait_until_serving(self, service: str) -> None:
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address(service), options=options) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS, wait_for_ready=True
            )
            for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return

    def stop(self) -> None:
        """Ends all that run, in order."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            assert process.wait(timeout=PATIENCE_SECONDS) == 0, "an orderly stop"
