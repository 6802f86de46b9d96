"""The event types that a process knows, read from Protobuf descriptors.

A participant makes a registry of its generated classes; a correlator makes one of a descriptor set, and needs no
generated code for any team's events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import protovalidate
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from buf.validate import validate_pb2
from choreography.v1 import (
    correlator_events_pb2,
    dead_letter_events_pb2,
    dead_letter_pb2,
    lifecycle_pb2,
    options_pb2,
    saga_definition_pb2,
    saga_pb2,
)
from farandole.errors import ConfigurationError, Fault
from farandole.redaction import Redactor, reachable_types

_OWN_FILES: Mapping[str, FileDescriptor] = {
    module.DESCRIPTOR.name: module.DESCRIPTOR
    for module in (
        any_pb2, descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2,
        validate_pb2, options_pb2, saga_definition_pb2, saga_pb2, lifecycle_pb2, dead_letter_pb2,
        dead_letter_events_pb2, correlator_events_pb2,
    )
}  # fmt: skip
"""Files that the library brings itself; a set that holds another edition of one gets the library's."""


@dataclass(frozen=True)
class EventType:
    """One event type: its class and what its options say of it."""

    message_class: type[Message]
    key_field: str
    """The name of the string field that holds the correlation key."""
    is_commit: bool
    is_failure: bool
    validator: protovalidate.Validator = field(repr=False, compare=False)
    """Of the registry: a validator knows one type of a name only."""

    @property
    def name(self) -> str:
        """The full message type, such as `orders.v1.OrderCreated`."""
        return self.descriptor.full_name

    @property
    def descriptor(self) -> Descriptor:
        """Of the message type."""
        return _descriptor_of(self.message_class)

    @cached_property
    def redactor(self) -> Redactor:
        """Blanks the fields marked `debug_redact`."""
        return Redactor(self.descriptor)

    @cached_property
    def has_reason(self) -> bool:
        """Whether the event says why, in a string field `reason`."""
        reason = self.descriptor.fields_by_name.get("reason")
        return reason is not None and reason.type == FieldDescriptor.TYPE_STRING and not reason.is_repeated


@dataclass(frozen=True)
class Registry:
    """The event types that a process knows, by full message type."""

    types: Mapping[str, EventType] = field(default_factory=dict)

    def __iter__(self) -> Iterator[EventType]:
        return iter(self.types.values())

    def get(self, name: str) -> EventType | None:
        """The event type of that full name; None where it is unknown or no event."""
        return self.types.get(name)

    @classmethod
    def of_classes(cls, classes: Iterable[type[Message]]) -> Registry:
        """A registry of generated classes and the platform's own events.

        Raises `ConfigurationError` where a class is no event, or its options or rules are wrong.
        """
        faults: list[Fault] = []
        validator = protovalidate.Validator()
        types = _own_types(validator)
        for message_class in classes:
            descriptor = _descriptor_of(message_class)
            if not _is_event(descriptor):
                faults.append(Fault(descriptor.full_name, "is not marked `option (choreography.v1.event) = true`"))
            elif event_type := _event_type(message_class, validator, faults):
                types[event_type.name] = event_type
        if faults:
            raise ConfigurationError(faults)
        return cls(types)

    @classmethod
    def of_descriptor_set(cls, serialized: bytes, *, where: str) -> Registry:
        """A registry of all events in a serialized `google.protobuf.FileDescriptorSet` that holds its imports.

        `where` names the set in errors. Raises `ConfigurationError` where the set can't be read, lacks a file that
        another one imports, or has an event whose options or rules are wrong.
        """
        pool = descriptor_pool.DescriptorPool()
        faults: list[Fault] = []
        validator = protovalidate.Validator()
        types = _own_types(validator)
        for file in _in_order_of_imports(serialized, where):
            try:
                pool.Add(file)
            except TypeError as error:
                raise ConfigurationError([Fault(f"{where}: {file.name}", f"is not a valid file: {error}")]) from None
            if file.name in _OWN_FILES:
                continue
            for message in file.message_type:
                for name in _full_names(file.package, message):
                    descriptor = pool.FindMessageTypeByName(name)
                    if not _is_event(descriptor):
                        continue
                    if event_type := _event_type(message_factory.GetMessageClass(descriptor), validator, faults):
                        types[event_type.name] = event_type
        if faults:
            raise ConfigurationError([Fault(f"{where}: {fault.where}", fault.reason) for fault in faults])
        return cls(types)


