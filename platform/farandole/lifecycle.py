"""Lifecycle events: what they make of a record, and what only they tell of it. Pure.

They are the platform's own events about one saga: its ends, its time-out, what is late, what was voided, and the dead
letters that hold it up. Each moves a record only where the record justifies it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import count
from typing import NamedTuple

from farandole.definition import Definition
from farandole.ids import derived_id
from farandole.record import IT_APPLIES, OPEN, TIMED_OUT, Judgement, Record, awaited, commit_event, is_applied
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

CORRELATOR = "correlator"
"""The correlator's name: its durable consumer, the source of what it publishes, and who gives up on what no one can
read. No participant has it."""

SAGA_COMPLETED = "choreography.v1.SagaCompleted"
SAGA_COMPENSATED = "choreography.v1.SagaCompensated"
SAGA_FAILED = "choreography.v1.SagaFailed"
SAGA_STALLED = "choreography.v1.SagaStalled"
SAGA_TIMED_OUT = "choreography.v1.SagaTimedOut"
STEP_OVERDUE = "choreography.v1.StepOverdue"
STEP_VOIDED = "choreography.v1.StepVoided"
DEAD_LETTER_RECORDED = "choreography.v1.DeadLetterRecorded"
DEAD_LETTER_REDRIVEN = "choreography.v1.DeadLetterRedriven"
DEAD_LETTER_DISCARDED = "choreography.v1.DeadLetterDiscarded"
DEAD_LETTER_SUPERSEDED = "choreography.v1.DeadLetterSuperseded"

_CLOSING = frozenset({DEAD_LETTER_REDRIVEN, DEAD_LETTER_DISCARDED, DEAD_LETTER_SUPERSEDED})

ONCE_A_STATE = frozenset({SAGA_COMPLETED, SAGA_COMPENSATED, SAGA_FAILED, SAGA_STALLED})
"""Told once each time that a saga comes to that state; `unused_id` numbers them."""

TOLD_APART_BY_ID = ONCE_A_STATE | _CLOSING | {STEP_OVERDUE, DEAD_LETTER_RECORDED}
"""The same body may be news again: a saga that a late success reopened ends again, a dead letter is redriven again."""

TELLING = _CLOSING | {STEP_OVERDUE, SAGA_STALLED, DEAD_LETTER_RECORDED}
"""They tell how it stands with a saga, and change nothing of what it waits for."""

_APPLIED, _LATE, _UNEXPECTED, _UNMATCHED = (
    Disposition.APPLIED,
    Disposition.LATE,
    Disposition.UNEXPECTED,
    Disposition.UNMATCHED,
)


class OpenDeadLetter(NamedTuple):
    """A dead letter of a participant that has been neither redriven, discarded nor superseded."""

    participant: str
    sequence: int
    """The dead-lettered event's sequence in the stream."""
    step: str
    compensation: bool
    """Whether it was the step's compensation that could not deal with the event."""


def open_dead_letters(saga: Saga) -> tuple[OpenDeadLetter, ...]:
    """The dead letters that hold a saga up, in the order in which they were recorded."""
    return _open_dead_letters(saga.history)


def unused_id(definition: Definition, key: str, history: Iterable[HistoryEntry], event_type: str) -> str:
    """The id of the correlator's next event of a type about a saga. What was stored, applied or not, used its id up."""
    used = {entry.fact.id for entry in history if entry.fact.source == CORRELATOR}
    ids = (
        derived_id((CORRELATOR, event_type, definition.name, str(definition.version), key, str(ordinal)))
        for ordinal in count()
    )
    return next(event_id for event_id in ids if event_id not in used)


