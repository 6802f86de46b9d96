"""Turning what handlers return into publications, within the participant's contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf.message import Message

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from farandole.envelope import Event, Publication, Unreadable, encode
from farandole.errors import ContractError
from farandole.ids import derived_id, message_id
from farandole.participant.barrier import Direction
from farandole.registry import Registry
from farandole.telemetry import NO_ACCOUNT, Account

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
    account: Account = NO_ACCOUNT
    """What the transaction tells of itself."""
    publications: list[Publication] = field(default_factory=list)

    def add_outcome(
        self, outcome: Sequence[Message], *, step: str, saga: str, direction: Direction, cause: Event
    ) -> list[str]:
        """Adds what a step's handler returned; returns the events' ids, in order.

        Raises `InvalidEventError` where an event breaks a rule of its type.
        """
        of = (cause.key, message_id(cause.source, cause.id))
        return [
            self._add_caused(body, cause, (self.participant, step, direction, saga), index, of=of)
            for index, body in enumerate(outcome)
        ]

    def add_about_dead_letter(
        self,
        body: DeadLetterRecorded | DeadLetterSuperseded,
        *,
        dead_letter: Event | Unreadable,
        attempts: int,
        cause: Event | Unreadable,
    ) -> None:
        """Adds what has become of an event after so many tries: the same again has the same id."""
        parts = (self.participant, body.step, type(body).__name__, body.definition)
        if isinstance(dead_letter, Event):
            of = (dead_letter.key, message_id(dead_letter.source, dead_letter.id))
        else:  # its id may be anybody's, and of two that are the same each holds something up
            of = (body.saga_id, str(body.sequence))
        self._add_caused(body, cause, parts, attempts, of=of)

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
        self, body: Message, cause: Event | Unreadable, parts: tuple[str, ...], number: int, *, of: tuple[str, str]
    ) -> str:
        """Adds an event under an id derived from `parts`, the key and identity of the event that it is `of`, and a
        number; returns the id."""
        event_id = derived_id((*parts, *of, str(number)))
        self._add(body, event_id=event_id, cause=cause)
        return event_id

    def _add(self, body: Message, *, event_id: str = "", cause: Event | Unreadable | None = None) -> None:
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
                causation_id="" if cause is None else cause.id,
                traceparent=self.account.traceparent(cause),
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
