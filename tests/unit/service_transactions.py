"""Transactions on a new database, for tests of what the sample services do with events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from farandole import Transaction

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
"""When the stream stored the event that a transaction handles."""


@contextmanager
def opened(
    metadata: sa.MetaData, seed: Callable[[sa.Connection], None] | None = None
) -> Iterator[Callable[[str], Transaction]]:
    """A new database; yields a function that gives a transaction for a saga's key."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
        metadata.create_all(connection)
        if seed:
            seed(connection)
        yield lambda key: Transaction(connection, key, step_id=f"step-of-{key}", time=NOON)
    engine.dispose()
