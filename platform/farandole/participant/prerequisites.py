"""What came early for a step that needs several events: it waits, durably, until the last of them comes.

An event that waits holds up nothing: it has been taken in, and may have triggered other steps. It leaves with the step:
where the last one comes the step runs with all of them, and where the step can't run any more, since it was voided or
its saga has ended, what waits is late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from choreography.v1 import participant_pb2
from farandole.database.columns import KEY_TEXT
from farandole.envelope import StoredMessage
from farandole.participant.barrier import BarrierKey
from farandole.participant.message_columns import columns_of, message_columns, message_of
from farandole.participant.step import Step


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """An event that waits for the others that its step needs."""

    identity: str
    """Source and id, joined as in `ids.message_id`."""
    digest: bytes
    """Of its body, as `Event.digest`."""
    message: StoredMessage


Waiting = Mapping[str, Prerequisite]
"""What waits for one step of one saga, by full event type."""


class PrerequisiteTable:
    """The table of what waits: at most one event of a type for each step of a saga."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = table = sa.Table(
            "farandole_prerequisite",
            metadata,
            sa.Column("key", KEY_TEXT, primary_key=True),
            sa.Column("definition", KEY_TEXT, primary_key=True),
            sa.Column("step", KEY_TEXT, primary_key=True),
            sa.Column("event_type", KEY_TEXT, primary_key=True),
            sa.Column("identity", sa.Text, nullable=False),
            sa.Column("digest", sa.LargeBinary, nullable=False),
            sa.Column("sequence", sa.BigInteger, nullable=False),
            *message_columns(),
        )
        self._select = sa.select(table).where(table.c.key.in_(sa.bindparam("keys", expanding=True)))
        self._insert = sa.insert(table)
        self._delete = sa.delete(table).where(
            table.c.key == sa.bindparam("of_key"),
            table.c.definition == sa.bindparam("of_definition"),
            table.c.step == sa.bindparam("of_step"),
        )

    def waiting(self, connection: sa.Connection, keys: Collection[str]) -> dict[BarrierKey, dict[str, Prerequisite]]:
        """What waits of these sagas, by step and full event type."""
        found: dict[BarrierKey, dict[str, Prerequisite]] = {}
        for row in connection.execute(self._select, {"keys": list(keys)}):
            of_step = found.setdefault((row.definition, row.key, row.step), {})
            of_step[row.event_type] = Prerequisite(row.identity, row.digest, message_of(row))
        return found

    def save(
        self, connection: sa.Connection, before: Mapping[BarrierKey, Waiting], after: Mapping[BarrierKey, Waiting]
    ) -> None:
        """Writes what has changed: events come to wait one by one, and leave all at once with their step."""
        left = [place for place in before if not after.get(place)]
        came = [
            (place, event_type, prerequisite)
            for place, waiting in after.items()
            for event_type, prerequisite in waiting.items()
            if event_type not in before.get(place, {})
        ]
        if left:
            connection.execute(
                self._delete,
                [{"of_definition": definition, "of_key": key, "of_step": step} for definition, key, step in left],
            )
        if came:
            connection.execute(self._insert, [_row(*one) for one in came])


def _row(place: BarrierKey, event_type: str, prerequisite: Prerequisite) -> dict[str, object]:
    definition, key, step = place
    return {
        "key": key,
        "definition": definition,
        "step": step,
        "event_type": event_type,
        "identity": prerequisite.identity,
        "digest": prerequisite.digest,
        **columns_of(prerequisite.message),
    }


def early_events(steps: Iterable[Step], waiting: Mapping[BarrierKey, Waiting]) -> list[participant_pb2.QueuedEvent]:
    """What waits of one saga, with what its steps still need, in stream order. Pure.

    An event that several steps need is told once, with all that those lack.
    """
    found: dict[int, participant_pb2.QueuedEvent] = {}
    needs = {(step.saga, step.name): step.needs for step in steps}
    for (definition, _, step), came in waiting.items():
        missing = [name for name in needs.get((definition, step), ()) if name not in came]
        for prerequisite in came.values():
            message = prerequisite.message
            event = found.setdefault(
                message.sequence,
                participant_pb2.QueuedEvent(
                    sequence=message.sequence, event_type=message.type, state=participant_pb2.QUEUED_EVENT_STATE_EARLY
                ),
            )
            event.missing.extend(name for name in missing if name not in event.missing)
    return [found[sequence] for sequence in sorted(found)]
