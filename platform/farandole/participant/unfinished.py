"""The queue of what isn't finished: events whose handler raised, and behind each its saga's later events, in order.

The first of a saga's queue is tried again with growing pauses. Where it is given up on, it stays as a dead letter and
holds the saga up (quarantine) until an operator has it tried again or discards it; only a compensation of the step that
it would have triggered overtakes it. All other sagas go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from choreography.v1 import dead_letter_events_pb2
from farandole.envelope import Event, StoredMessage
from farandole.participant.giving_up import after_failure, tell, tell_superseded
from farandole.participant.intake import Failure, Intake
from farandole.participant.participant import Participant
from farandole.participant.schedule import Schedule, ScheduleChanges
from farandole.participant.tables import ParticipantTables, QueueEntry
from farandole.saga import Disposition

_COMPENSATIONS = 100
"""How many events are looked at, to find a compensation that overtakes a dead letter."""

_log = structlog.get_logger(__name__)

Decode = Callable[[StoredMessage], Event | None]
"""The event that a stored message holds; None where it can't be read."""


class Unfinished:
    """One transaction's work on the queue."""

    def __init__(
        self,
        participant: Participant,
        tables: ParticipantTables,
        intake: Intake,
        schedule: Schedule,
        decode: Decode,
        now: datetime,
    ) -> None:
        self.changes = ScheduleChanges()
        """To be applied to the schedule once the transaction is committed."""
        self._participant = participant
        self._tables = tables
        self._intake = intake
        self._connection = intake.connection
        self._schedule = schedule
        self._decode = decode
        self._now = now
        self._new: list[QueueEntry] = []

    def holds(self, key: str) -> bool:
        """Whether something of a saga waits, so that all that comes later has to wait behind it."""
        return key in self.changes.held or key in self._schedule

    def add_behind(self, message: StoredMessage, event: Event) -> None:
        """Lets an event wait behind what waits of its saga already."""
        if self._intake.knows(event):
            _log.info("duplicate event", saga_id=event.key, event_id=event.id, type=event.type)
            return
        self._new.append(QueueEntry(event.key, message))
        if self._is_quarantined(event.key) and event.type in self._participant.undo_types:
            self.changes.held[event.key] = self._now  # it may overtake the dead letter

    def add_failed(self, message: StoredMessage, event: Event, failure: Failure) -> None:
        """Puts an event into the queue that a handler could not deal with."""
        entry = self._after(QueueEntry(event.key, message), event, failure)
        self._new.append(entry)
        self.changes.held[event.key] = None if entry.given_up else entry.due

    def save(self) -> None:
        """Writes the new entries."""
        self._tables.enqueue(self._connection, self._new)
        self._new.clear()

    def decide(self, event: Event) -> None:
        """Does what an operator has decided about a dead letter of this participant, once."""
        body = event.body
        assert isinstance(
            body, dead_letter_events_pb2.DeadLetterRedriven | dead_letter_events_pb2.DeadLetterDiscarded
        ), "the type of the event is an operator's verb"
        if body.participant != self._participant.name or self._intake.knows(event):
            return
        self.save()  # what it is about may have come just before
        self._intake.note(event, Disposition.APPLIED)
        entry = self._tables.queued_at(self._connection, body.sequence)
        log = _log.bind(saga_id=event.key, event_id=event.id, sequence=body.sequence, actor=body.actor)
        if entry is None or entry.key != event.key or not entry.attempts:
            log.warning("no such dead letter", type=event.type)
        elif (entry.definition, entry.step) != (body.definition, body.step):
            # who decides about another step than the one that holds the saga up has something else in mind
            log.warning(
                "the dead letter is of another step", type=event.type, definition=entry.definition, step=entry.step
            )
        elif isinstance(body, dead_letter_events_pb2.DeadLetterDiscarded):
            self._discard(entry)
            log.info("dead letter discarded", reason=body.reason)
        elif entry.given_up:
            redriven = replace(entry, given_up=False, due=self._now, attempts_before=entry.attempts)
            self._tables.update_queued(self._connection, redriven)
            self.changes.held[event.key] = self._now
            log.info("dead letter redriven", reason=body.reason)
        else:
            log.warning("not a dead letter any more", type=event.type)

    def overtake(self, event: Event) -> bool:
        """Lets an event that is not in the queue overtake the dead letter that holds its saga up, if it may.

        Returns whether it did; else nothing is done.
        """
        head = next(iter(self._tables.queued(self._connection, [event.key], 1)), None)
        if head is None:  # another one has just overtaken what waited
            return self._intake.run(event, isolated=True) is None
        if not head.given_up or self._intake.knows(event):
            return False
        head_event = self._decode(head.message)
        if head_event is None or not self._participant.passes(event, head_event):
            return False
        if self._intake.run(event, isolated=True) is not None:
            return False
        self._supersede(head, head_event, event)
        self.changes.held[event.key] = self._now
        return True

    def try_again(self, keys: Sequence[str], entries: Iterable[QueueEntry], *, is_cut: bool) -> None:
        """Goes on with sagas that are due, as far as `entries` go: what waits of them in stream order.

        `is_cut` says that there may be more than that.
        """
        waiting: dict[str, list[QueueEntry]] = {key: [] for key in keys}
        for entry in entries:
            waiting[entry.key].append(entry)
        for key, own in waiting.items():
            due = self._go_on(own)
            if isinstance(due, _Finished):
                if is_cut:
                    self.changes.held[key] = self._now
                else:
                    self.changes.released.add(key)
            else:
                self.changes.held[key] = due

    def _go_on(self, entries: Sequence[QueueEntry]) -> datetime | _Finished | None:
        """Tries a saga's events until one is not dealt with; returns when the saga is to be looked at again."""
        for entry in entries:
            event = self._decode(entry.message)
            if entry.given_up:
                return self._past(entry, event)
            failure = self._intake.run(event, isolated=True) if event is not None else None
            if failure is None or event is None:
                self._tables.dequeue(self._connection, [entry.message.sequence])
                continue
            failed = self._after(entry, event, failure)
            self._tables.update_queued(self._connection, failed)
            return self._past(failed, event) if failed.given_up else failed.due
        return _Finished()

    def _past(self, head: QueueEntry, event: Event | None) -> datetime | None:
        """Looks for a compensation that overtakes a dead letter, and tries it; returns when to look again."""
        types = self._participant.undo_types
        if event is None or not types:
            return None
        for entry in self._tables.queued_behind(self._connection, head, types, _COMPENSATIONS):
            compensation = self._decode(entry.message)
            if compensation is None or not self._participant.passes(compensation, event):
                continue
            if entry.given_up:
                return None
            if entry.due > self._now:
                return entry.due
            self._intake.add(compensation)
            if self._intake.knows(compensation):
                self._tables.dequeue(self._connection, [entry.message.sequence])
                continue
            failure = self._intake.run(compensation, isolated=True)
            if failure is not None:
                failed = self._after(entry, compensation, failure)
                self._tables.update_queued(self._connection, failed)
                return None if failed.given_up else failed.due
            self._tables.dequeue(self._connection, [entry.message.sequence])
            self._supersede(head, event, compensation)
            return self._now
        return None

    def _supersede(self, head: QueueEntry, event: Event, by: Event) -> None:
        self._tables.dequeue(self._connection, [head.message.sequence])
        tell_superseded(head, event, by, self._intake.outgoing)

    def _discard(self, entry: QueueEntry) -> None:
        self._tables.dequeue(self._connection, [entry.message.sequence])
        event = self._decode(entry.message)
        if event is not None:
            self._intake.add(event)
            if not self._intake.knows(event):
                self._intake.note(event, Disposition.UNMATCHED)
        self.changes.held[entry.key] = self._now

    def _after(self, entry: QueueEntry, event: Event, failure: Failure) -> QueueEntry:
        failed = after_failure(entry, event, failure, self._participant.retries, self._now)
        tell(failed, event, failure, self._intake.outgoing, self._now)
        return failed

    def _is_quarantined(self, key: str) -> bool:
        return self.changes.held[key] is None if key in self.changes.held else self._schedule.is_quarantined(key)


class _Finished:
    """Nothing of a saga waits any more."""
