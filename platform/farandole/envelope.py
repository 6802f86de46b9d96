"""The wire: CloudEvents 1.0 over NATS in binary mode, with Protobuf or ProtoJSON bodies.

`decode` turns a stored message into an `Event`, or says why no one can read it; `encode` makes what to publish.
Pure functions over values. Sources: CloudEvents 1.0.2, NATS protocol binding 1.0.2 (headers `ce-*`, section 3.1.3.2
for the percent-encoding), W3C Trace Context.
"""

from __future__ import annotations

import enum
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

import protovalidate
from choreography.v1 import lifecycle_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from farandole.errors import InvalidEventError
from farandole.partitions import is_key, partition_of
from farandole.registry import EventType, Registry
from farandole.saga import Cause, Fact, Lifecycle

MAX_BODY_BYTES = 256 * 1024
MAX_NESTED_MESSAGES = 10_000
"""Beyond this a body is hostile: decoding and checking it would take seconds."""
MAX_HEADER_CHARACTERS = 1024
"""Of any one CloudEvents attribute."""

ANONYMOUS = "anonymous"
PROTOBUF = "application/protobuf"
JSON = "application/json"
MALFORMED_HEADERS = "farandole-malformed-headers"
"""Set by the broker adapter, with what is wrong, where a message's headers can't be parsed."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")
_JSON_OPENERS = (b"{", b"[")
_COUNT_NESTED_ABOVE_BYTES = 16 * 1024
_NOT_PLAIN = re.compile(r'[^\x21\x23\x24\x26-\x7e]')


class Reason(enum.IntEnum):
    """Why no one can read a message (`choreography.v1.DeadLetterReason`)."""

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
    def partition(self) -> int:
        """The partition that the broker chose from the key in the subject under which it was published."""
        return int(self.subject.split(".", 2)[1])

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

    Raises `InvalidEventError` where the event breaks a rule of its type, has no usable key, or is too large: what
    would be a dead letter is refused before it is stored.
    """
    name = event_type.name
    violation = _violation(body)
    if violation:
        raise InvalidEventError(f"{name} breaks a rule: {violation}")
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise InvalidEventError(f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key!r}")
    data = body.SerializeToString(deterministic=True)
    if len(data) > MAX_BODY_BYTES:
        raise InvalidEventError(f"{name} has {len(data)} bytes; an event has at most {MAX_BODY_BYTES}")
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
    if attributes.get("ce-type", name) != name:
        raise _Refused(Reason.TYPE_MISMATCH, f"the subject names {name}, ce-type {attributes['ce-type']!r}")
    event_type = registry.get(name)
    if event_type is None:
        raise _Refused(Reason.UNKNOWN_TYPE, f"{name} is not an event of the descriptor set")
    if len(message.data) > MAX_BODY_BYTES:
        raise _Refused(
            Reason.TOO_LARGE, f"the body has {len(message.data)} bytes; an event has at most {MAX_BODY_BYTES}"
        )
    time = _time(attributes.get("ce-time")) or message.time
    body = _body(event_type, attributes.get("ce-datacontenttype", JSON), message.data)
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise _Refused(
            Reason.INVALID_KEY,
            f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key[:128]!r}",
            body=body,
        )
    violation = _violation(body)
    if violation:
        raise _Refused(Reason.RULE_VIOLATION, violation, key=key, body=body)
    if partition_of(key) != message.partition:
        raise _Refused(
            Reason.WRONG_PARTITION,
            f"the key {key!r} belongs to partition {partition_of(key)}, the event was stored in {message.partition}: "
            f"publish it to events.{key}.{name}",
            key=key,
            body=body,
        )
    return Event(
        event_type=event_type,
        body=body,
        key=key,
        partition=message.partition,
        sequence=message.sequence,
        stream_time=message.time,
        source=attributes.get("ce-source") or ANONYMOUS,
        id=attributes.get("ce-id") or content_id(name, key, message.data),
        time=time,
        causation_id=attributes.get("ce-causationid", ""),
        traceparent=attributes.get("traceparent", ""),
        digest=canonical_digest(body),
    )


def _attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """The CloudEvents attributes and `traceparent`, by lower-case header name, percent-decoded."""
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower()
        if name.startswith("ce-") or name == "traceparent":
            if len(value) > MAX_HEADER_CHARACTERS:
                raise _Refused(Reason.INVALID_HEADER, f"{name} has more than {MAX_HEADER_CHARACTERS} characters")
            attributes[name] = _percent_decoded(name, value) if "%" in value else value
        elif header == MALFORMED_HEADERS:
            raise _Refused(Reason.INVALID_HEADER, value)
    return attributes


def _percent_encoded(value: str) -> str:
    """As the NATS binding says: space, double quote, percent and all outside U+0021 to U+007E."""
    return _NOT_PLAIN.sub(lambda match: quote(match[0], safe=""), value)


def _percent_decoded(name: str, value: str) -> str:
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise _Refused(Reason.INVALID_HEADER, f"{name} is not percent-encoded UTF-8: {value!r}") from None


def _time(text: str | None) -> datetime | None:
    """An RFC 3339 time in UTC; None for none."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _Refused(Reason.INVALID_HEADER, f"ce-time is not an RFC 3339 time with an offset: {text!r}")


def _body(event_type: EventType, content_type: str, data: bytes) -> Message:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == PROTOBUF:
        return _from_protobuf(event_type, data)
    if media_type == JSON:
        return _from_json(event_type, data)
    raise _Refused(
        Reason.UNSUPPORTED_CONTENT_TYPE, f"ce-datacontenttype is {content_type!r}; it may be {PROTOBUF} or {JSON}"
    )


def _from_protobuf(event_type: EventType, data: bytes) -> Message:
    try:
        body = event_type.message_class.FromString(data)
    except DecodeError as error:
        raise _Refused(Reason.UNDECODABLE, f"the body is not a Protobuf {event_type.name}: {error}") from None
    if len(data) > _COUNT_NESTED_ABOVE_BYTES:
        _refuse_complex(_nested_messages(body, MAX_NESTED_MESSAGES))
    return body


def _from_json(event_type: EventType, data: bytes) -> Message:
    _refuse_complex(sum(data.count(opener) for opener in _JSON_OPENERS))
    body = event_type.message_class()
    try:
        json_format.Parse(data.decode(), body, ignore_unknown_fields=True)
    except (json_format.Error, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        detail = f"the body is not a ProtoJSON {event_type.name}: {str(error)[:500]}"
        raise _Refused(Reason.UNDECODABLE, detail) from None
    return body


def _refuse_complex(nested: int) -> None:
    if nested > MAX_NESTED_MESSAGES:
        raise _Refused(Reason.TOO_COMPLEX, f"the body has more than {MAX_NESTED_MESSAGES} nested messages or lists")


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


def _violation(body: Message) -> str:
    """The first validation rule that the body breaks, with its field; empty where it breaks none."""
    try:
        protovalidate.validate(body, fail_fast=True)
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
        case lifecycle_pb2.SagaCompleted() | lifecycle_pb2.SagaCompensated() | lifecycle_pb2.SagaFailed():
            return Lifecycle(body.definition, body.version, Cause(body.cause))
        case _:
            return None
