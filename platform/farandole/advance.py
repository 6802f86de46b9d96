"""The fold: what an event makes of a saga's record. Pure: no clock, no I/O.

A record is a function of the set of its facts in stream order. In order, a fact costs one small step; out of order,
the record is folded again from its history. How a saga moves:

- A step starts on its triggers and ends with its success or failure. What comes before its turn is `EARLY`, and is
  judged again whenever the record moves. Before the initiating event all is `UNMATCHED`, and judged again after it.
- A failure, or `SagaTimedOut` before the commit event, *turns* the saga: from then on no step starts, a success is
  `LATE` and must be undone, and the record is `COMPENSATING` until nothing is left to undo or to wait for.
- A status is terminal only once the lifecycle event that says so was folded, and only where the record justifies it.
  `pending_lifecycle` names the one that a record calls for.
- After the commit event nothing turns a saga: `validate` sees to it that what can fail is over by then. A
  `SagaTimedOut` that comes too late to turn it (after the commit event, or after another turn) and past the deadline
  says that the saga is `STALLED`, until it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from farandole.definition import Definition, Outcome, Role
from farandole.envelope import derived_id
from farandole.saga import (
    Cause,
    Disposition,
    Fact,
    Health,
    HistoryEntry,
    Lifecycle,
    Saga,
    Status,
    StepRecord,
    StepStatus,
)

HISTORY_LIMIT = 1000
"""Entries of a history. Beyond it, only what moved the record, what waits, and the last event have entries; the others
are counted in `history_omitted`. A fact out of order that belongs among omitted ones is taken for one of them."""

CORRELATOR = "correlator"
"""The source of the lifecycle events that end a saga."""

SAGA_COMPLETED = "choreography.v1.SagaCompleted"
SAGA_COMPENSATED = "choreography.v1.SagaCompensated"
SAGA_FAILED = "choreography.v1.SagaFailed"
SAGA_STALLED = "choreography.v1.SagaStalled"
SAGA_TIMED_OUT = "choreography.v1.SagaTimedOut"
STEP_OVERDUE = "choreography.v1.StepOverdue"
STEP_VOIDED = "choreography.v1.StepVoided"

_ENDINGS = frozenset({SAGA_COMPLETED, SAGA_COMPENSATED, SAGA_FAILED})
"""A late success reopens a saga, which then ends again with the same body: only their ids tell these events apart."""

_APPLIED, _EARLY, _LATE = Disposition.APPLIED, Disposition.EARLY, Disposition.LATE
_DUPLICATE, _UNEXPECTED, _UNMATCHED = Disposition.DUPLICATE, Disposition.UNEXPECTED, Disposition.UNMATCHED

_Judgement = tuple[Disposition, str]
_IT_APPLIES: _Judgement = (_APPLIED, "")


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
    return fold.record()


def pending_lifecycle(definition: Definition, saga: Saga) -> tuple[PendingLifecycle, ...]:
    """The lifecycle events that the record calls for: at most one of those that end a saga."""
    ending = _ending_due(definition, saga)
    if not ending:
        return ()
    return (
        PendingLifecycle(
            type=ending,
            id=_ending_id(definition, saga.key, saga.history, ending),
            key=saga.key,
            definition=saga.definition,
            version=saga.version,
            cause=Cause.UNSPECIFIED if ending == SAGA_COMPLETED else saga.cause,
            causation_id=last_cause_id(definition, saga),
        ),
    )


def last_cause_id(definition: Definition, saga: Saga) -> str:
    """The id of the last event that moved a record that has started: what the record calls for follows from it."""
    return next(entry.fact.id for entry in reversed(saga.history) if _has_moved(definition, entry))


def has_commit_event(definition: Definition, history: Iterable[HistoryEntry]) -> bool:
    """Whether the commit event is in a history, also where it still waits for its turn: no time-out comes after it."""
    return any(entry.fact.type == definition.commit_event for entry in history)


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
    fold.omitted = saga.history_omitted
    for other in facts:
        fold.take(other)
    return fold.record()


def _ending_due(definition: Definition, saga: Saga) -> str:
    """The type of the lifecycle event that would end the saga as it stands; empty where it is not to end."""
    if saga.start_time is None:
        return ""
    if saga.status is Status.RUNNING:
        return SAGA_COMPLETED if all(step.status is StepStatus.SUCCEEDED for step in saga.steps) else ""
    if saga.status is Status.COMPENSATING and not _awaited(definition, saga.steps):
        undone = any(step.status is StepStatus.COMPENSATED for step in saga.steps)
        return SAGA_COMPENSATED if undone else SAGA_FAILED
    return ""


def _awaited(definition: Definition, steps: tuple[StepRecord, ...] | list[StepRecord]) -> list[str]:
    """The steps of a turned saga that keep it from ending: under way, being undone, or still to be undone."""
    return [
        step.name
        for step, defined in zip(steps, definition.steps, strict=True)
        if step.status is StepStatus.RUNNING
        or step.status is StepStatus.COMPENSATING
        or (step.status is StepStatus.SUCCEEDED and defined.compensation is not None)
    ]


def _ending_id(
    definition: Definition, key: str, history: tuple[HistoryEntry, ...] | list[HistoryEntry], ending: str
) -> str:
    """The id of the next event of that type. One that was not applied counts too, so that its id is not used again."""
    ordinal = sum(
        1
        for entry in history
        if entry.fact.type == ending
        and entry.disposition is not _DUPLICATE
        and entry.fact.lifecycle is not None
        and entry.fact.lifecycle.definition == definition.name
    )
    return derived_id((CORRELATOR, ending, definition.name, str(definition.version), key, str(ordinal)))


def _has_moved(definition: Definition, entry: HistoryEntry) -> bool:
    """Whether an event moved the record: it was applied, or it is a late success, which must be undone."""
    if entry.disposition is _APPLIED:
        return True
    if entry.disposition is not _LATE:
        return False
    role = definition.roles.get(entry.fact.type)
    return role is not None and role.outcome is Outcome.SUCCESS


class _Fold:
    """A record while facts are folded into it."""

    __slots__ = (
        "cause",
        "cause_detail",
        "deadline",
        "definition",
        "end_time",
        "finished_late",
        "health",
        "history",
        "key",
        "moved",
        "now",
        "omitted",
        "roles",
        "start_time",
        "status",
        "steps",
    )

    def __init__(self, definition: Definition, key: str, saga: Saga | None) -> None:
        self.definition = definition
        self.roles = definition.roles
        self.key = key
        self.moved = False
        self.now: datetime | None = None
        if saga is None:
            self.status = Status.RUNNING
            self.cause = Cause.UNSPECIFIED
            self.cause_detail = ""
            self.health = Health.ON_TIME
            self.start_time: datetime | None = None
            self.end_time: datetime | None = None
            self.deadline: datetime | None = None
            self.finished_late = False
            self.steps = [StepRecord(step.name) for step in definition.steps]
            self.history: list[HistoryEntry] = []
            self.omitted = 0
        else:
            self.status = saga.status
            self.cause = saga.cause
            self.cause_detail = saga.cause_detail
            self.health = saga.health
            self.start_time = saga.start_time
            self.end_time = saga.end_time
            self.deadline = saga.deadline
            self.finished_late = saga.finished_late
            self.steps = list(saga.steps)
            self.history = list(saga.history)
            self.omitted = saga.history_omitted

    def record(self) -> Saga:
        """The record as it stands. At least one fact has been taken."""
        history = tuple(self.history)
        return Saga(
            self.definition.name,
            self.definition.version,
            self.key,
            len(history) + self.omitted,
            self.status,
            self.cause,
            self.cause_detail,
            self.health,
            self.start_time,
            history[-1].fact.stream_time,
            self.end_time,
            self.deadline,
            self.finished_late,
            tuple(self.steps),
            history,
            self.omitted,
        )

    def take(self, fact: Fact) -> None:
        """Folds the next fact in stream order."""
        self._make_room()
        self.now = fact.stream_time
        self.moved = False
        was_started = self.start_time is not None
        known, has_waiting = self._identify(fact)
        disposition, reason = known or self._judge(fact)
        self.history.append(HistoryEntry(fact, disposition, reason))
        if self.moved:
            if has_waiting or not was_started:
                self._judge_waiting(also_unmatched=not was_started)
            if self.health is not Health.ON_TIME:
                self._ease_health()

    def _make_room(self) -> None:
        """Drops the last entry of a full history where nothing depends on it."""
        history = self.history
        if len(history) < HISTORY_LIMIT:
            return
        last = history[-1]
        fact, disposition = last.fact, last.disposition
        if disposition is _EARLY or _has_moved(self.definition, last):
            return
        if disposition is _UNMATCHED and self.start_time is None and fact.type in self.roles:
            return
        is_counted_ending = fact.type in _ENDINGS and disposition is not _DUPLICATE
        if is_counted_ending and fact.id == _ending_id(self.definition, self.key, history[:-1], fact.type):
            return
        history.pop()
        self.omitted += 1

    # ---- who is it

    def _identify(self, fact: Fact) -> tuple[_Judgement | None, bool]:
        """What the history alone says of a fact: `DUPLICATE`, or `UNEXPECTED` as another body of what came before.

        Also whether any entry waits.
        """
        event_type, digest, event_id = fact.type, fact.digest, fact.id
        may_repeat = event_type in _ENDINGS
        is_unstarted = self.start_time is None
        has_waiting = False
        rival: HistoryEntry | None = None
        for entry in self.history:
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
        while self.moved:
            self.moved = False
            for place, entry in enumerate(self.history):
                if entry.disposition is _EARLY or (also_unmatched and entry.disposition is _UNMATCHED):
                    disposition, reason = self._judge(entry.fact)
                    if disposition is not entry.disposition:
                        self.history[place] = HistoryEntry(entry.fact, disposition, reason)

    # ---- what does it mean

    def _judge(self, fact: Fact) -> _Judgement:
        """Moves the record where the fact does, and says what became of the fact."""
        lifecycle = fact.lifecycle
        if lifecycle is not None:
            if lifecycle.definition != self.definition.name:
                return _UNMATCHED, f"is about the saga of {lifecycle.definition} with this key"
            return self._judge_lifecycle(fact, lifecycle) if self.start_time is not None else self._unstarted()
        role = self.roles.get(fact.type)
        if role is None:
            return _UNMATCHED, f"{self.definition} does not mention {fact.type}"
        if role.is_initiating:
            return self._start(role, fact)
        if self.start_time is None:
            return self._unstarted()
        if role.outcome is Outcome.SUCCESS:
            judgement = self._succeed(role)
        elif role.outcome is Outcome.FAILURE:
            judgement = self._fail(role, fact)
        else:
            judgement = self._complete_compensation(role)
        if judgement[0] is _EARLY and self.status.is_terminal:
            return _LATE, f"was still waiting when the saga ended: it {judgement[1]}"
        return judgement

    def _unstarted(self) -> _Judgement:
        return _UNMATCHED, f"waits for {self.definition.initiating_event}, which starts the saga"

    def _start(self, role: Role, fact: Fact) -> _Judgement:
        if self.start_time is not None:
            return _UNEXPECTED, "the saga has started already"
        self.moved = True
        self.start_time = fact.stream_time
        self.deadline = fact.stream_time + self.definition.deadline
        if role.outcome is Outcome.SUCCESS:
            name = self.definition.steps[role.step].name
            self.steps[role.step] = StepRecord(name, StepStatus.SUCCEEDED, None, self.now, self.now)
        self._trigger_steps(role)
        return _IT_APPLIES

    def _succeed(self, role: Role) -> _Judgement:
        step = self.steps[role.step]
        if self.status is not Status.RUNNING:
            return self._succeed_late(role.step, step)
        if step.status is StepStatus.RUNNING:
            self._set(role.step, StepStatus.SUCCEEDED, ended=True)
            self._trigger_steps(role)
            return _IT_APPLIES
        if step.status is StepStatus.PENDING:
            return _EARLY, self._waits_for_start(role.step)
        return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"

    def _succeed_late(self, index: int, step: StepRecord) -> _Judgement:
        """A success after the saga turned: what it did must be undone."""
        if self.status is Status.COMPLETED or step.status is StepStatus.FAILED:
            return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"
        if self.definition.steps[index].compensation is None:
            if step.status is not StepStatus.VOIDED:
                self._set(index, StepStatus.SUCCEEDED, ended=True)
            return _LATE, f"came after the saga had turned; {step.name} leaves nothing to undo"
        if step.status is StepStatus.COMPENSATING:
            self.moved = True
            self.steps[index] = StepRecord(step.name, step.status, step.deadline, step.start_time, self.now)
        else:
            self._undo(index, ended=True)
        if self.status.is_terminal:
            self.status = Status.COMPENSATING
            self.end_time = None
            return _LATE, f"came after the saga had ended; {step.name} must be undone, so the saga is open again"
        return _LATE, f"came after the saga had turned; {step.name} must be undone"

    def _fail(self, role: Role, fact: Fact) -> _Judgement:
        step = self.steps[role.step]
        if self.status.is_terminal:
            return _LATE, "came after the saga had ended"
        if self.status is Status.RUNNING and step.status is StepStatus.PENDING:
            return _EARLY, self._waits_for_start(role.step)
        is_open = (
            step.status is StepStatus.RUNNING
            or step.status is StepStatus.PENDING
            or (step.status is StepStatus.COMPENSATING and step.end_time is None)
        )
        if not is_open:
            return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"
        self._set(role.step, StepStatus.FAILED, ended=True)
        if self.status is Status.RUNNING:
            self._turn(Cause.STEP_FAILURE, f"{step.name}: {fact.reason or fact.type}")
        self._trigger_compensations(role)
        return _IT_APPLIES

    def _complete_compensation(self, role: Role) -> _Judgement:
        step = self.steps[role.step]
        if self.status is Status.COMPLETED:
            return _LATE, "came after the saga had completed, which is not undone any more"
        if step.status in _NOTHING_TO_UNDO:
            return _UNEXPECTED, f"{step.name} is {step.status.name}: there is nothing to undo"
        has_turned = self.status is not Status.RUNNING
        if step.status is StepStatus.COMPENSATING or (has_turned and step.status is StepStatus.SUCCEEDED):
            self._set(role.step, StepStatus.COMPENSATED, ended=True)
            self._trigger_compensations(role)
            return _IT_APPLIES
        return _EARLY, f"waits for the compensation of {step.name} to be triggered"

    def _waits_for_start(self, index: int) -> str:
        step = self.definition.steps[index]
        events = " and ".join(step.all_of) if step.all_of else " or ".join(step.triggers)
        return f"waits for {events} to start {step.name}"

    # ---- lifecycle events

    def _judge_lifecycle(self, fact: Fact, lifecycle: Lifecycle) -> _Judgement:
        match fact.type:
            case "choreography.v1.SagaCompleted":
                return self._complete()
            case "choreography.v1.SagaCompensated":
                return self._compensated()
            case "choreography.v1.SagaFailed":
                return self._failed()
            case "choreography.v1.SagaTimedOut":
                return self._time_out(fact, lifecycle)
            case "choreography.v1.StepOverdue":
                return self._overdue(lifecycle)
            case "choreography.v1.StepVoided":
                return self._void(lifecycle)
            case _:
                return _UNMATCHED, f"{fact.type} is no lifecycle event that moves a saga"

    def _complete(self) -> _Judgement:
        if self.status is not Status.RUNNING:
            return _LATE, f"the saga is {self.status.name}"
        unfinished = [step.name for step in self.steps if step.status is not StepStatus.SUCCEEDED]
        if unfinished:
            return _UNEXPECTED, f"has not succeeded yet: {', '.join(unfinished)}"
        self.finished_late = self.deadline is not None and any(
            step.end_time is not None and step.end_time > self.deadline for step in self.steps
        )
        return self._end(Status.COMPLETED)

    def _compensated(self) -> _Judgement:
        if not any(step.status is StepStatus.COMPENSATED for step in self.steps):
            return self._refused() or (_UNEXPECTED, "nothing has been undone")
        return self._refused() or self._end(Status.COMPENSATED)

    def _failed(self) -> _Judgement:
        undone = [step.name for step in self.steps if step.status is StepStatus.COMPENSATED]
        if undone:
            return self._refused() or (_UNEXPECTED, f"has been undone: {', '.join(undone)}")
        return self._refused() or self._end(Status.FAILED)

    def _refused(self) -> _Judgement | None:
        """Why a saga is not at the end of its compensation; None where it is."""
        if self.status.is_terminal:
            return _LATE, f"the saga is {self.status.name} already"
        if self.status is not Status.COMPENSATING:
            return _UNEXPECTED, f"the saga is {self.status.name}"
        awaited = _awaited(self.definition, self.steps)
        return (_UNEXPECTED, f"is still to be undone or to end: {', '.join(awaited)}") if awaited else None

    def _end(self, status: Status) -> _Judgement:
        self.moved = True
        self.status = status
        self.end_time = self.now
        return _IT_APPLIES

    def _time_out(self, fact: Fact, lifecycle: Lifecycle) -> _Judgement:
        if self.status.is_terminal:
            return _LATE, f"the saga is {self.status.name}"
        if self.status is not Status.RUNNING or self._is_committed:
            if self.deadline is not None and fact.stream_time >= self.deadline:
                self.health = Health.STALLED
            return _LATE, self._after_commit() if self._is_committed else "the saga is being undone already"
        awaited = [step.name for step in self.steps if step.status is StepStatus.RUNNING]
        self._turn(lifecycle.cause or Cause.DEADLINE, _time_out_detail(lifecycle.cause, self.deadline, awaited))
        for index, (step, defined) in enumerate(zip(self.steps, self.definition.steps, strict=True)):
            if defined.compensation is None:
                continue
            is_named_and_open = step.name in lifecycle.steps and step.status in _OPEN
            if step.status is StepStatus.SUCCEEDED or is_named_and_open:
                self._undo(index)
        return _IT_APPLIES

    def _overdue(self, lifecycle: Lifecycle) -> _Judgement:
        index = self._step_named(lifecycle)
        if index is None:
            return _UNEXPECTED, self._no_such_step(lifecycle)
        step = self.steps[index]
        if not _is_late(step, lifecycle):
            what = f"the compensation of {step.name}" if lifecycle.compensation else step.name
            return _LATE, f"{what} is not open: {step.name} is {step.status.name}"
        if self.health is Health.ON_TIME:
            self.health = Health.OVERDUE
        return _IT_APPLIES

    def _void(self, lifecycle: Lifecycle) -> _Judgement:
        index = self._step_named(lifecycle)
        if index is None:
            return _UNEXPECTED, self._no_such_step(lifecycle)
        step = self.steps[index]
        if self.status.is_terminal:
            return _LATE, f"the saga is {self.status.name}"
        if step.status not in _OPEN and not (step.status is StepStatus.COMPENSATING and step.end_time is None):
            return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"
        self._set(index, StepStatus.VOIDED, ended=True)
        return _IT_APPLIES

    def _step_named(self, lifecycle: Lifecycle) -> int | None:
        return self.definition.index.get(lifecycle.steps[0]) if lifecycle.steps else None

    def _no_such_step(self, lifecycle: Lifecycle) -> str:
        return f"{self.definition} has no step {lifecycle.steps[0] if lifecycle.steps else ''!r}"

    # ---- moving the record

    @property
    def _is_committed(self) -> bool:
        return self.status is Status.RUNNING and self.steps[self.definition.pivot].status is StepStatus.SUCCEEDED

    def _after_commit(self) -> str:
        return f"the saga has committed with {self.definition.commit_event} and is not undone any more"

    def _turn(self, cause: Cause, detail: str) -> None:
        self.moved = True
        self.status = Status.COMPENSATING
        self.cause = cause
        self.cause_detail = detail

    def _trigger_steps(self, role: Role) -> None:
        for index in role.starts:
            step = self.steps[index]
            if step.status is not StepStatus.PENDING:
                continue
            if all(self.steps[needed].status is StepStatus.SUCCEEDED for needed in self.definition.needs[index]):
                self.moved = True
                duration = self.definition.steps[index].deadline
                due = self.now + duration if self.now is not None and duration is not None else None
                self.steps[index] = StepRecord(step.name, StepStatus.RUNNING, due, self.now, None)

    def _trigger_compensations(self, role: Role) -> None:
        for index in role.undoes:
            if self.steps[index].status in _UNDOABLE:
                self._undo(index)

    def _undo(self, index: int, *, ended: bool = False) -> None:
        """The compensation of a step has been triggered, or must be. `ended`: the step's success came just now."""
        self.moved = True
        step = self.steps[index]
        compensation = self.definition.steps[index].compensation
        duration = compensation.deadline if compensation is not None else None
        due = self.now + duration if self.now is not None and duration is not None else None
        end_time = self.now if ended else step.end_time if step.status is StepStatus.SUCCEEDED else None
        self.steps[index] = StepRecord(step.name, StepStatus.COMPENSATING, due, step.start_time, end_time)

    def _set(self, index: int, status: StepStatus, *, ended: bool) -> None:
        self.moved = True
        step = self.steps[index]
        end_time = self.now if ended else step.end_time
        self.steps[index] = StepRecord(step.name, status, step.deadline, step.start_time, end_time)

    def _ease_health(self) -> None:
        """What was late may have ended."""
        if self.status.is_terminal or (self.health is Health.OVERDUE and not self._has_late_step()):
            self.health = Health.ON_TIME

    def _has_late_step(self) -> bool:
        for entry in self.history:
            lifecycle = entry.fact.lifecycle
            if entry.fact.type == STEP_OVERDUE and entry.disposition is _APPLIED and lifecycle is not None:
                index = self._step_named(lifecycle)
                if index is not None and _is_late(self.steps[index], lifecycle):
                    return True
        return False