def ending_due(definition: Definition, saga: Saga) -> str:
    """The type of the lifecycle event that would end the saga as it stands; empty where it is not to end."""
    if saga.start_time is None:
        return ""
    if saga.status is Status.RUNNING:
        return SAGA_COMPLETED if all(step.status is StepStatus.SUCCEEDED for step in saga.steps) else ""
    if saga.status is Status.COMPENSATING and not awaited(definition, saga.steps, saga.cause):
        undone = any(step.status is StepStatus.COMPENSATED for step in saga.steps)
        return SAGA_COMPENSATED if undone else SAGA_FAILED
    return ""


# ---- what follows from a record and its history


def status_and_health(record: Record) -> tuple[Status, Health]:
    """A record's status with `COMPENSATION_FAILED` told from `COMPENSATING`, and its health."""
    overdue: list[Lifecycle] = []
    is_stalled = False
    has_dead_letters = False
    for entry in record.history:
        lifecycle = entry.fact.lifecycle
        if lifecycle is None or entry.disposition is not _APPLIED:
            continue
        if entry.fact.type == STEP_OVERDUE:
            overdue.append(lifecycle)
        elif entry.fact.type == SAGA_STALLED:
            is_stalled = True
        elif lifecycle.dead_letter is not None:
            has_dead_letters = True
    dead_letters = _open_dead_letters(record.history) if has_dead_letters else ()
    return _status(record, dead_letters), _health(record, dead_letters, overdue, is_stalled)


def _status(record: Record, dead_letters: tuple[OpenDeadLetter, ...]) -> Status:
    if record.status is Status.COMPENSATING:
        given_up = {dead_letter.step for dead_letter in dead_letters if dead_letter.compensation}
        if any(step.name in given_up and step.status is StepStatus.COMPENSATING for step in record.steps):
            return Status.COMPENSATION_FAILED
    return record.status


def _health(
    record: Record, dead_letters: tuple[OpenDeadLetter, ...], overdue: list[Lifecycle], is_stalled: bool
) -> Health:
    if dead_letters:
        return Health.QUARANTINED
    if record.has_ended:
        return Health.ON_TIME
    late = [lifecycle for lifecycle in overdue if _is_late(record, lifecycle)]
    if is_stalled or (record.is_timed_out and any(lifecycle.compensation for lifecycle in late)):
        return Health.STALLED
    return Health.OVERDUE if late else Health.ON_TIME


def _is_late(record: Record, lifecycle: Lifecycle) -> bool:
    """Whether what a `StepOverdue` names is still open."""
    index = _step_named(record, lifecycle)
    return index is not None and _is_open(record.steps[index], lifecycle)


def _is_open(step: StepRecord, lifecycle: Lifecycle) -> bool:
    return step.status is (StepStatus.COMPENSATING if lifecycle.compensation else StepStatus.RUNNING)


def _open_dead_letters(history: Iterable[HistoryEntry]) -> tuple[OpenDeadLetter, ...]:
    found: dict[tuple[str, int], OpenDeadLetter] = {}
    for entry in history:
        lifecycle = entry.fact.lifecycle
        if lifecycle is None or lifecycle.dead_letter is None or not is_applied(entry):
            continue
        if entry.fact.type == DEAD_LETTER_RECORDED:
            step = lifecycle.steps[0] if lifecycle.steps else ""
            found[lifecycle.dead_letter] = OpenDeadLetter(*lifecycle.dead_letter, step, lifecycle.compensation)
        else:
            found.pop(lifecycle.dead_letter, None)
    return tuple(found.values())


# ---- what they make of a record


def judge_lifecycle(record: Record, fact: Fact, lifecycle: Lifecycle) -> Judgement:
    """Moves a record that has started where a lifecycle event about it does, and says what became of the event."""
    match fact.type:
        case "choreography.v1.SagaCompleted":
            return _complete(record)
        case "choreography.v1.SagaCompensated":
            return _compensated(record)
        case "choreography.v1.SagaFailed":
            return _failed(record)
        case "choreography.v1.SagaTimedOut":
            return _time_out(record, lifecycle)
        case "choreography.v1.SagaStalled":
            return _stall(record)
        case "choreography.v1.StepOverdue":
            return _overdue(record, lifecycle)
        case "choreography.v1.StepVoided":
            return _void(record, lifecycle)
        case "choreography.v1.DeadLetterRecorded":
            return _open_dead_letter(record, lifecycle)
        case _ if fact.type in _CLOSING:
            return _close_dead_letter(record, lifecycle)
        case _:
            return _UNMATCHED, f"{fact.type} is no lifecycle event that moves a saga"


