"""Writing a saga's history in a test as it would be told: event by event, one second apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from farandole.advance import advance, pending_lifecycle
from farandole.definition import Definition
from farandole.definition_files import load_definitions
from farandole.registry import Registry
from farandole.saga import Cause, Fact, HistoryEntry, Lifecycle, Saga

ROOT = Path(__file__).parents[2]
REGISTRY = Registry.of_descriptor_set(
    (ROOT / "generated" / "descriptors.binpb").read_bytes(), where="generated/descriptors.binpb"
)
_SAGAS = {definition.name: definition for definition in load_definitions(ROOT / "services/correlator/sagas", REGISTRY)}
ORDER_FULFILMENT = _SAGAS["order-fulfilment"]
DRONE_DELIVERY = _SAGAS["drone-delivery"]

KEY = "ord-1"
START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

_MENTIONED = {
    event_type.rpartition(".")[2]: event_type
    for definition in (ORDER_FULFILMENT, DRONE_DELIVERY)
    for event_type in definition.event_types
}


def full_type(name: str) -> str:
    """`orders.v1.OrderCreated` of `OrderCreated`; a name with a dot is full already."""
    if "." in name:
        return name
    return _MENTIONED.get(name) or f"choreography.v1.{name}"


@dataclass(frozen=True)
class Told:
    """One event before it has its place in the stream."""

    type: str
    body: str = ""
    """Stands for the content: another body, another digest."""
    id: str | None = None
    source: str | None = None
    reason: str = ""
    after: float = 1
    """Seconds since the event before."""
    lifecycle: Lifecycle | None = None


def event(name: str, **more: Any) -> Told:
    """An event of a participant."""
    return replace(Told(full_type(name)), **more)


def lifecycle(
    name: str,
    *steps: str,
    cause: Cause = Cause.UNSPECIFIED,
    definition: str = "order-fulfilment",
    compensation: bool = False,
    **more: Any,
) -> Told:
    """A lifecycle event about a saga."""
    about = Lifecycle(definition, 1, cause, steps, compensation)
    return replace(Told(full_type(name), lifecycle=about), **more)


def timed_out(
    *steps: str, cause: Cause = Cause.DEADLINE, definition: Definition = ORDER_FULFILMENT, **more: Any
) -> Told:
    """`SagaTimedOut` that names these steps; all of the definition's where none is given."""
    named = steps or tuple(step.name for step in definition.steps)
    return lifecycle("SagaTimedOut", *named, cause=cause, definition=definition.name, **more)


def voided(step: str, *, definition: str = "order-fulfilment", **more: Any) -> Told:
    """`StepVoided`, from the step's participant."""
    return lifecycle("StepVoided", step, definition=definition, source=f"participant-of-{step}", **more)


def overdue(step: str, *, compensation: bool = False, **more: Any) -> Told:
    """`StepOverdue` of a step, or of its compensation."""
    return lifecycle("StepOverdue", step, compensation=compensation, **more)


def dead_letter(verb: str, step: str, sequence: int = 10, *, compensation: bool = False, **more: Any) -> Told:
    """`DeadLetterRecorded` and what closes it: the dead letter of the event at `sequence` in the step's participant."""
    about = Lifecycle(
        "order-fulfilment", 0, Cause.UNSPECIFIED, (step,), compensation, (f"participant-of-{step}", sequence)
    )
    return replace(Told(full_type(f"DeadLetter{verb}"), lifecycle=about), **more)


def facts_of(told: Iterable[str | Told]) -> list[Fact]:
    """The events as the stream stored them: sequences 10, 20, …, and ids unless they are given."""
    facts: list[Fact] = []
    now = START
    for number, item in enumerate(told, start=1):
        one = item if isinstance(item, Told) else event(item)
        now += timedelta(seconds=one.after if facts else 0)
        content = f"{one.type} {one.body} {one.lifecycle}"
        facts.append(
            Fact(
                sequence=number * 10,
                stream_time=now,
                type=one.type,
                source=one.source or ("correlator" if one.lifecycle else one.type.split(".")[0]),
                id=one.id or f"event-{number}",
                digest=hashlib.sha256(content.encode()).digest(),
                time=now,
                reason=one.reason,
                lifecycle=one.lifecycle,
            )
        )
    return facts


def fold(facts: Sequence[Fact], definition: Definition = ORDER_FULFILMENT, saga: Saga | None = None) -> Saga:
    """The record of facts in the order in which they arrive."""
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
    assert saga is not None
    return saga


def told(*events: str | Told, definition: Definition = ORDER_FULFILMENT) -> Saga:
    """The record of a saga, of order-fulfilment where no other is given, after these events."""
    return fold(facts_of(events), definition)


def entry(saga: Saga, name: str, number: int = 0) -> HistoryEntry:
    """The history's entry of the (number + 1)-th event of a type."""
    return [one for one in saga.history if one.fact.type == full_type(name)][number]


def statuses(saga: Saga) -> dict[str, str]:
    """The status of each step by its name."""
    return {step.name: step.status.name for step in saga.steps}


def dispositions(saga: Saga) -> list[str]:
    """`OrderCreated APPLIED`, in stream order."""
    return [f"{one.fact.type.rpartition('.')[2]} {one.disposition.name}" for one in saga.history]


def called_for(saga: Saga, definition: Definition = ORDER_FULFILMENT) -> list[str]:
    """The short types of the lifecycle events that the record calls for."""
    return [pending.type.rpartition(".")[2] for pending in pending_lifecycle(definition, saga)]
