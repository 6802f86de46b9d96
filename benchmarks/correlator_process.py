"""A correlator as a process of its own, over a broker and a database."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.workbench import ROOT
from farandole.testing.brokers import free_port

_START_SECONDS = 120.0


@dataclass(frozen=True)
class CorrelatorProcess:
    """One that runs."""

    address: str
    pid: int

    @property
    def resident_bytes(self) -> int:
        """How much memory it takes now."""
        return int(psutil.Process(self.pid).memory_info().rss)


@asynccontextmanager
async def correlating(
    directory: Path, *, nats_url: str, database_url: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[CorrelatorProcess]:
    """A correlator that serves, until the block ends. What it has to say stands in `correlator.log`."""
    address = f"127.0.0.1:{free_port()}"
    whole = {
        **os.environ,
        "FARANDOLE_NATS_URL": nats_url,
        "FARANDOLE_DATABASE_URL": database_url,
        "FARANDOLE_GRPC_ADDRESS": address,
        "FARANDOLE_LOG_LEVEL": "warning",
        **(environment or {}),
    }
    with (directory / "correlator.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "services.correlator"], cwd=ROOT, env=whole, stdout=log, stderr=log
        )
    try:
        await until_serving(address, process, directory / "correlator.log")
        yield CorrelatorProcess(address, process.pid)
    finally:
        process.kill()
        process.wait()


async def until_serving(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a service says that it serves. Raises `RuntimeError` with the end of its log where it does not."""
    until = time.monotonic() + _START_SECONDS
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{address} does not serve: {log.read_text()[-2000:]}")  # noqa: ASYNC240
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                answer = None
            if answer is not None and answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.05)