def _complete(record: Record) -> Judgement:
    if record.status is not Status.RUNNING:
        return _LATE, f"the saga is {record.status.name}"
    unfinished = [step.name for step in record.steps if step.status is not StepStatus.SUCCEEDED]
    if unfinished:
        return _UNEXPECTED, f"has not succeeded yet: {', '.join(unfinished)}"
    record.finished_late = record.deadline is not None and any(
        step.end_time is not None and step.end_time > record.deadline for step in record.steps
    )
    record.end(Status.COMPLETED)
    return IT_APPLIES


def _compensated(record: Record) -> Judgement:
    refused = _not_undone(record)
    if refused is not None:
        return refused
    if not any(step.status is StepStatus.COMPENSATED for step in record.steps):
        return _UNEXPECTED, "nothing has been undone"
    record.end(Status.COMPENSATED)
    return IT_APPLIES


def _failed(record: Record) -> Judgement:
    refused = _not_undone(record)
    if refused is not None:
        return refused
    undone = [step.name for step in record.steps if step.status is StepStatus.COMPENSATED]
    if undone:
        return _UNEXPECTED, f"has been undone: {', '.join(undone)}"
    record.end(Status.FAILED)
    return IT_APPLIES


def _not_undone(record: Record) -> Judgement | None:
    """Why a saga is not at the end of its compensation; None where it is."""
    if record.has_ended:
        return _LATE, f"the saga is {record.status.name} already"
    if not record.has_turned:
        return _UNEXPECTED, f"the saga is {record.status.name}"
    names = record.awaited()
    return (_UNEXPECTED, f"is still to be undone or to end: {', '.join(names)}") if names else None


def _time_out(record: Record, lifecycle: Lifecycle) -> Judgement:
    if record.has_ended:
        return _LATE, f"the saga is {record.status.name}"
    if record.has_turned:
        return _LATE, "the saga is being undone already"
    commit = commit_event(record.definition, record.history)
    if commit is not None and is_applied(commit):
        return _LATE, f"the saga has committed with {commit.fact.type} and is not undone any more"
    if commit is not None:
        where = f"{commit.fact.type} at sequence {commit.fact.sequence}"
        return _LATE, f"the commit event, {where}, came first and {commit.reason}"
    under_way = [step.name for step in record.steps if step.status is StepStatus.RUNNING]
    cause = lifecycle.cause if lifecycle.cause in TIMED_OUT else Cause.DEADLINE
    record.turn(cause, _time_out_detail(cause, record.deadline, under_way))
    for index, (step, defined) in enumerate(zip(record.steps, record.definition.steps, strict=True)):
        if step.status is StepStatus.SUCCEEDED and defined.compensation is not None:
            record.undo(index)
    return IT_APPLIES


def _time_out_detail(cause: Cause, deadline: datetime | None, under_way: list[str]) -> str:
    waited_for = f" while it waited for {', '.join(under_way)}" if under_way else ""
    if cause is Cause.OPERATOR:
        return f"an operator ended it{waited_for}"
    due = f" at {deadline.isoformat().replace('+00:00', 'Z')}" if deadline is not None else ""
    return f"its deadline passed{due}{waited_for}"


