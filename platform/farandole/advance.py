"""The fold: what an event makes of a saga's record. Pure: no clock, no I/O.

A record is a function of the set of its facts in stream order. In order, a fact costs one small step; out of order,
the record is folded again from its history. How a saga moves:

- A step starts on its triggers and ends with its success or failure. What comes before its turn is `EARLY`, and is
  judged again whenever the record moves. Before the initiating event all is `UNMATCHED`, and judged again after it.
- A failure, or `SagaTimedOut` before the commit event, *turns* the saga: from then on no step starts, a success is
  `LATE` and must be undone, and the record is `COMPENSATING` until nothing is left to undo or to wait for.
- A step under way is waited for in a saga that a failure turned, and not in one that was timed out: its participant
  voids it later, or its late success opens the saga again.
- A status is terminal only once the lifecycle event that says so was folded, and only where the record justifies it.
  `pending_lifecycle` names the one that a record calls for, `farandole.deadlines` those that time calls for.
- After the commit event nothing turns a saga: `validate` sees to it that what can fail is over by then.

`farandole.record` holds what a record can do, `farandole.lifecycle` what the platform's own events make of it; here is
what the participants' events make of it, and in what order events are judged.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime

from farandole.definition import Definition, Outcome, Role
from farandole.lifecycle import (
    ONCE_A_STATE,
    SAGA_COMPLETED,
    TELLING,
    TOLD_APART_BY_ID,
    ending_due,
    is_about_every_saga,
    judge_lifecycle,
    status_and_health,
    unused_id,
)
from farandole.record import IT_APPLIES, OPEN, Judgement, Record
from farandole.saga import Cause, Disposition, Fact, HistoryEntry, Saga, Status, StepRecord, StepStatus

HISTORY_LIMIT = 1000
"""Entries of a history. Beyond it, only what moved the record, what waits, and the last event have entries; the others
are counted in `history_omitted`. A fact out of order that belongs among omitted ones is taken for one of them."""

_APPLIED, _EARLY, _LATE = Disposition.APPLIED, Disposition.EARLY, Disposition.LATE
_DUPLICATE, _UNEXPECTED, _UNMATCHED = Disposition.DUPLICATE, Disposition.UNEXPECTED, Disposition.UNMATCHED


@dataclass(frozen=True, slots=True)
class PendingLifecycle:
    """A lifecycle event that a record calls for and that its history lacks."""

    type: str
    """Full message type."""
    id: str
    """Deterministic: as long as the record calls for it, it has the same id."""
    key: str
    definition: str
    version: int
    cause: Cause
    causation_id: str
    """The id of the last event that moved the record."""
    steps: tuple[str, ...] = ()
    """Of what is about a step that one; of `SagaTimedOut` all that the definition has."""
    deadline: datetime | None = None
    """The deadline that passed, where one did."""
    participant: str = ""
    """Of what is about a step: who carries it out."""
    compensation: bool = False
    """Of what is about a step: whether it is about the step's compensation."""


def advance(definition: Definition, saga: Saga | None, fact: Fact, *, key: str) -> Saga:
    """The record with one more fact. `saga` is None for the first fact of a key; `key` is the correlation key.

    Total: any fact can be folded into any record of this definition. A fact whose sequence has been folded already
    changes nothing, and gives the same object back.
    """
    if saga is not None and fact.sequence <= saga.history[-1].fact.sequence:
        return _with_earlier(definition, saga, fact)
    fold = _Fold(definition, key, saga)
    fold.take(fact)
    return fold.saga()


def pending_lifecycle(definition: Definition, saga: Saga) -> tuple[PendingLifecycle, ...]:
    """The lifecycle events that the record calls for: at most one of those that end a saga."""
    ending = ending_due(definition, saga)
    if not ending:
        return ()
    return (
        PendingLifecycle(
            type=ending,
            id=unused_id(definition, saga.key, saga.history, ending),
            key=saga.key,
            definition=saga.definition,
            version=saga.version,
            cause=Cause.UNSPECIFIED if ending == SAGA_COMPLETED else saga.cause,
            causation_id=last_cause_id(definition, saga),
        ),
    )


