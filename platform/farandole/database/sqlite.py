"""SQLite: one file, one process, one writer. WAL, `synchronous=FULL`, `BEGIN IMMEDIATE` for writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from farandole.database.dialect import Trouble
from farandole.errors import StoreUnavailableError

_BUSY_TIMEOUT_SECONDS = 5.0
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "cache_size=-65536",
    "temp_store=MEMORY",
    "secure_delete=ON",  # an outbox row holds what must not be shown until it is published; then its bytes go too
)
_LOCKED = Trouble("another process holds its lock", is_passing=True)
_DAMAGED = Trouble("stop this service, restore the file from a backup, start it again")
_TROUBLES: Mapping[int, Trouble] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: Trouble("make the file and its directory writable"),
    sqlite3.SQLITE_IOERR: Trouble("look after its disk"),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: Trouble("make room on its disk", is_passing=True),
    sqlite3.SQLITE_CANTOPEN: Trouble("its directory has to exist and to be writable"),
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
"""By primary error code. After those that don't pass SQLite may have the file open read-only, or without its log."""
_PRIMARY_CODE = 0xFF
_FILE = "farandole.file"


class Sqlite:
    """The `Dialect` of SQLite."""

    def engine(self, url: sa.URL, *, writes: bool, pool_size: int, application_name: str) -> sa.Engine:  # noqa: ARG002
        """See `Dialect.engine`. A transaction that writes has no other beside it in any case."""
        engine = sa.create_engine(
            url,
            poolclass=QueuePool,
            pool_size=pool_size,
            hide_parameters=True,  # an error's text goes into logs; what a statement was given may be a secret
            max_overflow=0,
            connect_args={"timeout": _BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, record: Any) -> None:  # noqa: ANN401 - a DB-API connection, the pool's record
            connection.isolation_level = None  # the driver opens no transactions of its own; `_begun` does
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            record.info[_FILE] = _file(engine.url.database)

        @event.listens_for(engine, "begin")
        def _begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def engine_beside(self, url: sa.URL, *, application_name: str) -> sa.Engine | None:  # noqa: ARG002
        """See `Dialect.engine_beside`: two connections would only wait for each other."""
        return None

    def name(self, url: sa.URL) -> str:
        """See `Dialect.name`: the path of the file."""
        return str(url.database)

    def make_place(self, url: sa.URL) -> None:
        """See `Dialect.make_place`: the file, and its directory, for this user alone."""
        if url.database and url.database != ":memory:":
            path = Path(url.database)
            with suppress(OSError):  # what is wrong is told when it is opened
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.touch(mode=0o600)

    def refuse_replaced(self, connection: sa.Connection) -> None:
        """See `Dialect.refuse_replaced`: the path may lead to another file, or to none.

        What went into the file that is open would be lost with this process.
        """
        path = connection.engine.url.database
        opened = connection.info.get(_FILE)
        if opened is not None and opened != _file(path):
            raise StoreUnavailableError(
                f"the database {path} was removed or replaced while it was in use; with the right file in place, "
                "restart this service"
            )

    def is_aborted(self, connection: sa.Connection) -> bool:  # noqa: ARG002
        """See `Dialect.is_aborted`: here a statement that fails undoes itself alone."""
        return False

    def doomed_by(self, connection: sa.Connection) -> BaseException | None:  # noqa: ARG002
        """See `Dialect.doomed_by`: nothing comes between here."""
        return None

    def trouble(self, error: BaseException) -> Trouble | None:
        """See `Dialect.trouble`."""
        if not isinstance(error, sqlite3.Error):
            return None
        return _TROUBLES.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE)

    def said_by(self, error: BaseException) -> str:
        """See `Dialect.said_by`."""
        return str(error)


def _file(path: str | None) -> tuple[int, int] | None:
    """Which file stands under a path; None for none, and for a database in memory."""
    try:
        status = Path(path or "").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
