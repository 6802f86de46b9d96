"""Leases in a database keep every rule of their port, and what a replica that is gone has begun there is ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from farandole.database import Database
from farandole.errors import StoreUnavailableError
from farandole.leases import Leases, Replica
from farandole.sql_leases import LeaseTables, SqlLeases
from farandole.testing import LeasesConformance
from farandole.testing.leases_conformance import TIME_TO_LIVE_SECONDS

metadata = sa.MetaData()
tables = LeaseTables(metadata)
notes = sa.Table("notes", metadata, sa.Column("number", sa.Integer, primary_key=True), sa.Column("text", sa.Text))


@asynccontextmanager
async def opened(url: str, replica: Replica = Replica("a", "")) -> AsyncIterator[tuple[Database, SqlLeases]]:  # noqa: B008
    """The database as one replica has it open."""
    database = Database(url, application_name=replica.application_name("till"))
    await database.create(metadata, if_earlier="")
    try:
        yield database, SqlLeases(database, tables, time_to_live_seconds=TIME_TO_LIVE_SECONDS)
    finally:
        await database.close()


class TestSqlLeases(LeasesConformance):
    @pytest.fixture
    async def leases(self, database_url: str) -> AsyncIterator[Leases]:
        async with opened(database_url) as (_, leases):
            yield leases


async def test_who_hangs_in_a_transaction_holds_up_nobody(postgres_url: str) -> None:
    """Neither the leases of the others, while it lives, nor their work, once it has lost its own."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(connection: sa.Connection) -> None:
        connection.execute(sa.insert(notes).values(number=1, text="of who hangs"))
        hangs.set()
        goes_on.wait(60)

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.insert(notes).values(number=1, text="of the successor"))

    gone, successor = Replica.begun("a"), Replica.begun("b")
    async with opened(postgres_url, gone) as (theirs, their_leases), opened(postgres_url, successor) as (ours, leases):
        await their_leases.join(gone, 1, is_able=True)
        hanging = asyncio.create_task(theirs.write(hang))
        await asyncio.to_thread(hangs.wait, 20)
        async with asyncio.timeout(20):
            tenure = await leases.join(successor, 1, is_able=True)
            while not tenure.lanes:
                tenure = await leases.renew(successor, 1, is_able=True)
            await ours.write(write)
        goes_on.set()
        with pytest.raises(StoreUnavailableError):
            await hanging
        assert await ours.read(lambda c: c.execute(sa.select(notes.c.text)).scalars().all()) == ["of the successor"]
