"""A process's database: one writer thread, several readers, whole transactions.

SQLite here: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE` for writes. Work is a plain function of a SQLAlchemy
connection, so it can't await anything while it holds the transaction. Errors of the driver come out as `StoreError`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_PROVEN_SECONDS = 5.0
"""For how long a write proves that the database can be written. After that `check` writes: a read proves nothing."""
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
        self._proven_until = 0.0
        """Until when a write that succeeded counts, by the monotonic clock."""

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

        Raises `StoreUnavailableError` where the database is locked, read-only, full, damaged or gone. Once begun it
        runs to its end, also where the waiting task is cancelled.
        """
        try:
            result = await self._run(self._write_thread, self._writer, work)
        except StoreUnavailableError:
            self._proven_until = 0.0
            raise
        self._proven_until = time.monotonic() + _PROVEN_SECONDS
        return result

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one read transaction: a consistent view of what was committed."""
        return await self._run(self._read_threads, self._reader, work)

    async def check(self) -> None:
        """Raises `StoreUnavailableError` where the database can't be written.

        Writes a row where nothing was written lately, or the last write failed: a full disk lets one read, and begin.
        """
        if time.monotonic() < self._proven_until:
            # the writer's turn comes, and the lock can be had; that the disk takes a write is known
            await self._run(self._write_thread, self._writer, _take_the_lock)
        else:
            await self.write(_write_a_row)

    async def close(self) -> None:
        """Waits for what runs, and closes every connection."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self._writer.dispose()
        self._reader.dispose()

    async def _run(self, threads: ThreadPoolExecutor, engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, transact, engine, work)


_TROUBLES: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another process holds its lock",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
    sqlite3.SQLITE_IOERR: "look after its disk",
    sqlite3.SQLITE_CORRUPT: "stop this service, restore the file from a backup, start it again",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_CANTOPEN: "its directory has to exist and to be writable",
    sqlite3.SQLITE_NOTADB: "stop this service, restore the file from a backup, start it again",
}
"""The errors that say that a database can't be used now, and what helps."""
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})
"""Those that an open connection gets over."""
_PRIMARY_CODE = 0xFF


def is_store_trouble(error: BaseException) -> bool:
    """Whether an error says that the database can't be used now, and not that a statement is wrong.

    An error that came while another was dealt with counts by that one too: a full disk makes SQLite roll the whole
    transaction back, after which there is no savepoint to go back to.
    """
    return isinstance(error, StoreUnavailableError) or _trouble_code(error) is not None


def _trouble_code(error: BaseException) -> int | None:
    """SQLite's code of the trouble that an error, or one that it came with, tells of; None where none does."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
        if code in _TROUBLES:
            return code
    earlier = (_trouble_code(one) for one in (error.__cause__, error.__context__) if one is not None)
    return next((code for code in earlier if code is not None), None)


def _lacking_columns(connection: sa.Connection, metadata: Iterable[sa.MetaData]) -> Iterator[str]:
    """What the tables that exist lack, as `table.column`."""
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names())
    for tables in metadata:
        for table in tables.sorted_tables:
            if table.name in existing:
                known = {column["name"] for column in inspector.get_columns(table.name)}
                yield from (f"{table.name}.{column.name}" for column in table.columns if column.name not in known)


def transact(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    """Runs `work` in one transaction, in this thread; for the errors see `Database.write`."""
    try:
        with engine.connect() as connection:
            _refuse_replaced(connection)
            try:
                with connection.begin():
                    return work(connection)
            except Exception as error:
                code = _trouble_code(error)
                if code is not None and code not in _PASSING:
                    # SQLite may have opened it read-only, or without its log: the next transaction opens it anew
                    connection.invalidate()
                raise
    except DatabaseError as error:
        code = _trouble_code(error)
        if code is not None:
            raise StoreUnavailableError(
                f"the database {engine.url.database} can't be used: {error.orig}; {_TROUBLES[code]}"
            ) from error
        raise StoreError(f"the database {engine.url.database} refused: {error.orig}") from error


def _refuse_replaced(connection: sa.Connection) -> None:
    """Raises `StoreUnavailableError` where the file that is open has another file in its place, or none.

    What went into it would be lost with this process.
    """
    path = connection.engine.url.database
    opened = connection.info.get(_FILE)
    if opened is not None and opened != _file(path):
        raise StoreUnavailableError(
            f"the database {path} was removed or replaced while it was in use; with the right file in place, restart "
            "this service"
        )


_FILE = "farandole.file"


def _file(path: str | None) -> tuple[int, int] | None:
    """Which file stands under a path; None for none, and for a database in memory."""
    try:
        status = Path(path or "").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _take_the_lock(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT 1")


def _write_a_row(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS farandole_check (id INTEGER PRIMARY KEY, writes INTEGER NOT NULL)"
    )
    connection.exec_driver_sql(
        "INSERT INTO farandole_check VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET writes = writes + 1"
    )


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
    def _connected(connection: Any, record: Any) -> None:  # noqa: ANN401 - a DB-API connection, and the pool's record
        connection.isolation_level = None  # the driver opens no transactions of its own; `_begun` does
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        record.info[_FILE] = _file(engine.url.database)

    @event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
