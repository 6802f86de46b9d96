"""Taking events in: one transaction for a batch, with the inbox, the barrier, the handlers' own state and the outbox.

A batch runs first without savepoints. Where a handler raises, the whole batch is rolled back and run again with a
savepoint for each event, and the failing event moves to the queue of what isn't finished, with the saga's later
events behind it; the position goes on, and so do all other sagas.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa
import structlog

from choreography.v1 import participant_pb2
from farandole.database import Database
from farandole.envelope import Event, StoredMessage, decode
from farandole.outbox import OutboxRow
from farandole.participant.intake import HandlerFailedError, Intake
from farandole.participant.outgoing import Outgoing
from farandole.participant.participant import OPERATOR_VERBS, TIMED_OUT, Participant
from farandole.participant.prerequisites import early_events
from farandole.participant.schedule import Schedule, ScheduleChanges
from farandole.participant.tables import ParticipantTables
from farandole.participant.unfinished import Unfinished
from farandole.worker import FirstHeard, Handled, Position

_DUE_SAGAS = 500
_DUE_MESSAGES = 500

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]
Settled = tuple[list[OutboxRow], ScheduleChanges]
"""What a transaction has come to."""


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class ParticipantBatchHandler:
    """A participant's `farandole.worker.BatchHandler`."""

    def __init__(
        self, participant: Participant, database: Database, tables: ParticipantTables, *, clock: Clock = utc_now
    ) -> None:
        self._participant = participant
        self._database = database
        self._tables = tables
        self._clock = clock
        self._epoch = 0
        self._position = 0
        self._schedule = Schedule(participant.retries.longest)
        self.first_heard = FirstHeard((TIMED_OUT,))
        self.problem: str | None = None
        self.ownership = asyncio.Lock()
        """Held by whoever must not be overtaken by a claim of this process: it changes the epoch."""

    @property
    def position(self) -> int:
        """The sequence in the stream up to which events have been taken in, in a transaction that is committed."""
        return self._position

    def outgoing(self) -> Outgoing:
        """An empty collection of publications within the participant's contract."""
        participant = self._participant
        return Outgoing(
            participant=participant.name,
            registry=participant.registry,
            clock=self._clock,
            publishes=frozenset(c.DESCRIPTOR.full_name for c in participant.publishes),
        )

    def check_owner(self, connection: sa.Connection) -> None:
        """Raises `FencedError` where another process has taken over, which publishes what this one writes no more."""
        self._tables.check_owner(connection, self._epoch)

    def early(self, connection: sa.Connection, saga_id: str) -> list[participant_pb2.QueuedEvent]:
        """What of a saga waits for the other events that its steps need, in stream order."""
        return early_events(self._participant.steps, self._tables.prerequisites.waiting(connection, [saga_id]))

    async def claim(self, incarnation: str) -> Position:
        """See `BatchHandler.claim`."""

        def work(connection: sa.Connection) -> tuple[Position, int, dict[str, datetime]]:
            return *self._tables.claim(connection, incarnation, self._epoch), self._tables.queue_heads(connection)

        async with self.ownership:
            position, self._epoch, heads = await self._database.write(work)
        self._position = position.sequence
        self._schedule.load(heads)
        return position

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """Undoes and voids what the time-outs behind the position name, before any step of theirs runs.

        One whose saga has something in the queue, or whose handler raises, is left for its place in the stream, unless
        it overtakes a dead letter. Otherwise see `BatchHandler.hear`; the outbox rows are among those `waiting`.
        """
        async for page in pages:
            events = [event for _, event in self._decoded(page)]
            await self._settle(partial(self._hear, events=events))
        return Handled()

    async def waiting(self) -> Sequence[OutboxRow]:
        """See `BatchHandler.waiting`."""
        return await self._database.read(self._tables.outbox.waiting)

    async def remove(self, published: Collection[int]) -> None:
        """See `BatchHandler.remove`."""
        await self._database.write(lambda connection: self._tables.outbox.remove(connection, published))

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        events = list(self._decoded(messages))
        last = messages[-1].sequence

        def attempt(*, isolated: bool) -> Callable[[sa.Connection], Settled]:
            return lambda connection: self._take_in(connection, events, last, published, isolated=isolated)

        try:
            rows = await self._settle(attempt(isolated=False))
        except HandlerFailedError:
            rows = await self._settle(attempt(isolated=True))
        self._position = last
        return Handled(rows)

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        return self._schedule.due_in(self._clock())

    async def due(self) -> Handled:
        """Goes on with the sagas whose queue is due."""
        now = self._clock()
        keys = self._schedule.due(now, _DUE_SAGAS)
        if not keys:
            return Handled()
        return Handled(await self._settle(lambda connection: self._try_again(connection, keys)))

    async def _settle(self, work: Callable[[sa.Connection], Settled]) -> list[OutboxRow]:
        rows, changes = await self._database.write(work)
        self._schedule.apply(changes)
        return rows

    def _take_in(
        self,
        connection: sa.Connection,
        events: Sequence[tuple[StoredMessage, Event]],
        last: int,
        published: Collection[int],
        *,
        isolated: bool,
    ) -> Settled:
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=last)
        self._tables.outbox.remove(connection, published)
        intake, unfinished = self._begin(connection, [event for _, event in events])
        for message, event in events:
            if event.type in OPERATOR_VERBS:
                unfinished.decide(event)
            elif unfinished.holds(event.key):
                unfinished.add_behind(message, event)
            elif failure := intake.run(event, isolated=isolated):
                unfinished.add_failed(message, event, failure)
        unfinished.save()
        return intake.save(), unfinished.changes

    def _hear(self, connection: sa.Connection, events: Sequence[Event]) -> Settled:
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
        intake, unfinished = self._begin(connection, events)
        for event in events:
            if unfinished.holds(event.key):
                unfinished.overtake(event)
            elif failure := intake.run(event, isolated=True):
                _log.warning(
                    "time-out left for its place in the stream: a handler failed",
                    saga_id=event.key,
                    sequence=event.sequence,
                    step=failure.reaction.step.name,
                )
        return intake.save(), unfinished.changes

    def _try_again(self, connection: sa.Connection, keys: Sequence[str]) -> Settled:
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
        entries = self._tables.queued(connection, keys, _DUE_MESSAGES)
        intake, unfinished = self._begin(
            connection, [e for e in map(self._readable, (q.message for q in entries)) if e]
        )
        unfinished.try_again(keys, entries, is_cut=len(entries) == _DUE_MESSAGES)
        return intake.save(), unfinished.changes

    def _begin(self, connection: sa.Connection, events: Collection[Event]) -> tuple[Intake, Unfinished]:
        intake = Intake(self._participant, self._tables, connection, self.outgoing(), events)
        return intake, Unfinished(
            self._participant, self._tables, intake, self._schedule, self._readable, self._clock()
        )

    def _decoded(self, messages: Sequence[StoredMessage]) -> Iterator[tuple[StoredMessage, Event]]:
        for message in messages:
            if (event := self._readable(message)) is not None:
                yield message, event

    def _readable(self, message: StoredMessage) -> Event | None:
        decoded = decode(self._participant.registry, message)
        if isinstance(decoded, Event):
            return decoded
        # The correlator dead-letters what no one can read; here it only must not stop anything.
        _log.warning("event can't be read", sequence=message.sequence, type=message.type, reason=decoded.reason.name)
        return None
