"""The wire: CloudEvents 1.0 over NATS in binary mode, with Protobuf or ProtoJSON bodies.

`decode` turns a stored message into an `Event`, or says why no one can read it; `encode` makes what to publish.
Pure functions over values. Sources: CloudEvents 1.0.2, NATS protocol binding 1.0.2 (headers `ce-*`, section 3.1.3.2
for the percent-encoding), W3C Trace Context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import protovalidate
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from choreography.v1 import dead_letter_events_pb2, lifecycle_pb2
from farandole.errors import InvalidEventError
from farandole.partitions import is_key, partition_of
from farandole.registry import EventType, Registry
from farandole.saga import Cause, Fact, Lifecycle

MAX_BODY_BYTES = 256 * 1024
MAX_NESTED_MESSAGES = 10_000
"""Messages and map entries in a body, at any depth. Checking more would hold up everyone else's events."""
MAX_JSON_VALUES = 10_000
"""Object members and list elements in a JSON body, at any depth: JSON costs ten times what Protobuf does."""
MAX_JSON_DEPTH = 100
"""Of objects and lists inside each other. Protobuf has the same limit for messages."""
MAX_ATTRIBUTE_BYTES = 1024
"""Of any one CloudEvents attribute, as UTF-8."""

ANONYMOUS = "anonymous"
PROTOBUF = "application/protobuf"
JSON = "application/json"
MALFORMED_HEADERS = "farandole-malformed-headers"
"""Set by the broker adapter, with what is wrong, where a message's headers can't be parsed."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")
_COUNT_NESTED_ABOVE_BYTES = 16 * 1024
_ATTRIBUTES = frozenset(
    {
        "ce-specversion",
        "ce-id",
        "ce-source",
        "ce-type",
        "ce-time",
        "ce-datacontenttype",
        "ce-causationid",
    }
)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RFC3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}T([01]\d|2[0-3]):\d{2}:\d{2}(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII | re.IGNORECASE
)
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What a CloudEvents string may not hold."""
_FAILING_FIELD = re.compile(r"Failed to parse (\w+) field: ")
_NOT_PLAIN = re.compile(r"[^\x21\x23\x24\x26-\x7e]")


class Reason(enum.IntEnum):
    """Why a delivery is given up on (`choreography.v1.DeadLetterReason`).

    The last three are a participant's; for all others no one can read the message.
    """

    TOO_LARGE = 1
    TOO_COMPLEX = 2
    UNKNOWN_TYPE = 3
    TYPE_MISMATCH = 4
    INVALID_HEADER = 5
    UNSUPPORTED_CONTENT_TYPE = 6
    UNDECODABLE = 7
    RULE_VIOLATION = 8
    INVALID_KEY = 9
    WRONG_PARTITION = 10
    REJECTED = 11
    RETRIES_EXHAUSTED = 12
    CRASHED = 13


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as the stream `EVENTS` stored it."""

    subject: str
    """`events.<partition>.<type>`."""
    headers: Mapping[str, str]
    data: bytes
    sequence: int
    time: datetime
    """When the stream stored it, in UTC."""

    @property
    def partition(self) -> int | None:
        """The partition that the broker chose from the key in the subject under which it was published.

        None where it chose none: it takes a wildcard as a subject to publish to, and stores that as it is.
        """
        token = self.subject.split(".", 2)[1]
        return int(token) if token.isascii() and token.isdigit() else None

    @property
    def type(self) -> str:
        """The event type that the subject names."""
        return self.subject.split(".", 2)[2]


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded, valid event at its place in the stream."""

    event_type: EventType
    body: Message
    key: str
    partition: int
    sequence: int
    stream_time: datetime
    source: str
    id: str
    time: datetime
    causation_id: str
    traceparent: str
    digest: bytes
    """SHA-256 of the canonical body: the same for the same fact, whether it came as Protobuf or as JSON."""
    message: StoredMessage = dataclasses.field(repr=False, compare=False)
    """What it was decoded from, for whoever must keep it."""

    @property
    def type(self) -> str:
        """The full message type."""
        return self.event_type.name

    @property
    def fact(self) -> Fact:
        """What the fold needs to know of it."""
        return Fact(
            sequence=self.sequence,
            stream_time=self.stream_time,
            type=self.type,
            source=self.source,
            id=self.id,
            digest=self.digest,
            time=self.time,
            causation_id=self.causation_id,
            reason=str(getattr(self.body, "reason", "")) if self.event_type.has_reason else "",
            lifecycle=_lifecycle_of(self.body),
        )


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stored message that no one can read, and why."""

    message: StoredMessage
    reason: Reason
    detail: str
    key: str = ""
    """The correlation key, where the body could be read that far."""
    body: Message | None = None
    """The body, where it could be decoded."""

    @property
    def source(self) -> str:
        """Who published it, as far as a header says so that can be read."""
        return _legible(self.message.headers).get("ce-source", ANONYMOUS)

    @property
    def id(self) -> str:
        """Its id, as far as a header says so that can be read; else the one of its content."""
        message = self.message
        return _legible(message.headers).get("ce-id") or content_id(message.type, self.key, message.data)

    @property
    def traceparent(self) -> str:
        """Its trace; empty where it has none."""
        return _legible(self.message.headers).get("traceparent", "")


@dataclass(frozen=True, slots=True)
class Publication:
    """What to hand to the broker."""

    key: str
    subject: str
    headers: Mapping[str, str]
    data: bytes


def canonical_digest(body: Message) -> bytes:
    """SHA-256 of the body's deterministic serialization."""
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def content_id(event_type: str, key: str, data: bytes) -> str:
    """The id of an event that came without one: the same content has the same id."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join((event_type, key, hashlib.sha256(data).hexdigest()))))


def derived_id(parts: Sequence[str]) -> str:
    """The id of what follows from `parts`: deriving it again gives the same id. Parts hold no line feed."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


