"""The platform's tables in a participant's database, and the statements on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from farandole.database.columns import KEY_TEXT
from farandole.errors import FencedError
from farandole.outbox import Outbox
from farandole.participant.barrier import Barrier, BarrierKey, BarrierState
from farandole.participant.crashes import StartedTable
from farandole.participant.message_columns import microseconds_of, time_of
from farandole.participant.prerequisites import PrerequisiteTable
from farandole.participant.queue_table import QueueTable
from farandole.participant.set_aside import SetAsideTable
from farandole.saga import Disposition
from farandole.worker import Position

_LANE = 0


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """An event that has been dealt with."""

    identity: str
    """Source and id, joined as in `envelope.message_id`."""
    sequence: int
    disposition: Disposition


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process finds that takes over."""

    position: Position
    epoch: int
    is_unclean: bool
    """Whether the process before it did not end in order."""


class ParticipantTables:
    """Position, inbox, barrier, prerequisites, queue, what is set aside, counts and outbox of one participant."""

    def __init__(self) -> None:
        self.metadata = sa.MetaData()
        self.outbox = Outbox(self.metadata)
        self.prerequisites = PrerequisiteTable(self.metadata)
        self.queue = QueueTable(self.metadata)
        self.set_aside = SetAsideTable(self.metadata)
        self.started = StartedTable(self.metadata)
        position = self._position = sa.Table(
            "farandole_position",
            self.metadata,
            sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("incarnation", sa.Text, nullable=False),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("position_time", sa.BigInteger),
            sa.Column("in_use", sa.Boolean, nullable=False),
        )
        inbox = self._inbox = sa.Table(
            "farandole_inbox",
            self.metadata,
            sa.Column("identity", KEY_TEXT, primary_key=True),
            sa.Column("sequence", sa.BigInteger, nullable=False),
            sa.Column("disposition", sa.SmallInteger, nullable=False),
        )
        barrier = self._barrier = sa.Table(
            "farandole_barrier",
            self.metadata,
            sa.Column("key", KEY_TEXT, primary_key=True),
            sa.Column("definition", KEY_TEXT, primary_key=True),
            sa.Column("step", KEY_TEXT, primary_key=True),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("trigger_digest", sa.LargeBinary, nullable=False),
            sa.Column("awaited_id", sa.Text, nullable=False),
        )
        self._select_position = sa.select(position).where(position.c.lane == _LANE)
        self._insert_position = sa.insert(position)
        self._raise_epoch = (
            sa.update(position).where(position.c.lane == _LANE).values(epoch=position.c.epoch + 1, in_use=True)
        )
        self._release = (
            sa.update(position)
            .where(position.c.lane == _LANE, position.c.epoch == sa.bindparam("own_epoch"))
            .values(in_use=False)
        )
        self._move = (
            sa.update(position)
            .where(
                position.c.lane == _LANE,
                position.c.epoch == sa.bindparam("own_epoch"),
                position.c.position == sa.bindparam("old_position"),
            )
            .values(
                position=sa.bindparam("new_position"),
                position_time=sa.func.coalesce(sa.bindparam("new_time"), position.c.position_time),
            )
        )
        self._select_inbox = sa.select(inbox.c.identity).where(
            inbox.c.identity.in_(sa.bindparam("identities", expanding=True))
        )
        self._insert_inbox = sa.insert(inbox)
        self._update_inbox = (
            sa.update(inbox)
            .where(inbox.c.identity == sa.bindparam("of_identity"), inbox.c.disposition != int(Disposition.APPLIED))
            .values(disposition=sa.bindparam("new_disposition"))
        )
        self._select_barriers = sa.select(barrier).where(barrier.c.key.in_(sa.bindparam("keys", expanding=True)))
        self._insert_barrier = sa.insert(barrier)
        self._update_barrier = (
            sa.update(barrier)
            .where(
                barrier.c.key == sa.bindparam("of_key"),
                barrier.c.definition == sa.bindparam("of_definition"),
                barrier.c.step == sa.bindparam("of_step"),
            )
            .values(state=sa.bindparam("new_state"))
        )

    def claim(self, connection: sa.Connection, incarnation: str, own_epoch: int) -> Claim:
        """Raises the epoch, so that an earlier owner's writes fail, and marks the store as in use.

        `own_epoch` is that of the caller's last claim, 0 for its first. Raises `FencedError` where it is outdated.
        """
        self.check_owner(connection, own_epoch)
        before = connection.execute(self._select_position).first()
        if before is None:
            new = {"lane": _LANE, "incarnation": incarnation, "epoch": 0, "position": 0, "in_use": False}
            connection.execute(self._insert_position, new)
        connection.execute(self._raise_epoch)
        row = connection.execute(self._select_position).one()
        is_unclean = before is not None and before.in_use and not own_epoch
        time = None if row.position_time is None else time_of(row.position_time)
        return Claim(Position(row.position, row.incarnation, time), row.epoch, is_unclean)

    def release(self, connection: sa.Connection, own_epoch: int) -> None:
        """Takes the mark away that the store is in use; does nothing where another owner has taken over."""
        connection.execute(self._release, {"own_epoch": own_epoch})

    def check_owner(self, connection: sa.Connection, own_epoch: int) -> None:
        """Raises `FencedError` where another owner has taken over since `own_epoch`; 0 has nothing to lose yet."""
        if own_epoch:
            stored = connection.execute(self._select_position).first()
            if stored is None or stored.epoch != own_epoch:
                raise FencedError(f"another process has taken over since epoch {own_epoch}")

    def move(self, connection: sa.Connection, *, epoch: int, old: int, new: int, time: datetime | None = None) -> None:
        """Moves the position by compare-and-set; `time` is when the stream stored the event at the new one, where that
        is another one. Raises `FencedError` where another owner has taken over.
        """
        moved = connection.execute(
            self._move,
            {
                "own_epoch": epoch,
                "old_position": old,
                "new_position": new,
                "new_time": None if time is None else microseconds_of(time),
            },
        )
        if moved.rowcount != 1:
            raise FencedError(f"the position {old} of epoch {epoch} is not this process's any more")

    def handled(self, connection: sa.Connection, identities: Collection[str]) -> set[str]:
        """Which of these events have been dealt with."""
        return set(connection.execute(self._select_inbox, {"identities": list(identities)}).scalars())

    def add_inbox(self, connection: sa.Connection, entries: Sequence[InboxEntry]) -> None:
        """Records events as dealt with."""
        if entries:
            connection.execute(
                self._insert_inbox,
                [{"identity": e.identity, "sequence": e.sequence, "disposition": int(e.disposition)} for e in entries],
            )

    def update_inbox(self, connection: sa.Connection, dispositions: Mapping[str, Disposition]) -> None:
        """Records what has become of events that waited, by identity. What was applied once stays so."""
        if dispositions:
            connection.execute(
                self._update_inbox,
                [{"of_identity": i, "new_disposition": int(d)} for i, d in dispositions.items()],
            )

    def barriers(self, connection: sa.Connection, keys: Collection[str]) -> dict[BarrierKey, Barrier]:
        """The barriers of all steps of these sagas."""
        return {
            (row.definition, row.key, row.step): Barrier(BarrierState(row.state), row.trigger_digest, row.awaited_id)
            for row in connection.execute(self._select_barriers, {"keys": list(keys)})
        }

    def save_barriers(
        self, connection: sa.Connection, before: Mapping[BarrierKey, Barrier], after: Mapping[BarrierKey, Barrier]
    ) -> None:
        """Writes what has changed. A new row that another transaction has made is an error, never overwritten."""
        inserted = [(key, barrier) for key, barrier in after.items() if key not in before]
        updated = [(key, barrier) for key, barrier in after.items() if key in before and before[key] != barrier]
        if inserted:
            connection.execute(
                self._insert_barrier,
                [
                    {
                        "definition": definition,
                        "key": key,
                        "step": step,
                        "state": barrier.state.value,
                        "trigger_digest": barrier.trigger_digest,
                        "awaited_id": barrier.awaited_id,
                    }
                    for (definition, key, step), barrier in inserted
                ],
            )
        if updated:
            connection.execute(
                self._update_barrier,
                [
                    {"of_definition": definition, "of_key": key, "of_step": step, "new_state": barrier.state.value}
                    for (definition, key, step), barrier in updated
                ],
            )
