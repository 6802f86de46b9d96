"""Which stream a store was folded from: a backup holds stores and streams that belong together."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from farandole.backup.stores import store_kind
from farandole.broker.streams import EVENTS, StreamState
from farandole.errors import PreconditionError, StoreUnavailableError

_POSITION_TABLES = ("correlator_position", "farandole_position")
"""Of the correlator, and of participants: each row has the stream that its position points into."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store tells of the stream that it was folded from."""

    incarnation: str
    position: int
    """The highest that it has there."""


def origins_of(url: str) -> list[Origin]:
    """The streams that a database was folded from: one, as a rule; none where nothing was folded yet.

    Reads only. Raises `ConfigurationError` for a store of another kind, `StoreUnavailableError` where it can't be read.
    """
    engine = _reading_engine(url)
    try:
        with engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            return [
                Origin(*row)
                for table in _POSITION_TABLES
                if table in there
                for row in connection.execute(
                    sa.text(f"SELECT incarnation, max(position) FROM {table} GROUP BY incarnation")  # noqa: S608 - ours
                )
            ]
    except sa.exc.SQLAlchemyError as error:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        reason = str(error).partition("\n")[0]
        raise StoreUnavailableError(f"the database {shown} can't be read: {reason}") from None
    finally:
        engine.dispose()


def _reading_engine(url: str) -> sa.Engine:
    if store_kind(url) != "sqlite":
        return sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    path = Path(sa.make_url(url).database or "").absolute()  # opened so, one that is not there is not made
    return sa.create_engine("sqlite://", creator=partial(sqlite3.connect, f"file:{quote(str(path))}?mode=ro", uri=True))


def refuse_strange(name: str, origins: Iterable[Origin], state: StreamState) -> None:
    """Raises `PreconditionError` where a service's database was not folded from this stream, or from more of it."""
    for origin in origins:
        if origin.incarnation != state.incarnation:
            raise PreconditionError(
                f"the database of {name} belongs to another stream {EVENTS}, made at {origin.incarnation}, than the "
                f"broker has, made at {state.incarnation}: a backup of both together would be of no use; "
                "FARANDOLE_NATS_URL names the broker of databases that --store names",
                reason="ANOTHER_STREAM",
            )
        if origin.position > state.last_sequence:
            raise PreconditionError(
                f"the database of {name} is at {origin.position}, and the stream {EVENTS} ends at "
                f"{state.last_sequence}: it has lost events, and is to be restored first",
                reason="AHEAD_OF_STREAM",
            )
