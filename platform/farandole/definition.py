"""Saga definitions: the agreed global scenario as values, what makes one valid, and what each event means in it.

Pure. `definition_files` reads them from YAML; `advance` folds events by them.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import protovalidate
from google.protobuf import duration_pb2, json_format

from choreography.v1 import saga_definition_pb2
from farandole.nearest import did_you_mean

MAX_DURATION = timedelta(days=3650)
"""Of any deadline: beyond this it is a slip of the pen, and adding it to a date might overflow."""

PLATFORM_PREFIX = "choreography.v1."
"""Of the lifecycle events: they are about sagas, and no step of a saga."""


class StepKind(enum.IntEnum):
    """What may become of a step (`choreography.v1.StepKind`)."""

    COMPENSATABLE = 1
    PIVOT = 2
    RETRIABLE = 3


@dataclass(frozen=True, slots=True)
class CompensationDefinition:
    """How a completed step is undone."""

    triggers: tuple[str, ...]
    """Event types of which any one triggers it; empty where only a time-out of the saga does."""
    completion: str
    """The event type that says it is done."""
    deadline: timedelta | None = None
    """From its trigger to its completion."""


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """What one participant does in a saga."""

    name: str
    participant: str
    kind: StepKind
    triggers: tuple[str, ...]
    """Event types of which any one starts the step."""
    all_of: tuple[str, ...]
    """Event types that must all have happened before the step starts."""
    success: str
    failures: tuple[str, ...]
    deadline: timedelta | None = None
    """From its trigger to its outcome."""
    compensation: CompensationDefinition | None = None


class Outcome(enum.Enum):
    """What an event says of the step that it comes from."""

    SUCCESS = "success"
    FAILURE = "failure"
    COMPLETION = "completion of the compensation"


@dataclass(frozen=True, slots=True)
class Role:
    """What one event type means in a definition. Steps are named by their index."""

    outcome: Outcome | None
    """None only for an initiating event that comes from outside the definition."""
    step: int
    """The step whose outcome it is; -1 where it is none's."""
    is_initiating: bool
    starts: tuple[int, ...]
    """The steps that have it among their `triggers` or `all_of`."""
    undoes: tuple[int, ...]
    """The steps whose compensation it triggers."""


