"""The port of what is done when a deadline has passed. `farandole.testing.DeadlineActionConformance` checks an action.

What rules is the lifecycle event: `StepOverdue`, `SagaTimedOut` or `SagaStalled`, stored in the stream, on which
participants and the records act. An action comes behind it: it is told of events that are stored, and can neither hold
one up nor change what follows from it.

A package offers an action by an entry point of the group `farandole.deadline_actions`, whose value is a
`DeadlineActionFactory`; `FARANDOLE_DEADLINE_ACTIONS` names those to use. `webhook` ships.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from choreography.v1 import lifecycle_pb2
from farandole.envelope import Event
from farandole.lifecycle import CORRELATOR
from farandole.saga import Cause

STEP_OVERDUE = lifecycle_pb2.StepOverdue.DESCRIPTOR.full_name
SAGA_TIMED_OUT = lifecycle_pb2.SagaTimedOut.DESCRIPTOR.full_name
SAGA_STALLED = lifecycle_pb2.SagaStalled.DESCRIPTOR.full_name
EVENT_TYPES = (STEP_OVERDUE, SAGA_TIMED_OUT, SAGA_STALLED)
"""The lifecycle events that say that a deadline has passed."""


@dataclass(frozen=True, slots=True)
class PassedDeadline:
    """A deadline that has passed, as a lifecycle event tells of it."""

    event_id: str
    """Of the lifecycle event, the same each time that it is told: by it a receiver knows what it has had before."""
    event_type: str
    """One of `EVENT_TYPES`: what has come of it."""
    saga_id: str
    definition: str
    version: int
    """Of the definition."""
    cause: Cause
    """Why the saga left `RUNNING`; `UNSPECIFIED` where it has not."""
    deadline: datetime
    """When what is late was due, in UTC."""
    sequence: int
    """Of the lifecycle event in the stream `EVENTS`; it gives a saga's events their order."""
    stream_time: datetime
    """When the stream stored the lifecycle event, in UTC."""
    step: str = ""
    """Of `StepOverdue`: the step that is late, or whose compensation is."""
    participant: str = ""
    """Of `StepOverdue`: who is to carry it out."""
    compensation: bool = False
    """Of `StepOverdue`: whether the step's compensation is late, and not the step."""
    steps_to_undo: tuple[str, ...] = ()
    """Of `SagaTimedOut`."""

    @property
    def next_command(self) -> str:
        """What an operator types to see who holds the saga up."""
        return f"farandole sagas diagnose {self.saga_id} --definition {self.definition}"


class DeadlineAction(Protocol):
    """What is done besides when a deadline has passed.

    Delivery: at least once, from the moment at which the action is first used. `act` that returns is the
    acknowledgement; whatever it raises, or more than thirty seconds in it, means that it is called again later, with
    growing pauses, here or in another replica, also after a restart. Where it fails in its try number
    `FARANDOLE_DEADLINE_ACTION_TRIES`, or a later one, it is given up on: logged, counted, and copied into the stream
    `DEADLETTERS`. Each delivery is a try, also one that a stop or a crash cut short. `event_id` tells repetitions. What
    waits is in a durable consumer: who removes it, or restores the stream, begins with what passes from then on.

    Order: none. Several calls run at the same time, each in a thread of its own.
    """

    def act(self, passed: PassedDeadline) -> None:
        """Acts on one deadline. It may block: nothing but this action waits for it."""
        ...

    def close(self) -> None:
        """Lets go of everything, once, at an orderly stop; calls may still be under way. It has two seconds."""
        ...


class DeadlineActionFactory(Protocol):
    """What the entry point of a deadline action names."""

    def __call__(self) -> DeadlineAction:
        """A new action, which reads its own settings from the environment.

        Raises `farandole.errors.ConfigurationError` where a setting is wrong: the correlator refuses to start. Raises
        it anything else, or hangs, the correlator works without this action, calls the factory again later, and what
        has passed meanwhile waits in the stream.
        """
        ...


def passed_deadline(event: Event) -> PassedDeadline | None:
    """What a stored event says of a deadline; None where it says nothing, or can't be the correlator's own.

    Anyone may publish in the correlator's name. A time outside the calendar is none that it has ever told.
    """
    body = event.body
    if event.source != CORRELATOR or not isinstance(
        body, lifecycle_pb2.StepOverdue | lifecycle_pb2.SagaTimedOut | lifecycle_pb2.SagaStalled
    ):
        return None
    try:
        deadline = body.deadline.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None
    passed = PassedDeadline(
        event_id=event.id,
        event_type=event.type,
        saga_id=event.key,
        definition=body.definition,
        version=body.version,
        cause=Cause(body.cause),
        deadline=deadline,
        sequence=event.sequence,
        stream_time=event.stream_time,
    )
    match body:
        case lifecycle_pb2.StepOverdue():
            return replace(passed, step=body.step, participant=body.participant, compensation=body.compensation)
        case lifecycle_pb2.SagaTimedOut():
            return replace(passed, steps_to_undo=tuple(body.steps))
        case _:
            return passed
