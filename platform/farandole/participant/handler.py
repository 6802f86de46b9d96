"""Taking events in: one transaction for a batch, with the inbox, the barrier, the handlers' own state and the outbox.

A batch runs first without savepoints. Where a handler raises, the whole batch is rolled back and run again with a
savepoint for each event, and the failing event moves to the queue of what isn't finished, with the saga's later
events behind it; the position goes on, and so do all other sagas.

Where the process before did not end in order, what may have ended it runs alone, counted: see `crashes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
import structlog

from choreography.v1 import participant_pb2
from farandole.database import Database
from farandole.envelope import Event, StoredMessage, decode
from farandole.outbox import OutboxRow
from farandole.participant.crashes import CountFirstError, Crashes
from farandole.participant.intake import HandlerFailedError, Intake
from farandole.participant.outgoing import Outgoing
from farandole.participant.participant import OPERATOR_VERBS, TIMED_OUT, Participant
from farandole.participant.prerequisites import early_events
from farandole.participant.run_check import RunCheck
from farandole.participant.schedule import Schedule, ScheduleChanges
from farandole.participant.tables import Claim, ParticipantTables
from farandole.participant.unfinished import Unfinished
from farandole.worker import FirstHeard, Handled, Position

_DUE_SAGAS = 500
_DUE_MESSAGES = 500

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What a transaction has come to."""

    rows: list[OutboxRow]
    changes: ScheduleChanges
    counts_removed: Collection[int]
    """The events whose counts are gone."""


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class ParticipantBatchHandler:
    """A participant's `farandole.worker.BatchHandler`."""

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: ParticipantTables,
        *,
        clock: Clock = utc_now,
        batch_size: int = 500,
    ) -> None:
        """`batch_size` is the most events that one call of `handle` has."""
        self._participant = participant
        self._database = database
        self._tables = tables
        self._clock = clock
        self._epoch = 0
        self._position = 0
        self._schedule = Schedule(participant.retries.longest)
        self._crashes = Crashes(batch_size)
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

        def work(connection: sa.Connection) -> tuple[Claim, dict[str, datetime], dict[int, int]]:
            claim = self._tables.claim(connection, incarnation, self._epoch)
            return claim, self._tables.queue_heads(connection), self._tables.started.all(connection)

        async with self.ownership:
            is_first = self._epoch == 0
            claim, heads, counts = await self._database.write(work)
            self._epoch = claim.epoch
        self._position = claim.position.sequence
        self._schedule.load(heads)
        if is_first:
            self._crashes.begin(counts, heads.keys(), is_unclean=claim.is_unclean)
            if claim.is_unclean:
                _log.info("the process before did not end in order: what may have ended it is run alone at first")
        return claim.position

    async def release(self) -> None:
        """See `BatchHandler.release`."""
        if self._epoch:
            await self._database.write(lambda connection: self._tables.release(connection, self._epoch))

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """Undoes and voids what the time-outs behind the position name, before any step of theirs runs.

        One whose saga has something in the queue, or whose handler raises, is left for its place in the stream, unless
        it overtakes a dead letter. Otherwise see `BatchHandler.hear`; the outbox rows are among those `waiting`.
        """

        async def hear(messages: Sequence[StoredMessage]) -> list[OutboxRow]:
            events = [event for _, event in self._decoded(messages)]
            return await self._settle(lambda connection: self._hear(connection, events))

        async for page in pages:
            await self._one_by_one_where_doubtful(page, hear)
        return Handled()

    async def waiting(self) -> Sequence[OutboxRow]:
        """See `BatchHandler.waiting`."""
        return await self._database.read(self._tables.outbox.waiting)

    async def remove(self, published: Collection[int]) -> None:
        """See `BatchHandler.remove`."""
        await self._database.write(lambda connection: self._tables.outbox.remove(connection, published))

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        removable = published

        async def take_in(part: Sequence[StoredMessage]) -> list[OutboxRow]:
            nonlocal removable
            events = list(self._decoded(part))
            last = part[-1].sequence

            def attempt(*, isolated: bool) -> Callable[[sa.Connection], _Settled]:
                return lambda connection: self._take_in(connection, events, last, removable, isolated=isolated)

            try:
                rows = await self._settle(attempt(isolated=False))
            except HandlerFailedError:
                rows = await self._settle(attempt(isolated=True))
            self._position = last
            self._crashes.took_in(len(part))
            removable = ()
            return rows

        return Handled(await self._one_by_one_where_doubtful(messages, take_in))

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        return self._schedule.due_in(self._clock())

    async def due(self) -> Handled:
        """Goes on with the sagas whose queue is due."""
        now = self._clock()
        keys = self._schedule.due(now, _DUE_SAGAS)
        if not keys:
            return Handled()
        if doubtful := next(filter(self._crashes.doubts, keys), None):
            return Handled(await self._try_alone(doubtful))
        try:
            return Handled(await self._settle(lambda connection: self._try_again(connection, keys, _DUE_MESSAGES)))
        except CountFirstError as first:
            self._crashes.doubt(first.key)
            return Handled()

    async def _try_alone(self, key: str) -> list[OutboxRow]:
        """Goes on with one event of a saga whose queue may have ended the process before."""
        while True:
            try:
                rows = await self._settle(lambda connection: self._try_again(connection, [key], 1))
            except CountFirstError as first:
                await self._count(first.sequence)
            else:
                if not self._schedule.is_due(key, self._clock()):
                    self._crashes.trust(key)
                return rows

    async def _one_by_one_where_doubtful(
        self,
        messages: Sequence[StoredMessage],
        take: Callable[[Sequence[StoredMessage]], Awaitable[list[OutboxRow]]],
    ) -> list[OutboxRow]:
        """Has `take` deal with the messages, in order, so that each that is to be counted is, and then runs alone.

        What stands before such a message is taken in before it: nothing of that is doubtful, or it runs no handler.
        """
        rows: list[OutboxRow] = []
        while messages:
            try:
                return rows + await take(messages)
            except CountFirstError as first:
                place = next(n for n, message in enumerate(messages) if message.sequence == first.sequence)
                if place:
                    rows += await take(messages[:place])
                await self._count(first.sequence)
                rows += await take(messages[place : place + 1])
                messages = messages[place + 1 :]
        return rows

    async def _count(self, sequence: int) -> None:
        """Counts an event in a transaction of its own."""
        times = self._crashes.next_count(sequence)

        def work(connection: sa.Connection) -> None:
            self._tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
            self._tables.started.put(connection, sequence, times)

        await self._database.write(work)
        self._crashes.counted(sequence, times)

    async def _settle(self, work: Callable[[sa.Connection], _Settled]) -> list[OutboxRow]:
        settled = await self._database.write(work)
        self._schedule.apply(settled.changes)
        self._crashes.dealt_with(settled.counts_removed)
        return settled.rows

    def _take_in(
        self,
        connection: sa.Connection,
        events: Sequence[tuple[StoredMessage, Event]],
        last: int,
        published: Collection[int],
        *,
        isolated: bool,
    ) -> _Settled:
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=last)
        self._tables.outbox.remove(connection, published)
        check = RunCheck(self._crashes, doubtful=self._crashes.doubts_events)
        intake, unfinished = self._begin(connection, [event for _, event in events], check)
        for message, event in events:
            if event.type in OPERATOR_VERBS:
                unfinished.decide(event)
            elif unfinished.holds(event.key):
                unfinished.add_behind(message, event)
            elif failure := intake.run(event, isolated=isolated):
                unfinished.add_failed(message, event, failure)
        unfinished.save()
        return self._settled(intake, unfinished, check.ran | check.crashed)

    def _hear(self, connection: sa.Connection, events: Sequence[Event]) -> _Settled:
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
        check = RunCheck(self._crashes, doubtful=self._crashes.doubts_events)
        intake, unfinished = self._begin(connection, events, check)
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
        # what must not run keeps its count: it becomes a dead letter at its place
        return self._settled(intake, unfinished, check.ran)

    def _try_again(self, connection: sa.Connection, keys: Sequence[str], most: int) -> _Settled:
        """Goes on with so many of the events that wait, in stream order."""
        self._tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
        check = RunCheck(self._crashes, doubtful=any(map(self._crashes.doubts, keys)))
        entries = self._tables.queued(connection, keys, most)
        events = [event for event in map(self._readable, (entry.message for entry in entries)) if event]
        intake, unfinished = self._begin(connection, events, check)
        unfinished.try_again(keys, entries, is_cut=len(entries) == most)
        return self._settled(intake, unfinished, check.ran | check.crashed)

    def _begin(
        self, connection: sa.Connection, events: Collection[Event], check: RunCheck
    ) -> tuple[Intake, Unfinished]:
        intake = Intake(self._participant, self._tables, connection, self.outgoing(), events, before_run=check)
        return intake, Unfinished(
            self._participant, self._tables, intake, self._schedule, self._readable, self._clock()
        )

    def _settled(self, intake: Intake, unfinished: Unfinished, counts_removed: Collection[int]) -> _Settled:
        self._tables.started.remove(intake.connection, counts_removed)
        return _Settled(intake.save(), unfinished.changes, counts_removed)

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
