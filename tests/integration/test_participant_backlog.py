"""A queue with very much in it: what a start costs."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from farandole.envelope import StoredMessage
from farandole.participant.queue_table import QueueEntry
from farandole.participant.tables import ParticipantTables

MANY = 5_000
_STEP = 100


@pytest.mark.parametrize("sagas", [1, 16, MANY])
def test_the_first_of_each_saga_is_found_in_one_go(tmp_path: Path, sagas: int) -> None:
    """However much waits behind it: under a partition's key stands all of it that can't be read."""
    tables = ParticipantTables()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/payments.db")
    tables.metadata.create_all(engine)
    done = 0

    def count() -> int:
        nonlocal done
        done += _STEP
        return 0

    with engine.begin() as connection:
        stored = datetime(2026, 1, 1, tzinfo=UTC)
        tables.queue.add(
            connection,
            [
                QueueEntry(f"o{n % sagas}", StoredMessage("events.1.a.v1.B", {}, b"{}", n + 1, stored))
                for n in range(MANY)
            ],
        )
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(count, _STEP)
        heads = tables.queue.heads(connection)
    engine.dispose()
    assert [head.message.sequence for head in heads] == list(range(1, sagas + 1))
    assert done < 100 * MANY, "the database's own measure of its work"
