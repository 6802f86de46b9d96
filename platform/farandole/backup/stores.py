"""Backing up one database into a file while it is in use, and restoring it where there is none.

SQLite by its own online backup: a copy of what was committed at one moment. PostgreSQL by `pg_dump` and `pg_restore`,
which see one moment too, and are told of a connection all that the URL says; the password goes to them in their
environment and is in no command line. A store of any other kind is backed up by its own means.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from farandole.correlator.stores import scheme_of
from farandole.database.postgresql import Postgresql
from farandole.errors import ConfigurationError, Fault, SnapshotError, StoreUnavailableError
from farandole.private_file import private_file
from farandole.stack.embedded_postgres import find_programs

Programs = Callable[[str], str]
"""Where a program of PostgreSQL is, such as `pg_dump`. Raises `ConfigurationError` where there is none."""

_KINDS = ("sqlite", "postgresql")
_PAGES_AT_ONCE = 2_000


def store_kind(url: str) -> str:
    """`sqlite` or `postgresql`. Raises `ConfigurationError` with the remedy for a store of another kind, such as that
    of a plug-in."""
    scheme = scheme_of(url)
    if scheme not in _KINDS:
        reason = (
            "is no database that this copies: back such a store up by its own means, or let the correlator fill an "
            "empty one out of the stream; name all other databases by --store"
        )
        raise ConfigurationError([Fault(scheme, reason)])
    return scheme


def backup_store(url: str, path: Path, programs: Programs) -> None:
    """Copies a database into a new file that only this user can read.

    Raises `StoreUnavailableError` where it can't be read.
    """
    kind = store_kind(url)
    private_file(path).close()
    if kind == "sqlite":
        _copy(_file_of(url), path, what=f"the database {_file_of(url)}")
    else:
        _run([programs("pg_dump"), "--format=custom", "--no-owner", f"--file={path}"], url)


def restore_store(path: Path, url: str, programs: Programs) -> None:
    """Fills a place where there is no database yet, or an empty one. Raises `SnapshotError` where there is something,
    or the copy is damaged."""
    refuse_filled(url)
    if store_kind(url) == "sqlite":
        place = _file_of(url)
        place.parent.mkdir(parents=True, exist_ok=True)
        beginning = place.with_name(f"{place.name}.restoring")
        beginning.unlink(missing_ok=True)
        private_file(beginning).close()
        _copy(path, beginning, what=f"the backup {path}")
        _refuse_damaged(beginning, path)
        beginning.rename(place)
    else:
        command = [programs("pg_restore"), "--no-owner", "--exit-on-error", "--single-transaction"]
        _run([*command, str(path)], url)


def refuse_filled(url: str) -> None:
    """Raises `SnapshotError` where a place to restore into is not empty."""
    if store_kind(url) == "sqlite":
        if _file_of(url).exists():
            raise SnapshotError(f"{_file_of(url)} is there already: a backup is restored into an empty place only")
        return
    engine = sa.create_engine(_driver_url(url))
    try:
        tables = sa.inspect(engine).get_table_names()
    except sa.exc.SQLAlchemyError as error:
        raise StoreUnavailableError(f"the database {_shown(url)} can't be reached: {_first_line(error)}") from None
    finally:
        engine.dispose()
    if tables:
        raise SnapshotError(
            f"the database {_shown(url)} has tables already ({', '.join(sorted(tables)[:3])}, …): a backup is restored "
            "into an empty one only"
        )


def find_program(name: str) -> str:
    """A program of PostgreSQL: of the installation that the embedded server is of, else the one on the PATH.

    Raises `ConfigurationError` where there is none.
    """
    try:
        beside = find_programs(os.environ) / name
    except ConfigurationError:
        beside = Path(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise ConfigurationError([Fault(name, "is not installed; it comes with PostgreSQL's client")])
    return found


def _copy(source: Path, target: Path, *, what: str) -> None:
    if not source.exists():
        raise StoreUnavailableError(f"{what} does not exist")
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.execute("BEGIN")  # one moment: what is written meanwhile does not make the copy begin anew
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(writing, pages=_PAGES_AT_ONCE)
            writing.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"{what} can't be copied: {error}") from None


def _refuse_damaged(copy: Path, source: Path) -> None:
    with closing(sqlite3.connect(copy)) as connection:
        try:
            [said] = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            said = str(error)
    if said != "ok":
        raise SnapshotError(f"the backup {source} is damaged: {said}")


def _file_of(url: str) -> Path:
    return Path(sa.make_url(url).database or "")


def _run(command: list[str], url: str) -> None:
    connection, secrets = _connection(url)
    done = subprocess.run(  # noqa: S603 - PostgreSQL's
        [*command, f"--dbname={connection}"], env={**os.environ, **secrets}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StoreUnavailableError(f"{Path(command[0]).name} of {_shown(url)} failed: {_reason(done.stderr)}")


def _connection(url: str) -> tuple[str, Mapping[str, str]]:
    """What libpq takes for a URL, as a service's driver gives it to libpq; and the variables in which it takes what
    nobody else may see."""
    driver_url = _driver_url(url)
    _, given = driver_url.get_dialect()().create_connect_args(driver_url)
    hidden = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults() if option.dispchar == b"*"}
    secrets: dict[str, str] = {}
    for keyword in hidden.keys() & given.keys():
        variable = hidden[keyword]
        if variable is None:
            reason = "can't be handed to PostgreSQL's programs unseen: they take it in their command line alone"
            raise ConfigurationError([Fault(keyword, reason)])
        secrets[variable.decode()] = given.pop(keyword)
    try:
        return make_conninfo(**given), secrets
    except psycopg.Error as error:
        raise StoreUnavailableError(f"the database {_shown(url)} can't be reached: {_first_line(error)}") from None


def _reason(said: str) -> str:
    """The line with the error: behind it may stand the statement in which it came, which is no reason."""
    lines = said.strip().splitlines() or ["no reason"]
    return next((line for line in lines if ": error: " in line), lines[-1])


def _driver_url(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


def _shown(url: str) -> str:
    return Postgresql().name(sa.make_url(url))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