def last_cause_id(definition: Definition, saga: Saga) -> str:
    """The id of the last event that changed what a saga waits for: what the record calls for follows from it.

    The saga has started.
    """
    return next(
        entry.fact.id
        for entry in reversed(saga.history)
        if _has_moved(definition, entry) and entry.fact.type not in TELLING
    )


def _with_earlier(definition: Definition, saga: Saga, fact: Fact) -> Saga:
    """The record with a fact that is not later than all others: folded again, unless it is there already."""
    facts = [entry.fact for entry in saga.history]
    place = bisect_left(facts, fact.sequence, key=lambda other: other.sequence)
    if facts[place].sequence == fact.sequence:
        return saga
    if saga.history_omitted and place >= HISTORY_LIMIT - 1:
        return saga
    facts.insert(place, fact)
    fold = _Fold(definition, saga.key, None)
    fold.record.omitted = saga.history_omitted
    for other in facts:
        fold.take(other)
    return fold.saga()


def _has_moved(definition: Definition, entry: HistoryEntry) -> bool:
    """Whether an event moved the record: it was applied, or it is a late success, which must be undone."""
    if entry.disposition is _APPLIED:
        return True
    if entry.disposition is not _LATE:
        return False
    role = definition.roles.get(entry.fact.type)
    return role is not None and role.outcome is Outcome.SUCCESS