def _own_types(validator: protovalidate.Validator) -> dict[str, EventType]:
    """The platform's own events, which every registry knows."""
    types: dict[str, EventType] = {}
    for module in (lifecycle_pb2, dead_letter_events_pb2, correlator_events_pb2):
        for name in module.DESCRIPTOR.message_types_by_name:
            message_class: type[Message] = getattr(module, name)
            if _is_event(_descriptor_of(message_class)) and (event_type := _event_type(message_class, validator, [])):
                types[event_type.name] = event_type
    return types


def _descriptor_of(message_class: type[Message]) -> Descriptor:
    return cast("Descriptor", message_class.DESCRIPTOR)  # typed as one of two classes that are the same at run time


def _is_event(descriptor: Descriptor) -> bool:
    return bool(descriptor.GetOptions().Extensions[options_pb2.event])


def _event_type(
    message_class: type[Message], validator: protovalidate.Validator, faults: list[Fault]
) -> EventType | None:
    """The event type of a message class; None, with the faults added, where its options or rules are wrong."""
    descriptor = _descriptor_of(message_class)
    keys = [f for f in descriptor.fields if f.GetOptions().Extensions[options_pb2.correlation_key]]
    if len(keys) != 1:
        names = ", ".join(f.name for f in keys) or "none"
        faults.append(
            Fault(descriptor.full_name, f"needs exactly one field with (choreography.v1.correlation_key), has {names}")
        )
        return None
    key = keys[0]
    if key.type != FieldDescriptor.TYPE_STRING or key.is_repeated:
        faults.append(Fault(f"{descriptor.full_name}.{key.name}", "the correlation key must be one string"))
        return None
    wrong = [Fault(descriptor.full_name, reason) for reason in _uncompilable(descriptor, validator)]
    if wrong:
        faults += wrong
        return None
    options = descriptor.GetOptions()
    return EventType(
        message_class=message_class,
        key_field=key.name,
        is_commit=bool(options.Extensions[options_pb2.commit]),
        is_failure=bool(options.Extensions[options_pb2.failure]),
        validator=validator,
    )


def _uncompilable(root: Descriptor, validator: protovalidate.Validator) -> Iterator[str]:
    """What is wrong with the rules of a message type and of all that it can hold.

    Rules are compiled when a message of their type is first checked; without this the first event that holds one
    would find out.
    """
    for name, descriptor in reachable_types(root).items():
        if descriptor.GetOptions().map_entry:
            continue
        try:
            validator.collect_violations(message_factory.GetMessageClass(descriptor)(), fail_fast=True)
        except protovalidate.CompilationError as error:
            yield f"has a validation rule that does not compile, in {name}: {error}"
        except protovalidate.EvaluationError:
            continue  # it compiles; that it can't be evaluated on an empty message says nothing about others


def _full_names(prefix: str, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    name = f"{prefix}.{message.name}" if prefix else message.name
    yield name
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _full_names(name, nested)


def _in_order_of_imports(serialized: bytes, where: str) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """The files of a set, each after those that it imports."""
    try:
        files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(serialized).file}
    except DecodeError:
        fault = Fault(
            where, "is not a google.protobuf.FileDescriptorSet; `buf build --as-file-descriptor-set` makes one"
        )
        raise ConfigurationError([fault]) from None
    for name, own in _OWN_FILES.items():
        files[name] = descriptor_pb2.FileDescriptorProto.FromString(own.serialized_pb)
    missing = sorted({name for file in files.values() for name in file.dependency} - files.keys())
    if missing:
        raise ConfigurationError(
            [Fault(where, f"lacks the imported file {name}; build the set with its imports") for name in missing]
        )
    done: set[str] = set()
    for start in files:
        stack = [start]
        while stack:
            name = stack[-1]
            waiting = next((d for d in files[name].dependency if d not in done and d not in stack), None)
            if waiting is not None:
                stack.append(waiting)  # one at a time: only what waits for it is below it
                continue
            stack.pop()
            if name not in done:
                done.add(name)
                yield files[name]
