"""A process's database: one writer thread, several readers, whole transactions.

SQLite here: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE` for writes. Work is a plain function of a SQLAlchemy
connection, so it can't await anything while it holds the transaction. Errors of the driver come out as `StoreError`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from farandole.errors import StoreError, StoreUnavailableError

T = TypeVar("T")

_READERS = 4
_BUSY_TIMEOUT_SECONDS = 5.0
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "cache_size=-65536",
    "temp_store=MEMORY",
    "secure_delete=ON",  # an outbox row holds what must not be shown until it is published; then its bytes go too
)


class Database:
    """Runs transactions. Writes are serialized in one thread; reads see committed data and never wait for writes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._writer = _engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
        self._reader = _engine(url, begin="BEGIN", pool_size=_READERS)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    async def create(self, *metadata: sa.MetaData, if_earlier: str) -> None:
        """Makes the tables that do not exist yet, and the directory of the database file.

        Raises `StoreError`, with nothing made, where an earlier version made a table, which lacks a column now;
        `if_earlier` is what to do about that then. `{database}` in it stands for the file.
        """
        path = self._writer.url.database
        if path and path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)

        def create_all(connection: sa.Connection) -> None:
            if lacking := list(_lacking_columns(connection, metadata)):
                raise StoreError(
                    f"the database {path} was made by an earlier version: it lacks {', '.join(lacking)}; "
                    + if_earlier.format(database=path)
                )
            for tables in metadata:
                tables.create_all(connection)

        await self.write(create_all)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one write transaction; commits where it returns, rolls back where it raises.

        Raises `StoreUnavailableError` where the database is locked, read-only, full or gone. Once begun it runs to
        its end, also where the waiting task is cancelled.
        """
        return await self._run(self._write_thread, self._writer, work)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one read transaction: a consistent view of what was committed."""
        return await self._run(self._read_threads, self._reader, work)

    async def check(self) -> None:
        """Raises `StoreUnavailableError` where the database can't be written."""
        await self.write(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())

    async def close(self) -> None:
        """Waits for what runs, and closes every connection."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self._writer.dispose()
        self._reader.dispose()

    async def _run(self, threads: ThreadPoolExecutor, engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, _transact, engine, work)


_TROUBLES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    }
)
_PRIMARY_CODE = 0xFF


def is_store_trouble(error: BaseException) -> bool:
    """Whether an error says that the database can't be used now, and not that a statement is wrong.

    An error that came while another was dealt with counts by that one too: a full disk makes SQLite roll the whole
    transaction back, after which there is no savepoint to go back to.
    """
    if isinstance(error, StoreUnavailableError):
        return True
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE in _TROUBLES:
        return True
    return any(is_store_trouble(earlier) for earlier in (error.__cause__, error.__context__) if earlier is not None)


def _lacking_columns(connection: sa.Connection, metadata: Iterable[sa.MetaData]) -> Iterator[str]:
    """What the tables that exist lack, as `table.column`."""
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names())
    for tables in metadata:
        for table in tables.sorted_tables:
            if table.name in existing:
                known = {column["name"] for column in inspector.get_columns(table.name)}
                yield from (f"{table.name}.{column.name}" for column in table.columns if column.name not in known)


def _transact(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except DatabaseError as error:
        if is_store_trouble(error):
            raise StoreUnavailableError(f"the database {engine.url.database} can't be used: {error.orig}") from error
        raise StoreError(f"the database {engine.url.database} refused: {error.orig}") from error


def _engine(url: str, *, begin: str, pool_size: int) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        hide_parameters=True,  # an error's text goes into logs; what a statement was given may be a secret
        max_overflow=0,
        connect_args={"timeout": _BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection
        connection.isolation_level = None  # the driver opens no transactions of its own; `_begun` does
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
