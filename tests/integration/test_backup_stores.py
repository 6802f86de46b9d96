"""One store in a backup: copied while it is used, and restored where there is nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from farandole.backup.stores import backup_store, find_program, restore_store, store_kind
from farandole.broker.connection import Broker
from farandole.broker.streams import provision
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch
from farandole.database import Database
from farandole.errors import SnapshotError, StoreUnavailableError
from farandole.testing.brokers import BrokerUnderTest
from farandole.testing.store_conformance import INCARNATION, exported, filled
from tests.integration.correlators import ROOT


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