class _Fold:
    """Folds facts into a record, in stream order."""

    __slots__ = ("definition", "record", "roles")

    def __init__(self, definition: Definition, key: str, saga: Saga | None) -> None:
        self.definition = definition
        self.roles = definition.roles
        self.record = Record(definition, key, saga)

    def saga(self) -> Saga:
        """The record as it stands. At least one fact has been taken."""
        return self.record.saga(*status_and_health(self.record))

    def take(self, fact: Fact) -> None:
        """Folds the next fact in stream order."""
        self._make_room()
        record = self.record
        record.now = fact.stream_time
        record.moved = False
        was_started = record.start_time is not None
        known, has_waiting = self._identify(fact)
        disposition, reason = known or self._judge(fact)
        record.history.append(HistoryEntry(fact, disposition, reason))
        if record.moved and (has_waiting or not was_started):
            self._judge_waiting(also_unmatched=not was_started)

    def _make_room(self) -> None:
        """Drops the last entry of a full history where nothing depends on it."""
        history = self.record.history
        if len(history) < HISTORY_LIMIT:
            return
        last = history[-1]
        fact, disposition = last.fact, last.disposition
        if disposition is _EARLY or _has_moved(self.definition, last):
            return
        if disposition is _UNMATCHED and self.record.start_time is None and fact.type in self.roles:
            return
        if fact.type in ONCE_A_STATE and fact.id == self._unused_id(history[:-1], fact.type):
            return
        history.pop()
        self.record.omitted += 1

    def _unused_id(self, history: list[HistoryEntry], event_type: str) -> str:
        return unused_id(self.definition, self.record.key, history, event_type)

    # ---- who is it

    def _identify(self, fact: Fact) -> tuple[Judgement | None, bool]:
        """What the history alone says of a fact: `DUPLICATE`, or `UNEXPECTED` as another body of what came before.

        Also whether any entry waits.
        """
        event_type, digest, event_id = fact.type, fact.digest, fact.id
        may_repeat = event_type in TOLD_APART_BY_ID
        is_unstarted = self.record.start_time is None
        has_waiting = False
        rival: HistoryEntry | None = None
        for entry in self.record.history:
            other = entry.fact
            if other.id == event_id and other.source == fact.source:
                return (_DUPLICATE, _same_identity(other, event_type)), has_waiting
            disposition = entry.disposition
            if disposition is _EARLY:
                has_waiting = True
            if other.type == event_type and not may_repeat:
                if other.digest == digest:
                    return (_DUPLICATE, f"the same {event_type} as at sequence {other.sequence}"), has_waiting
                if (
                    rival is None
                    and fact.lifecycle is None
                    and event_type in self.roles
                    and (
                        disposition is _EARLY
                        or (disposition is _UNMATCHED and is_unstarted)
                        or _has_moved(self.definition, entry)
                    )
                ):
                    rival = entry
        if rival is None:
            return None, has_waiting
        reason = f"another body than the {event_type} at sequence {rival.fact.sequence}, which {_fate(rival)}"
        return (_UNEXPECTED, reason), has_waiting

    def _judge_waiting(self, *, also_unmatched: bool) -> None:
        """Judges again what waits, in stream order, until the record rests."""
        record = self.record
        while record.moved:
            record.moved = False
            for place, entry in enumerate(record.history):
                if entry.disposition is _EARLY or (also_unmatched and entry.disposition is _UNMATCHED):
                    disposition, reason = self._judge(entry.fact)
                    if disposition is not entry.disposition:
                        record.history[place] = HistoryEntry(entry.fact, disposition, reason)

    # ---- what does it mean

    def _judge(self, fact: Fact) -> Judgement:
        """Moves the record where the fact does, and says what became of the fact."""
        record = self.record
        lifecycle = fact.lifecycle
        if lifecycle is not None:
            if lifecycle.definition != self.definition.name and not is_about_every_saga(lifecycle):
                return _UNMATCHED, f"is about the saga of {lifecycle.definition} with this key"
            return judge_lifecycle(record, fact, lifecycle) if record.start_time is not None else self._unstarted()
        role = self.roles.get(fact.type)
        if role is None:
            return _UNMATCHED, f"{self.definition} does not mention {fact.type}"
        if role.is_initiating:
            return self._start(role)
        if record.start_time is None:
            return self._unstarted()
        if role.outcome is Outcome.SUCCESS:
            judgement = self._succeed_late(role) if record.status is not Status.RUNNING else self._succeed(role)
        elif role.outcome is Outcome.FAILURE:
            judgement = self._fail(role, fact)
        else:
            judgement = self._complete_compensation(role)
        if judgement[0] is _EARLY and record.has_ended:
            return _LATE, f"was still waiting when the saga ended: it {judgement[1]}"
        return judgement

    def _unstarted(self) -> Judgement:
        return _UNMATCHED, f"waits for {self.definition.initiating_event}, which starts the saga"

    def _start(self, role: Role) -> Judgement:
        if self.record.start_time is not None:
            return _UNEXPECTED, "the saga has started already"
        self.record.start(role)
        return IT_APPLIES

    def _succeed(self, role: Role) -> Judgement:
        step = self.record.steps[role.step]
        if not self._may_end(role.step, step):
            return _EARLY, self._waits_for_start(role.step)
        if step.status not in _MAY_END:
            return _has_ended(step)
        self.record.end_step(role.step, StepStatus.SUCCEEDED)
        self.record.start_steps(role)
        return IT_APPLIES

    def _succeed_late(self, role: Role) -> Judgement:
        """A success after the saga turned: what it did must be undone."""
        record, index = self.record, role.step
        step = record.steps[index]
        if record.status is Status.COMPLETED or step.status is StepStatus.FAILED:
            return _has_ended(step)
        if not self._leaves_something(index):
            if step.status is not StepStatus.VOIDED:
                record.end_step(index, StepStatus.SUCCEEDED)
            return _LATE, f"came after the saga had turned; {step.name} leaves nothing to undo"
        if step.status is StepStatus.COMPENSATING:
            record.end_step(index, StepStatus.COMPENSATING)
        else:
            record.undo(index, has_just_succeeded=True)
        if record.has_ended:
            record.reopen()
            return _LATE, f"came after the saga had ended; {step.name} must be undone, so the saga is open again"
        return _LATE, f"came after the saga had turned; {step.name} must be undone"

    def _leaves_something(self, index: int) -> bool:
        """Whether a step that succeeded too late must be undone.

        The pivot without a compensation is an act that can't be undone, so that its participant does it only once it
        has read its own success with no time-out before it; else it answers with a failure, which is awaited.
        """
        step = self.definition.steps[index]
        return step.compensation is not None or (index == self.definition.pivot and bool(step.failures))

    def _fail(self, role: Role, fact: Fact) -> Judgement:
        record = self.record
        step = record.steps[role.step]
        if record.has_ended and step.status not in OPEN:
            return _LATE, "came after the saga had ended"
        if not record.has_turned and not self._may_end(role.step, step):
            return _EARLY, self._waits_for_start(role.step)
        answers_undo = step.status is StepStatus.COMPENSATING and (
            step.end_time is None or self.definition.steps[role.step].compensation is None
        )
        is_broken_word = step.status is StepStatus.VOIDED and record.status is Status.RUNNING
        if not (step.status in OPEN or answers_undo or is_broken_word):
            return _has_ended(step)
        if record.is_committed:
            return _UNEXPECTED, f"the saga has committed with {self.definition.commit_event}"
        record.end_step(role.step, StepStatus.FAILED)
        if record.status is Status.RUNNING:
            record.turn(Cause.STEP_FAILURE, f"{step.name}: {fact.reason or fact.type}")
        record.start_compensations(role)
        return IT_APPLIES

    def _complete_compensation(self, role: Role) -> Judgement:
        record = self.record
        step = record.steps[role.step]
        if record.status is Status.COMPLETED:
            name = self.definition.steps[role.step].name
            return _LATE, f"says that {name} was undone, though the saga has completed: somebody has to look into that"
        if step.status in _NOTHING_TO_UNDO:
            return _UNEXPECTED, f"{step.name} is {step.status.name}: there is nothing to undo"
        is_known_to_be_undone = step.status is StepStatus.SUCCEEDED and record.has_turned
        was_told_to_undo = step.status in OPEN and record.is_timed_out and not record.has_ended
        if step.status is StepStatus.COMPENSATING or is_known_to_be_undone or was_told_to_undo:
            record.end_step(role.step, StepStatus.COMPENSATED)
            record.start_compensations(role)
            return IT_APPLIES
        return _EARLY, f"waits for the compensation of {step.name} to be triggered"

    def _may_end(self, index: int, step: StepRecord) -> bool:
        """Whether a step of a saga that runs has had its turn.

        One that was voided has it too: an outcome says what happened, against what its participant had said.
        """
        if step.status is StepStatus.VOIDED:
            return self.record.is_triggered(index)
        return step.status is not StepStatus.PENDING

    def _waits_for_start(self, index: int) -> str:
        step = self.definition.steps[index]
        events = " and ".join(step.all_of) if step.all_of else " or ".join(step.triggers)
        return f"waits for {events} to start {step.name}"


_MAY_END = frozenset({StepStatus.RUNNING, StepStatus.VOIDED})
_NOTHING_TO_UNDO = frozenset({StepStatus.FAILED, StepStatus.VOIDED, StepStatus.COMPENSATED})


def _has_ended(step: StepRecord) -> Judgement:
    return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"


def _same_identity(other: Fact, event_type: str) -> str:
    what = f"the same event as at sequence {other.sequence}: {other.source!r} published both under the id {other.id!r}"
    return what if other.type == event_type else f"{what}, that one as {other.type}"


def _fate(entry: HistoryEntry) -> str:
    if entry.disposition is _APPLIED:
        return "was applied"
    return "came late and moved the saga" if entry.disposition is _LATE else "waits"
