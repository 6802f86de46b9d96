"""The wire: what is published, what is read back, and what is refused before it is stored."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from choreography.v1 import lifecycle_pb2, saga_pb2
from farandole.bodies import MAX_BODY_BYTES
from farandole.envelope import (
    MALFORMED_HEADERS,
    MAX_ATTRIBUTE_BYTES,
    Event,
    Publication,
    StoredMessage,
    Unreadable,
    decode,
    encode,
)
from farandole.errors import InvalidEventError
from farandole.partitions import partition_of
from farandole.reasons import Reason
from farandole.registry import EventType, Registry
from farandole.saga import Cause, Lifecycle
from orders.v1 import order_events_pb2, order_pb2
from shipping.v1 import shipping_events_pb2
from tests.unit.schemas import SchemaFile, field

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
REGISTRY = Registry.of_classes(
    [order_events_pb2.OrderCreated, shipping_events_pb2.OrderShipped, shipping_events_pb2.ShippingFailed]
)
SHIPPED = REGISTRY.types["shipping.v1.OrderShipped"]
CREATED = REGISTRY.types["orders.v1.OrderCreated"]
SECRET = "4111-1111-1111-1111"


def _shipped(key: str = "ord-1") -> shipping_events_pb2.OrderShipped:
    return shipping_events_pb2.OrderShipped(order_id=key, tracking_number="T-1")


def _stored(publication: Publication, **headers: str) -> StoredMessage:
    event_type = publication.subject.split(".", 2)[2]
    subject = f"events.{partition_of(publication.key)}.{event_type}"
    return StoredMessage(subject, {**publication.headers, **headers}, publication.data, 7, NOW)


def _json(body: str, type_name: str = "shipping.v1.OrderShipped", key: str = "ord-1", **headers: str) -> StoredMessage:
    return StoredMessage(f"events.{partition_of(key)}.{type_name}", headers, body.encode(), 7, NOW)


def _refused(message: StoredMessage) -> Unreadable:
    outcome = decode(REGISTRY, message)
    assert isinstance(outcome, Unreadable), outcome
    return outcome


def _event(message: StoredMessage) -> Event:
    outcome = decode(REGISTRY, message)
    assert isinstance(outcome, Event), outcome
    return outcome


def test_what_is_encoded_is_decoded() -> None:
    publication = encode(
        SHIPPED,
        _shipped(),
        source="shipping",
        event_id="e-1",
        time=datetime(2026, 1, 2, 5, 0, tzinfo=timezone(timedelta(hours=2))),
        causation_id="e-0",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    event = _event(_stored(publication))
    assert event.body == _shipped()
    assert (event.key, event.source, event.id, event.causation_id) == ("ord-1", "shipping", "e-1", "e-0")
    assert event.time == datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
    assert (event.sequence, event.stream_time, event.partition) == (7, NOW, partition_of("ord-1"))
    assert event.traceparent.endswith("-01")
    assert (event.fact.sequence, event.fact.type, event.fact.digest) == (7, event.type, event.digest)


def test_without_an_id_the_same_content_has_the_same_id() -> None:
    def identity(key: str) -> str:
        return encode(SHIPPED, _shipped(key), source="a", time=NOW).headers["ce-id"]

    assert identity("ord-1") == identity("ord-1") != identity("ord-2")


def test_the_digest_is_the_same_in_protobuf_and_in_json() -> None:
    binary = _event(_stored(encode(SHIPPED, _shipped(), source="a", time=NOW)))
    text = _event(_json('{"tracking_number":"T-1","orderId":"ord-1"}'))
    other = _event(_json('{"tracking_number":"T-2","orderId":"ord-1"}'))
    assert binary.digest == text.digest != other.digest


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (shipping_events_pb2.OrderShipped(order_id="ord-1"), "tracking_number"),
        (shipping_events_pb2.OrderShipped(tracking_number="T"), "order_id"),
        (shipping_events_pb2.OrderShipped(order_id="a.b", tracking_number="T"), "order_id"),
        (shipping_events_pb2.OrderShipped(order_id="a", tracking_number="T" * MAX_BODY_BYTES), "at most 262144"),
    ],
)
def test_an_event_that_no_one_could_read_is_not_published(body: shipping_events_pb2.OrderShipped, reason: str) -> None:
    with pytest.raises(InvalidEventError, match=reason):
        encode(SHIPPED, body, source="a", time=NOW)


@pytest.mark.parametrize("attribute", ["source", "event_id", "causation_id"])
@pytest.mark.parametrize("value", ["a\nb", "a\x00", "\x85", "\ud800", "x" * (MAX_ATTRIBUTE_BYTES + 1), "ü" * 513])
def test_an_attribute_that_no_one_could_read_is_not_published(attribute: str, value: str) -> None:
    attributes = {"source": "a", attribute: value}
    with pytest.raises(InvalidEventError, match="OrderShipped has"):
        encode(SHIPPED, _shipped(), time=NOW, **attributes)


def test_the_longest_attributes_are_read_back() -> None:
    longest = "ü%" * (MAX_ATTRIBUTE_BYTES // 3)
    publication = encode(SHIPPED, _shipped(), source=longest, event_id=longest, causation_id=longest, time=NOW)
    event = _event(_stored(publication))
    assert event.source == event.id == event.causation_id == longest


def test_an_id_that_came_raw_can_be_passed_on_as_a_cause() -> None:
    """Percent-encoding makes it six times as long; that must not make the next event unreadable."""
    raw = "ü" * 500
    cause = _event(_stored(encode(SHIPPED, _shipped(), source="a", time=NOW), **{"ce-id": raw}))
    effect = encode(SHIPPED, _shipped(), source="b", causation_id=cause.id, time=NOW)
    assert _event(_stored(effect)).causation_id == raw


def test_a_body_too_complex_to_read_is_not_published() -> None:
    file = SchemaFile()
    inner = file.message("Inner")
    field(inner, "text")
    field(file.event(), "inners", of=file.type_of("Inner"), repeated=True)
    registry = Registry.of_descriptor_set(file.serialized(), where="made")
    event_type = registry.types[file.type_of("Happened")]

    def body(count: int) -> bytes:
        message = event_type.message_class.FromString(b"\x0a\x01a" + b"\x12\x00" * count)
        return encode(event_type, message, source="a", time=NOW).data

    assert body(10_000)
    with pytest.raises(InvalidEventError, match="nested messages"):
        body(10_001)


def test_headers_that_the_broker_adapter_could_not_parse_are_refused_with_what_it_says() -> None:
    refused = _refused(_json('{"orderId":"ord-1","trackingNumber":"T"}', **{MALFORMED_HEADERS: "line 2 has no colon"}))
    assert (refused.reason, refused.detail) == (Reason.INVALID_HEADER, "line 2 has no colon")


def test_a_refusal_keeps_what_could_be_read() -> None:
    refused = _refused(_json('{"orderId":"ord-1"}'))
    assert (refused.reason, refused.key) == (Reason.RULE_VIOLATION, "ord-1")
    assert refused.body == shipping_events_pb2.OrderShipped(order_id="ord-1")
    assert refused.detail.startswith("tracking_number: ")


def test_a_wrong_partition_says_where_the_event_belongs() -> None:
    message = _json('{"orderId":"ord-1","trackingNumber":"T"}', key="ord-3")
    assert message.partition != partition_of("ord-1")
    refused = _refused(message)
    assert refused.reason == Reason.WRONG_PARTITION
    assert "publish it to events.ord-1.shipping.v1.OrderShipped" in refused.detail


@pytest.mark.parametrize("token", ["*", ">", "key", "", "-1", "1_0", "\u0663"])
def test_what_the_broker_stored_in_no_partition_belongs_elsewhere(token: str) -> None:
    """It does not map a subject with a wildcard."""
    placed = _json('{"orderId":"ord-1","trackingNumber":"T"}')
    refused = _refused(replace(placed, subject=f"events.{token}.shipping.v1.OrderShipped"))
    assert refused.reason == Reason.WRONG_PARTITION
    assert "publish it to events.ord-1.shipping.v1.OrderShipped" in refused.detail


@pytest.mark.parametrize(
    "body",
    [
        '{"orderId":"ord-1","lines":{"card":"SECRET"}}',
        '{"orderId":"ord-1","card":{"number":"SECRET"}}',
        '{"orderId":"ord-1","card":["SECRET"]}',
        '{"orderId":"ord-1","lines":[{"quantity":"SECRET"}]}',
        '{"orderId":"ord-1","lines":[{"quantity":1, "sku":{"a":"SECRET"}}]}',
        '{"orderId":"ord-1","lines":["SECRET"]}',
        '{"orderId":"ord-1","card":"SECRET","card":"SECRET"}',
        '{"orderId":"ord-1","card":"SECRET"',
        '["SECRET"]',
        '"SECRET"',
    ],
)
def test_a_refusal_does_not_quote_what_must_not_be_shown(body: str) -> None:
    refused = _refused(_json(body.replace("SECRET", SECRET), "orders.v1.OrderCreated"))
    assert refused.reason == Reason.UNDECODABLE
    assert SECRET not in refused.detail


def test_a_value_that_does_not_fit_is_named_by_its_field() -> None:
    body = '{"orderId":"ord-1","lines":[{"sku":"a","quantity":"many"}]}'
    assert "lines.quantity" in _refused(_json(body, "orders.v1.OrderCreated")).detail
    body = '{"orderId":"ord-1","trackingNumber":7}'
    assert "trackingNumber" in _refused(_json(body)).detail


def test_a_required_field_of_proto2_is_required() -> None:
    file = SchemaFile(syntax="proto2")
    field(file.event(), "must", required=True)
    registry = Registry.of_descriptor_set(file.serialized(), where="made")
    name = file.type_of("Happened")
    for body, headers in (
        (b"\x0a\x01a", {"ce-datacontenttype": "application/protobuf"}),
        (b'{"id":"a"}', {}),
    ):
        outcome = decode(registry, StoredMessage(f"events.{partition_of('a')}.{name}", headers, body, 1, NOW))
        assert isinstance(outcome, Unreadable)
        assert outcome.reason == Reason.UNDECODABLE


def test_why_a_step_failed_is_in_the_fact() -> None:
    failed = encode(
        REGISTRY.types["shipping.v1.ShippingFailed"],
        shipping_events_pb2.ShippingFailed(order_id="ord-1", reason="no such street"),
        source="shipping",
        time=NOW,
    )
    assert _event(_stored(failed)).fact.reason == "no such street"
    assert _event(_stored(encode(SHIPPED, _shipped(), source="a", time=NOW))).fact.reason == ""


def _lifecycle_bodies() -> list[tuple[lifecycle_pb2.SagaTimedOut | lifecycle_pb2.StepOverdue, Lifecycle]]:
    common = {"saga_id": "ord-1", "definition": "d", "version": 2}
    timed_out = lifecycle_pb2.SagaTimedOut(**common, cause=saga_pb2.SAGA_CAUSE_DEADLINE, steps=["b", "a"])  # type: ignore[arg-type]
    timed_out.deadline.FromDatetime(NOW)
    overdue = lifecycle_pb2.StepOverdue(**common, step="a", participant="p", compensation=True)  # type: ignore[arg-type]
    overdue.deadline.FromDatetime(NOW)
    return [
        (timed_out, Lifecycle("d", 2, Cause.DEADLINE, ("b", "a"))),
        (overdue, Lifecycle("d", 2, Cause.UNSPECIFIED, ("a",), compensation=True)),
    ]


@pytest.mark.parametrize(("body", "expected"), _lifecycle_bodies(), ids=["SagaTimedOut", "StepOverdue"])
def test_a_lifecycle_event_says_what_it_says_of_its_saga(body: lifecycle_pb2.SagaTimedOut, expected: Lifecycle) -> None:
    event_type = REGISTRY.types[body.DESCRIPTOR.full_name]
    assert _event(_stored(encode(event_type, body, source="correlator", time=NOW))).fact.lifecycle == expected


@pytest.mark.parametrize("name", ["SagaCompleted", "SagaCompensated", "SagaFailed", "StepVoided"])
def test_every_lifecycle_event_is_known_as_one(name: str) -> None:
    event_type: EventType = REGISTRY.types[f"choreography.v1.{name}"]
    values = {"saga_id": "ord-1", "definition": "d", "version": 1, "cause": 1, "step": "s", "participant": "p"}
    known = event_type.descriptor.fields_by_name
    body = event_type.message_class(**{field: value for field, value in values.items() if field in known})
    lifecycle = _event(_stored(encode(event_type, body, source="correlator", time=NOW))).fact.lifecycle
    assert lifecycle is not None
    assert (lifecycle.definition, lifecycle.version, lifecycle.cause) == ("d", 1, Cause.STEP_FAILURE)
    assert lifecycle.steps == (("s",) if name == "StepVoided" else ())


# what is hostile

PROTOBUF = {"ce-datacontenttype": "application/protobuf"}
_LINE = order_pb2.OrderLine(sku="a", quantity=1).SerializeToString()
_ORDER = order_events_pb2.OrderCreated(
    order_id="ord-1",
    customer_id="c",
    currency="EUR",
    card="x",
    address="y",
    lines=[order_pb2.OrderLine.FromString(_LINE)],
).SerializeToString()
_ROOM = MAX_BODY_BYTES - len(_ORDER)


def _filled(prefix: str, unit: str, suffix: str) -> bytes:
    count = (MAX_BODY_BYTES - len(prefix) - len(suffix)) // len(unit)
    return (prefix + unit * count + suffix).encode()


HOSTILE = {
    "tiny submessages": (PROTOBUF, _ORDER + b"\x1a\x00" * (_ROOM // 2)),
    "valid submessages": (PROTOBUF, _ORDER + (b"\x1a\x05" + _LINE) * 9_990),
    "unknown numbers": (PROTOBUF, _ORDER + b"\xf8\x07\x01" * (_ROOM // 3)),
    "unknown texts": (PROTOBUF, _ORDER + b"\xfa\x07\x00" * (_ROOM // 3)),
    "unknown groups": (PROTOBUF, _ORDER + b"\xfb\x07\xfc\x07" * (_ROOM // 4)),
    "deep groups": (PROTOBUF, _ORDER + b"\xfb\x07" * (_ROOM // 4) + b"\xfc\x07" * (_ROOM // 4)),
    "one field again and again": (PROTOBUF, _ORDER + b"\x12\x01c" * (_ROOM // 3)),
    "eight MiB of submessages": (PROTOBUF, b"\x1a\x00" * (4 * 1024 * 1024)),
    "eight MiB of brackets": ({}, b"[" * (8 * 1024 * 1024)),
    "JSON objects in a list": ({}, _filled('{"orderId":"ord-1","lines":[{}', ",{}", "]}")),
    "as many JSON objects as may be": ({}, b'{"lines":[' + b'{"sku":"a","quantity":1},' * 3_300 + b"{}]}"),
    "as many empty JSON objects as may be": ({}, b'{"orderId":"ord-1","lines":[' + b"{}," * 9_990 + b"{}]}"),
    "JSON texts where messages belong": ({}, _filled('{"orderId":"ord-1","lines":[""', ',""', "]}")),
    "JSON numbers in an unknown field": ({}, _filled('{"orderId":"ord-1","x":[1', ",1", "]}")),
    "JSON objects in each other": ({}, _filled("", '{"x":', "1")),
    "JSON lists in each other": ({}, b"[" * (MAX_BODY_BYTES // 2) + b"]" * (MAX_BODY_BYTES // 2)),
    "a key again and again": ({}, _filled('{"a":1', ',"a":1', "}")),
    "a giant integer": ({}, _filled('{"lines":[{"quantity":', "9", "}]}")),
    "a giant integer as text": ({}, _filled('{"lines":[{"quantity":"', "9", '"}]}')),
    "large integers": ({}, ('{"orderId":"ord-1","x":[' + ",".join(["9" * 4300] * 60) + "]}").encode()),
    "a giant fraction": ({}, _filled('{"lines":[{"quantity":0.', "9", "}]}")),
    "a giant exponent": ({}, _filled('{"x":1e', "9", "}")),
    "escapes": ({}, _filled('{"customerId":"', "\\u0041", '"}')),
    "half surrogate pairs": ({}, _filled('{"customerId":"', "\\ud800", '"}')),
    "an unfinished text": ({}, _filled('{"customerId":"', "a", "")),
    "white space": ({}, b" " * MAX_BODY_BYTES),
    "a percent-encoded id": ({"ce-id": "%41" * 20_000}, b"{}"),
    "a stray percent sign in each place": ({"ce-id": "%" * 60_000}, b"{}"),
    "a time of many digits": ({"ce-time": "2026-01-01T00:00:00." + "1" * 60_000 + "Z"}, b"{}"),
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_message_costs_much_more_than_a_tenth_of_a_second(hostile: str) -> None:
    headers, data = HOSTILE[hostile]
    subject = f"events.{partition_of('ord-1')}.orders.v1.OrderCreated"
    message = StoredMessage(subject, headers, data, 1, NOW)
    fastest = min(_seconds(message) for _ in range(3))  # of three, since other processes share this machine
    assert fastest < 0.15


def _seconds(message: StoredMessage) -> float:
    began = time.process_time()
    decode(REGISTRY, message)
    return time.process_time() - began
