"""The queue of what isn't finished: events that could not be dealt with, and behind each its saga's later events.

The first of a saga's queue holds the others up, for whatever reason it is there (`queue_table.QueueState`): it is tried
again with growing pauses, was snoozed, waits for a dependency, can't be read, or was given up on. Then it stays as a
dead letter until an operator has it tried again or discards it (quarantine). All other sagas go on.

Two kinds of event overtake what holds their saga up, where all that it would do is to trigger steps that they undo:
any compensation a dead letter, and a time-out whatever it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from farandole.envelope import Event, Unreadable
from farandole.participant.circuits import CircuitOpenError
from farandole.participant.giving_up import after_failure, after_unreadable, tell, tell_superseded, tell_unreadable
from farandole.participant.intake import Failure
from farandole.participant.outcomes import DependencyDown
from farandole.participant.participant import TIMED_OUT
from farandole.participant.queue_table import QueueEntry, QueueState
from farandole.participant.schedule import UNTIL_TOLD, Wait
from farandole.participant.work import Work
from farandole.partitions import partition_key, partition_of

_COMPENSATIONS = 100
"""How many events are looked at, to find a compensation that overtakes."""


class Unfinished:
    """One transaction's work on the queue."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._new: list[QueueEntry] = []
        self._moved_to: set[str] = set()
        """The sagas that an event was put at its place of."""

    def holds(self, key: str) -> bool:
        """Whether something of a saga waits, so that all that comes later has to wait behind it."""
        return key in self._work.changes.held or key in self._work.schedule

    def add_behind(self, event: Event) -> None:
        """Lets an event wait behind what waits of its saga already."""
        if self._work.intake.knows(event):
            self._work.intake.duplicate(event)
            return
        self._new.append(QueueEntry(event.key, event.message))
        self._work.account.put_off(event, QueueState.WAITING.name)
        if event.type in self._overtaking(is_dead_letter=self._is_quarantined(event.key)):
            self._hold(event.key, Wait(self._work.now))

    def add_failed(self, event: Event, failure: Failure) -> None:
        """Puts an event into the queue that a handler could not deal with."""
        entry = self._after(QueueEntry(event.key, event.message), event, failure)
        self._new.append(entry)
        self._hold(event.key, entry.wait)

    def add_unreadable(self, unreadable: Unreadable) -> None:
        """Puts an event into the queue that can't be read: under its key where that is known, else its partition's."""
        entry = QueueEntry(key_of(unreadable), unreadable.message)
        if not self.holds(entry.key):
            entry = self._after_reading(entry, unreadable)
            self._hold(entry.key, entry.wait)
        self._new.append(entry)

    def save(self) -> None:
        """Writes the new entries."""
        self._work.queue.add(self._work.connection, self._new)
        self._new.clear()

    def overtake(self, event: Event) -> bool:
        """Lets a time-out that is not in the queue overtake what holds its saga up, if it may.

        Returns whether it did; else nothing is done.
        """
        work = self._work
        head = next(iter(work.queue.of(work.connection, [event.key], 1)), None)
        if head is None:  # another one has just overtaken what waited
            return work.intake.run(event, isolated=True) is None
        head_event = work.decode(head.message)
        if (
            isinstance(head_event, Unreadable)
            or work.intake.knows(event)
            or not work.participant.passes(event, head_event)
            or work.intake.run(event, isolated=True) is not None
        ):
            return False
        self._passed(head, head_event, event)
        self._hold(event.key, Wait(work.now))
        return True

    def try_again(self, keys: Sequence[str], entries: Iterable[QueueEntry], *, is_cut: bool) -> None:
        """Goes on with sagas that are due, as far as `entries` go: what waits of them in stream order.

        `is_cut` says that there may be more than that.
        """
        waiting: dict[str, list[QueueEntry]] = {key: [] for key in keys}
        for entry in entries:
            waiting[entry.key].append(entry)
        for key, own in waiting.items():
            wait = self._go_on(own, is_cut=is_cut)
            if wait is not None:
                self._hold(key, wait)
            elif is_cut:
                self._hold(key, Wait(self._work.now))
            else:
                self._work.changes.released.add(key)
        for key in self._moved_to:  # whatever they were found to wait for: what came to them may stand before that
            self._hold(key, Wait(self._work.now))

    def _go_on(self, entries: Sequence[QueueEntry], *, is_cut: bool) -> Wait | None:
        """Tries a saga's events until one is not dealt with; returns what the saga waits for then, or None."""
        work = self._work
        for number, entry in enumerate(entries):
            event = work.decode(entry.message)
            if isinstance(event, Unreadable):
                return self._read_again(entry, event)
            is_at_its_place = event.key == entry.key
            has_more = is_cut or number + 1 < len(entries)
            if is_at_its_place and has_more and (wait := self._past(entry, event)):
                return wait
            if entry.given_up or not entry.is_due(work.now):
                return entry.wait
            if not is_at_its_place:
                self._move(entry, event.key)
                continue
            work.account.tried_before(event, entry.attempts)
            if failure := work.intake.run(event, isolated=True):
                wait = self._failed(entry, event, failure)
                # more may overtake a dead letter than what is tried again
                return Wait(work.now) if has_more and wait == UNTIL_TOLD else wait
            work.queue.remove(work.connection, [entry.message.sequence])
        return None

    def _past(self, head: QueueEntry, event: Event) -> Wait | None:
        """Looks for what overtakes the first event of a saga, and tries it; returns what the saga waits for then.

        None where nothing overtakes it. Where something does, the first one waits for it: it must not begin a step
        that is known to be undone.
        """
        work = self._work
        types = self._overtaking(is_dead_letter=head.given_up)
        for entry in work.queue.behind(work.connection, head, types, _COMPENSATIONS) if types else ():
            compensation = work.decode(entry.message)
            if isinstance(compensation, Unreadable) or not work.participant.passes(compensation, event):
                continue
            if entry.given_up or not entry.is_due(work.now):
                return entry.wait
            work.intake.add(compensation)
            work.account.tried_before(compensation, entry.attempts)
            is_known = work.intake.knows(compensation)
            if not is_known and (failure := work.intake.run(compensation, isolated=True)):
                return self._failed(entry, compensation, failure)
            work.queue.remove(work.connection, [entry.message.sequence])
            if not is_known:
                self._passed(head, event, compensation)
            return Wait(work.now)
        return None

    def _overtaking(self, *, is_dead_letter: bool) -> Collection[str]:
        """The types of what may overtake the first event of a saga."""
        return self._work.participant.undo_types if is_dead_letter else (TIMED_OUT,)

    def _failed(self, entry: QueueEntry, event: Event, failure: Failure) -> Wait:
        failed = self._after(entry, event, failure)
        self._work.queue.update(self._work.connection, failed)
        return failed.wait

    def _read_again(self, entry: QueueEntry, unreadable: Unreadable) -> Wait:
        if entry.given_up or not entry.is_due(self._work.now):
            return entry.wait
        failed = self._after_reading(entry, unreadable)
        self._work.queue.update(self._work.connection, failed)
        return failed.wait

    def _move(self, entry: QueueEntry, key: str) -> None:
        """Puts an event that can be read now, and so has a saga, at its place in that saga's queue."""
        moved = replace(entry, key=key, state=QueueState.WAITING, error="", attempts_before=entry.attempts)
        self._work.queue.update(self._work.connection, moved)
        self._moved_to.add(key)

    def _passed(self, head: QueueEntry, event: Event, by: Event) -> None:
        """Nothing is left to do for the first event of a saga: it has been overtaken."""
        work = self._work
        if head.given_up:
            work.queue.remove(work.connection, [head.message.sequence])
            tell_superseded(head, event, by, work.intake.outgoing)
        else:  # it comes at once, and does no work
            work.queue.update(work.connection, replace(head, due=work.now, pause=timedelta(0)))

    def _after(self, entry: QueueEntry, event: Event, failure: Failure) -> QueueEntry:
        work = self._work
        failed = after_failure(entry, event, failure, work.participant.retries, work.now)
        work.account.put_off(event, failed.state.name, attempts=failed.attempts, error=failure.error)
        tell(failed, event, failure, work.intake.outgoing, work.now)
        if isinstance(failure.error, DependencyDown) and not isinstance(failure.error, CircuitOpenError):
            work.circuits.met(failed.dependency, failed.place, failed.error, work.now)
        return failed

    def _after_reading(self, entry: QueueEntry, unreadable: Unreadable) -> QueueEntry:
        work = self._work
        reaction = next(iter(work.participant.reactions.get(unreadable.message.type, ())), None)
        failed = after_unreadable(entry, unreadable, reaction, work.participant.retries, work.now)
        work.account.put_off(unreadable, failed.state.name, attempts=failed.attempts)
        tell_unreadable(failed, unreadable, work.intake.outgoing, work.now)
        return failed

    def _hold(self, key: str, wait: Wait) -> None:
        self._work.changes.held[key] = wait

    def _is_quarantined(self, key: str) -> bool:
        wait = self._work.changes.held.get(key)
        return wait == UNTIL_TOLD if wait is not None else self._work.schedule.is_quarantined(key)


def key_of(event: Event | Unreadable) -> str:
    """The key under which an event waits: no saga waits for what can't be told to be its own."""
    partition = event.message.partition
    if event.key and partition_of(event.key) == partition:
        return event.key
    return partition_key(partition or 0)
