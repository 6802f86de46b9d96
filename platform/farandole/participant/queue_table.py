"""The table of the queue of what isn't finished, in a participant's database."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from farandole.database.columns import KEY_TEXT
from farandole.envelope import StoredMessage
from farandole.participant.circuits import Place
from farandole.participant.message_columns import columns_of, message_columns, message_of
from farandole.participant.schedule import UNTIL_TOLD, Wait
from farandole.partitions import PARTITIONS
from farandole.times import EPOCH_START, microseconds_of, time_of


class QueueState(enum.IntEnum):
    """Why an event is in the queue. The numbers are those of `choreography.v1.QueuedEventState`."""

    RETRYING = 1
    """Its handler failed; it is tried again."""
    WAITING = 2
    """It waits behind an earlier event of its saga, and was not tried."""
    DEAD_LETTERED = 3
    """It was given up on: it stays, and its saga's later events behind it, until an operator closes it."""
    SNOOZED = 4
    """Its handler asked for a later time."""
    DEPENDENCY_DOWN = 5
    """It waits for a dependency that is down."""
    UNREADABLE = 7
    """It can't be read with the schemas that there are; that is tried again."""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An event that could not be dealt with yet, or that waits behind one of its saga that could not."""

    key: str
    """The saga's; of an event that can't be read so far, the key of its partition, which no saga has."""
    message: StoredMessage
    state: QueueState = QueueState.WAITING
    attempts: int = 0
    """How often it was tried, counted over redrives."""
    due: datetime = EPOCH_START
    """When it is tried again, where nothing of its saga stands before it; of one that waits for a dependency, since
    when it has."""
    pause: timedelta = timedelta(0)
    """How long it was to wait when that began."""
    error: str = ""
    """What the last try came to, with nothing in it that must not be shown."""
    attempts_before: int = 0
    """How often it had been tried when it was last redriven: each redrive gives as many tries as the first time."""
    definition: str = ""
    """The definition of the step that failed last; empty where none has."""
    step: str = ""
    direction: str = ""
    """Which part of the step."""
    dependency: str = ""
    """What it waits for that is down; empty where it waits for nothing like that."""

    @property
    def given_up(self) -> bool:
        """Whether it is a dead letter."""
        return self.state is QueueState.DEAD_LETTERED

    @property
    def wait(self) -> Wait:
        """What its saga waits for while it is the first."""
        match self.state:
            case QueueState.DEAD_LETTERED:
                return UNTIL_TOLD
            case QueueState.DEPENDENCY_DOWN:
                return Wait(dependency=self.dependency)
            case _:
                return Wait(self.due, self.pause)

    @property
    def place(self) -> Place:
        """Which part of which step it was tried for last."""
        return self.definition, self.step, self.direction

    def is_due(self, now: datetime) -> bool:
        """Whether it may be tried. Who would have to wait longer than its pause saw the clock being set back."""
        return self.due <= now or self.due - now > self.pause


_CHANGING = (
    "key", "state", "attempts", "due", "pause", "error", "attempts_before", "definition", "step", "direction",
    "dependency",
)  # fmt: skip


class QueueTable:
    """The table, and the statements on it."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = queue = sa.Table(
            "farandole_queue",
            metadata,
            sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("partition", sa.SmallInteger, nullable=False),
            sa.Column("key", KEY_TEXT, nullable=False, index=True),
            *message_columns(),
            sa.Column("state", sa.SmallInteger, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False),
            sa.Column("due", sa.BigInteger, nullable=False),
            sa.Column("pause", sa.BigInteger, nullable=False),
            sa.Column("error", sa.Text, nullable=False),
            sa.Column("attempts_before", sa.Integer, nullable=False),
            sa.Column("definition", sa.Text, nullable=False),
            sa.Column("step", sa.Text, nullable=False),
            sa.Column("direction", sa.Text, nullable=False),
            sa.Column("dependency", sa.Text, nullable=False),
        )
        self._insert = sa.insert(queue)
        self._select = (
            sa.select(queue)
            .where(queue.c.key.in_(sa.bindparam("keys", expanding=True)))
            .order_by(queue.c.sequence)
            .limit(sa.bindparam("most"))
        )
        no_content = (sa.literal("{}").label("headers"), sa.literal(b"").label("data"))
        changing = [queue.c[column] for column in _CHANGING]
        self._select_heads = (
            sa.select(queue.c.sequence, queue.c.subject, queue.c.stream_time, *no_content, *changing)
            .where(
                queue.c.sequence.in_(
                    sa.select(sa.func.min(queue.c.sequence))
                    .where(queue.c.partition.in_(sa.bindparam("partitions", expanding=True)))
                    .group_by(queue.c.key)
                )
            )
            .order_by(queue.c.sequence)
        )
        dead = sa.func.sum(sa.cast(queue.c.state == int(QueueState.DEAD_LETTERED), sa.Integer))
        self._select_counts = sa.select(sa.func.count(), sa.func.coalesce(dead, 0)).select_from(queue)
        self._select_counts_by_state = sa.select(queue.c.state, sa.func.count()).group_by(queue.c.state)
        self._select_one = sa.select(queue).where(queue.c.sequence == sa.bindparam("wanted"))
        self._select_of_types = (
            sa.select(queue)
            .where(
                queue.c.key == sa.bindparam("of_key"),
                queue.c.sequence > sa.bindparam("behind"),
                queue.c.subject.in_(sa.bindparam("subjects", expanding=True)),
            )
            .order_by(queue.c.sequence)
            .limit(sa.bindparam("most"))
        )
        self._select_keys = (
            sa.select(queue.c.key).distinct().where(queue.c.subject.in_(sa.bindparam("subjects", expanding=True)))
        )
        self._delete = sa.delete(queue).where(queue.c.sequence == sa.bindparam("done"))
        self._update = (
            sa.update(queue)
            .where(queue.c.sequence == sa.bindparam("tried"))
            .values({column: sa.bindparam(f"new_{column}") for column in _CHANGING})
        )

    def add(self, connection: sa.Connection, entries: Sequence[QueueEntry]) -> None:
        """Puts events into the queue."""
        if entries:
            connection.execute(
                self._insert,
                [{**columns_of(e.message), "partition": e.message.partition or 0, **_changing(e)} for e in entries],
            )

    def of(self, connection: sa.Connection, keys: Collection[str], most: int) -> list[QueueEntry]:
        """What waits for these sagas, in stream order."""
        return [_entry(row) for row in connection.execute(self._select, {"keys": list(keys), "most": most})]

    def at(self, connection: sa.Connection, sequence: int) -> QueueEntry | None:
        """What waits of that stream sequence; None where nothing does."""
        row = connection.execute(self._select_one, {"wanted": sequence}).first()
        return None if row is None else _entry(row)

    def behind(
        self, connection: sa.Connection, head: QueueEntry, types: Collection[str], most: int
    ) -> list[QueueEntry]:
        """What waits of the same saga behind an entry and is of one of these types, in stream order."""
        place = head.message.subject.rpartition(head.message.type)[0]
        subjects = [f"{place}{event_type}" for event_type in types]
        found = {"of_key": head.key, "behind": head.message.sequence, "subjects": subjects, "most": most}
        return [_entry(row) for row in connection.execute(self._select_of_types, found)]

    def heads(self, connection: sa.Connection, partitions: Iterable[int] = range(PARTITIONS)) -> list[QueueEntry]:
        """The first in the queue of each saga of these partitions that has one, in stream order; without the headers
        and the data."""
        return [_entry(row) for row in connection.execute(self._select_heads, {"partitions": list(partitions)})]

    def keys_with(self, connection: sa.Connection, event_type: str, partitions: Iterable[int]) -> set[str]:
        """The sagas of these partitions of which an event of this type waits."""
        subjects = [f"events.{partition}.{event_type}" for partition in partitions]
        return set(connection.execute(self._select_keys, {"subjects": subjects}).scalars())

    def counts(self, connection: sa.Connection) -> tuple[int, int]:
        """How many events are in the queue, and how many of them are dead letters."""
        queued, dead = connection.execute(self._select_counts).one()
        return queued, dead

    def counts_by_state(self, connection: sa.Connection) -> dict[QueueState, int]:
        """How many events are in the queue in each state that any is in."""
        return {QueueState(state): count for state, count in connection.execute(self._select_counts_by_state)}

    def remove(self, connection: sa.Connection, sequences: Iterable[int]) -> None:
        """Removes what has been dealt with."""
        parameters = [{"done": sequence} for sequence in sequences]
        if parameters:
            connection.execute(self._delete, parameters)

    def update(self, connection: sa.Connection, entry: QueueEntry) -> None:
        """Records what has become of an entry."""
        changes = {f"new_{column}": value for column, value in _changing(entry).items()}
        connection.execute(self._update, {"tried": entry.message.sequence, **changes})


def _changing(entry: QueueEntry) -> dict[str, object]:
    """The columns of an entry that change as it is tried."""
    return {
        **{column: getattr(entry, column) for column in _CHANGING},
        "state": int(entry.state),
        "due": microseconds_of(entry.due),
        "pause": entry.pause // timedelta(microseconds=1),
    }


def _entry(row: sa.Row[Any]) -> QueueEntry:
    changing = {column: getattr(row, column) for column in _CHANGING}
    changing |= {
        "state": QueueState(row.state),
        "due": time_of(row.due),
        "pause": timedelta(microseconds=row.pause),
    }
    return QueueEntry(message=message_of(row), **changing)
