"""What a saga waits for, as its record tells. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from farandole.definition import Definition, StepDefinition
from farandole.lifecycle import SAGA_TIMED_OUT, STEP_OVERDUE, STEP_VOIDED
from farandole.saga import Cause, Disposition, Fact, Saga, Status, StepRecord, StepStatus


class Wait(enum.Enum):
    """What for a saga waits."""

    OUTCOME = enum.auto()
    """The success or a failure of a step that was triggered."""
    COMPENSATION = enum.auto()
    """The completion of a compensation that was triggered."""
    TRIGGER = enum.auto()
    """An event that triggers a compensation, while nothing that is under way leads to it."""
    LAST_WORD = enum.auto()
    """After a time-out: what became of a step that had not ended. The saga ends without it."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """One thing that a saga waits for."""

    wait: Wait
    step: StepDefinition
    event_types: tuple[str, ...]
    """Of which any one ends the wait."""
    trigger: Fact | None
    """The event on which the participant has to act."""
    deadline: datetime | None
    is_overdue: bool
    """Whether the stream knows that the deadline has passed."""

    @property
    def is_compensation(self) -> bool:
        """Whether the step's compensation is awaited, and not the step itself."""
        return self.wait in {Wait.COMPENSATION, Wait.TRIGGER}


def awaited(definition: Definition, saga: Saga) -> tuple[Awaited, ...]:
    """Everything that a started saga waits for, in the order of its steps; what its end does not need comes last."""
    pairs = list(zip(definition.steps, saga.steps, strict=True))
    under_way = [
        found
        for index, (step, record) in enumerate(pairs)
        if (found := _under_way(definition, saga, index, step, record)) is not None
    ]
    if not under_way and saga.status in {Status.COMPENSATING, Status.COMPENSATION_FAILED}:
        under_way = list(_without_trigger(pairs))
    return (*under_way, *_last_words(saga, pairs))


def _under_way(
    definition: Definition, saga: Saga, index: int, step: StepDefinition, record: StepRecord
) -> Awaited | None:
    """What is awaited of a step; None where nothing is that the saga's end needs."""
    if record.status is StepStatus.RUNNING and not is_timed_out(saga):
        has_turned = saga.status is not Status.RUNNING
        return Awaited(
            Wait.OUTCOME,
            step,
            (step.success, *step.failures, *([STEP_VOIDED] if has_turned else [])),
            _trigger(definition, saga, index, record),
            record.deadline,
            _is_overdue(saga, record),
        )
    if record.status is StepStatus.COMPENSATING:
        may_be_voided = record.end_time is None or step.success == definition.initiating_event
        # An act that can't be undone has no compensation: what of it came too late is taken back with a failure.
        ends = (step.compensation.completion,) if step.compensation is not None else step.failures
        return Awaited(
            Wait.COMPENSATION,
            step,
            (*ends, *([STEP_VOIDED] if may_be_voided else [])),
            _undo_trigger(definition, saga, index),
            record.deadline,
            _is_overdue(saga, record),
        )
    return None


def _without_trigger(pairs: Iterable[tuple[StepDefinition, StepRecord]]) -> Iterator[Awaited]:
    """Steps that are to be undone when nothing is under way that leads to it; not those whose undoing follows."""
    left = [
        (step, step.compensation)
        for step, record in pairs
        if record.status is StepStatus.SUCCEEDED and step.compensation is not None
    ]
    to_come = {compensation.completion for _, compensation in left}
    for step, compensation in left:
        if not to_come.intersection(compensation.triggers):
            types = (compensation.completion, *compensation.triggers)
            yield Awaited(Wait.TRIGGER, step, types, None, None, is_overdue=False)


def _last_words(saga: Saga, pairs: Iterable[tuple[StepDefinition, StepRecord]]) -> Iterator[Awaited]:
    """Steps that had not ended when the saga was timed out, and of which nobody has said what became of them."""
    if not is_timed_out(saga):
        return
    time_out = next(applied(saga, SAGA_TIMED_OUT), None)
    for step, record in pairs:
        if record.status in {StepStatus.PENDING, StepStatus.RUNNING}:
            types = (STEP_VOIDED, step.success, *step.failures)
            yield Awaited(Wait.LAST_WORD, step, types, time_out, None, is_overdue=False)


def is_timed_out(saga: Saga) -> bool:
    """Whether a saga was ended from outside: by its deadline, or by an operator."""
    return saga.cause in {Cause.DEADLINE, Cause.OPERATOR}


def _trigger(definition: Definition, saga: Saga, index: int, record: StepRecord) -> Fact | None:
    """The event that started a step: of several that it needed, the last."""
    found = None
    for entry in saga.history:
        role = definition.roles.get(entry.fact.type)
        if role is not None and index in role.starts and entry.disposition is Disposition.APPLIED:
            is_later = record.start_time is not None and entry.fact.stream_time > record.start_time
            if found is None or not is_later:
                found = entry.fact
    return found


def _undo_trigger(definition: Definition, saga: Saga, index: int) -> Fact | None:
    """The first event on which a step's participant has to undo it."""
    for entry in saga.history:
        role = definition.roles.get(entry.fact.type)
        undoes = entry.fact.type == SAGA_TIMED_OUT or (role is not None and index in role.undoes)
        if undoes and entry.disposition is Disposition.APPLIED:
            return entry.fact
    return None


def applied(saga: Saga, event_type: str) -> Iterator[Fact]:
    """The events of a type that moved the saga, in stream order."""
    return (
        entry.fact
        for entry in saga.history
        if entry.fact.type == event_type and entry.disposition is Disposition.APPLIED
    )


def _is_overdue(saga: Saga, record: StepRecord) -> bool:
    is_compensation = record.status is StepStatus.COMPENSATING
    return record.deadline is not None and any(
        fact.lifecycle is not None
        and record.name in fact.lifecycle.steps
        and fact.lifecycle.compensation is is_compensation
        and fact.stream_time >= record.deadline
        for fact in applied(saga, STEP_OVERDUE)
    )
