"""Databases on bad days: full, read-only, locked, damaged, replaced, restored. What was acknowledged stays, once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from farandole.broker.streams import EVENTS
from farandole.database import Database
from farandole.errors import StoreUnavailableError
from farandole.saga import Disposition
from tests.integration.bad_days import BOTH, ORDERS, BadDay, Clients, bad_day, clients_of, told
from tests.integration.service_processes import CORRELATOR
from tests.integration.small_disk import SmallDisk, small_disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "stores", mebibytes=12) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def day(disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    with bad_day(tmp_path_factory.mktemp("day") / "parts", stores=disk.path) as parts:
        yield parts


@pytest.fixture
async def clients(day: BadDay) -> AsyncIterator[Clients]:
    async with clients_of(day) as found:
        yield found


async def test_a_full_disk(day: BadDay, disk: SmallDisk, clients: Clients) -> None:
    """What is accepted before, and what the stream takes meanwhile, is all dealt with once there is room."""
    before = [f"before-{number}" for number in range(5)]
    await clients.place(*before)
    await clients.until_stored("orders.v1.OrderCreated", before)
    disk.fill()
    try:
        accepted = list(before)
        refused = None
        while refused is None:
            order_id = f"full-{len(accepted)}"
            try:
                accepted.append(await clients.try_to_place(order_id, lines=100))
            except grpc.aio.AioRpcError as error:
                refused = error
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "the store can't be reached now" in (refused.details() or "")
        await clients.ship(*before)
        await day.until_told("a store's disk is full", *BOTH)
    finally:
        disk.make_room()
    await day.until_serving(*BOTH)
    await clients.ship(*accepted[len(before) :])
    await clients.until_complete(*accepted)
    await clients.sell("after-it-was-full")
    await clients.until_complete("after-it-was-full")


async def test_a_check_of_a_store_writes(disk: SmallDisk) -> None:
    """A full disk lets one begin a transaction, and read."""
    database = Database(f"sqlite:///{disk.path}/checked.db")
    await database.check()
    disk.fill()
    try:
        with pytest.raises(StoreUnavailableError, match=told("a store's disk is full")):
            await database.write(lambda c: c.exec_driver_sql("CREATE TABLE large AS SELECT zeroblob(100000)"))
        with pytest.raises(StoreUnavailableError, match=told("a store's disk is full")):
            await database.check()
    finally:
        disk.make_room()
    await database.check()
    await database.close()


async def test_a_read_only_file_system(day: BadDay, disk: SmallDisk, clients: Clients) -> None:
    for service in BOTH:
        day.stop(service)
    disk.remount(writable=False)
    try:
        for service in BOTH:
            day.services.begin(service)
        await day.until_told("a store's file system is read-only", *BOTH)
    finally:
        disk.remount(writable=True)
    await day.until_serving(*BOTH)
    await clients.sell("after-read-only")
    await clients.until_complete("after-read-only")


NOBODY = 65534


@pytest.fixture
def without_root() -> Iterator[Path]:
    """A directory of a user's who is not root, whom permissions don't bind; the test runs as that one."""
    directory = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(directory, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield directory
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(directory)


def permit(path: Path, mode: int) -> None:
    """Gives a database's file a mode, and what SQLite keeps beside it."""
    for file in path.parent.glob(f"{path.name}*"):
        file.chmod(mode)


async def test_a_file_that_is_made_writable_is_written_without_a_restart(without_root: Path) -> None:
    """SQLite keeps a file that it has opened read-only for as long as the connection lasts."""
    path = without_root / "store.db"
    made = Database(f"sqlite:///{path}")
    await made.check()
    await made.close()
    permit(path, 0o444)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailableError, match=told("a store's file is read-only")):
        await database.check()
    permit(path, 0o644)
    await database.check()
    await database.close()


@pytest.mark.parametrize("service", BOTH)
async def test_a_lock_that_another_process_holds(day: BadDay, clients: Clients, service: str) -> None:
    """While it works; at a start the same is told."""
    with closing(sqlite3.connect(day.services.database(service), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await day.until_told("a store is locked", service)
        await clients.ship(f"locked-{service}")
        other.execute("ROLLBACK")
    await day.until_serving(*BOTH)
    await clients.sell(f"unlocked-{service}")
    await clients.until_complete(f"unlocked-{service}")


async def test_stores_that_are_damaged_and_restored_from_older_backups(day: BadDay, clients: Clients) -> None:
    """What came since each backup is taken in again. What is published again then is told from the first time, also by
    whom the broker does not keep it from."""
    info = await clients.broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    forgetful = {**info["config"], "duplicate_window": 100_000_000}
    await clients.broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", forgetful)
    sold: list[str] = []
    saved = {}
    for service in (ORDERS, CORRELATOR):
        sold += [f"before-{service}-{number}" for number in range(5)]
        await clients.sell(*sold[-5:])
        await clients.until_complete(*sold[-5:])
        day.stop(service)
        saved[service] = day.save(service)
        day.services.start(service)
    sold += [f"after-both-{number}" for number in range(5)]
    await clients.sell(*sold[-5:])
    await clients.until_complete(*sold[-5:])

    for service in BOTH:
        day.services.kill(service)
        day.damage(service)
        day.services.begin(service)
    await day.until_told("a store is damaged", *BOTH)
    for service in BOTH:
        day.stop(service)
        day.restore(service, saved[service])
    day.services.start(*BOTH)
    await clients.sell("after-the-restore")
    await clients.until_complete("after-the-restore")
    await clients.until_known(*sold)
    completed = await clients.stored("orders.v1.OrderCompleted")
    assert len(completed) > len(set(completed)), "some have been published again"
    for order_id in sold:
        first, *more = await clients.dispositions(order_id, "orders.v1.OrderCompleted")
        assert first is not Disposition.DUPLICATE
        assert set(more) <= {Disposition.DUPLICATE}
    for service in BOTH:
        said = [line for line in day.log(service) if "the store is older" in str(line["message"])]
        assert [line["level"] for line in said] == ["warning"]


async def test_a_file_that_is_replaced_while_it_is_used(day: BadDay, clients: Clients) -> None:
    """What would go into a file that nobody finds again is refused."""
    database = day.services.database(ORDERS)
    aside = database.with_suffix(".aside")
    database.rename(aside)
    await day.until_told("a store was replaced in use", ORDERS)
    with pytest.raises(grpc.aio.AioRpcError, match="the store can't be reached now"):
        await clients.try_to_place("nowhere-to-go")
    aside.rename(database)
    await day.until_serving(ORDERS)
    await clients.sell("found-again")
    await clients.until_complete("found-again")