def message_id(source: str, event_id: str) -> str:
    """`Nats-Msg-Id` of an event: its identity, source and id, unambiguously joined."""
    return f"{quote(source, safe='')}/{quote(event_id, safe='')}"


def encode(
    event_type: EventType,
    body: Message,
    *,
    source: str,
    event_id: str = "",
    time: datetime,
    causation_id: str = "",
    traceparent: str = "",
) -> Publication:
    """What to publish for an event. An empty `event_id` means the id of its content.

    Raises `InvalidEventError` where the event breaks a rule of its type, has no usable key, or is too large, or an
    id can't be one: what would be a dead letter is refused before it is stored.
    """
    name = event_type.name
    violation = _violation(event_type, body)
    if violation:
        raise InvalidEventError(f"{name} breaks a rule: {violation}")
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise InvalidEventError(f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key!r}")
    data = body.SerializeToString(deterministic=True)
    if len(data) > MAX_BODY_BYTES:
        raise InvalidEventError(f"{name} has {len(data)} bytes; an event has at most {MAX_BODY_BYTES}")
    if _is_complex(body, len(data)):
        raise InvalidEventError(f"{name} {_TOO_COMPLEX}")
    for attribute, value in (("id", event_id), ("source", source), ("causation id", causation_id)):
        if fault := _attribute_fault(value):
            raise InvalidEventError(f"the {attribute} of {name} {fault}")
    identity = event_id or content_id(name, key, data)
    headers = {
        "ce-specversion": "1.0",
        "ce-id": _percent_encoded(identity),
        "ce-source": _percent_encoded(source),
        "ce-type": name,
        "ce-time": time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "ce-datacontenttype": PROTOBUF,
        "ce-correlationid": key,
        "Nats-Msg-Id": message_id(source, identity),
    }
    if causation_id:
        headers["ce-causationid"] = _percent_encoded(causation_id)
    if traceparent:
        headers["traceparent"] = traceparent
    return Publication(key=key, subject=f"events.{key}.{name}", headers=headers, data=data)