_OPEN = frozenset({StepStatus.PENDING, StepStatus.RUNNING})
_UNDOABLE = frozenset({StepStatus.RUNNING, StepStatus.SUCCEEDED})
_NOTHING_TO_UNDO = frozenset({StepStatus.FAILED, StepStatus.VOIDED, StepStatus.COMPENSATED})


def _is_late(step: StepRecord, lifecycle: Lifecycle) -> bool:
    """Whether what a `StepOverdue` names is still open."""
    return step.status is (StepStatus.COMPENSATING if lifecycle.compensation else StepStatus.RUNNING)


def _same_identity(other: Fact, event_type: str) -> str:
    what = f"the same event as at sequence {other.sequence}: {other.source!r} published both under the id {other.id!r}"
    return what if other.type == event_type else f"{what}, that one as {other.type}"


def _fate(entry: HistoryEntry) -> str:
    if entry.disposition is _APPLIED:
        return "was applied"
    return "came late and moved the saga" if entry.disposition is _LATE else "waits"


def _time_out_detail(cause: Cause, deadline: datetime | None, awaited: list[str]) -> str:
    waited_for = f" while it waited for {', '.join(awaited)}" if awaited else ""
    if cause is Cause.OPERATOR:
        return f"an operator ended it{waited_for}"
    due = f" at {deadline.isoformat().replace('+00:00', 'Z')}" if deadline is not None else ""
    return f"its deadline passed{due}{waited_for}"
