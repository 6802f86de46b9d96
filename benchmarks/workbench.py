"""What benchmarks have in common: directories, databases that sync what they commit, and a word on what is done."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from rich.console import Console
from rich.status import Status

from farandole.stack.embedded_postgres import ADMINISTRATOR, STOP_SIGNAL, PostgresCluster
from farandole.stack.ports import LOOPBACK
from farandole.testing.brokers import free_port

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class NewDatabase:
    """An empty database, and what a process needs to get in."""

    kind: str
    """`SQLite` or `PostgreSQL`."""
    url: str


@dataclass
class Workbench:
    """Where benchmarks run, one after the other."""

    quick: bool
    """Whether small sizes do: they show that a benchmark works, and no figures."""
    directory: Path
    console: Console
    status: Status
    running: ExitStack
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _postgres: PostgresCluster | None = None

    def say(self, what: str) -> None:
        """Shows what is done now; where nobody looks on, as a line."""
        if self.console.is_terminal:
            self.status.update(what)
        else:
            self.console.print(what)

    def place(self, name: str) -> Path:
        """A new directory."""
        made = self.directory / f"{name}-{next(self._numbers)}"
        made.mkdir()
        return made

    def databases(self) -> Iterator[NewDatabase]:
        """An empty database of each kind."""
        yield self.sqlite()
        yield self.postgresql()

    def sqlite(self) -> NewDatabase:
        """An empty database in a file."""
        return NewDatabase("SQLite", f"sqlite:///{self.place('sqlite')}/bench.db")

    def postgresql(self) -> NewDatabase:
        """An empty database of a server that all benchmarks share."""
        if self._postgres is None:
            self.say("starting PostgreSQL")
            self._postgres = self.running.enter_context(_postgres())
        name = f"bench-{next(self._numbers)}"
        self._postgres.make_databases([name])
        return NewDatabase("PostgreSQL", self._postgres.url(name))

    def settle(self, database: NewDatabase) -> None:
        """Has a server write out what it was given, which it would do in the middle of a measurement."""
        if self._postgres is not None and database.kind == "PostgreSQL":
            with psycopg.connect(
                host=LOOPBACK,
                port=self._postgres.port,
                dbname="postgres",
                user=ADMINISTRATOR,
                password=self._postgres.password(ADMINISTRATOR),
                autocommit=True,
            ) as connection:
                connection.execute("CHECKPOINT")


@contextmanager
def workbench(*, quick: bool, console: Console) -> Iterator[Workbench]:
    """A workbench, until the block ends: then all that it started has ended."""
    with (
        tempfile.TemporaryDirectory(prefix="farandole-bench-") as directory,
        console.status("") as status,
        ExitStack() as running,
    ):
        yield Workbench(quick, Path(directory), console, status, running)


@contextmanager
def _postgres() -> Iterator[PostgresCluster]:
    """A server with its own settings, which syncs each commit; libpq finds the passwords by `PGPASSFILE`."""
    # not in a directory that is closed to the user as whom the server runs where root starts it
    with tempfile.TemporaryDirectory(prefix="farandole-bench-postgres-") as place:
        Path(place).chmod(0o711)
        cluster = PostgresCluster.of(Path(place) / "cluster", port=free_port(), environment=os.environ)
        cluster.prepare()
        with (Path(place) / "postgres.log").open("wb") as log:
            process = subprocess.Popen(cluster.command, stdout=log, stderr=log)
        try:
            cluster.make_databases([])
            os.environ["PGPASSFILE"] = str(cluster.passwords)
            yield cluster
        finally:
            process.send_signal(STOP_SIGNAL)
            process.wait()
