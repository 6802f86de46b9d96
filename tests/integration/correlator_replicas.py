"""Several replicas of the correlator as processes, on one database, that a test may treat badly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from farandole.testing.brokers import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


@dataclass
class Replicas:
    """Replicas of the correlator, by name. What they log is in `<name>.log`."""

    directory: Path
    nats_url: str
    database_url: str
    sagas: Path
    lanes: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, **environment: str) -> None:
        """Starts a replica, or starts it again, and does not wait."""
        port = self.ports.setdefault(name, free_port())
        told = {
            "FARANDOLE_NATS_URL": self.nats_url,
            "FARANDOLE_DATABASE_URL": self.database_url,
            "FARANDOLE_GRPC_ADDRESS": f"127.0.0.1:{port}",
            "FARANDOLE_SAGAS": str(self.sagas),
            "FARANDOLE_LANES": str(self.lanes),
            "FARANDOLE_REPLICA": name,
            **environment,
        }
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "services.correlator"], cwd=ROOT, env=os.environ | told, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """Ends a replica at once, as a crash would."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def suspend(self, name: str) -> None:
        """Stops a replica's work without ending it."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Lets a replica go on after `suspend`."""
        self.processes[name].send_signal(signal.SIGCONT)

    def stop(self, name: str) -> None:
        """Ends a replica in order."""
        process = self.processes.pop(name)
        process.terminate()
        assert process.wait(timeout=PATIENCE_SECONDS) == 0, "an orderly stop"

    def address(self, name: str) -> str:
        """HOST:PORT where a replica answers."""
        return f"127.0.0.1:{self.ports[name]}"

    def holders(self) -> Mapping[int, str]:
        """Which replica holds each lane that is held."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return dict(connection.execute("SELECT lane, holder FROM farandole_lease").fetchall())

    async def until_shared_by(self, *names: str) -> None:
        """Waits until these replicas, and no others, hold all lanes, none more than one above another."""
        least, odd = divmod(self.lanes, len(names))
        wanted = {least, least + 1} if odd else {least}

        def is_shared() -> bool:
            shares = Counter(self.holders().values())
            return shares.keys() == set(names) and shares.total() == self.lanes and set(shares.values()) <= wanted

        await until(is_shared)


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds of what other processes have written."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(psycopg.errors.UndefinedTable):  # the first replica has yet to make the tables
                if await asyncio.to_thread(holds):
                    return
            await asyncio.sleep(0.05)


@contextmanager
def replicas_on(directory: Path, nats_url: str, database_url: str, *, sagas: Path, lanes: int) -> Iterator[Replicas]:
    """No replica yet; those that the test leaves are killed."""
    replicas = Replicas(directory, nats_url, database_url, sagas, lanes)
    try:
        yield replicas
    finally:
        for name in list(replicas.processes):
            replicas.kill(name)
