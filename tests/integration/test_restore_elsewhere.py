"""`farandole restore --store`: into databases and a broker that are there, where either may be unfit for it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from farandole.backup.backing_up import MANIFEST
from farandole.backup.streams import path_size, sha256_of
from farandole.broker.connection import Broker
from farandole.broker.streams import DEADLETTERS, EVENTS, events_state, provision
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.testing.brokers import BrokerUnderTest
from farandole.testing.store_conformance import filled
from tests.integration.farandole_command import Command

NOBODY = "nats://127.0.0.1:9"


class Place:
    """Two databases to restore into, and a broker."""

    def __init__(self, directory: Path, farandole: Command) -> None:
        self.databases = [directory / "correlator.db", directory / "payments.db"]
        self.stores = [f"--store={path.stem}=sqlite:///{path}" for path in self.databases]
        self.farandole = farandole

    async def restore(self, backup: Path, *options: str, code: int = 0, nats_url: str = "") -> str:
        farandole = Command(nats_url or self.farandole.nats_url, "")
        return await asyncio.to_thread(farandole, "restore", str(backup), *self.stores, *options, code=code)

    @property
    def filled(self) -> list[str]:
        return [path.stem for path in self.databases if path.exists()]


@pytest.fixture
async def backup(broker: Broker, nats_server: BrokerUnderTest, tmp_path: Path) -> AsyncIterator[Path]:
    """Of a broker, which has its streams still, and of two databases."""
    source = tmp_path / "source.db"
    store = SqlCorrelatorStore(Database(f"sqlite:///{source}"))
    await store.open()
    await filled(store)
    await store.close()
    incarnation = (await events_state(broker)).incarnation
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE correlator_position SET incarnation = ?, position = 0", (incarnation,))
    stores = [f"--store={name}=sqlite:///{source}" for name in ("correlator", "payments")]
    await asyncio.to_thread(Command(nats_server.url, ""), "backup", str(tmp_path / "backup"), *stores)
    yield tmp_path / "backup"
    await provision(broker)


@pytest.fixture
def place(nats_server: BrokerUnderTest, tmp_path: Path) -> Place:
    return Place(tmp_path / "place", Command(nats_server.url, ""))


def make_useless(backup: Path, service: str) -> None:
    """A database that was copied as it was, which nobody can read."""
    path = backup / f"{service}.sqlite"
    path.write_bytes(b"no database" * 1000)
    manifest = json.loads((backup / MANIFEST).read_text())
    [told] = [one for one in manifest["files"] if one["file"] == path.name]
    told |= {"size": path_size(path), "sha256": sha256_of(path)}
    (backup / MANIFEST).write_text(json.dumps(manifest))


async def streams(broker: Broker) -> list[str]:
    names: list[str] = (await broker.request("$JS.API.STREAM.NAMES"))["streams"] or []
    return sorted(names)


async def remove_streams(broker: Broker) -> None:
    for name in (EVENTS, DEADLETTERS):
        await broker.request(f"$JS.API.STREAM.DELETE.{name}")


async def test_everything_is_looked_at_before_anything_is_written(broker: Broker, backup: Path, place: Place) -> None:
    assert f"the broker at {NOBODY} is not reachable" in await place.restore(backup, code=1, nats_url=NOBODY)
    assert place.filled == []
    assert "the broker has a stream DEADLETTERS already" in await place.restore(backup, code=1)
    assert place.filled == []
    await remove_streams(broker)
    place.databases[1].parent.mkdir(exist_ok=True)
    place.databases[1].touch()
    assert "payments.db is there already" in await place.restore(backup, code=1)
    assert (place.filled, await streams(broker)) == (["payments"], [])
    place.databases[1].unlink()
    assert "complete as of" in await place.restore(backup)
    assert (place.filled, await streams(broker)) == (["correlator", "payments"], [DEADLETTERS, EVENTS])


async def test_what_fails_after_all_leaves_no_stream_and_says_what_it_has_filled(
    broker: Broker, backup: Path, place: Place
) -> None:
    await remove_streams(broker)
    assert "replicas > 1 not supported" in await place.restore(backup, "--stream-replicas", "3", code=1)
    assert (place.filled, await streams(broker)) == ([], [])
    make_useless(backup, "payments")
    said = await place.restore(backup, code=1)
    assert "payments.sqlite can't be copied" in said
    assert "what was restored of the streams is removed; of the databases correlator is filled, and to be" in said
    assert (place.filled, await streams(broker)) == (["correlator"], [])
