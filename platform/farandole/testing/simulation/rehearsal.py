"""What the runs of one choreography have in common: made once, since making it takes longer than a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.message import Message

from farandole.participant.barrier import Direction
from farandole.participant.participant import Participant
from farandole.participant.step import Step
from farandole.participant.transaction import Transaction
from farandole.registry import Registry
from farandole.testing.simulation.database import ParticipantDisk
from farandole.testing.simulation.effects import Effect, counted
from farandole.testing.simulation.process import CURRENT

_MOST_PARTICIPANTS = 64


class Rehearsal:
    """A participant whose handlers are followed, and its database."""

    def __init__(self, participant: Participant) -> None:
        self.participant = counted(participant, _handler_begins, _handler_ends, _handler_raises)
        self.disk = ParticipantDisk(participant)
        self.consumed = frozenset(subject.split(".", 2)[2] for subject in participant.filters)
        """The full types of the events that it consumes."""


@lru_cache(maxsize=_MOST_PARTICIPANTS)
def rehearsal_of(participant: Participant) -> Rehearsal:
    """The same for the same participant."""
    return Rehearsal(participant)


@lru_cache(maxsize=_MOST_PARTICIPANTS)
def registry_of(participants: tuple[Participant, ...], classes: frozenset[type[Message]]) -> Registry:
    """All events that the participants know, and these."""
    types = dict(Registry.of_classes(_in_order(classes)).types)
    for participant in participants:
        types |= participant.registry.types
    return Registry(types)


def _in_order(classes: Iterable[type[Message]]) -> list[type[Message]]:
    return sorted(classes, key=lambda message_class: message_class.DESCRIPTOR.full_name)


def _handler_begins(participant: str, step: Step, direction: Direction, tx: Transaction) -> None:
    if (process := CURRENT.get()) is not None:
        process.witness.handler_begins(participant, step, direction, tx)


def _handler_raises(participant: str, key: str) -> None:
    if (process := CURRENT.get()) is not None:
        process.witness.handler_raises(participant, key)


def _handler_ends(effect: Effect) -> None:
    if (process := CURRENT.get()) is not None:
        process.witness.handler_ends(effect)
