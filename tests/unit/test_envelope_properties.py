"""The wire under any input: nothing raises, and whatever is valid comes back as it was."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from hypothesis import example, given
from hypothesis import strategies as st

from farandole.envelope import MAX_ATTRIBUTE_BYTES, Event, StoredMessage, Unreadable, decode, encode
from farandole.ids import content_id, derived_id, message_id
from farandole.partitions import partition_of
from farandole.registry import Registry
from orders.v1 import order_events_pb2
from shipping.v1 import shipping_events_pb2

REGISTRY = Registry.of_classes([order_events_pb2.OrderCreated, shipping_events_pb2.OrderShipped])
CREATED = REGISTRY.types["orders.v1.OrderCreated"]
STREAM_TIME = datetime(2026, 1, 2, tzinfo=UTC)

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
CONTROL = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
ATTRIBUTES = st.text(st.characters(codec="utf-8", exclude_characters=CONTROL), min_size=1).filter(
    lambda text: len(text.encode()) <= MAX_ATTRIBUTE_BYTES
)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - bounds must be naive
ORDERS = st.fixed_dictionaries(
    {
        "order_id": KEYS,
        "customer_id": TEXT,
        "lines": st.lists(
            st.fixed_dictionaries(
                {
                    "sku": TEXT,
                    "quantity": st.integers(1, 1_000_000),
                    "unit_price_cents": st.integers(0, 100_000_000),
                }
            ),
            min_size=1,
            max_size=5,
        ),
        "currency": st.from_regex(r"[A-Z]{3}", fullmatch=True),
        "card": TEXT,
        "address": TEXT,
    }
)
TYPES = st.sampled_from(sorted(REGISTRY.types)) | st.text(min_size=1, max_size=30)
NAMES = st.sampled_from(
    [
        "ce-specversion",
        "ce-id",
        "CE-ID",
        "ce-source",
        "ce-type",
        "ce-time",
        "ce-datacontenttype",
        "ce-causationid",
        "ce-correlationid",
        "traceparent",
        "Nats-Msg-Id",
        "farandole-malformed-headers",
    ]
)
VALUES = (
    st.text(max_size=40)
    | st.text(alphabet="%0123456789abcdefgZ\ud800é\n ", max_size=12)
    | st.sampled_from(
        ["", "1.0", "application/json", "application/protobuf", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"]
    )
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["orderId", "order_id", "lines", "sku", "quantity", "card", "deadline", "steps", "cause"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
BODIES = st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode())


@given(partition=st.integers(0, 15), type_name=TYPES, headers=st.dictionaries(NAMES, VALUES, max_size=6), data=BODIES)
@example(partition=0, type_name="orders.v1.OrderCreated", headers={"ce-id": "%41\ud800"}, data=b"{}")
@example(partition=0, type_name="orders.v1.OrderCreated", headers={"ce-id": "\ud800"}, data=b"{}")
@example(partition=0, type_name="orders.v1.OrderCreated", headers={"ce-time": "0001-01-01T00:00:00+23:59"}, data=b"{}")
@example(partition=0, type_name="orders.v1.OrderCreated", headers={}, data=b'{"lines":[[[]]]}')
@example(partition=0, type_name="orders.v1.OrderCreated", headers={}, data=b'{"lines":{"sku":1}}')
def test_no_message_makes_decode_raise(partition: int, type_name: str, headers: dict[str, str], data: bytes) -> None:
    outcome = decode(REGISTRY, StoredMessage(f"events.{partition}.{type_name}", headers, data, 1, STREAM_TIME))
    if isinstance(outcome, Unreadable):
        assert outcome.detail or "farandole-malformed-headers" in headers
    else:
        # what is read can be stored and passed on: every text is UTF-8, and it can be published again
        assert outcome.partition == partition_of(outcome.key) == partition
        encode(
            outcome.event_type,
            outcome.body,
            source=outcome.source,
            event_id=outcome.id,
            time=outcome.time,
            causation_id=outcome.causation_id,
            traceparent=outcome.traceparent,
        )


@given(valid=ORDERS, flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_event_is_an_event_or_unreadable(valid: dict[str, Any], flips: list[tuple[int, int]]) -> None:
    body = order_events_pb2.OrderCreated(**valid)
    for data, content_type in (
        (bytearray(body.SerializeToString()), "application/protobuf"),
        (bytearray(json_format.MessageToJson(body).encode()), "application/json"),
    ):
        for place, byte in flips:
            data[place % len(data)] = byte
        subject = f"events.{partition_of(body.order_id)}.orders.v1.OrderCreated"
        headers = {"ce-datacontenttype": content_type}
        assert isinstance(
            decode(REGISTRY, StoredMessage(subject, headers, bytes(data), 1, STREAM_TIME)), Event | Unreadable
        )


@given(
    valid=ORDERS,
    source=ATTRIBUTES,
    event_id=ATTRIBUTES | st.just(""),
    causation_id=ATTRIBUTES | st.just(""),
    time=TIMES,
)
def test_what_is_published_is_read_back(
    valid: dict[str, Any], source: str, event_id: str, causation_id: str, time: datetime
) -> None:
    body = order_events_pb2.OrderCreated(**valid)
    publication = encode(CREATED, body, source=source, event_id=event_id, causation_id=causation_id, time=time)
    assert all(value.isascii() and value.isprintable() and " " not in value for value in publication.headers.values())
    assert publication.subject == f"events.{body.order_id}.orders.v1.OrderCreated"
    subject = f"events.{partition_of(body.order_id)}.orders.v1.OrderCreated"
    event = decode(REGISTRY, StoredMessage(subject, publication.headers, publication.data, 1, STREAM_TIME))
    assert isinstance(event, Event), event
    assert event.body == body
    assert (event.source, event.causation_id, event.time) == (source, causation_id, time)
    assert event.id == (event_id or content_id("orders.v1.OrderCreated", body.order_id, publication.data))

    as_json = json_format.MessageToJson(body).encode()
    from_json = decode(REGISTRY, StoredMessage(subject, {}, as_json, 1, STREAM_TIME))
    assert isinstance(from_json, Event), from_json
    assert (from_json.body, from_json.digest) == (body, event.digest)
    assert from_json.id == content_id("orders.v1.OrderCreated", body.order_id, as_json)


@given(ATTRIBUTES)
def test_percent_encoding_is_undone(text: str) -> None:
    body = shipping_events_pb2.OrderShipped(order_id="a", tracking_number="T")
    event_type = REGISTRY.types["shipping.v1.OrderShipped"]
    header = encode(event_type, body, source=text, time=STREAM_TIME).headers["ce-source"]
    assert unquote(header, errors="strict") == text
    assert all("!" <= character <= "~" and character != '"' for character in header)


@given(st.tuples(ATTRIBUTES, ATTRIBUTES), st.tuples(ATTRIBUTES, ATTRIBUTES))
@example(("a/b", "c"), ("a", "b/c"))
@example(("a%2Fb", "c"), ("a/b", "c"))
def test_two_identities_never_share_a_message_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (message_id(*one) == message_id(*other)) == (one == other)


@given(st.lists(ATTRIBUTES, max_size=4), st.lists(ATTRIBUTES, max_size=4))
@example(["a", "b"], ["a b"])
def test_two_derivations_never_share_an_id(one: list[str], other: list[str]) -> None:
    assert (derived_id(one) == derived_id(other)) == (one == other)
