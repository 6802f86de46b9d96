"""The wire: CloudEvents 1.0 over NATS in binary mode, with Protobuf or ProtoJSON bodies.

`decode` turns a stored message into an `Event`, or says why no one can read it; `encode` makes what to publish.
Pure functions over values. Sources: CloudEvents 1.0.2, NATS protocol binding 1.0.2 (headers `ce-*`, section 3.1.3.2
for the percent-encoding), W3C Trace Context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from google.protobuf.message import Message

from choreography.v1 import dead_letter_events_pb2, lifecycle_pb2
from farandole.bodies import (
    JSON,
    MAX_BODY_BYTES,
    PROTOBUF,
    TOO_COMPLEX,
    BodyRefusedError,
    is_complex,
    read_body,
    violation,
)
from farandole.errors import InvalidEventError
from farandole.ids import canonical_digest, content_id, message_id
from farandole.partitions import is_key, partition_of
from farandole.reasons import Reason
from farandole.registry import EventType, Registry
from farandole.saga import Cause, Fact, Lifecycle

MAX_ATTRIBUTE_BYTES = 1024
"""Of any one CloudEvents attribute, as UTF-8."""

ANONYMOUS = "anonymous"
MALFORMED_HEADERS = "farandole-malformed-headers"
"""Set by the broker adapter, with what is wrong, where a message's headers can't be parsed."""

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
_NOT_PLAIN = re.compile(r"[^\x21\x23\x24\x26-\x7e]")


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
    if breach := violation(event_type, body):
        raise InvalidEventError(f"{name} breaks a rule: {breach}")
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise InvalidEventError(f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key!r}")
    data = body.SerializeToString(deterministic=True)
    if len(data) > MAX_BODY_BYTES:
        raise InvalidEventError(f"{name} has {len(data)} bytes; an event has at most {MAX_BODY_BYTES}")
    if is_complex(body, len(data)):
        raise InvalidEventError(f"{name} {TOO_COMPLEX}")
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
    try:
        body = read_body(event_type, attributes.get("ce-datacontenttype", JSON), message.data)
    except BodyRefusedError as refused:
        raise _Refused(refused.reason, refused.detail) from None
    key = str(getattr(body, event_type.key_field))
    if not is_key(key):
        raise _Refused(
            Reason.INVALID_KEY,
            f"{name}.{event_type.key_field} is no correlation key, [A-Za-z0-9_-]{{1,128}}: {key[:128]!r}",
            body=body,
        )
    if breach := violation(event_type, body):
        raise _Refused(Reason.RULE_VIOLATION, breach, key=key, body=body)
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
