"""One store in a backup: copied while it is used, and restored where there is nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from farandole.backup.stores import backup_store, find_program, restore_store, store_kind
from farandole.broker.connection import Broker
from farandole.broker.streams import provision
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch
from farandole.correlator.stores import scheme_of
from farandole.database import Database
from farandole.errors import ConfigurationError, SnapshotError, StoreUnavailableError
from farandole.testing.brokers import BrokerUnderTest
from farandole.testing.databases import DatabaseUnderTest
from farandole.testing.store_conformance import INCARNATION, exported, filled
from tests.integration.correlators import ROOT
from tests.integration.farandole_command import Command


@pytest.fixture
def another_database(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of an empty place of the same kind, each time another."""
    places = iter(range(100))

    def another() -> str:
        if store_kind(database_url) == "sqlite":
            return f"sqlite:///{tmp_path}/elsewhere/{next(places)}.db"
        return str(request.getfixturevalue("postgres").new_database())

    return another


async def test_a_store_is_copied_while_it_is_used_and_is_the_same_elsewhere(
    database_url: str, another_database: Callable[[], str], tmp_path: Path
) -> None:
    store = SqlCorrelatorStore(Database(database_url))
    await store.open()
    await filled(store)
    before = await exported(store)
    copy = tmp_path / "copy"
    await asyncio.to_thread(backup_store, database_url, copy, find_program)
    claim = await store.claim(INCARNATION)
    await store.commit(claim, FoldedBatch(99))  # it goes on
    assert copy.stat().st_mode & 0o077 == 0
    place = another_database()
    await asyncio.to_thread(restore_store, copy, place, find_program)
    restored = SqlCorrelatorStore(Database(place))
    await restored.open()
    assert await exported(restored) == before
    with pytest.raises(SnapshotError, match="a backup is restored into an empty"):
        await asyncio.to_thread(restore_store, copy, place, find_program)
    with pytest.raises(SnapshotError, match="a backup is restored into an empty"):
        await asyncio.to_thread(restore_store, copy, database_url, find_program)
    await restored.close()
    await store.close()


def test_a_copy_that_is_damaged_is_not_put_in_place(another_database: Callable[[], str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"no database" * 1000)
    place = another_database()
    with pytest.raises((SnapshotError, StoreUnavailableError)) as refused:
        restore_store(copy, place, find_program)
    assert "postgresql+psycopg" not in str(refused.value)
    if store_kind(place) == "sqlite":
        assert not Path(place.removeprefix("sqlite:///")).exists()


def test_what_the_url_says_of_a_connection_holds_for_postgresql_s_programs_too(
    postgres_url: str, postgres: DatabaseUnderTest, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailableError, match=r"pg_dump of .* failed: .*SSL"):  # the server has none
        backup_store(f"{postgres_url}?sslmode=require", tmp_path / "refused", find_program)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE something ()")
    with pytest.raises(StoreUnavailableError, match='can\'t be reached: invalid connection option "sslmod"'):
        backup_store(f"{postgres_url}?sslmod=require", tmp_path / "misspelt", find_program)
    copy = tmp_path / "copy"
    backup_store(postgres_url, copy, find_program)
    read_only = "options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(StoreUnavailableError, match=r"pg_restore of .* failed: .*in a read-only transaction"):
        restore_store(copy, f"{postgres.new_database()}?{read_only}", find_program)


@pytest.mark.parametrize("place", ["before the server", "among the options"])
def test_a_password_is_in_no_command_line_and_in_no_message(place: str, postgres_url: str, tmp_path: Path) -> None:
    password = str(urlsplit(postgres_url).password)
    url = postgres_url
    if place == "among the options":
        url = f"{postgres_url.replace(f':{password}@', '@')}?password={password}&application_name=backup"
    noted = tmp_path / "noted"
    noting = tmp_path / "noting"
    noting.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {noted}\nexec {find_program("pg_dump")} "$@"\n')
    noting.chmod(0o700)
    backup_store(url, tmp_path / "copy", lambda _name: str(noting))
    assert "dbname=" in noted.read_text()
    assert password not in noted.read_text()
    (tmp_path / "copy").unlink()
    with pytest.raises(StoreUnavailableError) as refused:
        backup_store(url.replace(f":{urlsplit(url).port}", ":1"), tmp_path / "copy", lambda _name: str(noting))
    assert password not in str(refused.value)


def test_a_secret_that_a_program_takes_in_its_command_line_alone_is_refused(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="sslpassword: can't be handed to PostgreSQL's programs unseen"
    ) as refused:
        backup_store(f"{postgres_url}?sslpassword=hidden", tmp_path / "copy", find_program)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("url", ["journal:///x", "memory:", "postgres://db.example/x", "nothing"])
def test_a_store_of_another_kind_is_refused_with_the_remedy(url: str, tmp_path: Path) -> None:
    for use in (
        lambda: store_kind(url),
        lambda: backup_store(url, tmp_path / "copy", find_program),
        lambda: restore_store(tmp_path / "copy", url, find_program),
    ):
        with pytest.raises(ConfigurationError, match=f"{scheme_of(url)}: is no database .* by its own means"):
            use()
    assert not (tmp_path / "copy").exists()


async def test_the_command_backs_up_nothing_where_one_store_is_of_another_kind(
    provisioned: BrokerUnderTest, tmp_path: Path
) -> None:
    directory = tmp_path / "backup"
    farandole = Command(provisioned.url, "")
    said = await asyncio.to_thread(farandole, "backup", str(directory), "--store", "correlator=journal:///x", code=2)
    assert said.startswith("farandole: journal: is no database that this copies")
    assert not any(directory.glob("*"))


async def test_the_commands_take_the_password_from_its_file(
    postgres_url: str, broker: Broker, nats_server: BrokerUnderTest, tmp_path: Path
) -> None:
    await provision(broker)
    store = SqlCorrelatorStore(Database(postgres_url))
    await store.open()
    await store.close()
    parts = urlsplit(postgres_url)
    password = tmp_path / "password"
    password.write_text(f"{parts.password}\n")
    url = parts._replace(netloc=f"{parts.username}@{parts.hostname}:{parts.port}").geturl()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("FARANDOLE_", "PG"))}
    environment = {
        **outside,
        "FARANDOLE_NATS_URL": nats_server.url,
        "FARANDOLE_DATABASE_PASSWORD_FILE": str(password),
    }

    async def farandole(*arguments: str) -> str:
        command = [sys.executable, "-m", "farandole", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        return str(done.stdout + done.stderr)

    assert "complete as of" in await farandole("backup", str(tmp_path / "backup"), "--store", f"correlator={url}")
    assert "has not folded anything yet" in await farandole("replay", "--database", url)
    assert "has not folded anything yet" in await farandole("prune", "--database", url)
