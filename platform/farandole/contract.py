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
    needs_all: bool = False
    """Whether it takes all that it consumes, one parameter each, and not any one of them."""


def signature_of(handler: Callable[..., Any]) -> Signature:
    """The signature of `(event: A | B, tx) -> C | D | tuple[E, F] | None`, or of `(a: A, b: B, tx) -> C` and the like.

    Raises `ContractError` where an annotation is missing or is not made of event classes, or where the handler is a
    coroutine function: a handler runs inside a database transaction, and must not wait for anything else.
    """
    name = _name_of(handler)
    if inspect.iscoroutinefunction(handler):
        raise ContractError(f"{name} is `async`; a handler is a plain function that runs inside the transaction")
    target = handler if inspect.isroutine(handler) else type(handler).__call__
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) < _FEWEST_PARAMETERS:
        raise ContractError(
            f"{name} takes {len(parameters)} parameters; a handler takes (event, tx), or all the events that it needs "
            "and then tx"
        )
    for parameter in parameters:
        if parameter.kind not in _PLAIN:
            raise ContractError(f"{name}: {parameter.name!r} is no plain parameter, as those of a handler are")
    try:
        hints = typing.get_type_hints(target)
    except NameError as error:
        raise ContractError(f"{name}: an annotation can't be resolved: {error}; import it at run time") from None
    *events, transaction = (parameter.name for parameter in parameters)
    for wanted in (*events, "return"):
        if wanted not in hints:
            raise ContractError(f"{name} has no annotation for {wanted!r}, from which its contract is read")
    if _is_event_class(hints.get(transaction)):
        raise ContractError(f"{name}: the last parameter of a handler is the transaction, not {transaction!r}")
    needs_all = len(events) > 1
    if needs_all:
        consumes = tuple(_one_event_class(hints[event], event, name) for event in events)
        if len(set(consumes)) < len(consumes):
            raise ContractError(f"{name} takes two events of one class; what it needs are events of different classes")
    else:
        consumes = tuple(dict.fromkeys(_event_classes(hints[events[0]], name)))
    if not consumes:
        raise ContractError(f"{name} consumes no event")
    return Signature(consumes, tuple(dict.fromkeys(_event_classes(hints["return"], name))), needs_all)


_FEWEST_PARAMETERS = 2
_PLAIN = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


def _one_event_class(annotation: Any, parameter: str, name: str) -> type[Message]:  # noqa: ANN401 - any annotation
    if not _is_event_class(annotation):
        raise ContractError(
            f"{name}: {parameter!r} is {annotation!r}; where a handler needs several events, each parameter names one "
            "generated class"
        )
    message_class: type[Message] = annotation
    return message_class


def _event_classes(annotation: Any, name: str) -> Iterator[type[Message]]:  # noqa: ANN401 - any annotation
    if annotation is None or annotation is type(None) or annotation is Ellipsis:
        return
    if typing.get_origin(annotation) in {typing.Union, types.UnionType, tuple}:
        for part in typing.get_args(annotation):
            yield from _event_classes(part, name)
        return
    if not _is_event_class(annotation):
        raise ContractError(f"{name}: {annotation!r} is no event class; name the generated classes")
    yield annotation


def _is_event_class(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Message) and annotation is not Message


def _name_of(handler: Callable[..., Any]) -> str:
    return str(getattr(handler, "__qualname__", None) or type(handler).__qualname__)
