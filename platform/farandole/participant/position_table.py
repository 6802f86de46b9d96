"""How far a participant has taken in each partition, and whose that is: the table, in a participant's database."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from farandole.errors import FencedError
from farandole.times import microseconds_of, time_of
from farandole.worker import Position


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process finds that takes over some partitions."""

    position: Position
    """The lowest that any of them has: reading goes on after it."""
    taken_in: Mapping[int, int]
    """By partition: up to where it is taken in. What is read again below that is passed over."""
    epoch: int
    is_unclean: bool
    """Whether a process before it did not end in order."""

    @property
    def ahead(self) -> int:
        """The highest position that any of the partitions has."""
        return max(self.taken_in.values())


class PositionTable:
    """The table, and the statements on it. Partitions that one process works on are named together, in any order."""

    def __init__(self, metadata: sa.MetaData) -> None:
        table = self._table = sa.Table(
            "farandole_position",
            metadata,
            sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
            sa.Column("incarnation", sa.Text, nullable=False),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("position_time", sa.BigInteger),
            sa.Column("in_use", sa.Boolean, nullable=False),
        )
        own = table.c.partition.in_(sa.bindparam("partitions", expanding=True))
        is_owned = sa.and_(own, table.c.epoch == sa.bindparam("own_epoch"))
        self._select = sa.select(table).where(own).order_by(table.c.position, table.c.partition)
        self._insert = sa.insert(table)
        self._take = sa.update(table).where(own).values(epoch=sa.bindparam("new_epoch"), in_use=True)
        self._release = sa.update(table).where(is_owned).values(in_use=False)
        self._count_owned = sa.select(sa.func.count()).select_from(table).where(is_owned)
        position, new = table.c.position, sa.bindparam("new_position", type_=sa.BigInteger)
        moves = sa.or_(position == sa.bindparam("old_position"), position < new)
        new_time = sa.func.coalesce(sa.bindparam("new_time", type_=sa.BigInteger), table.c.position_time)
        self._move = (
            sa.update(table)
            .where(
                is_owned,
                sa.or_(
                    position == sa.bindparam("old_position"),
                    sa.and_(position > sa.bindparam("old_position"), position <= sa.bindparam("ahead")),
                ),
            )
            .values(
                position=sa.case((moves, new), else_=position),
                position_time=sa.case((moves, new_time), else_=table.c.position_time),
            )
        )

    def claim(self, connection: sa.Connection, partitions: Collection[int], incarnation: str, own_epoch: int) -> Claim:
        """Raises the epoch of these partitions above every one that they had, so that an earlier owner's writes fail,
        and marks them as in use.

        `own_epoch` is that of the caller's last claim, 0 for its first. Raises `FencedError` where it is outdated.
        """
        self.check_owner(connection, partitions, own_epoch)
        before = connection.execute(self._select, {"partitions": sorted(partitions)}).all()
        missing = set(partitions) - {row.partition for row in before}
        if missing:
            new = {"incarnation": incarnation, "epoch": 0, "position": 0, "in_use": False}
            connection.execute(self._insert, [{"partition": partition, **new} for partition in sorted(missing)])
        epoch = max((row.epoch for row in before), default=0) + 1
        connection.execute(self._take, {"partitions": sorted(partitions), "new_epoch": epoch})
        # one that belongs to another stream tells of it
        strange = next((row for row in before if row.incarnation != incarnation), None)
        lowest = strange or (None if missing or not before else before[0])
        position = Position(0, incarnation)
        if lowest is not None:
            time = None if lowest.position_time is None else time_of(lowest.position_time)
            position = Position(lowest.position, lowest.incarnation, time)
        return Claim(
            position,
            dict.fromkeys(missing, 0) | {row.partition: row.position for row in before},
            epoch,
            is_unclean=not own_epoch and any(row.in_use for row in before),
        )

    def release(self, connection: sa.Connection, partitions: Collection[int], own_epoch: int) -> None:
        """Takes the mark away that they are in use; does nothing where another owner has taken over."""
        connection.execute(self._release, {"partitions": sorted(partitions), "own_epoch": own_epoch})

    def is_owner(self, connection: sa.Connection, partitions: Collection[int], own_epoch: int) -> bool:
        """Whether nobody has taken over any of them since `own_epoch`."""
        owned = {"partitions": sorted(partitions), "own_epoch": own_epoch}
        return connection.execute(self._count_owned, owned).scalar_one() == len(partitions)

    def check_owner(self, connection: sa.Connection, partitions: Collection[int], own_epoch: int) -> None:
        """Raises `FencedError` where another owner has taken over since `own_epoch`; 0 has nothing to lose yet."""
        if own_epoch and not self.is_owner(connection, partitions, own_epoch):
            raise FencedError(f"another process has taken over since epoch {own_epoch}")

    def move(
        self,
        connection: sa.Connection,
        claim: Claim,
        *,
        old: int,
        new: int,
        time: datetime | None = None,
    ) -> None:
        """Moves every partition of a claim from `old` to `new` by compare-and-set; those that are further stay there.

        `time` is when the stream stored the event at the new position, where that is another one. Raises `FencedError`
        where another owner has taken over.
        """
        moved = connection.execute(
            self._move,
            {
                "partitions": sorted(claim.taken_in),
                "own_epoch": claim.epoch,
                "old_position": old,
                "ahead": claim.ahead,
                "new_position": new,
                "new_time": None if time is None else microseconds_of(time),
            },
        )
        if moved.rowcount != len(claim.taken_in):
            raise FencedError(f"the position {old} of epoch {claim.epoch} is not this process's any more")

    def lowest(self, connection: sa.Connection, partitions: Collection[int]) -> int:
        """Up to where all of them are taken in; 0 where any of them never was."""
        rows = connection.execute(self._select, {"partitions": sorted(partitions)}).all()
        return rows[0].position if len(rows) == len(partitions) else 0
