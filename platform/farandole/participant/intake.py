"""One transaction's work on events: the inbox, the barrier, the handlers, and what they publish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
import structlog
from google.protobuf.message import Message

from choreography.v1 import lifecycle_pb2, saga_pb2
from farandole.database import is_store_trouble, refuse_aborted
from farandole.envelope import Event, decode
from farandole.errors import ContractError
from farandole.ids import derived_id, message_id
from farandole.outbox import OutboxRow
from farandole.participant.barrier import (
    Barrier,
    BarrierKey,
    Direction,
    Move,
    after_confirm,
    after_forward,
    after_undo,
    confirm_move,
    end_move,
    forward_move,
    gathering_move,
    undo_move,
)
from farandole.participant.crashes import CountFirstError
from farandole.participant.outgoing import Outgoing, events_of
from farandole.participant.participant import Participant, Reaction
from farandole.participant.prerequisites import Prerequisite, Waiting
from farandole.participant.tables import InboxEntry, ParticipantTables
from farandole.participant.transaction import Transaction
from farandole.saga import Disposition

_log = structlog.get_logger(__name__)


class HandlerFailedError(Exception):
    """A handler raised outside a savepoint: the transaction must be rolled back and run with them."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a handler raised, and which."""

    reaction: Reaction
    error: BaseException
    earlier: tuple[Event, ...] = ()
    """What the handler was given beside the event: what it raised may quote them too."""


@dataclass(slots=True)
class _Changes:
    """What one event changes, as far as its steps have been gone through."""

    barriers: dict[BarrierKey, Barrier] = field(default_factory=dict)
    waiting: dict[BarrierKey, Waiting] = field(default_factory=dict)
    decided: dict[str, Disposition] = field(default_factory=dict)
    """What has become of events that waited, by identity."""
    earlier: tuple[Event, ...] = ()
    """What the handler that runs is given beside the event."""

    def decide(self, waiting: Waiting, disposition: Disposition) -> None:
        """Records what has become of all that waited for a step; what was applied in another one stays so."""
        for prerequisite in waiting.values():
            if self.decided.get(prerequisite.identity) is not Disposition.APPLIED:
                self.decided[prerequisite.identity] = disposition


BeforeRun = Callable[[Event, Reaction], None]
"""Called before a handler runs. What it raises counts as raised by the handler, which does not run then;
`CountFirstError` goes through to whoever runs the transaction."""


