"""Whole transactions of plain functions: one writer thread, several readers.

Work is a plain function of a SQLAlchemy connection, so it can't await anything while it holds the transaction. Errors
of the driver come out as `StoreError`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from farandole.database.columns import lacking_columns
from farandole.database.dialect import ALONE, Dialect, Trouble
from farandole.database.postgresql import Postgresql
from farandole.database.sqlite import Sqlite
from farandole.errors import StoreError, StoreUnavailableError

T = TypeVar("T")

_DIALECTS: Mapping[str, Dialect] = {"sqlite": Sqlite(), "postgresql": Postgresql()}

_READERS = 4
_PROVEN_SECONDS = 5.0
"""For how long a write proves that the database can be written. After that `check` writes: a read proves nothing."""
_TRIES = 5
"""Of a transaction that others get in the way of. The second gets through, unless other programs write there too."""


class Database:
    """Runs transactions. Writes are serialized in one thread; reads see committed data and never wait for writes."""

    def __init__(self, url: str, *, application_name: str = "farandole") -> None:
        """`url` as in `Settings.database_url`. `application_name` is who this is to a server: service and replica."""
        parsed = sa.make_url(url)
        self._dialect = _DIALECTS[parsed.get_backend_name()]
        self._writer = self._dialect.engine(parsed, writes=True, pool_size=1, application_name=application_name)
        self._reader = self._dialect.engine(parsed, writes=False, pool_size=_READERS, application_name=application_name)
        self._beside = self._dialect.engine_beside(parsed, application_name=application_name) or self._writer
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._beside_thread = self._write_thread
        if self._beside is not self._writer:
            self._beside_thread = ThreadPoolExecutor(1, thread_name_prefix="database-beside")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")
        self._proven_until = 0.0
        """Until when a write that succeeded counts, by the monotonic clock."""

    @property
    def name(self) -> str:
        """How it is called in messages: the path of a file, or a URL without a password."""
        return self._dialect.name(self._writer.url)

    async def create(self, *metadata: sa.MetaData, if_earlier: str) -> None:
        """Makes the tables that do not exist yet: a service's own, which the service brings up to date itself.

        Raises `StoreError`, with nothing made, where an earlier version made a table, which lacks a column now;
        `if_earlier` is what to do about that then.
        """

        def create_all(connection: sa.Connection) -> None:
            tables = (table for one in metadata for table in one.sorted_tables)
            if lacking := ", ".join(lacking_columns(connection, tables)):
                raise StoreError(
                    f"the database {self.name} was made by an earlier version: it lacks {lacking}; {if_earlier}"
                )
            for one in metadata:
                one.create_all(connection)

        await self.write_alone(create_all)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one write transaction; commits where it returns, rolls back where it raises.

        It comes out as if no other transaction had run at the same time. Where another one got in the way, all of
        `work` runs again: it changes nothing but the database, and builds what it returns from nothing.

        Raises `StoreUnavailableError` where the database is locked, read-only, full, damaged, gone or out of reach.
        Once begun it runs to its end, also where the waiting task is cancelled.
        """
        return await self._write(transact, work)

    async def write_alone(self, work: Callable[[sa.Connection], T]) -> T:
        """Like `write`, with no other process's write transaction beside it: for what changes tables.

        Makes the directory of a database file too.
        """
        self._dialect.make_place(self._writer.url)
        return await self._write(partial(transact, alone=True), work)

    async def write_beside(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one short write transaction that other transactions do not hold up, where that can be.

        Only these come one after the other: it keeps to tables that no other kind of transaction writes to. Otherwise
        like `write`.
        """
        if self._beside is self._writer:
            return await self.write(work)
        return await asyncio.get_running_loop().run_in_executor(self._beside_thread, transact, self._beside, work)

    async def _write(
        self, run: Callable[[sa.Engine, Callable[[sa.Connection], T]], T], work: Callable[[sa.Connection], T]
    ) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._write_thread, run, self._writer, work)
        except StoreUnavailableError:
            self._proven_until = 0.0
            raise
        self._proven_until = time.monotonic() + _PROVEN_SECONDS
        return result

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one read transaction: a consistent view of what was committed."""
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, transact, self._reader, work)

    async def check(self) -> None:
        """Raises `StoreUnavailableError` where the database can't be written.

        Writes a row where nothing was written lately, or the last write failed: a full disk lets one read, and begin.
        """
        if time.monotonic() < self._proven_until:
            # the writer's turn comes, and the lock can be had; that the disk takes a write is known
            await asyncio.get_running_loop().run_in_executor(self._write_thread, transact, self._writer, _take_the_lock)
        else:
            await self.write(_write_a_row)

    async def close(self) -> None:
        """Waits for what runs, and closes every connection."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._beside_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self._writer.dispose()
        self._beside.dispose()
        self._reader.dispose()


def transact(engine: sa.Engine, work: Callable[[sa.Connection], T], *, alone: bool = False) -> T:
    """Runs `work` in one transaction of an engine, in this thread; see `Database.write` and `write_alone`."""
    dialect = _DIALECTS[engine.dialect.name]
    has_connected_again = False
    tries = 0
    while True:
        began = False

        def begun(connection: sa.Connection) -> T:
            nonlocal began
            began = True
            return work(connection)

        try:
            return _once(engine, dialect, begun, alone=alone or tries > 0)
        except Exception as error:
            if not began and _lost_connection(error) and not has_connected_again:
                has_connected_again = True  # the server has gone and come back since the connection was used last
                continue
            trouble = _trouble(error)
            if trouble is not None and trouble.may_rerun and (tries := tries + 1) < _TRIES:
                continue
            if isinstance(error, StoreError):
                raise
            name = dialect.name(engine.url)
            if trouble is not None:
                said = dialect.said_by(_told_by(error))
                raise StoreUnavailableError(f"the database {name} can't be used: {said}; {trouble.remedy}") from error
            if isinstance(error, DBAPIError):
                raise StoreError(f"the database {name} refused: {dialect.said_by(_told_by(error))}") from error
            raise


def _once(engine: sa.Engine, dialect: Dialect, work: Callable[[sa.Connection], T], *, alone: bool) -> T:
    """One try. What the driver raises comes out as it is."""
    with engine.connect() as connection:
        dialect.refuse_replaced(connection)
        try:
            with connection.execution_options(**{ALONE: alone}).begin():
                try:
                    result = work(connection)
                except Exception:
                    _refuse_doomed(connection, dialect)
                    raise
                _refuse_doomed(connection, dialect)
                refuse_aborted(connection)
                return result
        except Exception as error:
            trouble = _trouble(error)
            if trouble is not None and not trouble.is_passing and not trouble.may_rerun:
                connection.invalidate()  # the next transaction opens it anew
            raise


class _DoomedError(Exception):
    """The transaction has to run again, whatever its work made of that."""


def _refuse_doomed(connection: sa.Connection, dialect: Dialect) -> None:
    doomed_by = None if connection.invalidated else dialect.doomed_by(connection)
    if doomed_by is not None:
        raise _DoomedError from doomed_by


def is_store_trouble(error: BaseException) -> bool:
    """Whether an error says that the database can't be used now, and not that a statement is wrong.

    An error that came while another was dealt with counts by that one too: a full disk makes SQLite roll the whole
    transaction back, after which there is no savepoint to go back to.
    """
    return isinstance(error, StoreUnavailableError) or _trouble(error) is not None


def refuse_aborted(connection: sa.Connection) -> None:
    """Raises `StoreError` where a statement of the transaction has failed, which was passed over, and nothing can come
    of the transaction any more; `StoreUnavailableError` where the connection is gone."""
    if connection.invalidated:
        raise StoreUnavailableError("the connection to the database was lost in the middle of a transaction")
    if _DIALECTS[connection.dialect.name].is_aborted(connection):
        raise StoreError(
            "a statement has failed, which ends a transaction in PostgreSQL: what may fail and be passed over takes a "
            "savepoint (`with tx.connection.begin_nested():`)"
        )


def end_sessions(connection: sa.Connection, run: str) -> None:
    """Ends what a process still does in the database that lives no more, or was suspended in a transaction: whoever
    takes over from it would wait for its locks. `run` is what its `application_name` begins with, before a space."""
    _DIALECTS[connection.dialect.name].end_sessions(connection, run)


def _trouble(error: BaseException) -> Trouble | None:
    """The trouble that an error, or one that it came with, tells of; None where none does."""
    found = _first_trouble(error)
    return None if found is None else found[1]


def _told_by(error: BaseException) -> BaseException:
    """The driver's error behind what was raised."""
    found = _first_trouble(error)
    if found is not None:
        return found[0]
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _first_trouble(error: BaseException) -> tuple[BaseException, Trouble] | None:
    for dialect in _DIALECTS.values():
        if trouble := dialect.trouble(error):
            return error, trouble
    earlier = (_first_trouble(one) for one in (error.__cause__, error.__context__) if one is not None)
    return next((found for found in earlier if found is not None), None)


def _lost_connection(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _take_the_lock(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT 1")


def _write_a_row(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS farandole_check (id INTEGER PRIMARY KEY, writes BIGINT NOT NULL)"
    )
    connection.exec_driver_sql(
        "INSERT INTO farandole_check VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET writes = farandole_check.writes + 1"
    )