def _stall(record: Record) -> Judgement:
    if record.has_ended:
        return _LATE, f"the saga is {record.status.name}"
    if record.is_timed_out:
        return _LATE, "the saga has been timed out already"
    if not record.has_turned and commit_event(record.definition, record.history) is None:
        return _UNEXPECTED, f"the saga has not come to {record.definition.commit_event}: it can be timed out"
    if any(entry.fact.type == SAGA_STALLED and is_applied(entry) for entry in record.history):
        return _LATE, "the saga is known to be stalled"
    return IT_APPLIES


def _overdue(record: Record, lifecycle: Lifecycle) -> Judgement:
    index = _step_named(record, lifecycle)
    if index is None:
        return _no_such_step(record, lifecycle)
    if record.has_ended:
        return _LATE, f"the saga is {record.status.name}"
    step = record.steps[index]
    if not _is_open(step, lifecycle):
        what = f"the compensation of {step.name}" if lifecycle.compensation else step.name
        return _LATE, f"{what} is not open: {step.name} is {step.status.name}"
    return IT_APPLIES


def _void(record: Record, lifecycle: Lifecycle) -> Judgement:
    """A participant's word that a step has done no work and will do none. It never opens a saga that has ended."""
    index = _step_named(record, lifecycle)
    if index is None:
        return _no_such_step(record, lifecycle)
    step = record.steps[index]
    if record.status is Status.COMPLETED:
        return _LATE, "the saga is COMPLETED"
    if index == record.definition.pivot and record.is_committed:
        return _UNEXPECTED, f"the saga has committed with {record.definition.commit_event}"
    is_from_outside = record.definition.steps[index].success == record.definition.initiating_event
    has_own_success = step.end_time is not None and not is_from_outside
    may_be_voided = (
        step.status in OPEN
        or (step.status is StepStatus.COMPENSATING and not has_own_success)
        or (step.status is StepStatus.SUCCEEDED and is_from_outside)
    )
    if not may_be_voided:
        return _UNEXPECTED, f"{step.name} has ended: it is {step.status.name}"
    record.end_step(index, StepStatus.VOIDED)
    return IT_APPLIES


def _step_named(record: Record, lifecycle: Lifecycle) -> int | None:
    return record.definition.index.get(lifecycle.steps[0]) if lifecycle.steps else None


def _no_such_step(record: Record, lifecycle: Lifecycle) -> Judgement:
    return _UNEXPECTED, f"{record.definition} has no step {lifecycle.steps[0] if lifecycle.steps else ''!r}"


# ---- dead letters


def _open_dead_letter(record: Record, lifecycle: Lifecycle) -> Judgement:
    if _find_dead_letter(record, lifecycle) is not None:
        return _UNEXPECTED, f"{_dead_letter_named(lifecycle)} is open already"
    return IT_APPLIES


def is_about_every_saga(lifecycle: Lifecycle) -> bool:
    """Whether an event is about all sagas under its key: an operator's decision about what no one can read."""
    return lifecycle.dead_letter is not None and lifecycle.dead_letter[0] == CORRELATOR and not lifecycle.definition


def _close_dead_letter(record: Record, lifecycle: Lifecycle) -> Judgement:
    if is_about_every_saga(lifecycle):
        return IT_APPLIES  # it held nothing up: the list of dead letters tells what became of it
    found = _find_dead_letter(record, lifecycle)
    if found is None:
        return _LATE, f"{_dead_letter_named(lifecycle)} is not open"
    if lifecycle.steps != (found.step,):
        return _UNEXPECTED, f"{_dead_letter_named(lifecycle)} is of the step {found.step}: nothing is done about it"
    return IT_APPLIES


def _find_dead_letter(record: Record, lifecycle: Lifecycle) -> OpenDeadLetter | None:
    opened = _open_dead_letters(record.history)
    return next((one for one in opened if (one.participant, one.sequence) == lifecycle.dead_letter), None)


def _dead_letter_named(lifecycle: Lifecycle) -> str:
    participant, sequence = lifecycle.dead_letter or ("", 0)
    return f"the dead letter of {participant!r} at sequence {sequence}"