class _Refused(Exception):  # noqa: N818 - a jump inside this module, never seen outside
    def __init__(self, reason: Reason, detail: str, *, key: str = "", body: Message | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.key, self.body = reason, detail, key, body


def unknown_type(name: str) -> str:
    """What is wrong with an event of a type that nobody knows, in words."""
    return f"{name} is not an event of the descriptor set"


def decode(registry: Registry, message: StoredMessage) -> Event | Unreadable:
    """The event that a stored message holds, or why no one can read it. Never raises."""
    try:
        return _decode(registry, message)
    except _Refused as refused:
        return Unreadable(message, refused.reason, refused.detail, key=refused.key, body=refused.body)


def _decode(registry: Registry, message: StoredMessage) -> Event:
    name = message.type
    attributes = _attributes(message.headers)
    if attributes.get("ce-specversion", "1.0") != "1.0":
        raise _Refused(Reason.INVALID_HEADER, f"ce-specversion is {attributes['ce-specversion']!r}, not '1.0'")
    time = _time(attributes.get("ce-time")) or message.time
    if attributes.get("ce-type", name) != name:
        raise _Refused(Reason.TYPE_MISMATCH, f"the subject names {name}, ce-type {attributes['ce-type']!r}")
    event_type = registry.get(name)
    if event_type is None:
        raise _Refused(Reason.UNKNOWN_TYPE, unknown_type(name))
    if len(message.data) > MAX_BODY_BYTES:
        raise _Refused(
            Reason.TOO_LARGE, f"the body has {len(message.data)} bytes; an event has at most {MAX_BODY_BYTES}"
        )
    body = _body(event_type, attributes.get("ce-datacontenttype", JSON), message.data)
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise _Refused(
            Reason.INVALID_KEY,
            f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key[:128]!r}",
            body=body,
        )
    violation = _violation(event_type, body)
    if violation:
        raise _Refused(Reason.RULE_VIOLATION, violation, key=key, body=body)
    partition = partition_of(key)
    if partition != message.partition:
        stored = "none" if message.partition is None else message.partition
        raise _Refused(
            Reason.WRONG_PARTITION,
            f"the key {key!r} belongs to partition {partition}, the event was stored in {stored}: "
            f"publish it to events.{key}.{name}",
            key=key,
            body=body,
        )
    return Event(
        event_type=event_type,
        body=body,
        key=key,
        partition=partition,
        sequence=message.sequence,
        stream_time=message.time,
        source=attributes.get("ce-source") or ANONYMOUS,
        id=attributes.get("ce-id") or content_id(name, key, message.data),
        time=time,
        causation_id=attributes.get("ce-causationid", ""),
        traceparent=attributes.get("traceparent", ""),
        digest=canonical_digest(body),
        message=message,
    )


def _attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """The CloudEvents attributes that mean something here, and `traceparent`, by lower-case header name.

    Percent-decoded once. An empty header is an absent one; so is a malformed `traceparent`, as W3C says.
    """
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower()
        if name in _ATTRIBUTES:
            if attribute := _attribute(name, value):
                attributes[name] = attribute
        elif name == "traceparent":
            if _TRACEPARENT.fullmatch(value):
                attributes[name] = value
        elif header == MALFORMED_HEADERS:
            raise _Refused(Reason.INVALID_HEADER, value[:MAX_ATTRIBUTE_BYTES])
    return attributes


def _legible(headers: Mapping[str, str]) -> dict[str, str]:
    """Those attributes that can be read, whatever is wrong with the others."""
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        with contextlib.suppress(_Refused):
            attributes |= _attributes({header: value})
    return attributes


def _attribute(name: str, value: str) -> str:
    if "%" in value:
        if _STRAY_PERCENT.search(value):
            raise _Refused(Reason.INVALID_HEADER, f"{name} has a percent sign that starts no %XX: {value[:100]!r}")
        try:
            value = unquote_to_bytes(value).decode()
        except UnicodeError:
            raise _Refused(Reason.INVALID_HEADER, f"{name} is not percent-encoded UTF-8: {value[:100]!r}") from None
    if fault := _attribute_fault(value):
        raise _Refused(Reason.INVALID_HEADER, f"{name} {fault}")
    return value


def _attribute_fault(value: str) -> str:
    """Why a text can't be a CloudEvents attribute (CloudEvents 1.0.2, type system, String); empty where it can."""
    if _CONTROL.search(value):
        return "has a control character or half a surrogate pair"
    if len(value.encode()) > MAX_ATTRIBUTE_BYTES:
        return f"has more than {MAX_ATTRIBUTE_BYTES} bytes"
    return ""


def _percent_encoded(value: str) -> str:
    """As the NATS binding says: space, double quote, percent and all outside U+0021 to U+007E."""
    return _NOT_PLAIN.sub(lambda match: quote(match[0], safe=""), value)


def _time(text: str | None) -> datetime | None:
    """An RFC 3339 time in UTC, to the microsecond; None for none."""
    if text is None:
        return None
    if _RFC3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # no such day, or one outside the calendar: refused like any other text
    raise _Refused(Reason.INVALID_HEADER, f"ce-time is not an RFC 3339 time with an offset: {text[:100]!r}")


def _body(event_type: EventType, content_type: str, data: bytes) -> Message:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == PROTOBUF:
        return _from_protobuf(event_type, data)
    if media_type == JSON:
        return _from_json(event_type, data)
    raise _Refused(
        Reason.UNSUPPORTED_CONTENT_TYPE, f"ce-datacontenttype is {content_type!r}; it may be {PROTOBUF} or {JSON}"
    )


