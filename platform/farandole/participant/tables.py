"""The platform's tables in a participant's database, and the statements on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from farandole.database.columns import KEY_TEXT
from farandole.outbox import Outbox
from farandole.participant.barrier import Barrier, BarrierKey, BarrierState
from farandole.participant.crashes import StartedTable
from farandole.participant.position_table import PositionTable
from farandole.participant.prerequisites import PrerequisiteTable
from farandole.participant.queue_table import QueueTable
from farandole.participant.set_aside import SetAsideTable
from farandole.saga import Disposition
from farandole.sql_leases import LeaseTables


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """An event that has been dealt with."""

    identity: str
    """Source and id, joined as in `ids.message_id`."""
    sequence: int
    disposition: Disposition


class ParticipantTables:
    """Positions, inbox, barrier, prerequisites, queue, what is set aside, counts, outbox and leases of one
    participant."""

    def __init__(self) -> None:
        self.metadata = sa.MetaData()
        self.outbox = Outbox(self.metadata)
        self.leases = LeaseTables(self.metadata)
        self.positions = PositionTable(self.metadata)
        self.prerequisites = PrerequisiteTable(self.metadata)
        self.queue = QueueTable(self.metadata)
        self.set_aside = SetAsideTable(self.metadata)
        self.started = StartedTable(self.metadata)
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
