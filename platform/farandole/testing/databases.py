"""Real PostgreSQL servers for tests: a child process, or a container where a Docker engine answers."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
import psycopg
from psycopg import sql

from farandole.stack.embedded_postgres import ADMINISTRATOR, PostgresCluster
from farandole.testing.brokers import free_port

_START_SECONDS = 60.0
_RETRY_SECONDS = 0.05
_HOST = "127.0.0.1"


class DatabaseUnderTest(Protocol):
    """A PostgreSQL server that a test may treat badly. Its data stays over `kill` and `start`."""

    @property
    def administrator_url(self) -> str:
        """Where somebody gets in who may do everything; libpq takes it as it is."""
        ...

    def new_database(self) -> str:
        """`postgresql://USER:PASSWORD@127.0.0.1:PORT/NAME` of an empty database that belongs to this user.

        The same after a restart.
        """
        ...

    def start(self) -> None:
        """Starts it, or starts it again; returns once it takes connections."""
        ...

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        ...

    def suspend(self) -> None:
        """Stops its work without ending it: connections stay and nothing answers."""
        ...

    def resume(self) -> None:
        """Lets it go on after `suspend`."""
        ...

    def stop(self) -> None:
        """Ends it for good, and removes its data."""
        ...


class EmbeddedPostgres:
    """PostgreSQL as a child process on a free loopback port."""

    def __init__(self) -> None:
        # not under a test's own directory: that is closed to the user as whom the server runs where root starts it
        self._directory = Path(tempfile.mkdtemp(prefix="farandole-postgres-"))
        self._directory.chmod(0o711)
        self._cluster = PostgresCluster.of(self._directory / "cluster", port=free_port(), environment=os.environ)
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def administrator_url(self) -> str:
        """See `DatabaseUnderTest.administrator_url`."""
        return _url(self._cluster.port, ADMINISTRATOR, self._cluster.password(ADMINISTRATOR), "postgres")

    def new_database(self) -> str:
        """See `DatabaseUnderTest.new_database`."""
        name = f"test-{next(self._numbers)}"
        self._cluster.make_databases([name])
        return _url(self._cluster.port, name, self._cluster.password(name), name)

    def start(self) -> None:
        """See `DatabaseUnderTest.start`."""
        self._cluster.prepare()
        with (self._directory / "postgres.log").open("ab") as log:
            # -F: no test takes the machine's power away, and what is written outlives the server without a sync
            self._process = subprocess.Popen([*self._cluster.command, "-F"], stdout=log, stderr=log)  # noqa: S603
        self._cluster.make_databases([], within_seconds=_START_SECONDS)

    def kill(self) -> None:
        """See `DatabaseUnderTest.kill`."""
        self._each(psutil.Process.kill)
        self._wait()

    def suspend(self) -> None:
        """See `DatabaseUnderTest.suspend`."""
        self._each(psutil.Process.suspend)

    def resume(self) -> None:
        """See `DatabaseUnderTest.resume`."""
        self._each(psutil.Process.resume)

    def stop(self) -> None:
        """See `DatabaseUnderTest.stop`."""
        if self._process is not None and self._process.poll() is None:
            self.kill()  # its data goes too
        shutil.rmtree(self._directory)

    def _each(self, act: Callable[[psutil.Process], None]) -> None:
        """Acts on the server, then on its children; passes over those that end meanwhile."""
        assert self._process is not None, "start() comes first"
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                act(process)

    def _wait(self) -> None:
        assert self._process is not None, "start() comes first"
        self._process.wait(_START_SECONDS)


class ContainerPostgres:
    """PostgreSQL in a container, for where a Docker engine answers (`pytest --database=container`)."""

    IMAGE = "postgres:18.6"

    def __init__(self) -> None:
        from testcontainers.core.container import DockerContainer

        self._port = free_port()
        self._password = secrets.token_urlsafe(32)
        self._numbers = itertools.count(1)
        self._container = (
            DockerContainer(self.IMAGE)
            .with_bind_ports(5432, (_HOST, self._port))  # type: ignore[arg-type]  # the engine takes (host, port)
            .with_env("POSTGRES_USER", ADMINISTRATOR)
            .with_env("POSTGRES_PASSWORD", self._password)
        )
        self._created = False

    @property
    def administrator_url(self) -> str:
        """See `DatabaseUnderTest.administrator_url`."""
        return _url(self._port, ADMINISTRATOR, self._password, "postgres")

    def new_database(self) -> str:
        """See `DatabaseUnderTest.new_database`."""
        name, password = f"test-{next(self._numbers)}", secrets.token_urlsafe(32)
        role = sql.Identifier(name)
        with psycopg.connect(self.administrator_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        return _url(self._port, name, password, name)

    def start(self) -> None:
        """See `DatabaseUnderTest.start`."""
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.administrator_url).close()
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def kill(self) -> None:
        """See `DatabaseUnderTest.kill`."""
        self._container.get_wrapped_container().kill()

    def suspend(self) -> None:
        """See `DatabaseUnderTest.suspend`."""
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        """See `DatabaseUnderTest.resume`."""
        self._container.get_wrapped_container().unpause()

    def stop(self) -> None:
        """See `DatabaseUnderTest.stop`."""
        self._container.stop()


def make_empty(url: str) -> None:
    """Ends everybody else's connections to a database and removes all that is in it: much faster than a new one."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def _url(port: int, user: str, password: str, database: str) -> str:
    return f"postgresql://{user}:{password}@{_HOST}:{port}/{database}"
