"""Leases in a service's own database."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from farandole.database import Database, end_sessions
from farandole.database.columns import KEY_TEXT
from farandole.leases import (
    TIME_TO_LIVE_SECONDS,
    Member,
    Register,
    Replica,
    Tenure,
    given_back,
    left,
    renewed,
)


class _now(FunctionElement[int]):  # noqa: N801 - a function of SQL
    """The database's clock, in milliseconds since 1970: as it stands, not as it stood when the transaction began."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(_now, "sqlite")
def _now_of_sqlite(*_given: Any, **_named: Any) -> str:  # noqa: ANN401 - the compiler's own
    return "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"


@compiles(_now, "postgresql")
def _now_of_postgresql(*_given: Any, **_named: Any) -> str:  # noqa: ANN401 - the compiler's own
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


class LeaseTables:
    """The tables, and the statements on them."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self._replica = sa.Table(
            "farandole_replica",
            metadata,
            sa.Column("name", KEY_TEXT, primary_key=True),
            sa.Column("run", sa.Text, nullable=False),
            sa.Column("lanes", sa.SmallInteger, nullable=False),
            sa.Column("is_able", sa.Boolean, nullable=False),
            sa.Column("expires", sa.BigInteger, nullable=False),
        )
        self._lease = sa.Table(
            "farandole_lease",
            metadata,
            sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
            sa.Column("holder", sa.Text, nullable=False),
        )

    def now(self, connection: sa.Connection) -> int:
        """What the database's clock shows, in milliseconds since 1970."""
        return connection.execute(sa.select(_now())).scalar_one()

    def load(self, connection: sa.Connection) -> Register:
        """All that is told."""
        members = connection.execute(sa.select(self._replica))
        holders = connection.execute(sa.select(self._lease))
        return Register(
            {row.name: Member(row.name, row.run, row.lanes, row.is_able, row.expires) for row in members},
            {row.lane: row.holder for row in holders},
        )

    def living(self, connection: sa.Connection) -> set[str]:
        """The names of the replicas that live."""
        return self.load(connection).living(self.now(connection))

    def save(self, connection: sa.Connection, before: Register, after: Register) -> None:
        """Writes what has changed."""
        replica, lease = self._replica, self._lease
        gone = before.members.keys() - after.members.keys()
        if gone:
            connection.execute(sa.delete(replica).where(replica.c.name.in_(sorted(gone))))
        for name, member in after.members.items():
            values = {"run": member.run, "lanes": member.lanes, "is_able": member.is_able, "expires": member.expires}
            if name not in before.members:
                connection.execute(sa.insert(replica).values(name=name, **values))
            elif member != before.members[name]:
                connection.execute(sa.update(replica).where(replica.c.name == name).values(values))
        changed = {lane for lane, holder in before.holders.items() if after.holders.get(lane) != holder}
        if changed:
            connection.execute(sa.delete(lease).where(lease.c.lane.in_(sorted(changed))))
        new = [
            {"lane": lane, "holder": name} for lane, name in after.holders.items() if before.holders.get(lane) != name
        ]
        if new:
            connection.execute(sa.insert(lease), new)


class SqlLeases:
    """`farandole.leases.Leases` over a service's own database, in which the tables have been made."""

    def __init__(
        self, database: Database, tables: LeaseTables, *, time_to_live_seconds: float = TIME_TO_LIVE_SECONDS
    ) -> None:
        self._database = database
        self._tables = tables
        self._time_to_live = round(time_to_live_seconds * 1000)

    async def join(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.join`."""
        return await self._renew(replica, lanes, is_able=is_able, joins=True)

    async def renew(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.renew`."""
        return await self._renew(replica, lanes, is_able=is_able, joins=False)

    async def give_back(self, replica: Replica, lanes: Collection[int]) -> None:
        """See `Leases.give_back`."""

        def work(connection: sa.Connection) -> None:
            before = self._tables.load(connection)
            self._tables.save(connection, before, given_back(before, replica, lanes))

        await self._database.write_beside(work)

    async def leave(self, replica: Replica) -> None:
        """See `Leases.leave`."""

        def work(connection: sa.Connection) -> None:
            before = self._tables.load(connection)
            self._tables.save(connection, before, left(before, replica))

        await self._database.write_beside(work)

    async def _renew(self, replica: Replica, lanes: int, *, is_able: bool, joins: bool) -> Tenure:
        def work(connection: sa.Connection) -> Tenure:
            before = self._tables.load(connection)
            now = self._tables.now(connection)
            after, tenure = renewed(
                before, replica, lanes, is_able=is_able, joins=joins, now=now, expires=now + self._time_to_live
            )
            self._tables.save(connection, before, after)
            for run in sorted(before.runs - after.runs):
                end_sessions(connection, run)
            return tenure

        return await self._database.write_beside(work)
