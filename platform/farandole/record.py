"""A saga's record while facts are folded into it: what it holds, and the moves that it can make. Pure.

What an event means is for `advance` and `lifecycle` to judge; here is what follows for the record. Times are those of
the fact that is being folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from farandole.definition import Definition, Role
from farandole.saga import Cause, Disposition, Health, HistoryEntry, Saga, Status, StepRecord, StepStatus

Judgement = tuple[Disposition, str]
"""What becomes of an event, and why where it is not applied."""

IT_APPLIES: Judgement = (Disposition.APPLIED, "")

OPEN = frozenset({StepStatus.PENDING, StepStatus.RUNNING})
"""Of a step of which nobody has said yet what came of it."""

TIMED_OUT = frozenset({Cause.DEADLINE, Cause.OPERATOR})
"""The causes that come from a `SagaTimedOut`."""


class Record:
    """A record while facts are folded into it."""

    __slots__ = (
        "cause",
        "cause_detail",
        "deadline",
        "definition",
        "end_time",
        "finished_late",
        "history",
        "key",
        "moved",
        "now",
        "omitted",
        "start_time",
        "status",
        "steps",
    )

    def __init__(self, definition: Definition, key: str, saga: Saga | None) -> None:
        self.definition = definition
        self.key = key
        self.moved = False
        """Whether what is awaited, or by when, has changed since this was last set to False."""
        self.now: datetime | None = None
        """The stream's time of the fact that is being folded."""
        if saga is None:
            self.status = Status.RUNNING
            self.cause = Cause.UNSPECIFIED
            self.cause_detail = ""
            self.start_time: datetime | None = None
            self.end_time: datetime | None = None
            self.deadline: datetime | None = None
            self.finished_late = False
            self.steps = [StepRecord(step.name) for step in definition.steps]
            self.history: list[HistoryEntry] = []
            self.omitted = 0
        else:
            self.status = Status.COMPENSATING if saga.status is Status.COMPENSATION_FAILED else saga.status
            self.cause = saga.cause
            self.cause_detail = saga.cause_detail
            self.start_time = saga.start_time
            self.end_time = saga.end_time
            self.deadline = saga.deadline
            self.finished_late = saga.finished_late
            self.steps = list(saga.steps)
            self.history = list(saga.history)
            self.omitted = saga.history_omitted

    def saga(self, status: Status, health: Health) -> Saga:
        """The record as it stands, with what is derived from it. At least one fact has been folded."""
        history = tuple(self.history)
        return Saga(
            self.definition.name,
            self.definition.version,
            self.key,
            len(history) + self.omitted,
            status,
            self.cause,
            self.cause_detail,
            health,
            self.start_time,
            history[-1].fact.stream_time,
            self.end_time,
            self.deadline,
            self.finished_late,
            tuple(self.steps),
            history,
            self.omitted,
        )

    # ---- how it stands

    @property
    def has_ended(self) -> bool:
        """Whether its status is terminal."""
        return self.status.is_terminal

    @property
    def has_turned(self) -> bool:
        """Whether it is being undone, or has been."""
        return self.status is not Status.RUNNING and self.status is not Status.COMPLETED

    @property
    def is_timed_out(self) -> bool:
        """Whether a time-out turned it: nobody waits then for a step of which nothing is known."""
        return self.cause in TIMED_OUT

    @property
    def is_committed(self) -> bool:
        """Whether it runs and its commit event has been applied: nothing turns it any more."""
        return self.status is Status.RUNNING and self.steps[self.definition.pivot].status is StepStatus.SUCCEEDED

    def is_triggered(self, index: int) -> bool:
        """Whether what starts a step of a saga that has started has happened."""
        step = self.definition.steps[index]
        if step.success == self.definition.initiating_event:
            return True
        happened = (self._has_happened(event_type) for event_type in step.all_of or step.triggers)
        return all(happened) if step.all_of else any(happened)

    def _has_happened(self, event_type: str) -> bool:
        role = self.definition.roles[event_type]
        return role.is_initiating or self.steps[role.step].status is StepStatus.SUCCEEDED

    def awaited(self) -> list[str]:
        """See `awaited`."""
        return awaited(self.definition, self.steps, self.cause)

    # ---- how it moves

    def start(self, role: Role) -> None:
        """Its initiating event has come."""
        self.moved = True
        self.start_time = self.now
        if self.now is not None:
            self.deadline = self.now + self.definition.deadline
        if role.step >= 0:
            name = self.definition.steps[role.step].name
            self.steps[role.step] = StepRecord(name, StepStatus.SUCCEEDED, None, self.now, self.now)
        self.start_steps(role)

    def start_steps(self, role: Role) -> None:
        """Starts the steps for which an event of that role was the last that they needed."""
        for index in role.starts:
            step = self.steps[index]
            if step.status is not StepStatus.PENDING:
                continue
            if all(self.steps[needed].status is StepStatus.SUCCEEDED for needed in self.definition.needs[index]):
                self.moved = True
                duration = self.definition.steps[index].deadline
                due = self.now + duration if self.now is not None and duration is not None else None
                self.steps[index] = StepRecord(step.name, StepStatus.RUNNING, due, self.now, None)

    def end_step(self, index: int, status: StepStatus) -> None:
        """A step, or its compensation, has ended."""
        self.moved = True
        step = self.steps[index]
        self.steps[index] = StepRecord(step.name, status, step.deadline, step.start_time, self.now)

    def turn(self, cause: Cause, detail: str) -> None:
        """From now on no step starts, and what was done is undone."""
        self.moved = True
        self.status = Status.COMPENSATING
        self.cause = cause
        self.cause_detail = detail

    def start_compensations(self, role: Role) -> None:
        """Undoes the steps whose compensation an event of that role triggers.

        Also those that still run, but after a time-out: they have been told to do nothing, and nobody waits for them.
        """
        for index in role.undoes:
            status = self.steps[index].status
            if status is StepStatus.SUCCEEDED or (status is StepStatus.RUNNING and not self.is_timed_out):
                self.undo(index)

    def undo(self, index: int, *, has_just_succeeded: bool = False) -> None:
        """A step is being undone from now on, or must be.

        It is due its compensation's own duration from now, or the saga's where the definition gives none: no saga is
        undone for ever without anybody being told.
        """
        self.moved = True
        step = self.steps[index]
        compensation = self.definition.steps[index].compensation
        own = compensation.deadline if compensation is not None else None
        duration = own if own is not None else self.definition.deadline
        due = self.now + duration if self.now is not None else None
        earlier = step.end_time if step.status is StepStatus.SUCCEEDED else None
        end_time = self.now if has_just_succeeded else earlier
        self.steps[index] = StepRecord(step.name, StepStatus.COMPENSATING, due, step.start_time, end_time)

    def end(self, status: Status) -> None:
        """The saga has ended."""
        self.moved = True
        self.status = status
        self.end_time = self.now

    def reopen(self) -> None:
        """Something is to be undone after all."""
        self.moved = True
        self.status = Status.COMPENSATING
        self.end_time = None


def awaited(definition: Definition, steps: Sequence[StepRecord], cause: Cause) -> list[str]:
    """The steps of a turned saga that keep it from ending: being undone, still to be undone, or under way.

    After a time-out what is under way is not awaited: a participant that is not there must not keep the others from
    ending. It voids its step when it comes back, or its late success opens the saga again.
    """
    return [
        step.name
        for step, defined in zip(steps, definition.steps, strict=True)
        if step.status is StepStatus.COMPENSATING
        or (step.status is StepStatus.RUNNING and cause not in TIMED_OUT)
        or (step.status is StepStatus.SUCCEEDED and defined.compensation is not None)
    ]


def is_applied(entry: HistoryEntry) -> bool:
    """Whether an event was applied."""
    return entry.disposition is Disposition.APPLIED


def commit_event(definition: Definition, history: Iterable[HistoryEntry]) -> HistoryEntry | None:
    """The commit event in a history, also where it waits for its turn: no time-out comes after it."""
    return next(
        (
            entry
            for entry in history
            if entry.fact.type == definition.commit_event
            and (entry.disposition is Disposition.APPLIED or entry.disposition is Disposition.EARLY)
        ),
        None,
    )
