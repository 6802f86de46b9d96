"""The services' databases during a run, and as files for the checker afterwards, whichever database that is."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import sql

from tests.chaos.checker.choreographies import PARTICIPANTS, SERVICES
from tests.chaos.checker.effects import postgres_statements, statements
from tests.chaos.checker.evidence import REBUILT, database_file

_ANSWER_SECONDS = 5
_ROWS_AT_ONCE = 1000


class DatabaseError(Exception):
    """Raised where a database does not answer."""


class Databases(Protocol):
    """The databases of all services."""

    def placing(self, service: str) -> dict[str, str]:
        """The variables that say where a service has its data; none where the stack itself says so."""
        ...

    def one(self, service: str, statement: str) -> tuple[Any, ...]:
        """The one row that a question is answered by. Raises `DatabaseError`."""
        ...

    def count_effects(self) -> None:
        """Has every participant's database count its effects from now on."""
        ...

    def gather(self, directory: Path) -> None:
        """Makes files of them in a directory, while the stack runs, where they are none."""
        ...

    def files(self, gathered: Path) -> Path:
        """Where they are as files, for the checker; `gathered` is the directory that `gather` was given."""
        ...

    def keep(self, directory: Path) -> None:
        """Copies them off the disks in memory, which go when the run ends."""
        ...


class SqliteDatabases:
    """A file for each service, on a disk of its own."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def placing(self, service: str) -> dict[str, str]:
        """See `Databases.placing`."""
        return {"FARANDOLE_DATABASE_URL": f"sqlite:///{database_file(self._data, service)}"}

    def one(self, service: str, statement: str) -> tuple[Any, ...]:
        """See `Databases.one`."""
        path = database_file(self._data, service)
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_ANSWER_SECONDS)) as connection:
                row: tuple[Any, ...] = connection.execute(statement).fetchone()
                return row
        except sqlite3.Error as error:
            raise DatabaseError(repr(error)) from error

    def count_effects(self) -> None:
        """See `Databases.count_effects`."""
        for name in PARTICIPANTS:
            with closing(sqlite3.connect(database_file(self._data, name), timeout=30)) as connection, connection:
                for statement in statements(name):
                    connection.execute(statement)

    def gather(self, directory: Path) -> None:
        """See `Databases.gather`: they are files already."""

    def files(self, gathered: Path) -> Path:
        """See `Databases.files`."""
        del gathered
        return self._data

    def keep(self, directory: Path) -> None:
        """See `Databases.keep`."""
        for service in (*SERVICES, REBUILT):
            if database_file(self._data, service).exists():
                shutil.copytree(self._data / service, directory / service, dirs_exist_ok=True)


class PostgresDatabases:
    """One server, on a disk of its own, with a database for each service."""

    def __init__(self, data: Path, port: int) -> None:
        self._data = data
        self._port = port

    def placing(self, service: str) -> dict[str, str]:
        """See `Databases.placing`."""
        del service
        return {}

    def one(self, service: str, statement: str) -> tuple[Any, ...]:
        """See `Databases.one`."""
        with self._connection(service) as connection:
            row = connection.execute(statement.encode()).fetchone()
            assert row is not None, "it asks for one row"
            return row

    def count_effects(self) -> None:
        """See `Databases.count_effects`."""
        for name in PARTICIPANTS:
            with self._connection(name) as connection:
                for statement in postgres_statements(name):
                    connection.execute(statement.encode())

    def gather(self, directory: Path) -> None:
        """See `Databases.gather`: every table, as it is, in a file of SQLite."""
        for name in SERVICES:
            path = database_file(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection(name) as connection:
                copy(connection, path)
        shutil.copytree(self._data / REBUILT, directory / REBUILT, dirs_exist_ok=True)

    def files(self, gathered: Path) -> Path:
        """See `Databases.files`."""
        return gathered

    def keep(self, directory: Path) -> None:
        """See `Databases.keep`: what was gathered is there."""

    @contextmanager
    def _connection(self, service: str) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=self._port,
                user=service,
                dbname=service,
                passfile=str(self._data / "postgres" / "passwords"),
                connect_timeout=_ANSWER_SECONDS,
                options="-c statement_timeout=30000",
            ) as connection:
                yield connection
        except psycopg.Error as error:
            raise DatabaseError(repr(error)) from error


def copy(source: psycopg.Connection, path: Path) -> None:
    """Writes every table of a database of PostgreSQL into a new file of SQLite, each value as SQLite would have it."""
    names = source.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename").fetchall()
    with closing(sqlite3.connect(path)) as file, file:
        for (name,) in names:
            with source.cursor() as rows:
                rows.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name)))
                assert rows.description is not None, "a table has columns"
                columns = ", ".join(f'"{column.name}"' for column in rows.description)
                file.execute(f'CREATE TABLE "{name}" ({columns})')
                marks = ", ".join("?" * len(rows.description))
                while page := rows.fetchmany(_ROWS_AT_ONCE):
                    values = [tuple(map(_as_in_sqlite, row)) for row in page]
                    file.executemany(f'INSERT INTO "{name}" VALUES ({marks})', values)


def _as_in_sqlite(value: object) -> object:
    """A value as the same table has it in SQLite."""
    match value:
        case bool():
            return int(value)
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M:%S.%f")
        case _:
            return value
