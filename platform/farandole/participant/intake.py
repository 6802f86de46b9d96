"""One transaction's work on events: the inbox, the barrier, the handlers, and what they publish."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from google.protobuf.message import Message

from choreography.v1 import lifecycle_pb2, saga_pb2
from farandole.database import is_store_trouble
from farandole.envelope import Event, derived_id, message_id
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
    forward_move,
    undo_move,
)
from farandole.participant.outgoing import Outgoing, events_of
from farandole.participant.participant import Participant, Reaction
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
    error: Exception


class Intake:
    """What one transaction has come to so far. Nothing of it is written before `save`, but what handlers write."""

    def __init__(
        self,
        participant: Participant,
        tables: ParticipantTables,
        connection: sa.Connection,
        outgoing: Outgoing,
        events: Collection[Event],
    ) -> None:
        """Reads what is known of the events that are to be run, and of their sagas' steps."""
        self.connection = connection
        self.outgoing = outgoing
        self._participant = participant
        self._tables = tables
        self._known = tables.handled(connection, {_identity(event) for event in events})
        self._before = tables.barriers(connection, {event.key for event in events})
        self._barriers = dict(self._before)
        self._inbox: list[InboxEntry] = []

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
        self._inbox.append(InboxEntry(identity, event.sequence, disposition))

    def run(self, event: Event, *, isolated: bool) -> Failure | None:
        """Lets every step react to the event. Returns what a handler raised, with nothing of the event done.

        Raises `HandlerFailedError` instead where it is not `isolated` by a savepoint, and lets the database's own
        trouble through.
        """
        if self.knows(event):
            _log.info("duplicate event", saga_id=event.key, event_id=event.id, type=event.type)
            return None
        changed: dict[BarrierKey, Barrier] = {}
        published = len(self.outgoing.publications)
        disposition = Disposition.UNMATCHED
        running: Reaction | None = None
        try:
            with _savepoint(self.connection) if isolated else _no_savepoint():
                for running in self._participant.concerned(event):
                    disposition = self._react(event, running, changed)
        except Exception as error:
            if is_store_trouble(error) or running is None:
                raise  # the database's trouble is not the handler's: the whole batch is tried again
            # whatever else a handler raises is an outcome
            if not isolated:
                raise HandlerFailedError from error
            del self.outgoing.publications[published:]
            return Failure(running, error)
        self._barriers |= changed
        self.note(event, disposition)
        return None

    def save(self) -> list[OutboxRow]:
        """Writes the inbox, the barriers and the outbox; returns the new outbox rows, in order."""
        self._tables.add_inbox(self.connection, self._inbox)
        self._tables.save_barriers(self.connection, self._before, self._barriers)
        return self._tables.outbox.add(self.connection, self.outgoing.publications)

    def _react(self, event: Event, reaction: Reaction, changed: dict[BarrierKey, Barrier]) -> Disposition:
        step = reaction.step
        place = (step.saga, event.key, step.name)
        barrier = changed.get(place) or self._barriers.get(place)
        move, disposition = _move(barrier, event, reaction)
        if move is Move.VOID:
            self._emit(event, reaction, (self._voided(event, reaction),))
            changed[place] = after_undo(barrier)
        elif move is Move.RUN:
            changed[place] = self._carry_out(event, reaction, barrier)
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

    def _carry_out(self, event: Event, reaction: Reaction, barrier: Barrier | None) -> Barrier:
        """Runs the handler, adds what it publishes, and returns the barrier that the step has then."""
        assert reaction.handler is not None, "a move runs only what there is"
        outcome = events_of(
            reaction.handler(event.body, self._transaction(event, reaction)), reaction.produces, step=reaction.step.name
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
                return after_forward(event.digest, failed=failed, awaited_id=next(awaited, ""))
            case Direction.UNDO:
                # a step that had not run and whose undoing has nothing to say is void like any other
                silent = barrier is None and not outcome
                self._emit(event, reaction, (self._voided(event, reaction),) if silent else outcome)
                return after_undo(barrier)
            case Direction.CONFIRM:
                assert barrier is not None, "nothing is confirmed that was not done"
                self._emit(event, reaction, outcome)
                return after_confirm(barrier)

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


def _move(barrier: Barrier | None, event: Event, reaction: Reaction) -> tuple[Move, Disposition]:
    match reaction.direction:
        case Direction.FORWARD:
            return forward_move(barrier, event.digest)
        case Direction.UNDO:
            return undo_move(
                barrier,
                has_handler=reaction.handler is not None,
                is_irrevocable=reaction.step.irrevocable is not None,
            )
        case Direction.CONFIRM:
            return confirm_move(barrier, event.id)


def _identity(event: Event) -> str:
    return message_id(event.source, event.id)


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[None]:
    with connection.begin_nested():
        yield


@contextmanager
def _no_savepoint() -> Iterator[None]:
    yield
