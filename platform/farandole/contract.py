"""What a handler consumes and produces, read from its annotations. Pure: nothing is registered, nothing runs."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from farandole.errors import ContractError


@dataclass(frozen=True, slots=True)
class Signature:
    """The event types of one handler, in the order in which its annotations name them."""

    consumes: tuple[type[Message], ...]
    produces: tuple[type[Message], ...]


def signature_of(handler: Callable[..., Any]) -> Signature:
    """The signature of `(event: A | B, tx) -> C | D | tuple[E, F] | None`.

    Raises `ContractError` where an annotation is missing or is not made of event classes, or where the handler is a
    coroutine function: a handler runs inside a database transaction, and must not wait for anything else.
    """
    name = _name_of(handler)
    if inspect.iscoroutinefunction(handler):
        raise ContractError(f"{name} is `async`; a handler is a plain function that runs inside the transaction")
    target = handler if inspect.isroutine(handler) else type(handler).__call__
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) != _HANDLER_PARAMETERS:
        raise ContractError(f"{name} takes {len(parameters)} parameters; a handler takes (event, tx)")
    try:
        hints = typing.get_type_hints(target)
    except NameError as error:
        raise ContractError(f"{name}: an annotation can't be resolved: {error}; import it at run time") from None
    for wanted in (parameters[0].name, "return"):
        if wanted not in hints:
            raise ContractError(f"{name} has no annotation for {wanted!r}, from which its contract is read")
    consumes = tuple(dict.fromkeys(_event_classes(hints[parameters[0].name], name)))
    if not consumes:
        raise ContractError(f"{name} consumes no event")
    return Signature(consumes, tuple(dict.fromkeys(_event_classes(hints["return"], name))))


_HANDLER_PARAMETERS = 2


def _event_classes(annotation: Any, name: str) -> Iterator[type[Message]]:  # noqa: ANN401 - any annotation
    if annotation is None or annotation is type(None) or annotation is Ellipsis:
        return
    if typing.get_origin(annotation) in {typing.Union, types.UnionType, tuple}:
        for part in typing.get_args(annotation):
            yield from _event_classes(part, name)
        return
    if not (isinstance(annotation, type) and issubclass(annotation, Message)) or annotation is Message:
        raise ContractError(f"{name}: {annotation!r} is no event class; name the generated classes")
    yield annotation


def _name_of(handler: Callable[..., Any]) -> str:
    return str(getattr(handler, "__qualname__", None) or type(handler).__qualname__)
