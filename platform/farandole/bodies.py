"""Bodies of events: read from Protobuf or ProtoJSON, no larger and no deeper than what can be handled at once."""

from __future__ import annotations

import json
import re
from typing import Any

import protovalidate
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from farandole.reasons import Reason
from farandole.registry import EventType

MAX_BODY_BYTES = 256 * 1024
MAX_NESTED_MESSAGES = 10_000
"""Messages and map entries in a body, at any depth. Checking more would hold up everyone else's events."""
MAX_JSON_VALUES = 10_000
"""Object members and list elements in a JSON body, at any depth: JSON costs ten times what Protobuf does."""
MAX_JSON_DEPTH = 100
"""Of objects and lists inside each other. Protobuf has the same limit for messages."""

TOO_COMPLEX = f"has more than {MAX_NESTED_MESSAGES} nested messages"
"""What is said of such a body."""

PROTOBUF = "application/protobuf"
JSON = "application/json"

_COUNT_NESTED_ABOVE_BYTES = 16 * 1024
_FAILING_FIELD = re.compile(r"Failed to parse (\w+) field: ")


class BodyRefusedError(Exception):
    """A body can't be read: whoever reads the event says so in its own way, and it goes no further."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_body(event_type: EventType, content_type: str, data: bytes) -> Message:
    """The body of an event. Raises `BodyRefusedError` where it can't be read, or holds too much."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == PROTOBUF:
        return _from_protobuf(event_type, data)
    if media_type == JSON:
        return _from_json(event_type, data)
    raise BodyRefusedError(
        Reason.UNSUPPORTED_CONTENT_TYPE, f"ce-datacontenttype is {content_type!r}; it may be {PROTOBUF} or {JSON}"
    )


def _from_protobuf(event_type: EventType, data: bytes) -> Message:
    try:
        body = event_type.message_class.FromString(data)
    except DecodeError as error:
        raise BodyRefusedError(Reason.UNDECODABLE, f"the body is not a Protobuf {event_type.name}: {error}") from None
    return _complete(event_type, body, len(data))


def _from_json(event_type: EventType, data: bytes) -> Message:
    value = _json_value(event_type, data)
    if fault := _shape_fault(event_type.descriptor, value):
        raise BodyRefusedError(Reason.UNDECODABLE, f"the body is not a ProtoJSON {event_type.name}: {fault}")
    body = event_type.message_class()
    try:
        json_format.ParseDict(value, body, ignore_unknown_fields=True)
    except RecursionError:
        raise _too_deep() from None
    except (json_format.Error, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        detail = f"the body is not a ProtoJSON {event_type.name}: {_json_fault(event_type, str(error))}"
        raise BodyRefusedError(Reason.UNDECODABLE, detail) from None
    return _complete(event_type, body, len(data))


def _complete(event_type: EventType, body: Message, size: int) -> Message:
    """The body, if it has its required fields (proto2 has such) and is not too complex to go on with."""
    if not body.IsInitialized():
        raise BodyRefusedError(
            Reason.UNDECODABLE, f"the body is not a whole {event_type.name}: it lacks required fields"
        )
    if is_complex(body, size):
        raise BodyRefusedError(Reason.TOO_COMPLEX, f"the body {TOO_COMPLEX}")
    return body


def _json_value(event_type: EventType, data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON body as Python values, no larger and no deeper than what can be handled at once."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_json_object, parse_constant=_no_json_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise BodyRefusedError(Reason.UNDECODABLE, f"the body is not a ProtoJSON {event_type.name}: {error}") from None
    count, depth, level = 0, 0, [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise _too_deep()
        inside = [entry for holder in level for entry in (holder.values() if isinstance(holder, dict) else holder)]
        count += len(inside)
        if count > MAX_JSON_VALUES:
            raise BodyRefusedError(Reason.TOO_COMPLEX, f"the JSON body has more than {MAX_JSON_VALUES} values")
        level = [entry for entry in inside if isinstance(entry, dict | list)]
    return value


def _too_deep() -> BodyRefusedError:
    return BodyRefusedError(Reason.TOO_COMPLEX, f"the JSON body is nested more than {MAX_JSON_DEPTH} deep")


def _json_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    json_object = dict(members)
    if len(json_object) < len(members):
        raise ValueError("a key stands twice in one object")
    return json_object


def _no_json_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _shape_fault(root: Descriptor, body: Any) -> str:  # noqa: ANN401 - any JSON value
    """What is wrong with the messages in a JSON body, that json_format would let pass; empty where nothing is.

    It reads an empty list, and most texts, as a message without fields, and takes a field under both its names.
    """
    fields_of: dict[str, dict[str, FieldDescriptor]] = {}
    waiting: list[tuple[Descriptor, Any, str]] = [(root, body, "the body")]
    while waiting:
        descriptor, value, where = waiting.pop()
        if not isinstance(value, dict):
            return f"{where} must be an object"
        fields = fields_of.get(descriptor.full_name)
        if fields is None:
            fields = {name: f for f in descriptor.fields for name in (f.name, f.json_name)}
            fields_of[descriptor.full_name] = fields
        for name, entry in value.items():
            field = fields.get(name)
            if field is None or entry is None:
                continue
            if name != field.json_name and field.json_name in value:
                return f"{name} stands twice, as {field.json_name} too"
            held = field.message_type
            if held is None:
                continue
            is_map = held.GetOptions().map_entry
            if is_map:
                held = held.fields_by_name["value"].message_type
            if held is None or held.file.package == "google.protobuf":  # whose JSON forms are their own
                continue
            if is_map:
                entries = list(entry.values()) if isinstance(entry, dict) else []
            elif field.is_repeated:
                entries = entry if isinstance(entry, list) else []
            else:
                entries = [entry]
            waiting += [(held, each, name) for each in entries]
    return ""


def _json_fault(event_type: EventType, message: str) -> str:
    """What json_format says, without the values that it quotes where the event has any that must not be shown."""
    if not event_type.redactor.is_needed:
        return message[:500]
    path = ".".join(_FAILING_FIELD.findall(message)[:20])
    return f"{path or 'a field'} has a value that does not fit it"


def is_complex(body: Message, size: int) -> bool:
    """Whether a body of that many bytes holds more messages than an event may; a small one can't hold that many."""
    return size > _COUNT_NESTED_ABOVE_BYTES and _nested_messages(body, MAX_NESTED_MESSAGES) > MAX_NESTED_MESSAGES


def _nested_messages(message: Message, limit: int) -> int:
    """How many messages a message holds at any depth, counted no further than just above the limit."""
    count = 0
    waiting = [message]
    while waiting and count <= limit:
        for field, value in waiting.pop().ListFields():
            if field.message_type is None:
                continue
            if field.message_type.GetOptions().map_entry:
                count += len(value)
            elif field.is_repeated:
                count += len(value)
                if count <= limit:
                    waiting.extend(value)
            else:
                count += 1
                waiting.append(value)
    return count


def violation(event_type: EventType, body: Message) -> str:
    """The first validation rule that the body breaks, with its field; empty where it breaks none."""
    try:
        event_type.validator.validate(body, fail_fast=True)
    except protovalidate.ValidationError as error:
        return str(error)
    except protovalidate.EvaluationError as error:
        return f"a rule can't be evaluated: {error}"
    return ""
