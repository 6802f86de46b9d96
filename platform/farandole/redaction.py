"""Blanking the fields that must not be shown: those marked `debug_redact = true`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf import any_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED = "[REDACTED]"
_ANY = any_pb2.Any.DESCRIPTOR.full_name

M = TypeVar("M", bound=Message)


class Redactor:
    """Blanks what a message type marks as not to be shown, at any depth.

    A redacted string becomes `[REDACTED]`; any other redacted field is cleared. So is every `google.protobuf.Any`:
    nothing says what it holds.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        reachable = reachable_types(descriptor)
        sensitive = {name for name, d in reachable.items() if any(_is_redacted(f) for f in d.fields)}
        grown = True
        while grown:
            holders = {n for n, d in reachable.items() if any(c.full_name in sensitive for c in _children(d))}
            grown = not holders <= sensitive
            sensitive |= holders
        self._sensitive = frozenset(sensitive)
        self.is_needed = descriptor.full_name in self._sensitive
        """Whether messages of this type can hold anything to blank."""

    def redact(self, message: M) -> M:
        """The message with what must not be shown blanked; the message itself where there is nothing to blank."""
        if not self.is_needed:
            return message
        copy = type(message)()
        copy.CopyFrom(message)
        self._blank(copy)
        return copy

    def hidden_values(self, message: Message) -> Iterator[str | bytes | float]:
        """The strings, bytes and numbers of a message that must not be shown, one by one."""
        if self.is_needed:
            yield from self._hidden(message, everything=False)

    def _hidden(self, message: Message, *, everything: bool) -> Iterator[str | bytes | float]:
        for field, value in message.ListFields():
            hides = everything or _is_redacted(field)
            child = field.message_type
            if child is not None and child.GetOptions().map_entry:
                values = [*value.keys(), *value.values()] if hides else list(value.values())
            else:
                values = list(value) if field.is_repeated else [value]
            for each in values:
                if isinstance(each, Message):
                    yield from self._hidden(each, everything=hides)
                elif hides:
                    yield each

    def _blank(self, message: Message) -> None:
        for field, value in message.ListFields():
            if _is_redacted(field):
                if field.is_extension:
                    extension: Any = field
                    message.ClearExtension(extension)
                    continue
                message.ClearField(field.name)
                if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                    setattr(message, field.name, REDACTED)
                continue
            child = field.message_type
            if child is None or child.full_name not in self._sensitive:
                continue
            if child.GetOptions().map_entry:
                for entry in value.values():
                    self._blank(entry)
            elif field.is_repeated:
                for entry in value:
                    self._blank(entry)
            else:
                self._blank(value)


def _is_redacted(field: FieldDescriptor) -> bool:
    holds_any = field.message_type is not None and field.message_type.full_name == _ANY
    return holds_any or bool(field.GetOptions().debug_redact)


def _children(descriptor: Descriptor) -> Iterator[Descriptor]:
    return (field.message_type for field in descriptor.fields if field.message_type is not None)


def reachable_types(root: Descriptor) -> dict[str, Descriptor]:
    """Every message type that one of this type can hold, itself included."""
    found: dict[str, Descriptor] = {}
    waiting = [root]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name not in found:
            found[descriptor.full_name] = descriptor
            waiting.extend(_children(descriptor))
    return found
