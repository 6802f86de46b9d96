"""What a simulation runs: who takes part, what starts sagas, what goes wrong, and what must hold in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from farandole.definition import Definition
from farandole.participant.participant import Participant
from farandole.participant.transaction import CommandTransaction
from farandole.testing.simulation.faults import Faults

if TYPE_CHECKING:
    from farandole.testing.simulation.world import World


@dataclass(frozen=True, slots=True)
class Start:
    """What starts one saga: its initiating event, and who publishes it."""

    event: Message
    participant: str = ""
    """Whose command publishes it; empty where a client that is none of the participants does."""
    command: Callable[[CommandTransaction], Any] | None = None
    """What the participant does in one transaction, as in `Runtime.execute`; it may be called more than once."""


def nothing_more(_world: World) -> Iterable[str]:
    """Nothing has to hold besides what holds for every choreography."""
    return ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run."""

    participants: Sequence[Participant]
    """As the services run them: their handlers, tables and seeds are real."""
    definitions: Sequence[Definition]
    """Their deadlines are of virtual time: seconds rather than hours make a run short, and late sagas frequent."""
    starts: Sequence[Start]
    """Each begins a saga, at a time of the simulation's own choice."""
    check: Callable[[World], Iterable[str]] = nothing_more
    """What must hold besides in the end, when all is quiet: yields a line for each thing that does not."""
    faults: Faults = field(default_factory=Faults)


ScenarioOf = Callable[[Random], Scenario]
"""Makes the scenario of one run. What differs from run to run it draws from the random numbers that it is given."""


def with_deadlines(
    definition: Definition, *, saga: timedelta, step: timedelta | None = None, compensation: timedelta | None = None
) -> Definition:
    """The definition with other deadlines: of the saga, and of each step and compensation that has one."""

    def changed(old: timedelta | None, new: timedelta | None) -> timedelta | None:
        return old if old is None or new is None else new

    return dataclasses.replace(
        definition,
        deadline=saga,
        steps=tuple(
            dataclasses.replace(
                one,
                deadline=changed(one.deadline, step),
                compensation=one.compensation
                and dataclasses.replace(one.compensation, deadline=changed(one.compensation.deadline, compensation)),
            )
            for one in definition.steps
        ),
    )