@dataclass(frozen=True)
class Definition:
    """One saga definition; its identity is (name, version)."""

    name: str
    version: int
    description: str
    deadline: timedelta
    """From the initiating event to the commit event."""
    initiating_event: str
    commit_event: str
    steps: tuple[StepDefinition, ...]

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @classmethod
    def of_message(cls, message: saga_definition_pb2.SagaDefinition) -> Definition:
        """The definition that a valid message (see `validate`) holds."""
        return cls(
            name=message.name,
            version=message.version,
            description=message.description,
            deadline=message.deadline.ToTimedelta(),
            initiating_event=message.initiating_event,
            commit_event=message.commit_event,
            steps=tuple(_step_of(step) for step in message.steps),
        )

    def to_message(self) -> saga_definition_pb2.SagaDefinition:
        """The definition as `choreography.v1.SagaDefinition`."""
        return saga_definition_pb2.SagaDefinition(
            name=self.name,
            version=self.version,
            description=self.description,
            deadline=_duration(self.deadline),
            initiating_event=self.initiating_event,
            commit_event=self.commit_event,
            steps=[_step_message(step) for step in self.steps],
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the content as canonical ProtoJSON: two definitions are the same where it is the same."""
        content = json_format.MessageToDict(self.to_message(), preserving_proto_field_name=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """What each event type means, for every type that the definition mentions."""
        outcomes: dict[str, tuple[Outcome | None, int]] = {self.initiating_event: (None, -1)}
        for index, step in enumerate(self.steps):
            outcomes.update({event_type: (outcome, index) for _, event_type, outcome in _outcomes(step)})
        return {
            event_type: Role(
                outcome=outcome,
                step=index,
                is_initiating=event_type == self.initiating_event,
                starts=tuple(i for i, step in enumerate(self.steps) if event_type in step.triggers + step.all_of),
                undoes=tuple(
                    i
                    for i, step in enumerate(self.steps)
                    if step.compensation and event_type in step.compensation.triggers
                ),
            )
            for event_type, (outcome, index) in outcomes.items()
        }

    @cached_property
    def event_types(self) -> frozenset[str]:
        """Every event type that the definition mentions."""
        return frozenset(self.roles)

    @cached_property
    def needs(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the steps that must all have succeeded before it starts; empty where one trigger is enough."""
        return tuple(
            tuple(self.roles[event_type].step for event_type in step.all_of if self.roles[event_type].step >= 0)
            for step in self.steps
        )

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The index of each step by its name."""
        return {step.name: index for index, step in enumerate(self.steps)}

    @cached_property
    def pivot(self) -> int:
        """The index of the pivot, whose success is the commit event."""
        return next(index for index, step in enumerate(self.steps) if step.success == self.commit_event)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a definition."""

    path: str
    """The field, such as `steps[2].compensation.completion`; empty for the definition as a whole."""
    reason: str


def validate(message: saga_definition_pb2.SagaDefinition, known_types: Collection[str]) -> list[Problem]:
    """Everything that is wrong in a definition, in the order of its fields; empty where it is valid.

    `known_types` are the full names of all event types that exist. What the rules protect: every event means one
    thing, every step can start, and what can fail is over before the commit event.
    """
    problems = [
        *_rule_violations(message),
        *_wrong_durations(message),
        *_wrong_types(message, known_types),
        *_repeated_step_names(message),
        *_ambiguous_outcomes(message),
        *_wrong_key_events(message),
        *_wrong_step_starts(message, known_types),
        *_wrong_compensations(message, known_types),
    ]
    if not problems:
        problems = list(_wrong_order(message))
    return problems


def _rule_violations(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    """What breaks the `protovalidate` rules that the schema states."""
    for violation in protovalidate.collect_violations(message):
        path = ""
        elements = violation.proto.field.elements if violation.proto.field else ()
        for element in elements:
            path += f"{'.' if path else ''}{element.field_name}"
            if element.subscript is not None:
                path += f"[{element.subscript.value}]"
        yield Problem(path, str(violation.proto.message))


def _wrong_durations(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    durations = [("deadline", message.deadline)] if message.HasField("deadline") else []
    for at, step in _numbered(message):
        if step.HasField("deadline"):
            durations.append((f"{at}.deadline", step.deadline))
        if step.compensation.HasField("deadline"):
            durations.append((f"{at}.compensation.deadline", step.compensation.deadline))
    for path, duration in durations:
        if duration.seconds > MAX_DURATION.total_seconds():
            yield Problem(path, f"is {duration.seconds}s; at most {MAX_DURATION.days} days")
        elif duration.seconds == 0 and 0 < duration.nanos < 1000:
            yield Problem(path, "is shorter than a microsecond")


def _wrong_types(message: saga_definition_pb2.SagaDefinition, known_types: Collection[str]) -> Iterator[Problem]:
    for path, event_type in _mentions(message):
        if not event_type:
            if path.endswith("]"):
                yield Problem(path, "is empty; it takes the full type of an event")
        elif event_type.startswith(PLATFORM_PREFIX):
            yield Problem(
                path,
                f"{event_type} is about sagas as a whole and can't be named in one; a time-out of the saga triggers "
                "every compensation without being named",
            )
        elif event_type not in known_types:
            yield Problem(path, f"{event_type} is no known event type{did_you_mean(event_type, known_types)}")


def _repeated_step_names(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for at, step in _numbered(message):
        if step.name in first:
            yield Problem(f"{at}.name", f"{step.name} is the name of {first[step.name]} already")
        first.setdefault(step.name, at)


def _ambiguous_outcomes(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for at, step in _numbered(message):
        for path, event_type, outcome in _outcomes(step):
            if event_type in first:
                yield Problem(
                    f"{at}.{path}", f"{event_type} is the {first[event_type]} already; an event means one thing"
                )
            elif event_type:
                first[event_type] = f"{outcome.value} of {step.name or at}"


def _wrong_key_events(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    successes = [step.success for step in message.steps]
    if message.commit_event and message.commit_event not in successes:
        yield Problem(
            "commit_event",
            f"{message.commit_event} is the success of no step{did_you_mean(message.commit_event, successes)}",
        )
    outcome, of_step = _produced(message).get(message.initiating_event, (Outcome.SUCCESS, ""))
    if outcome is not Outcome.SUCCESS:
        yield Problem("initiating_event", f"{message.initiating_event} is a {outcome.value} of {of_step}")
    pivots = [(at, step) for at, step in _numbered(message) if step.kind == saga_definition_pb2.STEP_KIND_PIVOT]
    if not pivots:
        yield Problem("steps", "no step is the PIVOT; the step whose success is the commit event is the one")
    for at, _ in pivots[1:]:
        yield Problem(f"{at}.kind", f"a definition has one PIVOT, and {pivots[0][1].name} is one already")
    for at, step in pivots[:1]:
        if message.commit_event in successes and step.success != message.commit_event:
            yield Problem(f"{at}.success", f"the success of the PIVOT is the commit event, {message.commit_event}")


def _wrong_step_starts(message: saga_definition_pb2.SagaDefinition, known_types: Collection[str]) -> Iterator[Problem]:
    produced = _produced(message)
    for at, step in _numbered(message):
        if step.triggers and step.all_of:
            yield Problem(f"{at}.all_of", "stands beside `triggers`; a step has one of them")
        is_initiating = bool(step.success) and step.success == message.initiating_event
        if is_initiating and (step.triggers or step.all_of):
            field = "triggers" if step.triggers else "all_of"
            yield Problem(
                f"{at}.{field}",
                f"{step.success} starts the saga, so nothing triggers the step of which it is the success",
            )
        if not is_initiating and not step.triggers and not step.all_of:
            yield Problem(
                at, f"{step.name} has neither `triggers` nor `all_of`; only the step of the initiating event may"
            )
        starting = [*_listed(f"{at}.triggers", step.triggers), *_listed(f"{at}.all_of", step.all_of)]
        for path, event_type in starting:
            if event_type not in known_types or event_type == message.initiating_event:
                continue
            if event_type not in produced:
                yield Problem(path, _not_produced(event_type, produced))
            elif produced[event_type][0] is not Outcome.SUCCESS:
                outcome, of_step = produced[event_type]
                yield Problem(
                    path,
                    f"{event_type} is a {outcome.value} of {of_step}; a step starts on successes, after anything else "
                    "the saga is being undone",
                )


def _wrong_compensations(
    message: saga_definition_pb2.SagaDefinition, known_types: Collection[str]
) -> Iterator[Problem]:
    produced = _produced(message)
    for at, step in _numbered(message):
        if step.kind == saga_definition_pb2.STEP_KIND_RETRIABLE:
            if step.failures:
                yield Problem(f"{at}.failures", "a RETRIABLE step can't fail for good: it comes after the commit event")
            if step.HasField("compensation"):
                yield Problem(f"{at}.compensation", "a RETRIABLE step is never undone: it comes after the commit event")
        for number, event_type in enumerate(step.compensation.triggers):
            path = f"{at}.compensation.triggers[{number}]"
            if event_type not in known_types:
                continue
            if event_type not in produced:
                yield Problem(path, _not_produced(event_type, produced))
            elif event_type == step.compensation.completion:
                yield Problem(path, f"{event_type} is the completion of this same compensation")
            elif produced[event_type][0] is Outcome.SUCCESS:
                yield Problem(
                    path,
                    f"{event_type} is the success of {produced[event_type][1]}; a compensation is triggered by "
                    "failures and by completions of other compensations",
                )


def _wrong_order(message: saga_definition_pb2.SagaDefinition) -> Iterator[Problem]:
    """Steps that can't start, or that stand on the wrong side of the commit event. Needs an otherwise valid message."""
    steps = message.steps
    pivot = next(index for index, step in enumerate(steps) if step.kind == saga_definition_pb2.STEP_KIND_PIVOT)
    reachable = _reachable(message)
    before_commit = _reachable(message, without=pivot)
    for index, (at, step) in enumerate(_numbered(message)):
        if index not in reachable:
            yield Problem(
                at, f"{step.name} can never start: what starts it does not follow from {message.initiating_event}"
            )
        elif step.kind == saga_definition_pb2.STEP_KIND_RETRIABLE and index in before_commit:
            yield Problem(
                f"{at}.kind",
                f"{step.name} can start before the commit event, {message.commit_event}: make it COMPENSATABLE, or let "
                "it start after the commit event",
            )
        elif step.kind == saga_definition_pb2.STEP_KIND_COMPENSATABLE and index not in before_commit:
            yield Problem(
                f"{at}.kind", f"{step.name} starts after the commit event, {message.commit_event}: make it RETRIABLE"
            )
        elif step.kind == saga_definition_pb2.STEP_KIND_COMPENSATABLE and pivot in _reachable(message, without=index):
            yield Problem(
                f"{at}.kind",
                f"{steps[pivot].name} can commit the saga while {step.name} may still fail: let {step.success} lead to "
                f"{steps[pivot].name}, with `all_of` where several must have happened, or make {step.name} RETRIABLE "
                "and let it start after the commit event",
            )


def _reachable(message: saga_definition_pb2.SagaDefinition, *, without: int = -1) -> frozenset[int]:
    """The steps that can succeed when all that can start succeeds, but for one step that never does."""
    initiating = [index for index, step in enumerate(message.steps) if step.success == message.initiating_event]
    happened = set() if without in initiating else {message.initiating_event}
    reached = {index for index in initiating if index != without}
    grown = True
    while grown:
        grown = False
        for index, step in enumerate(message.steps):
            if index == without or index in reached:
                continue
            if any(t in happened for t in step.triggers) or (step.all_of and all(t in happened for t in step.all_of)):
                reached.add(index)
                happened.add(step.success)
                grown = True
    return frozenset(reached)


def _numbered(
    message: saga_definition_pb2.SagaDefinition,
) -> list[tuple[str, saga_definition_pb2.StepDefinition]]:
    return [(f"steps[{index}]", step) for index, step in enumerate(message.steps)]


def _outcomes(step: StepDefinition | saga_definition_pb2.StepDefinition) -> Iterator[tuple[str, str, Outcome]]:
    """The field, the event type and the meaning of everything with which a step or its compensation may end."""
    yield "success", step.success, Outcome.SUCCESS
    for number, failure in enumerate(step.failures):
        yield f"failures[{number}]", failure, Outcome.FAILURE
    if step.compensation is not None and step.compensation.completion:
        yield "compensation.completion", step.compensation.completion, Outcome.COMPLETION


def _produced(message: saga_definition_pb2.SagaDefinition) -> dict[str, tuple[Outcome, str]]:
    """What each event type that the definition produces means, and of which step."""
    return {
        event_type: (outcome, step.name)
        for step in message.steps
        for _, event_type, outcome in _outcomes(step)
        if event_type
    }


def _not_produced(event_type: str, produced: Collection[str]) -> str:
    return f"nothing in the definition produces {event_type}{did_you_mean(event_type, produced)}"


def _mentions(message: saga_definition_pb2.SagaDefinition) -> Iterator[tuple[str, str]]:
    """Every field that names an event type, and the type."""
    yield "initiating_event", message.initiating_event
    yield "commit_event", message.commit_event
    for at, step in _numbered(message):
        yield from _listed(f"{at}.triggers", step.triggers)
        yield from _listed(f"{at}.all_of", step.all_of)
        yield f"{at}.success", step.success
        yield from _listed(f"{at}.failures", step.failures)
        if step.HasField("compensation"):
            yield from _listed(f"{at}.compensation.triggers", step.compensation.triggers)
            yield f"{at}.compensation.completion", step.compensation.completion


def _listed(path: str, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"{path}[{number}]", value) for number, value in enumerate(values))


def _step_of(step: saga_definition_pb2.StepDefinition) -> StepDefinition:
    compensation = step.compensation
    return StepDefinition(
        name=step.name,
        participant=step.participant,
        kind=StepKind(step.kind),
        triggers=tuple(step.triggers),
        all_of=tuple(step.all_of),
        success=step.success,
        failures=tuple(step.failures),
        deadline=step.deadline.ToTimedelta() if step.HasField("deadline") else None,
        compensation=CompensationDefinition(
            triggers=tuple(compensation.triggers),
            completion=compensation.completion,
            deadline=compensation.deadline.ToTimedelta() if compensation.HasField("deadline") else None,
        )
        if step.HasField("compensation")
        else None,
    )


def _step_message(step: StepDefinition) -> saga_definition_pb2.StepDefinition:
    compensation = step.compensation
    return saga_definition_pb2.StepDefinition(
        name=step.name,
        participant=step.participant,
        kind=saga_definition_pb2.StepKind.Value(f"STEP_KIND_{step.kind.name}"),
        triggers=step.triggers,
        all_of=step.all_of,
        success=step.success,
        failures=step.failures,
        deadline=_duration(step.deadline) if step.deadline is not None else None,
        compensation=saga_definition_pb2.CompensationDefinition(
            triggers=compensation.triggers,
            completion=compensation.completion,
            deadline=_duration(compensation.deadline) if compensation.deadline is not None else None,
        )
        if compensation is not None
        else None,
    )


def _duration(delta: timedelta) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(delta)
    return duration
