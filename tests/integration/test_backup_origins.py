"""A backup holds what belongs together: stores that were folded from another stream are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from farandole.backup.backing_up import back_up
from farandole.backup.origins import Origin, origins_of
from farandole.backup.stores import find_program
from farandole.broker.connection import Broker
from farandole.broker.streams import events_state, provision
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import FoldedBatch
from farandole.database import Database
from farandole.errors import PreconditionError, StoreUnavailableError
from farandole.participant.position_table import PositionTable


async def folded(url: str, incarnation: str, position: int = 0) -> None:
    """Makes a correlator's store that has folded so far of a stream."""
    store = SqlCorrelatorStore(Database(url))
    await store.open()
    claim = await store.claim(incarnation)
    if position:
        await store.commit(claim, FoldedBatch(position))
    await store.close()


async def taken_in(url: str, incarnation: str) -> None:
    """Makes a participant's database that has taken in nothing of a stream yet."""
    metadata = sa.MetaData()
    positions = PositionTable(metadata)
    database = Database(url)
    await database.create(metadata, if_earlier="it is not")
    await database.write(lambda connection: positions.claim(connection, range(16), incarnation, 0))
    await database.close()


async def backed_up(broker: Broker, url: str, directory: Path) -> None:
    await back_up(directory, {"payments": url}, broker, find_program, lambda _what, _done, _of: None)


async def test_a_store_says_which_stream_it_was_folded_from(database_url: str, tmp_path: Path) -> None:
    await folded(database_url, "the one", 9)
    assert origins_of(database_url) == [Origin("the one", 9)]
    absent = tmp_path / "absent.db"
    with pytest.raises(StoreUnavailableError, match=r"absent\.db can't be read"):
        origins_of(f"sqlite:///{absent}")
    assert not absent.exists()


@pytest.mark.parametrize("fill", [folded, taken_in])
async def test_stores_of_another_stream_are_refused(
    broker: Broker, database_url: str, tmp_path: Path, fill: Callable[[str, str], Awaitable[None]]
) -> None:
    await provision(broker)
    await fill(database_url, "another one")
    place = tmp_path / "backup"
    with pytest.raises(PreconditionError, match="the database of payments belongs to another stream EVENTS, made at"):
        await backed_up(broker, database_url, place)
    assert not place.exists()


async def test_a_store_beyond_its_stream_is_refused_and_one_within_is_taken(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    await provision(broker)
    state = await events_state(broker)
    await folded(database_url, state.incarnation)
    await backed_up(broker, database_url, tmp_path / "within")
    await folded(database_url, state.incarnation, state.last_sequence + 1)
    with pytest.raises(PreconditionError, match="is at 1, and the stream EVENTS ends at 0: it has lost events"):
        await backed_up(broker, database_url, tmp_path / "beyond")


async def test_a_database_with_nothing_of_the_platforms_is_taken(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    await provision(broker)
    database = Database(database_url)
    await database.write_alone(lambda connection: connection.execute(sa.text("CREATE TABLE own (id INTEGER)")))
    await database.close()
    await backed_up(broker, database_url, tmp_path / "backup")
