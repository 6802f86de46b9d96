"""One store in a backup: copied while it is used, and restored where there is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from farandole.backup.stores import backup_store, find_program, restore_store, store_kind
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch
from farandole.database import Database
from farandole.errors import SnapshotError, StoreUnavailableError
from farandole.testing.store_conformance import INCARNATION, exported, filled


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
