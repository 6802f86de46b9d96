"""A participant: a name, its steps, and its tables. A value; making one connects to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1 import lifecycle_pb2, participant_pb2
from farandole.contract import Signature
from farandole.errors import ContractError
from farandole.participant.barrier import Direction
from farandole.participant.outgoing import Outcome
from farandole.participant.step import NAME, Step
from farandole.participant.transaction import Transaction
from farandole.registry import Registry

TIMED_OUT = lifecycle_pb2.SagaTimedOut.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class Reaction:
    """What one event type means to one step."""

    step: Step
    direction: Direction
    handler: Callable[[Any, Transaction], Outcome] | None
    """None where the event can only void the step."""

    @property
    def produces(self) -> tuple[type[Message], ...]:
        """The event classes that the handler may return."""
        forward = self.direction is Direction.FORWARD
        return (self.step.forward_signature if forward else self.step.undo_signature).produces


class Participant:
    """A service that takes part in sagas."""

    def __init__(
        self,
        name: str,
        *steps: Step,
        metadata: sa.MetaData | None = None,
        seed: Callable[[sa.Connection], None] | None = None,
        publishes: Sequence[type[Message]] = (),
    ) -> None:
        """`metadata` holds the service's own tables, made at start; `seed` fills them, again at each start.
        `publishes` are events that it publishes outside any step, such as the one that starts a saga.

        Raises `ContractError` where two steps have one name or the name can't be one, and `ConfigurationError` where
        a class is no event.
        """
        if not NAME.fullmatch(name):
            raise ContractError(f"{name!r} is no name of a participant: lower-case words joined by hyphens")
        if not steps:
            raise ContractError(f"participant {name} has no step")
        names = [(s.saga, s.name) for s in steps]
        for saga, step_name in names:
            if names.count((saga, step_name)) > 1:
                raise ContractError(f"participant {name} has two steps {step_name!r} of {saga}")
        self.name = name
        self.steps = steps
        self.metadata = metadata if metadata is not None else sa.MetaData()
        self.seed = seed
        self.publishes = tuple(publishes)
        self.registry = Registry.of_classes(self._classes())

    def _classes(self) -> set[type[Message]]:
        signatures: list[Signature] = [s for step in self.steps for s in (step.forward_signature, step.undo_signature)]
        return {c for s in signatures for c in (*s.consumes, *s.produces)} | set(self.publishes)

    @cached_property
    def reactions(self) -> Mapping[str, tuple[Reaction, ...]]:
        """What each consumed event type means, by full type. A time-out reaches every step."""
        reactions: dict[str, list[Reaction]] = {TIMED_OUT: []}
        for step in self.steps:
            for consumed in step.forward_signature.consumes:
                reactions.setdefault(consumed.DESCRIPTOR.full_name, []).append(
                    Reaction(step, Direction.FORWARD, step.forward)
                )
            undone_by = {c.DESCRIPTOR.full_name for c in step.undo_signature.consumes}
            for name in sorted(undone_by | {TIMED_OUT}):
                handler = step.undo if name in undone_by else None
                reactions.setdefault(name, []).append(Reaction(step, Direction.UNDO, handler))
        return {name: tuple(found) for name, found in reactions.items()}

    @property
    def filters(self) -> list[str]:
        """The subjects that its durable consumer takes."""
        return [f"events.*.{name}" for name in sorted(self.reactions)]

    @cached_property
    def contract(self) -> participant_pb2.ParticipantContract:
        """What it consumes and produces, as its code declares it."""
        return participant_pb2.ParticipantContract(
            participant=self.name,
            steps=[step.contract for step in self.steps],
            publishes=[c.DESCRIPTOR.full_name for c in self.publishes],
        )
