"""Deadlines: when a saga is due next, and what the correlator tells it then. Pure: the time is told, never read.

One rule serves both questions, so that they never disagree: a deadline is open until the lifecycle event that it calls
for is in the saga's history.

- A step that is awaited, and what is being undone, has its own deadline: `StepOverdue`.
- The saga's deadline is open while it runs, and while it is undone because of a failure: `SagaTimedOut` where it can
  still be timed out, else `SagaStalled`. A saga that was timed out has only the deadlines of its compensations.
- A saga that waits for nothing but its end has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from farandole.advance import PendingLifecycle, last_cause_id
from farandole.definition import Definition
from farandole.ids import derived_id
from farandole.lifecycle import CORRELATOR, SAGA_STALLED, SAGA_TIMED_OUT, STEP_OVERDUE, unused_id
from farandole.record import TIMED_OUT, commit_event, is_applied
from farandole.saga import Cause, Saga, Status, StepRecord, StepStatus


def next_deadline(saga: Saga) -> datetime | None:
    """The earliest deadline of a saga that nobody has acted on yet; None where it waits for none."""
    return min((deadline for deadline, _ in _open_deadlines(saga)), default=None)


def due_lifecycle(definition: Definition, saga: Saga, now: datetime) -> tuple[PendingLifecycle, ...]:
    """The lifecycle events that the deadlines up to `now` call for, the earliest first.

    Empty exactly where `next_deadline` is None or later than `now`. Each keeps its id until it is in the history.
    """
    due = sorted((found for found in _open_deadlines(saga) if found[0] <= now), key=lambda found: found[0])
    if not due:
        return ()
    causation_id = last_cause_id(definition, saga)
    return tuple(
        _saga_lifecycle(definition, saga, deadline, causation_id)
        if step is None
        else PendingLifecycle(
            type=STEP_OVERDUE,
            id=overdue_id(saga, step),
            key=saga.key,
            definition=saga.definition,
            version=saga.version,
            cause=saga.cause,
            causation_id=causation_id,
            steps=(step.name,),
            deadline=deadline,
            participant=definition.steps[definition.index[step.name]].participant,
            compensation=step.status is StepStatus.COMPENSATING,
        )
        for deadline, step in due
    )


def overdue_id(saga: Saga, step: StepRecord) -> str:
    """The id of the `StepOverdue` that a step's present deadline calls for, or that of its compensation.

    A compensation that is triggered again has another deadline, and is told again when it is late again.
    """
    what = "compensation" if step.status is StepStatus.COMPENSATING else "step"
    due = step.deadline.isoformat() if step.deadline is not None else ""
    return derived_id(
        (CORRELATOR, STEP_OVERDUE, saga.definition, str(saga.version), saga.key, step.name, what, due),
    )


def _open_deadlines(saga: Saga) -> Iterator[tuple[datetime, StepRecord | None]]:
    """Each open deadline with its step; without one that of the saga itself."""
    if saga.status.is_terminal or not saga.is_started:
        return
    told, is_stalled = _told(saga)
    is_timed_out = saga.cause in TIMED_OUT
    for step in saga.steps:
        is_awaited = step.status is StepStatus.COMPENSATING or (step.status is StepStatus.RUNNING and not is_timed_out)
        if step.deadline is not None and is_awaited and not (told and overdue_id(saga, step) in told):
            yield step.deadline, step
    if saga.deadline is not None and not is_timed_out and not is_stalled and _waits(saga):
        yield saga.deadline, None


def _told(saga: Saga) -> tuple[set[str], bool]:
    """The ids of the correlator's `StepOverdue` in a history, and whether the saga is known to be stalled."""
    overdue: set[str] = set()
    is_stalled = False
    for entry in saga.history:
        fact = entry.fact
        if fact.type == STEP_OVERDUE and fact.source == CORRELATOR:
            overdue.add(fact.id)
        elif fact.type == SAGA_STALLED and is_applied(entry):
            is_stalled = True
    return overdue, is_stalled


def _waits(saga: Saga) -> bool:
    """Whether a saga waits for more than its end."""
    if saga.status is Status.RUNNING:
        return any(step.status is not StepStatus.SUCCEEDED for step in saga.steps)
    return any(step.status in _UNFINISHED for step in saga.steps)


_UNFINISHED = frozenset({StepStatus.RUNNING, StepStatus.COMPENSATING, StepStatus.SUCCEEDED})
"""What a saga that is being undone may wait for. Whether a step that succeeded leaves something to undo is for its
definition to say: where none does, a saga may be told that it is stalled just before it ends."""


def _saga_lifecycle(definition: Definition, saga: Saga, deadline: datetime, causation_id: str) -> PendingLifecycle:
    can_be_timed_out = saga.status is Status.RUNNING and commit_event(definition, saga.history) is None
    event_type = SAGA_TIMED_OUT if can_be_timed_out else SAGA_STALLED
    return PendingLifecycle(
        type=event_type,
        id=unused_id(definition, saga.key, saga.history, event_type),
        key=saga.key,
        definition=saga.definition,
        version=saga.version,
        cause=Cause.DEADLINE if can_be_timed_out else saga.cause,
        causation_id=causation_id,
        steps=tuple(step.name for step in definition.steps) if can_be_timed_out else (),
        deadline=deadline,
    )
