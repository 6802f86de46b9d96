"""Counting what handlers do: each run of a handler leaves a row in its participant's database, in its transaction.

The rows are the simulation's own. So how often something was done is told by what is in the database, and not by what
the platform's tables say of it.
"""

from __future__ import annotations

import copy
import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from choreography.v1 import options_pb2
from farandole.participant.barrier import Direction
from farandole.participant.outgoing import Outcome
from farandole.participant.participant import Participant
from farandole.participant.step import Step
from farandole.participant.transaction import Transaction

metadata = sa.MetaData()
_effects = sa.Table(
    "simulation_effects",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("published", sa.Text, nullable=False),
    sa.Column("failed", sa.Boolean, nullable=False),
)
_insert = sa.insert(_effects)
_SELECT = "SELECT definition, key, step, direction, published, failed FROM simulation_effects ORDER BY number"

Handler = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class Effect:
    """One run of a handler that was committed."""

    participant: str
    definition: str
    key: str
    step: str
    direction: Direction
    published: tuple[str, ...]
    """The full types of the events that it returned."""
    failed: bool
    """Whether one of them is a failure."""

    def __str__(self) -> str:
        what = self.step if self.direction is Direction.FORWARD else f"{self.direction.value} {self.step}"
        published = ", ".join(name.rpartition(".")[2] for name in self.published) or "nothing"
        return f"{what} of {self.definition} {self.key} -> {published}"


Before = Callable[[str, Step, Direction, Transaction], None]
"""Called as a handler of a participant begins; what it raises, the handler raises."""
After = Callable[[Effect], None]
"""Called as a handler ends, in a transaction that may still be rolled back."""
Raised = Callable[[str, str], None]
"""Called as a handler of a participant raises, with the key of the saga."""


def counted(participant: Participant, before: Before, after: After, raised: Raised) -> Participant:
    """The participant, with handlers that leave rows. Its contract is the same."""

    def wrapped(step: Step) -> Step:
        return dataclasses.replace(
            step,
            forward=_counting(participant.name, step, Direction.FORWARD, step.forward, before, after, raised),
            undo=step.undo and _counting(participant.name, step, Direction.UNDO, step.undo, before, after, raised),
            irrevocable=step.irrevocable
            and _counting(participant.name, step, Direction.CONFIRM, step.irrevocable, before, after, raised),
        )

    changed = copy.copy(participant)
    for name, attribute in vars(Participant).items():
        if isinstance(attribute, cached_property):
            vars(changed).pop(name, None)  # it was worked out from the steps
    changed.steps = tuple(map(wrapped, participant.steps))
    return changed


def read_effects(participant: str, connection: sqlite3.Connection) -> Iterator[Effect]:
    """What the participant's handlers have done, in the order in which they did."""
    for definition, key, step, direction, published, failed in connection.execute(_SELECT):
        yield Effect(participant, definition, key, step, Direction(direction), tuple(published.split()), bool(failed))


def _counting(
    participant: str, step: Step, direction: Direction, handler: Handler, before: Before, after: After, raised: Raised
) -> Handler:
    def count(*arguments: Any) -> Outcome:  # noqa: ANN401 - the events that the handler takes, and the transaction
        tx: Transaction = arguments[-1]
        try:
            before(participant, step, direction, tx)
            outcome = handler(*arguments)
        except Exception:
            raised(participant, tx.key)
            raise
        events = () if outcome is None else outcome if isinstance(outcome, tuple) else (outcome,)
        effect = Effect(
            participant,
            step.saga,
            tx.key,
            step.name,
            direction,
            tuple(event.DESCRIPTOR.full_name for event in events),
            any(_is_failure(event) for event in events),
        )
        row = {name: getattr(effect, name) for name in ("definition", "key", "step", "failed")}
        tx.execute(_insert, {**row, "direction": direction.value, "published": " ".join(effect.published)})
        after(effect)
        return outcome

    return count


def _is_failure(event: Message) -> bool:
    return bool(event.DESCRIPTOR.GetOptions().Extensions[options_pb2.failure])
