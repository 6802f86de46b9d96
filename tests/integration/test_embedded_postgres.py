"""The embedded PostgreSQL: found, made, run, and closed to whoever has no password."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from farandole.errors import ConfigurationError, StackError
from farandole.stack.embedded_postgres import (
    ADMINISTRATOR,
    PROGRAMS_VARIABLE,
    STOP_SIGNAL,
    PostgresCluster,
    check_version,
    find_programs,
)
from farandole.stack.unprivileged import Account
from farandole.testing.brokers import free_port


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """One that was prepared, in a directory that any user may come to."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o711)
    made = PostgresCluster.of(directory / "it's a home" / "postgres", port=free_port(), environment=os.environ)
    made.directory.parent.mkdir(mode=0o711)
    made.prepare()
    yield made
    shutil.rmtree(directory)


@contextmanager
def running(cluster: PostgresCluster) -> Iterator[subprocess.Popen[bytes]]:
    cluster.prepare()
    log = cluster.directory / "log"
    with log.open("ab") as output:
        server = subprocess.Popen(cluster.command, stdout=output, stderr=output)
    try:
        yield server
        server.send_signal(STOP_SIGNAL)
        assert server.wait(60) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()


def asked(cluster: PostgresCluster, database: str, query: str, *, role: str = "") -> object:
    """What a service is answered that has the variables of a database."""
    variables = cluster.environment(database)
    passwords = variables.pop("PGPASSFILE")
    user = role or database
    with psycopg.connect(variables["FARANDOLE_DATABASE_URL"], passfile=passwords, user=user) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


def test_each_service_has_a_database_that_no_other_enters(cluster: PostgresCluster) -> None:
    with running(cluster) as server:
        for _ in range(2):  # again does nothing
            cluster.make_databases(["orders", "back-office"])
        asked(cluster, "orders", "CREATE TABLE kept AS SELECT 7 AS id")
        assert asked(cluster, "back-office", "SELECT current_user::text") == "back-office"
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            asked(cluster, "back-office", "SELECT 1", role="orders")
        for user in ("orders", ADMINISTRATOR):
            with pytest.raises(psycopg.OperationalError, match="no password supplied"):
                psycopg.connect(cluster.url("orders"), user=user, passfile=os.devnull)
        listening = [one.laddr for one in psutil.Process(server.pid).net_connections() if one.status == "LISTEN"]
        assert listening == [("127.0.0.1", cluster.port)]
    with running(cluster):
        cluster.make_databases(["orders", "later"])
        assert asked(cluster, "orders", "SELECT id FROM kept") == 7
        assert asked(cluster, "later", "SELECT 1") == 1
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert asked(cluster, "orders", f"SHOW {name}") == "on"
        assert asked(cluster, "orders", "SHOW server_encoding") == "UTF8"
        assert asked(cluster, "orders", "SELECT datcollate FROM pg_database WHERE datname = 'orders'") == "C"


def test_passwords_are_the_callers_alone(cluster: PostgresCluster) -> None:
    assert stat.S_IMODE(cluster.passwords.stat().st_mode) == 0o600
    assert cluster.passwords.stat().st_uid == os.geteuid()
    assert stat.S_IMODE(cluster.data.stat().st_mode) == 0o700
    password = cluster.password(ADMINISTRATOR)
    assert password not in " ".join(cluster.command)
    assert password not in " ".join(cluster.environment("orders").values())
    with running(cluster):
        cluster.make_databases(["orders"])
    assert cluster.password("orders") not in (cluster.directory / "log").read_text()
    assert {path.name for path in cluster.directory.iterdir()} == {"data", "log", "passwords"}


def test_a_cluster_without_its_passwords_is_told(cluster: PostgresCluster) -> None:
    aside = cluster.passwords.rename(cluster.directory / "aside")
    try:
        with pytest.raises(StackError, match="passwords is gone, without which nobody gets into"):
            cluster.prepare()
    finally:
        aside.rename(cluster.passwords)


def test_a_cluster_of_another_version_is_left_alone(cluster: PostgresCluster) -> None:
    version = cluster.data / "PG_VERSION"
    own = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(StackError, match=r"was made by PostgreSQL 9, and .* is \d+"):
            cluster.prepare()
    finally:
        version.write_text(own)


def test_a_cluster_that_was_not_finished_is_made_anew(cluster: PostgresCluster) -> None:
    half = replace(cluster, directory=cluster.directory.parent / "half")
    (half.directory / "data").mkdir(parents=True)
    (half.directory / "data" / "half").touch()
    half.directory.chmod(0o711)
    half.prepare()
    assert (half.data / "PG_VERSION").exists()
    assert not (half.data / "half").exists()


def test_a_server_that_does_not_run_is_told(cluster: PostgresCluster) -> None:
    with pytest.raises(StackError, match=f"takes no connections at 127.0.0.1:{cluster.port}: .*refused"):
        cluster.make_databases(["orders"], within_seconds=0.1)


def test_a_directory_that_the_servers_user_does_not_get_through_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    account = Account("nobody", user=os.geteuid() + 1, group=0)
    with pytest.raises(StackError, match=rf"{tmp_path} lets nobody through.*chmod o\+x {tmp_path}"):
        account.refuse_unreachable(tmp_path / "postgres")


def test_programs_that_are_closed_to_the_servers_user_are_copied(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    package = find_programs(os.environ).parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True)
    closed.chmod(0o700)
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o711)
    environment = {**os.environ, PROGRAMS_VARIABLE: str(closed / package.name / "pginstall" / "bin")}
    try:
        cluster = PostgresCluster.of(directory / "postgres", port=free_port(), environment=environment)
        with running(cluster):
            cluster.make_databases(["orders"])
            assert asked(cluster, "orders", "SELECT 1") == 1
        assert (str(closed) in " ".join(cluster.command)) is (os.geteuid() != 0)
    finally:
        shutil.rmtree(directory)


def program(directory: Path, name: str, prints: str = "") -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (directory / name).chmod(0o755)


def test_the_programs_are_those_that_were_named_or_of_the_wheel(tmp_path: Path) -> None:
    program(tmp_path / "bin", "postgres", "postgres (PostgreSQL) 14.9 (Debian 14.9-1)")
    with pytest.raises(ConfigurationError, match="holds no postgres and initdb"):
        find_programs({PROGRAMS_VARIABLE: str(tmp_path / "bin")})
    program(tmp_path / "bin", "initdb")
    assert find_programs({PROGRAMS_VARIABLE: str(tmp_path / "bin")}) == tmp_path / "bin"
    assert "embedded_postgres" in str(find_programs({"PATH": str(tmp_path / "bin")}))


def test_another_servers_version_is_looked_at(tmp_path: Path) -> None:
    for prints, told in (("postgres (PostgreSQL) 14.9", "PostgreSQL 14.9; Farandole needs 15"), ("?", "does not say")):
        program(tmp_path, "postgres", prints)
        with pytest.raises(StackError, match=told):
            check_version(tmp_path)
