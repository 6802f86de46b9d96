"""A participant: a name, its steps, and its tables. A value; making one connects to nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1 import correlator_events_pb2, dead_letter_events_pb2, lifecycle_pb2, participant_pb2
from farandole.contract import Signature
from farandole.envelope import Event
from farandole.errors import ContractError
from farandole.lifecycle import CORRELATOR
from farandole.participant.barrier import Direction
from farandole.participant.circuits import Place, Probes
from farandole.participant.outgoing import Outcome, Outgoing
from farandole.participant.retries import Retries
from farandole.participant.step import NAME, Step
from farandole.partitions import PARTITIONS
from farandole.registry import Registry
from farandole.telemetry import NO_ACCOUNT, Account

TIMED_OUT = lifecycle_pb2.SagaTimedOut.DESCRIPTOR.full_name
ENDINGS = frozenset(
    message_class.DESCRIPTOR.full_name
    for message_class in (lifecycle_pb2.SagaCompleted, lifecycle_pb2.SagaCompensated, lifecycle_pb2.SagaFailed)
)
"""What tells that a saga has ended, beside a time-out."""
OPERATOR_VERBS = frozenset(
    message_class.DESCRIPTOR.full_name
    for message_class in (dead_letter_events_pb2.DeadLetterRedriven, dead_letter_events_pb2.DeadLetterDiscarded)
)
"""What an operator decides about a dead letter of some participant. Every participant hears it."""
EVENT_UNREADABLE = correlator_events_pb2.EventUnreadable.DESCRIPTOR.full_name
"""What the correlator says of an event that no one can read. Every participant hears it."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What one event type means to one step."""

    step: Step
    direction: Direction
    handler: Callable[..., Outcome] | None
    """None where the event can only void the step."""

    @property
    def place(self) -> Place:
        """Which part of which step it is."""
        return self.step.saga, self.step.name, self.direction

    @property
    def produces(self) -> tuple[type[Message], ...]:
        """The event classes that the handler may return."""
        match self.direction:
            case Direction.FORWARD:
                return self.step.forward_signature.produces
            case Direction.UNDO:
                return self.step.undo_signature.produces
            case Direction.CONFIRM:
                return self.step.irrevocable_signature.produces
            case Direction.END:
                return ()


class Participant:
    """A service that takes part in sagas."""

    def __init__(
        self,
        name: str,
        *steps: Step,
        metadata: sa.MetaData | None = None,
        seed: Callable[[sa.Connection], None] | None = None,
        publishes: Sequence[type[Message]] = (),
        retries: Retries = Retries(),  # noqa: B008 - a frozen value
        probes: Probes = Probes(),  # noqa: B008 - a frozen value
    ) -> None:
        """`metadata` holds the service's own tables, made at start; `seed` fills them, again at each start.
        `publishes` are events that it publishes outside any step, such as the one that starts a saga. `retries` says
        how often an event is tried whose handler raises, `probes` when a dependency is that was found to be down.

        Raises `ContractError` where two steps have one name or the name can't be one, and `ConfigurationError` where
        a class is no event.
        """
        if not NAME.fullmatch(name):
            raise ContractError(f"{name!r} is no name of a participant: lower-case words joined by hyphens")
        if name == CORRELATOR:
            raise ContractError(f"a participant can't be named {name!r}: that is the correlator's name")
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
        self.retries = retries
        self.probes = probes
        self.registry = Registry.of_classes(self._classes())

    def _classes(self) -> set[type[Message]]:
        signatures: list[Signature] = [
            s for step in self.steps for s in (step.forward_signature, step.undo_signature, step.irrevocable_signature)
        ]
        return {c for s in signatures for c in (*s.consumes, *s.produces)} | set(self.publishes)

    @cached_property
    def reactions(self) -> Mapping[str, tuple[Reaction, ...]]:
        """What each consumed event type may mean, by full type. A time-out reaches every step, and the end of a saga
        those of which something may wait for other events."""
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
            for read_back in step.irrevocable_signature.consumes:
                reactions.setdefault(read_back.DESCRIPTOR.full_name, []).append(
                    Reaction(step, Direction.CONFIRM, step.irrevocable)
                )
            if step.needs:
                for name in sorted(ENDINGS | {TIMED_OUT}):
                    reactions.setdefault(name, []).append(Reaction(step, Direction.END, None))
        return {name: tuple(found) for name, found in reactions.items()}

    def concerned(self, event: Event) -> tuple[Reaction, ...]:
        """What an event means: to which steps, and which of their parts it triggers."""
        return tuple(r for r in self.reactions.get(event.type, ()) if self._concerns(event, r))

    def passes(self, undo: Event, dead_letter: Event) -> bool:
        """Whether `undo` is a compensation that overtakes a dead letter of its own step.

        It is where all that the dead letter would do is to trigger steps that `undo` undoes: nobody needs it any more.
        """
        needed = self.concerned(dead_letter)
        undone = [r for r in self.concerned(undo) if r.direction is not Direction.END]
        if not needed or any(r.direction is not Direction.FORWARD for r in needed):
            return False
        return all(r.direction is Direction.UNDO for r in undone) and {r.step for r in needed} <= {
            r.step for r in undone
        }

    def _concerns(self, event: Event, reaction: Reaction) -> bool:
        if reaction.direction is Direction.CONFIRM:
            return event.source == self.name
        body = event.body
        if isinstance(body, lifecycle_pb2.SagaTimedOut):
            is_named = reaction.step.name in body.steps
            return body.definition == reaction.step.saga and is_named is (reaction.direction is not Direction.END)
        if reaction.direction is Direction.END:
            return getattr(body, "definition", "") == reaction.step.saga
        return True

    @cached_property
    def needs_several(self) -> bool:
        """Whether any step needs several events, so that some may have to wait for the others."""
        return any(step.needs for step in self.steps)

    @cached_property
    def undo_types(self) -> frozenset[str]:
        """The full types of the events that may undo a step."""
        return frozenset(
            name for name, found in self.reactions.items() if any(r.direction is Direction.UNDO for r in found)
        )

    @property
    def filters(self) -> list[str]:
        """The subjects that its durable consumer takes, where it has one for all partitions."""
        return self.filters_of(range(PARTITIONS))

    def filters_of(self, partitions: Collection[int]) -> list[str]:
        """The subjects that the durable consumer of these partitions takes. They do not overlap."""
        places = ["*"] if len(partitions) == PARTITIONS else sorted(partitions)
        types = sorted({*self.reactions, *OPERATOR_VERBS, EVENT_UNREADABLE})
        return [f"events.{place}.{name}" for place in places for name in types]

    def outgoing(self, clock: Callable[[], datetime], account: Account = NO_ACCOUNT) -> Outgoing:
        """An empty collection of publications within the participant's contract, of a transaction with this account."""
        return Outgoing(
            participant=self.name,
            registry=self.registry,
            clock=clock,
            publishes=frozenset(c.DESCRIPTOR.full_name for c in self.publishes),
            account=account,
        )

    @cached_property
    def contract(self) -> participant_pb2.ParticipantContract:
        """What it consumes and produces, as its code declares it."""
        return participant_pb2.ParticipantContract(
            participant=self.name,
            steps=[step.contract for step in self.steps],
            publishes=[c.DESCRIPTOR.full_name for c in self.publishes],
        )
