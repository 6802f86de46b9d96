"""A step: what one participant does in a saga, and how it is undone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from choreography.v1 import participant_pb2
from farandole.contract import Signature, signature_of
from farandole.errors import ContractError
from farandole.participant.outgoing import Outcome
from farandole.participant.transaction import Transaction

E = TypeVar("E", bound=Message)
U = TypeVar("U", bound=Message)

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one saga definition, with its handlers and the contract read from them."""

    name: str
    saga: str
    forward: Callable[[Any, Transaction], Outcome]
    forward_signature: Signature
    undo: Callable[[Any, Transaction], Outcome] | None
    undo_signature: Signature

    @property
    def contract(self) -> participant_pb2.StepContract:
        """What the step consumes and produces."""
        return participant_pb2.StepContract(
            name=self.name,
            saga=self.saga,
            consumes=_names(self.forward_signature.consumes),
            produces=_names(self.forward_signature.produces),
            undo_consumes=_names(self.undo_signature.consumes),
            undo_produces=_names(self.undo_signature.produces),
        )


def step(
    name: str,
    forward: Callable[[E, Transaction], Outcome],
    *,
    saga: str,
    undo: Callable[[U, Transaction], Outcome] | None = None,
) -> Step:
    """A step of the saga definition `saga`, under the name that the definition gives it.

    `forward` runs once a saga, for the first of its triggering events; `undo` runs once, and only where `forward`
    succeeded. Both are plain functions `(event, tx) -> events`; what they consume and produce is read from their
    annotations. Raises `ContractError` where that can't be done.
    """
    for what, text in (("step", name), ("saga", saga)):
        if not NAME.fullmatch(text):
            raise ContractError(f"{text!r} is no name of a {what}: lower-case words joined by hyphens")
    forward_signature = signature_of(forward)
    undo_signature = signature_of(undo) if undo is not None else Signature((), ())
    both = set(forward_signature.consumes) & set(undo_signature.consumes)
    if both:
        raise ContractError(f"step {name}: {', '.join(_names(tuple(both)))} can't both trigger and undo it")
    return Step(name, saga, forward, forward_signature, undo, undo_signature)


def _names(classes: tuple[type[Message], ...]) -> list[str]:
    return [message_class.DESCRIPTOR.full_name for message_class in classes]