_TOO_COMPLEX = f"has more than {MAX_NESTED_MESSAGES} nested messages"


def _from_protobuf(event_type: EventType, data: bytes) -> Message:
    try:
        body = event_type.message_class.FromString(data)
    except DecodeError as error:
        raise _Refused(Reason.UNDECODABLE, f"the body is not a Protobuf {event_type.name}: {error}") from None
    return _complete(event_type, body, len(data))


def _from_json(event_type: EventType, data: bytes) -> Message:
    value = _json_value(event_type, data)
    if fault := _shape_fault(event_type.descriptor, value):
        raise _Refused(Reason.UNDECODABLE, f"the body is not a ProtoJSON {event_type.name}: {fault}")
    body = event_type.message_class()
    try:
        json_format.ParseDict(value, body, ignore_unknown_fields=True)
    except RecursionError:
        raise _too_deep() from None
    except (json_format.Error, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        detail = f"the body is not a ProtoJSON {event_type.name}: {_json_fault(event_type, str(error))}"
        raise _Refused(Reason.UNDECODABLE, detail) from None
    return _complete(event_type, body, len(data))


def _complete(event_type: EventType, body: Message, size: int) -> Message:
    """The body, if it has its required fields (proto2 has such) and is not too complex to go on with."""
    if not body.IsInitialized():
        raise _Refused(Reason.UNDECODABLE, f"the body is not a whole {event_type.name}: it lacks required fields")
    if _is_complex(body, size):
        raise _Refused(Reason.TOO_COMPLEX, f"the body {_TOO_COMPLEX}")
    return body


def _json_value(event_type: EventType, data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON body as Python values, no larger and no deeper than what can be handled at once."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_json_object, parse_constant=_no_json_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _Refused(Reason.UNDECODABLE, f"the body is not a ProtoJSON {event_type.name}: {error}") from None
    count, depth, level = 0, 0, [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise _too_deep()
        inside = [entry for holder in level for entry in (holder.values() if isinstance(holder, dict) else holder)]
        count += len(inside)
        if count > MAX_JSON_VALUES:
            raise _Refused(Reason.TOO_COMPLEX, f"the JSON body has more than {MAX_JSON_VALUES} values")
        level = [entry for entry in inside if isinstance(entry, dict | list)]
    return value


def _too_deep() -> _Refused:
    return _Refused(Reason.TOO_COMPLEX, f"the JSON body is nested more than {MAX_JSON_DEPTH} deep")


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


def _is_complex(body: Message, size: int) -> bool:
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


def _violation(event_type: EventType, body: Message) -> str:
    """The first validation rule that the body breaks, with its field; empty where it breaks none."""
    try:
        event_type.validator.validate(body, fail_fast=True)
    except protovalidate.ValidationError as error:
        return str(error)
    except protovalidate.EvaluationError as error:
        return f"a rule can't be evaluated: {error}"
    return ""


def _lifecycle_of(body: Message) -> Lifecycle | None:
    match body:
        case lifecycle_pb2.SagaTimedOut():
            return Lifecycle(body.definition, body.version, Cause(body.cause), tuple(body.steps))
        case lifecycle_pb2.StepOverdue():
            return Lifecycle(body.definition, body.version, Cause(body.cause), (body.step,), body.compensation)
        case lifecycle_pb2.StepVoided():
            return Lifecycle(body.definition, body.version, Cause(body.cause), (body.step,))
        case lifecycle_pb2.SagaStalled():
            return Lifecycle(body.definition, body.version, Cause(body.cause))
        case dead_letter_events_pb2.DeadLetterRecorded():
            dead_letter = (body.participant, body.sequence)
            return Lifecycle(body.definition, 0, Cause.UNSPECIFIED, (body.step,), body.compensation, dead_letter)
        case (
            dead_letter_events_pb2.DeadLetterRedriven()
            | dead_letter_events_pb2.DeadLetterDiscarded()
            | dead_letter_events_pb2.DeadLetterSuperseded()
        ):
            dead_letter = (body.participant, body.sequence)
            return Lifecycle(body.definition, 0, Cause.UNSPECIFIED, (body.step,), dead_letter=dead_letter)
        case lifecycle_pb2.SagaCompleted() | lifecycle_pb2.SagaCompensated() | lifecycle_pb2.SagaFailed():
            return Lifecycle(body.definition, body.version, Cause(body.cause))
        case _:
            return None