class Intake:
    """What one transaction has come to so far. Nothing of it is written before `save`, but what handlers write."""

    def __init__(
        self,
        participant: Participant,
        tables: ParticipantTables,
        connection: sa.Connection,
        outgoing: Outgoing,
        events: Collection[Event],
        *,
        before_run: BeforeRun,
    ) -> None:
        """Reads what is known of the events that are to be run, and of their sagas' steps."""
        self.connection = connection
        self.outgoing = outgoing
        self._participant = participant
        self._tables = tables
        self._before_run = before_run
        self._known = tables.handled(connection, {_identity(event) for event in events})
        self._before = tables.barriers(connection, {event.key for event in events})
        self._barriers = dict(self._before)
        keys = {event.key for event in events} if participant.needs_several else set()
        self._waited: Mapping[BarrierKey, Waiting] = tables.prerequisites.waiting(connection, keys) if keys else {}
        self._waiting = dict(self._waited)
        self._inbox: dict[str, InboxEntry] = {}
        self._decided: dict[str, Disposition] = {}

    def add(self, event: Event) -> None:
        """Reads what is known of one more event of one of these sagas."""
        self._known |= self._tables.handled(self.connection, {_identity(event)})

    def knows(self, event: Event) -> bool:
        """Whether the event has been dealt with."""
        return _identity(event) in self._known

    def note(self, event: Event, disposition: Disposition) -> None:
        """Records an event as dealt with."""
        identity = _identity(event)
        self._known.add(identity)
        self._inbox[identity] = InboxEntry(identity, event.sequence, disposition)
        self.outgoing.account.noted(event, disposition)

    def duplicate(self, event: Event) -> None:
        """Makes nothing of an event that has been dealt with."""
        _log.info("duplicate event", saga_id=event.key, event_id=event.id, type=event.type)
        self.outgoing.account.noted(event, Disposition.DUPLICATE)

    def run(self, event: Event, *, isolated: bool) -> Failure | None:
        """Lets every step react to the event. Returns what a handler raised, with nothing of the event done.

        Raises `HandlerFailedError` instead where it is not `isolated` by a savepoint, and lets the database's own
        trouble through, and a `CountFirstError`.
        """
        self.outgoing.account.begin(event)
        if self.knows(event):
            self.duplicate(event)
            return None
        changes = _Changes()
        published = len(self.outgoing.publications)
        dispositions = [Disposition.UNMATCHED]
        running: Reaction | None = None
        try:
            with _savepoint(self.connection) if isolated else _no_savepoint():
                for running in self._participant.concerned(event):
                    dispositions.append(self._react(event, running, changes))
                refuse_aborted(self.connection)
        except CountFirstError:
            raise
        except (Exception, SystemExit) as error:  # no handler may end the process
            if is_store_trouble(error) or running is None:
                raise  # the database's trouble is not the handler's: the whole batch is tried again
            # whatever else a handler raises is an outcome
            if not isolated:
                raise HandlerFailedError from error
            del self.outgoing.publications[published:]
            return Failure(running, error, changes.earlier)
        self._barriers |= changes.barriers
        self._waiting |= changes.waiting
        self.note(event, min(dispositions, key=_MOST_TELLING.index))
        self._decide(changes.decided)
        return None

    def save(self) -> list[OutboxRow]:
        """Writes the inbox, the barriers, what waits and the outbox; returns the new outbox rows, in order."""
        self._tables.add_inbox(self.connection, list(self._inbox.values()))
        self._tables.update_inbox(self.connection, self._decided)
        self._tables.save_barriers(self.connection, self._before, self._barriers)
        self._tables.prerequisites.save(self.connection, self._waited, self._waiting)
        return self._tables.outbox.add(self.connection, self.outgoing.publications)

    def _decide(self, decided: Mapping[str, Disposition]) -> None:
        """Takes on what has become of events that waited: some came in this transaction, some in earlier ones."""
        for identity, disposition in decided.items():
            entry = self._inbox.get(identity)
            known = entry.disposition if entry is not None else self._decided.get(identity)
            if known is Disposition.APPLIED:
                continue
            if entry is not None:
                self._inbox[identity] = replace(entry, disposition=disposition)
            else:
                self._decided[identity] = disposition

    def _react(self, event: Event, reaction: Reaction, changes: _Changes) -> Disposition:
        step = reaction.step
        place = (step.saga, event.key, step.name)
        barrier = changes.barriers.get(place) or self._barriers.get(place)
        waiting = changes.waiting.get(place) or self._waiting.get(place) or {}
        move, disposition = _move(barrier, event, reaction, waiting)
        match move:
            case Move.RUN:
                changes.barriers[place] = self._carry_out(event, reaction, barrier, waiting, changes)
            case Move.VOID:
                self._emit(event, reaction, (self._voided(event, reaction),))
                changes.barriers[place] = after_undo(barrier)
            case Move.CLOSE:
                changes.barriers[place] = after_undo(barrier)
            case Move.WAIT:
                prerequisite = Prerequisite(_identity(event), event.digest, event.message)
                changes.waiting[place] = {**waiting, event.type: prerequisite}
                return disposition
            case Move.NOTHING:
                pass
        if waiting and place in changes.barriers:
            has_run = reaction.direction is Direction.FORWARD
            changes.decide(waiting, Disposition.APPLIED if has_run else Disposition.LATE)
            changes.waiting[place] = {}
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

    def _carry_out(
        self, event: Event, reaction: Reaction, barrier: Barrier | None, waiting: Waiting, changes: _Changes
    ) -> Barrier:
        """Runs the handler, adds what it publishes, and returns the barrier that the step has then."""
        assert reaction.handler is not None, "a move runs only what there is"
        self._before_run(event, reaction)
        given = [event]
        if reaction.direction is Direction.FORWARD and reaction.step.needs:
            given = [event if name == event.type else self._waited_for(waiting[name]) for name in reaction.step.needs]
        changes.earlier = tuple(one for one in given if one is not event)
        with self.outgoing.account.running(reaction.place, given):
            outcome = events_of(
                reaction.handler(*(one.body for one in given), self._transaction(event, reaction)),
                reaction.produces,
                step=reaction.step.name,
            )
        match reaction.direction:
            case Direction.FORWARD:
                ids = self._emit(event, reaction, outcome)
                awaited = (
                    event_id
                    for body, event_id in zip(outcome, ids, strict=True)
                    if type(body) in reaction.step.irrevocable_signature.consumes
                )
                failed = any(self._is_failure(body) for body in outcome)
                digest = b"".join(one.digest for one in given)
                return after_forward(digest, failed=failed, awaited_id=next(awaited, ""))
            case Direction.UNDO:
                # a step that had not run and whose undoing has nothing to say is void like any other
                silent = barrier is None and not outcome
                self._emit(event, reaction, (self._voided(event, reaction),) if silent else outcome)
                return after_undo(barrier)
            case Direction.CONFIRM:
                assert barrier is not None, "nothing is confirmed that was not done"
                self._emit(event, reaction, outcome)
                return after_confirm(barrier)
            case Direction.END:
                raise AssertionError("the end of a saga runs nothing")

    def _waited_for(self, prerequisite: Prerequisite) -> Event:
        """An event that waited. Raises `ContractError` where it can't be read any more."""
        decoded = decode(self._participant.registry, prerequisite.message)
        if isinstance(decoded, Event):
            return replace(decoded, digest=prerequisite.digest)
        message = prerequisite.message
        raise ContractError(
            f"{message.type} (sequence {message.sequence}) has waited for this event, and can't be read with the "
            f"schemas of this participant: {decoded.reason.name}"
        )

    def _is_failure(self, body: Message) -> bool:
        event_type = self._participant.registry.get(body.DESCRIPTOR.full_name)
        return event_type is not None and event_type.is_failure

    def _emit(self, event: Event, reaction: Reaction, outcome: Sequence[Message]) -> list[str]:
        step = reaction.step
        return self.outgoing.add_outcome(
            outcome, step=step.name, saga=step.saga, direction=reaction.direction, cause=event
        )

    def _voided(self, event: Event, reaction: Reaction) -> lifecycle_pb2.StepVoided:
        timed_out = event.body if isinstance(event.body, lifecycle_pb2.SagaTimedOut) else None
        return lifecycle_pb2.StepVoided(
            saga_id=event.key,
            definition=reaction.step.saga,
            version=timed_out.version if timed_out is not None else 0,
            cause=timed_out.cause if timed_out is not None else saga_pb2.SAGA_CAUSE_UNSPECIFIED,
            step=reaction.step.name,
            participant=self._participant.name,
        )

    def _transaction(self, event: Event, reaction: Reaction) -> Transaction:
        step = reaction.step
        return Transaction(
            connection=self.connection,
            key=event.key,
            step_id=derived_id((self._participant.name, step.name, step.saga, event.key)),
            time=event.stream_time,
        )


_MOST_TELLING = (
    Disposition.APPLIED,
    Disposition.EARLY,
    Disposition.LATE,
    Disposition.UNEXPECTED,
    Disposition.DUPLICATE,
    Disposition.UNMATCHED,
)
"""Of an event that several steps make something of, the first of these that one of them does."""


def _move(barrier: Barrier | None, event: Event, reaction: Reaction, waiting: Waiting) -> tuple[Move, Disposition]:
    match reaction.direction:
        case Direction.FORWARD:
            if needs := reaction.step.needs:
                came = [waiting[name].digest if name in waiting else None for name in needs]
                return gathering_move(barrier, event.digest, place=needs.index(event.type), waiting=came)
            return forward_move(barrier, event.digest)
        case Direction.UNDO:
            return undo_move(
                barrier,
                has_handler=reaction.handler is not None,
                is_irrevocable=reaction.step.irrevocable is not None,
            )
        case Direction.CONFIRM:
            return confirm_move(barrier, event.id)
        case Direction.END:
            return end_move(barrier)


def _identity(event: Event) -> str:
    return message_id(event.source, event.id)


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[None]:
    with connection.begin_nested():
        yield


@contextmanager
def _no_savepoint() -> Iterator[None]:
    yield
