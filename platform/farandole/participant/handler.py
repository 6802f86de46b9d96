"""Taking events in: one transaction for a batch, with the inbox, the barrier, the handlers' own state and the outbox.

A batch runs first without savepoints. Where a handler raises, the whole batch is rolled back and run again with a
savepoint for each event, and the failing event moves to the queue of what isn't finished, with the saga's later
events behind it; the position goes on, and so do all other sagas.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
import structlog
from google.protobuf.message import Message

from choreography.v1 import lifecycle_pb2, saga_pb2
from farandole.database import Database, is_store_trouble
from farandole.envelope import Event, StoredMessage, Unreadable, decode, derived_id, message_id
from farandole.outbox import OutboxRow
from farandole.participant.barrier import Barrier, BarrierState, Direction, Move, forward_move, undo_move
from farandole.participant.outgoing import Outgoing, events_of
from farandole.participant.participant import Participant, Reaction
from farandole.participant.tables import BarrierKey, InboxEntry, ParticipantTables, QueueEntry
from farandole.participant.transaction import Transaction
from farandole.saga import Disposition
from farandole.worker import FirstHeard, Handled, Position

_FIRST_RETRY = timedelta(milliseconds=200)
_LONGEST_RETRY = timedelta(seconds=30)
_DUE_MESSAGES = 500

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


@dataclass(slots=True)
class _Intake:
    """What one transaction has come to so far."""

    outgoing: Outgoing
    handled: set[str]
    barriers: dict[BarrierKey, Barrier]
    inbox: list[InboxEntry] = field(default_factory=list)
    queued: list[QueueEntry] = field(default_factory=list)
    queued_keys: dict[str, datetime] = field(default_factory=dict)


class _HandlerFailedError(Exception):
    """A handler raised outside a savepoint: the batch must be rolled back and run with them."""


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
        self._queued: dict[str, datetime] = {}
        """The sagas that have something in the queue, and when the head of each is due."""
        self.first_heard = FirstHeard()
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

    async def claim(self, incarnation: str) -> Position:
        """See `BatchHandler.claim`."""

        def work(connection: sa.Connection) -> tuple[Position, int, dict[str, datetime]]:
            return *self._tables.claim(connection, incarnation, self._epoch), self._tables.queue_heads(connection)

        async with self.ownership:
            position, self._epoch, self._queued = await self._database.write(work)
        self._position = position.sequence
        return position

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """See `BatchHandler.hear`."""
        async for _ in pages:
            pass
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

        def attempt(*, isolated: bool) -> Callable[[sa.Connection], tuple[_Intake, list[OutboxRow]]]:
            return lambda connection: self._take_in(connection, events, last, published, isolated=isolated)

        try:
            intake, rows = await self._database.write(attempt(isolated=False))
        except _HandlerFailedError:
            intake, rows = await self._database.write(attempt(isolated=True))
        self._position = last
        self._queued |= intake.queued_keys
        return Handled(rows)

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        if not self._queued:
            return None
        return (min(self._queued.values()) - self._clock()).total_seconds()

    async def due(self) -> Handled:
        """Tries the sagas again whose queue is due."""
        now = self._clock()
        keys = [key for key, due in self._queued.items() if due <= now]
        if not keys:
            return Handled()
        heads, rows = await self._database.write(lambda connection: self._try_again(connection, keys, now))
        for key in keys:
            self._queued.pop(key)
        self._queued |= heads
        return Handled(rows)

    def _decoded(self, messages: Sequence[StoredMessage]) -> Iterator[tuple[StoredMessage, Event]]:
        for message in messages:
            decoded = decode(self._participant.registry, message)
            if isinstance(decoded, Unreadable):
                # The correlator dead-letters what no one can read; here it only must not stop anything.
                _log.warning(
                    "event can't be read", sequence=message.sequence, type=message.type, reason=decoded.reason.name
                )
            else:
                yield message, decoded

    def _take_in(
        self,
        connection: sa.Connection,
        events: Sequence[tuple[StoredMessage, Event]],
        last: int,
        published: Collection[int],
        *,
        isolated: bool,
    ) -> tuple[_Intake, list[OutboxRow]]:
        tables = self._tables
        tables.move(connection, epoch=self._epoch, old=self._position, new=last)
        tables.outbox.remove(connection, published)
        intake, before = self._intake(connection, [event for _, event in events])
        for message, event in events:
            if event.key in self._queued or event.key in intake.queued_keys:
                intake.queued.append(QueueEntry(event.key, message))
                continue
            failure = self._run(connection, event, intake, isolated=isolated)
            if failure is not None:
                entry = self._failed(QueueEntry(event.key, message), failure)
                intake.queued.append(entry)
                intake.queued_keys[event.key] = entry.due
        tables.enqueue(connection, intake.queued)
        return intake, self._save(connection, intake, before)

    def _try_again(
        self, connection: sa.Connection, keys: Sequence[str], now: datetime
    ) -> tuple[dict[str, datetime], list[OutboxRow]]:
        tables = self._tables
        tables.move(connection, epoch=self._epoch, old=self._position, new=self._position)
        entries = tables.queued(connection, keys, _DUE_MESSAGES)
        # Whatever the limit left out is due at once; a failure below says later for its saga.
        heads = dict.fromkeys(keys, now) if len(entries) == _DUE_MESSAGES else {}
        decoded = list(self._decoded([entry.message for entry in entries]))
        events = {message.sequence: event for message, event in decoded}
        intake, before = self._intake(connection, list(events.values()))
        done: list[int] = []
        blocked: set[str] = set()
        for entry in entries:
            if entry.key in blocked:
                continue
            event = events.get(entry.message.sequence)
            failure = self._run(connection, event, intake, isolated=True) if event is not None else None
            if failure is None:
                done.append(entry.message.sequence)
            else:
                blocked.add(entry.key)
                failed = self._failed(entry, failure)
                heads[entry.key] = failed.due
                tables.postpone(connection, failed)
        tables.dequeue(connection, done)
        return heads, self._save(connection, intake, before)

    def _intake(self, connection: sa.Connection, events: Sequence[Event]) -> tuple[_Intake, dict[BarrierKey, Barrier]]:
        handled = self._tables.handled(connection, {_identity(event) for event in events})
        before = self._tables.barriers(connection, {event.key for event in events})
        return _Intake(self.outgoing(), handled, dict(before)), before

    def _save(self, connection: sa.Connection, intake: _Intake, before: dict[BarrierKey, Barrier]) -> list[OutboxRow]:
        self._tables.add_inbox(connection, intake.inbox)
        self._tables.save_barriers(connection, before, intake.barriers)
        return self._tables.outbox.add(connection, intake.outgoing.publications)

    def _failed(self, entry: QueueEntry, failure: Exception) -> QueueEntry:
        attempts = entry.attempts + 1
        pause = min(_FIRST_RETRY * 2 ** min(attempts - 1, 16), _LONGEST_RETRY)
        _log.warning(
            "handler failed, trying again",
            saga_id=entry.key,
            sequence=entry.message.sequence,
            type=entry.message.type,
            attempts=attempts,
            retry_seconds=pause.total_seconds(),
            error=f"{type(failure).__name__}: {failure}",
            exc_info=failure if attempts == 1 else None,
        )
        return replace(
            entry, attempts=attempts, due=self._clock() + pause, error=f"{type(failure).__name__}: {failure}"[:1000]
        )

    def _run(self, connection: sa.Connection, event: Event, intake: _Intake, *, isolated: bool) -> Exception | None:
        """Lets every step react to the event. Returns what a handler raised, with nothing of the event done."""
        identity = _identity(event)
        if identity in intake.handled:
            _log.info("duplicate event", saga_id=event.key, event_id=event.id, type=event.type)
            return None
        barriers, published = dict(intake.barriers), len(intake.outgoing.publications)
        disposition = Disposition.UNMATCHED
        try:
            with _savepoint(connection) if isolated else _no_savepoint():
                for reaction in self._participant.reactions.get(event.type, ()):
                    if _concerns(event, reaction):
                        disposition = self._react(connection, event, reaction, intake)
        except Exception as failure:
            if is_store_trouble(failure):
                raise  # the database's trouble is not the handler's: the whole batch is tried again
            # whatever else a handler raises is an outcome: the event is tried again later
            if not isolated:
                raise _HandlerFailedError from failure
            intake.barriers = barriers
            del intake.outgoing.publications[published:]
            return failure
        intake.handled.add(identity)
        intake.inbox.append(InboxEntry(identity, event.sequence, disposition))
        return None

    def _react(self, connection: sa.Connection, event: Event, reaction: Reaction, intake: _Intake) -> Disposition:
        step = reaction.step
        place = (step.saga, event.key, step.name)
        barrier = intake.barriers.get(place)
        if reaction.direction is Direction.FORWARD:
            move, disposition = forward_move(barrier, event.digest)
        else:
            move, disposition = undo_move(barrier)
        if move is Move.VOID:
            intake.barriers[place] = Barrier(BarrierState.VOID, b"")
            self._emit(intake, event, reaction, (_voided(event, reaction, self._participant.name),))
        elif move is Move.RUN and reaction.handler is not None:
            outcome = events_of(
                reaction.handler(event.body, self._transaction(connection, event, reaction)),
                reaction.produces,
                step=step.name,
            )
            self._emit(intake, event, reaction, outcome)
            intake.barriers[place] = self._passed(event, reaction, outcome, barrier)
        if disposition is not Disposition.APPLIED:
            _log.info(
                "event does no work",
                saga_id=event.key,
                event_id=event.id,
                type=event.type,
                step=step.name,
                disposition=disposition.name,
            )
        return disposition

    def _passed(self, event: Event, reaction: Reaction, outcome: Sequence[Message], barrier: Barrier | None) -> Barrier:
        if reaction.direction is Direction.UNDO and barrier is not None:
            return replace(barrier, state=BarrierState.UNDONE)
        failed = any(self._is_failure(body) for body in outcome)
        return Barrier(BarrierState.FAILED if failed else BarrierState.DONE, event.digest)

    def _is_failure(self, body: Message) -> bool:
        event_type = self._participant.registry.get(body.DESCRIPTOR.full_name)
        return event_type is not None and event_type.is_failure

    def _emit(self, intake: _Intake, event: Event, reaction: Reaction, outcome: Sequence[Message]) -> None:
        intake.outgoing.add_outcome(
            outcome, step=reaction.step.name, saga=reaction.step.saga, direction=reaction.direction, cause=event
        )

    def _transaction(self, connection: sa.Connection, event: Event, reaction: Reaction) -> Transaction:
        step = reaction.step
        return Transaction(
            connection=connection,
            key=event.key,
            step_id=derived_id((self._participant.name, step.name, step.saga, event.key)),
            time=event.stream_time,
        )


def _identity(event: Event) -> str:
    return message_id(event.source, event.id)


def _concerns(event: Event, reaction: Reaction) -> bool:
    """Whether the event is about the reaction's step: a time-out names the definition and the steps."""
    body = event.body
    if isinstance(body, lifecycle_pb2.SagaTimedOut):
        return body.definition == reaction.step.saga and reaction.step.name in body.steps
    return True


def _voided(event: Event, reaction: Reaction, participant: str) -> lifecycle_pb2.StepVoided:
    timed_out = event.body if isinstance(event.body, lifecycle_pb2.SagaTimedOut) else None
    return lifecycle_pb2.StepVoided(
        saga_id=event.key,
        definition=reaction.step.saga,
        version=timed_out.version if timed_out is not None else 0,
        cause=timed_out.cause if timed_out is not None else saga_pb2.SAGA_CAUSE_UNSPECIFIED,
        step=reaction.step.name,
        participant=participant,
    )


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[None]:
    with connection.begin_nested():
        yield


@contextmanager
def _no_savepoint() -> Iterator[None]:
    yield
