"""PostgreSQL: many processes, and write transactions that come out as if each had run alone.

A write transaction is SERIALIZABLE, so that a handler that reads and then writes is as safe as on SQLite. Where two get
in each other's way the server undoes one, and it runs again *alone* (decision 0030): first tries hold a shared lock on
`farandole_check`, a second one the exclusive lock. `LOCK TABLE` comes before the transaction's view of the data is
taken, so whoever has waited for the lock sees all that was committed meanwhile, and nothing can come between any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import QueuePool

from farandole.database.dialect import ALONE, Trouble
from farandole.database.text import keep_nul

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE farandole_check IN ROW SHARE MODE"
_WRITE_ALONE = "BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE farandole_check IN EXCLUSIVE MODE"

_BESIDE = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(hashtext('farandole_replica'))"

_MAKE_CHECK = """\
DO $$ BEGIN
  IF to_regclass('farandole_check') IS NULL THEN
    PERFORM pg_advisory_xact_lock(hashtext('farandole_check'));
    CREATE TABLE IF NOT EXISTS farandole_check (id INTEGER PRIMARY KEY, writes BIGINT NOT NULL);
  END IF;
END $$"""
"""Two processes that make a table at the same moment fail, IF NOT EXISTS or not; hence the advisory lock."""

_SESSION: Mapping[str, str] = {
    "lock_timeout": "5s",
    # whoever is suspended in a transaction gives its locks back; a handler may take this long between two statements
    "idle_in_transaction_session_timeout": "30s",
    "timezone": "UTC",
}
_WRITING_SESSION: Mapping[str, str] = {
    **_SESSION,
    "enable_seqscan": "off",  # a transaction that has walked a table conflicts with every other that writes to it
    "jit": "off",  # which the prices that the line above puts on plans would set going
}
_SESSION_BESIDE: Mapping[str, str] = {
    **_SESSION,
    "idle_in_transaction_session_timeout": "1s",  # a process that is suspended here keeps all the others from it
}
_CONNECTION: Mapping[str, object] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
"""A server that is gone without a word is found out in some twenty seconds."""

_ADDED_TO = ("application_name", "options")
"""What a URL says of these comes behind what is needed: whoever takes over ends the sessions of a replica by its name.
Of an option that is given twice the last one counts."""

_CONFLICT = Trouble("other transactions keep coming between: look for a program that writes to it", may_rerun=True)
_UNREACHED = Trouble("see that the server runs, is reached from here, and lets this user in")
_ENDED = Trouble("the server ended the connection; this service connects again by itself")
_DISK = Trouble("look after the server's disk")
_DAMAGED = Trouble("stop this service, restore the database from a backup, start it again")
_TROUBLES: Mapping[str, Trouble] = {
    "40001": _CONFLICT,
    "40P01": _CONFLICT,
    "25006": Trouble("it takes no writes: it is a standby, or was made read-only"),
    "25P03": Trouble("a transaction did nothing for 30 s: the process was suspended, or a handler waits for something"),
    "53100": Trouble("make room on the server's disk", is_passing=True),
    "53200": Trouble("the server is out of memory", is_passing=True),
    "53300": Trouble("the server has no connection left: raise its max_connections, or end others"),
    "53400": Trouble("a limit of the server is reached: raise it", is_passing=True),
    "55P03": Trouble("another transaction holds its lock", is_passing=True),
    "57014": Trouble("it took longer than the server lets it, or somebody cancelled it", is_passing=True),
    "57P01": _ENDED,
    "57P02": _ENDED,
    "57P03": Trouble("the server starts or stops"),
    "57P05": _ENDED,
    "58030": _DISK,
    "58P01": _DISK,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
"""By SQLSTATE."""
_CONNECTION_CLASS = "08"
_DOOMED = "farandole.doomed"


class Postgresql:
    """The `Dialect` of PostgreSQL, over psycopg."""

    def engine(self, url: sa.URL, *, writes: bool, pool_size: int, application_name: str) -> sa.Engine:
        """See `Dialect.engine`. What the URL says itself, such as `?connect_timeout=2`, stands, see `_ADDED_TO`."""
        engine = _engine(url, _WRITING_SESSION if writes else _SESSION, pool_size, application_name)

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection
            keep_nul(connection)
            if writes:
                connection.execute(_MAKE_CHECK)

        @event.listens_for(engine, "begin")
        def _begun(connection: sa.Connection) -> None:
            connection.info.pop(_DOOMED, None)
            alone = connection.get_execution_options().get(ALONE, False)
            connection.exec_driver_sql((_WRITE_ALONE if alone else _WRITE) if writes else _READ)

        event.listen(engine, "handle_error", self._met)
        return engine

    def engine_beside(self, url: sa.URL, *, application_name: str) -> sa.Engine | None:
        """See `Dialect.engine_beside`. It takes no lock that other transactions take."""
        engine = _engine(url, _SESSION_BESIDE, 1, application_name)

        @event.listens_for(engine, "begin")
        def _begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql(_BESIDE)

        event.listen(engine, "handle_error", self._met)
        return engine

    def name(self, url: sa.URL) -> str:
        """See `Dialect.name`: the URL without password and options."""
        shown = sa.URL.create("postgresql", url.username, host=url.host, port=url.port, database=url.database)
        return shown.render_as_string()

    def make_place(self, url: sa.URL) -> None:
        """See `Dialect.make_place`: databases are made by whoever runs the server."""

    def refuse_replaced(self, connection: sa.Connection) -> None:
        """See `Dialect.refuse_replaced`: a server that is replaced ends its connections."""

    def is_aborted(self, connection: sa.Connection) -> bool:
        """See `Dialect.is_aborted`."""
        return _driver(connection).info.transaction_status is TransactionStatus.INERROR

    def doomed_by(self, connection: sa.Connection) -> BaseException | None:
        """See `Dialect.doomed_by`."""
        found = connection.info.get(_DOOMED)
        return found if isinstance(found, BaseException) else None

    def trouble(self, error: BaseException) -> Trouble | None:
        """See `Dialect.trouble`."""
        if not isinstance(error, psycopg.Error):
            return None
        if error.sqlstate is not None:
            return _TROUBLES.get(error.sqlstate) or (_UNREACHED if error.sqlstate[:2] == _CONNECTION_CLASS else None)
        # the driver's own: the server was not reached, or the connection is gone
        return _UNREACHED if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) else None

    def said_by(self, error: BaseException) -> str:
        """See `Dialect.said_by`: what stands in DETAIL and CONTEXT quotes rows."""
        primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        return primary or next(iter(str(error).splitlines()), "")

    def _met(self, context: ExceptionContext) -> None:
        """Remembers what dooms a transaction, and takes out of an error's text what it quotes of rows."""
        error = context.original_exception
        trouble = self.trouble(error)
        if trouble is not None and trouble.may_rerun and context.connection is not None:
            context.connection.info[_DOOMED] = error
        said = self.said_by(error)
        error.args = (said,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(error).__module__}.{type(error).__name__}) {said}",)


def _engine(url: sa.URL, session: Mapping[str, str], pool_size: int, application_name: str) -> sa.Engine:
    own = {
        **_CONNECTION,
        "application_name": _joined(application_name, url.query.get("application_name", "")),
        "options": _joined(*(f"-c {name}={value}" for name, value in session.items()), url.query.get("options", "")),
    }
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # an error's text goes into logs; what a statement was given may be a secret
        connect_args={
            "autocommit": True,  # the driver opens no transactions of its own; `_begun` does
            **{name: value for name, value in own.items() if name in _ADDED_TO or name not in url.query},
        },
    )


def _joined(*texts: str | Sequence[str]) -> str:
    return " ".join(text if isinstance(text, str) else " ".join(text) for text in texts if text)


def _driver(connection: sa.Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "the dialect's engine makes these"
    return driver
