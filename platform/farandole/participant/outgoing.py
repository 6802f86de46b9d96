"""Turning what handlers return into publications, within the participant's contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf.message import Message

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from farandole.envelope import Event, Publication, derived_id, encode, message_id
from farandole.errors import ContractError
from farandole.participant.barrier import Direction
from farandole.registry import Registry

Outcome = Message | tuple[Message, ...] | None
"""What a handler returns: one event, several, or none."""


@dataclass(slots=True)
class Outgoing:
    """The publications of one transaction, in order."""

    participant: str
    registry: Registry
    clock: Callable[[], datetime]
    publishes: Collection[str] = ()
    """Full types of events that may be published outside a step."""
    publications: list[Publication] = field(default_factory=list)

    def add_outcome(
        self, outcome: Sequence[Message], *, step: str, saga: str, direction: Direction, cause: Event
    ) -> list[str]:
        """Adds what a step's handler returned; returns the events' ids, in order.

        Raises `InvalidEventError` where an event breaks a rule of its type.
        """
        return [
            self._add_caused(body, cause, (self.participant, step, direction, saga), index)
            for index, body in enumerate(outcome)
        ]

    def add_about_dead_letter(
        self, body: DeadLetterRecorded | DeadLetterSuperseded, *, dead_letter: Event, attempts: int, cause: Event
    ) -> None:
        """Adds what has become of an event after so many tries: the same again has the same id."""
        what = type(body).__name__
        self._add_caused(body, cause, (self.participant, body.step, what, body.definition), attempts, of=dead_letter)

    def add_copy(self, publication: Publication) -> None:
        """Adds the copy of a dead letter, as `dead_letter_copy` makes it."""
        self.publications.append(publication)

    def add_command(self, body: Message) -> None:
        """Adds an event that a remote procedure publishes. Raises `ContractError` where it is not declared."""
        name = body.DESCRIPTOR.full_name
        if name not in self.publishes:
            raise ContractError(f"{self.participant} does not declare that it publishes {name}")
        self._add(body)

    def _add_caused(
        self, body: Message, cause: Event, parts: tuple[str, ...], number: int, *, of: Event | None = None
    ) -> str:
        """Adds an event under an id derived from `parts`, the event that it is `of` (its cause, where none is given)
        and a number; returns the id."""
        about = of or cause
        event_id = derived_id((*parts, about.key, message_id(about.source, about.id), str(number)))
        self._add(body, event_id=event_id, causation_id=cause.id, traceparent=cause.traceparent)
        return event_id

    def _add(self, body: Message, *, event_id: str = "", causation_id: str = "", traceparent: str = "") -> None:
        event_type = self.registry.get(body.DESCRIPTOR.full_name)
        if event_type is None:
            raise ContractError(f"{body.DESCRIPTOR.full_name} is not in the contract of {self.participant}")
        self.publications.append(
            encode(
                event_type,
                body,
                source=self.participant,
                event_id=event_id,
                time=self.clock(),
                causation_id=causation_id,
                traceparent=traceparent,
            )
        )


def events_of(outcome: Outcome, allowed: Collection[type[Message]], *, step: str) -> tuple[Message, ...]:
    """What a handler returned, as a tuple. Raises `ContractError` where it is not what its annotation says."""
    events = () if outcome is None else outcome if isinstance(outcome, tuple) else (outcome,)
    for event in events:
        if type(event) not in allowed:
            names = ", ".join(sorted(t.DESCRIPTOR.full_name for t in allowed)) or "nothing"
            raise ContractError(f"step {step} returned {type(event).__name__}; its annotation says {names}")
    return events
