"""A step: what one participant does in a saga, and how it is undone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, Unpack

from google.protobuf.message import Message

from choreography.v1 import options_pb2, participant_pb2
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole.contract import Signature, signature_of
from farandole.errors import ContractError
from farandole.participant.outgoing import Outcome
from farandole.participant.transaction import Transaction

E = TypeVar("E", bound=Message)
U = TypeVar("U", bound=Message)
A = TypeVar("A", bound=Message)
Es = TypeVarTuple("Es")

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one saga definition, with its handlers and the contract read from them."""

    name: str
    saga: str
    forward: Callable[..., Outcome]
    """Called with its events, in the order of its parameters, and then the transaction."""
    forward_signature: Signature
    undo: Callable[[Any, Transaction], Outcome] | None
    undo_signature: Signature
    irrevocable: Callable[[Any, Transaction], Outcome] | None
    irrevocable_signature: Signature

    @property
    def needs(self) -> tuple[str, ...]:
        """Full types of the events that it needs all of, in the order of its parameters; of none where any one event
        that it consumes starts it."""
        return tuple(_names(self.forward_signature.consumes)) if self.forward_signature.needs_all else ()

    @property
    def contract(self) -> participant_pb2.StepContract:
        """What the step consumes and produces."""
        return participant_pb2.StepContract(
            name=self.name,
            saga=self.saga,
            consumes=_names(self.forward_signature.consumes),
            produces=_names((*self.forward_signature.produces, *self.irrevocable_signature.produces)),
            undo_consumes=_names(self.undo_signature.consumes),
            undo_produces=_names(self.undo_signature.produces),
            reads_back=_names(self.irrevocable_signature.consumes),
            needs_all=self.forward_signature.needs_all,
        )


def step(
    name: str,
    forward: Callable[[E, Unpack[Es], Transaction], Outcome],
    *,
    saga: str,
    undo: Callable[[U, Transaction], Outcome] | None = None,
    irrevocable: Callable[[A, Transaction], Outcome] | None = None,
) -> Step:
    """A step of the saga definition `saga`, under the name that the definition gives it.

    `forward` runs once a saga, for the first of its triggering events; `undo` runs once, and only where `forward`
    succeeded. Both are plain functions `(event, tx) -> events`; what they consume and produce is read from their
    annotations.

    A `forward` that takes several events, `(picked: ItemsPicked, paid: PaymentProcessed, tx)`, runs once all of them
    have come, in whatever order; what came early waits in the participant's database.

    `irrevocable` is what can't be undone. It takes a success event of `forward`, and runs once, when the participant
    reads that event back from the stream and no undoing stood before it. Where one did, the act never happens and
    `undo` answers, also where `forward` had not run; once the act has happened, an undoing does nothing. Such a step
    needs an `undo` that takes `SagaTimedOut`.

    Raises `ContractError` where the annotations can't be read or don't fit each other.
    """
    for what, text in (("step", name), ("saga", saga)):
        if not NAME.fullmatch(text):
            raise ContractError(f"{text!r} is no name of a {what}: lower-case words joined by hyphens")
    forward_signature = signature_of(forward)
    undo_signature = signature_of(undo) if undo is not None else Signature((), ())
    irrevocable_signature = signature_of(irrevocable) if irrevocable is not None else Signature((), ())
    both = set(forward_signature.consumes) & set(undo_signature.consumes)
    if both:
        raise ContractError(f"step {name}: {', '.join(_names(tuple(both)))} can't both trigger and undo it")
    for what, signature in (("undo", undo_signature), ("irrevocable act", irrevocable_signature)):
        if signature.needs_all:
            raise ContractError(f"step {name}: its {what} takes one event; only `forward` may need several")
    if irrevocable is not None:
        _check_irrevocable(name, forward_signature, undo_signature, irrevocable_signature)
    return Step(
        name=name,
        saga=saga,
        forward=forward,
        forward_signature=forward_signature,
        undo=undo,
        undo_signature=undo_signature,
        irrevocable=irrevocable,
        irrevocable_signature=irrevocable_signature,
    )


def _check_irrevocable(name: str, forward: Signature, undo: Signature, irrevocable: Signature) -> None:
    successes = {c for c in forward.produces if not c.DESCRIPTOR.GetOptions().Extensions[options_pb2.failure]}
    foreign = [c for c in irrevocable.consumes if c not in successes]
    if foreign:
        raise ContractError(
            f"step {name}: {', '.join(_names(tuple(foreign)))} is no success event of its own, which its irrevocable "
            "act has to wait for"
        )
    both = set(irrevocable.consumes) & {*forward.consumes, *undo.consumes}
    if both:
        raise ContractError(f"step {name}: {', '.join(_names(tuple(both)))} can't also trigger or undo it")
    if SagaTimedOut not in undo.consumes:
        raise ContractError(f"step {name}: with an irrevocable act it needs an undo that takes SagaTimedOut")


def _names(classes: tuple[type[Message], ...]) -> list[str]:
    return list(dict.fromkeys(message_class.DESCRIPTOR.full_name for message_class in classes))
