"""A saga's record and what it is made of. Values only: no clock, no I/O.

The numbers of the enumerations are those of `choreography.v1`, so that adapters convert by value.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class Status(enum.IntEnum):
    """Where a saga stands (`choreography.v1.SagaStatus`)."""

    RUNNING = 1
    COMPLETED = 2
    COMPENSATING = 3
    COMPENSATED = 4
    COMPENSATION_FAILED = 5
    FAILED = 6

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more is expected to happen. A late success reopens a compensated saga all the same."""
        return self in _TERMINAL


_TERMINAL = frozenset({Status.COMPLETED, Status.COMPENSATED, Status.FAILED})


class Cause(enum.IntEnum):
    """Why a saga left `RUNNING` without completing (`choreography.v1.SagaCause`)."""

    UNSPECIFIED = 0
    STEP_FAILURE = 1
    DEADLINE = 2
    OPERATOR = 3


class Health(enum.IntEnum):
    """Whether anything about a saga wants attention (`choreography.v1.SagaHealth`)."""

    ON_TIME = 1
    OVERDUE = 2
    STALLED = 3
    QUARANTINED = 4


class StepStatus(enum.IntEnum):
    """Where a step stands (`choreography.v1.StepStatus`)."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    COMPENSATING = 5
    COMPENSATED = 6
    VOIDED = 7


class Disposition(enum.IntEnum):
    """What the fold made of an event (`choreography.v1.Disposition`)."""

    APPLIED = 1
    DUPLICATE = 2
    EARLY = 3
    LATE = 4
    UNEXPECTED = 5
    UNMATCHED = 6


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What an event of the platform says of the saga that it is about."""

    definition: str
    version: int
    """0 where its publisher does not know it."""
    cause: Cause
    steps: tuple[str, ...] = ()
    """The steps that it names: of `SagaTimedOut` those to undo, of what is about a step that one."""
    compensation: bool = False
    """Of what is about a step: whether it is about the step's compensation."""
    dead_letter: tuple[str, int] | None = None
    """Of what is about a dead letter: the participant and the stream sequence that name it."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What the fold needs to know of one stored event."""

    sequence: int
    """Its place in the stream, which orders a saga's events."""
    stream_time: datetime
    """When the stream stored it, in UTC."""
    type: str
    """Full message type."""
    source: str
    id: str
    """Unique together with the source."""
    digest: bytes
    """SHA-256 of the canonical body: the same for the same fact, however it was encoded."""
    time: datetime
    """When its publisher says that it happened, in UTC."""
    causation_id: str = ""
    reason: str = ""
    """The event's own `reason` field, where it has one."""
    lifecycle: Lifecycle | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event of a saga, and what the fold made of it."""

    fact: Fact
    disposition: Disposition
    reason: str = ""
    """Why it was not applied, in words; empty for `APPLIED`."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a saga."""

    name: str
    status: StepStatus = StepStatus.PENDING
    deadline: datetime | None = None
    """When the step, or its compensation once that has been triggered, is due."""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Saga:
    """One saga's record: a fold of its events in stream order.

    A saga of which the initiating event has not been seen has no `start_time`: its events wait, `UNMATCHED`.
    """

    definition: str
    version: int
    key: str
    revision: int
    """How many events have been folded into it."""
    status: Status
    cause: Cause
    cause_detail: str
    health: Health
    start_time: datetime | None
    update_time: datetime
    end_time: datetime | None
    deadline: datetime | None
    finished_late: bool
    steps: tuple[StepRecord, ...]
    history: tuple[HistoryEntry, ...]
    """In stream order."""
    history_omitted: int = 0
    """Events that were counted and are not in `history`, since it has a limit."""

    @property
    def is_started(self) -> bool:
        """Whether the initiating event has been seen."""
        return self.start_time is not None
