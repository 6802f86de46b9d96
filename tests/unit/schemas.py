"""Makes Protobuf schemas at run time, for tests of what reads schemas."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from google.protobuf import descriptor_pb2

from buf.validate import validate_pb2
from choreography.v1 import options_pb2

STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
INT32 = descriptor_pb2.FieldDescriptorProto.TYPE_INT32
MESSAGE = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE

_numbers = itertools.count(1)


class SchemaFile:
    """One `.proto` file, with a package that no other has."""

    def __init__(self, *, syntax: str = "proto3") -> None:
        self.package = f"made{next(_numbers)}.v1"
        self.proto = descriptor_pb2.FileDescriptorProto(
            name=f"{self.package}.proto",
            package=self.package,
            syntax=syntax,
            dependency=["choreography/v1/options.proto", "buf/validate/validate.proto", "google/protobuf/any.proto"],
        )

    def message(self, name: str) -> descriptor_pb2.DescriptorProto:
        """Adds a message that is no event."""
        return self.proto.message_type.add(name=name)

    def event(self, name: str = "Happened") -> descriptor_pb2.DescriptorProto:
        """Adds an event with the key `id`."""
        message = self.message(name)
        message.options.Extensions[options_pb2.event] = True
        field(message, "id", key=True)
        return message

    def type_of(self, name: str) -> str:
        """The full name of a message of this file."""
        return f"{self.package}.{name}"

    def serialized(self) -> bytes:
        """A descriptor set of this file alone."""
        return descriptor_pb2.FileDescriptorSet(file=[self.proto]).SerializeToString()


def field(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    kind: descriptor_pb2.FieldDescriptorProto.Type.ValueType = STRING,
    *,
    of: str = "",
    repeated: bool = False,
    required: bool = False,
    key: bool = False,
    redact: bool = False,
    rules: Callable[[validate_pb2.FieldRules], object] | None = None,
) -> descriptor_pb2.FieldDescriptorProto:
    """Adds a field. `of` is the full name of a message type; `rules` sets validation rules."""
    label = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
    if repeated:
        label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    elif required:
        label = descriptor_pb2.FieldDescriptorProto.LABEL_REQUIRED
    made = message.field.add(
        name=name,
        json_name=name,
        number=len(message.field) + 1,
        type=MESSAGE if of else kind,
        label=label,
        type_name=f".{of}" if of else None,
    )
    if key:
        made.options.Extensions[options_pb2.correlation_key] = True
    if redact:
        made.options.debug_redact = True
    if rules is not None:
        rules(made.options.Extensions[validate_pb2.field])
    return made


def map_field(
    message: descriptor_pb2.DescriptorProto, holder: str, name: str, *, of: str = "", redact: bool = False
) -> None:
    """Adds a map from text to text, or to messages of the full type `of`. `holder` is the full type of `message`."""
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    field(entry, "key")
    field(entry, "value", of=of)
    field(message, name, of=f"{holder}.{entry.name}", repeated=True, redact=redact)
