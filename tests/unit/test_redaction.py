"""Blanking what must not be shown, wherever it is held."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, descriptor_pb2, json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.redaction import REDACTED, Redactor
from farandole.registry import EventType, Registry
from orders.v1 import order_events_pb2, order_pb2
from tests.unit.schemas import BYTES, INT32, SchemaFile, field, map_field

SECRET = "4111-1111-1111-1111"


def _event_type(file: SchemaFile) -> EventType:
    return Registry.of_descriptor_set(file.serialized(), where="made").types[file.type_of("Happened")]


def _redacted(event_type: EventType, values: dict[str, object]) -> tuple[Message, dict[str, object]]:
    message = json_format.ParseDict(values, event_type.message_class())
    before = message.SerializeToString(deterministic=True)
    redacted = event_type.redactor.redact(message)
    assert message.SerializeToString(deterministic=True) == before, "the original was changed"
    return redacted, json_format.MessageToDict(redacted)


@pytest.fixture
def tree() -> SchemaFile:
    """An event that holds a `Card` in every way, and itself."""
    file = SchemaFile()
    card = file.message("Card")
    field(card, "number", redact=True)
    field(card, "name")
    wallet = file.message("Wallet")
    field(wallet, "card", of=file.type_of("Card"))
    plain = file.message("Plain")
    field(plain, "text")
    event = file.event()
    field(event, "wallet", of=file.type_of("Wallet"))
    field(event, "cards", of=file.type_of("Card"), repeated=True)
    map_field(event, file.type_of("Happened"), "by", of=file.type_of("Card"))
    field(event, "child", of=file.type_of("Happened"))
    field(event, "children", of=file.type_of("Happened"), repeated=True)
    field(event, "plain", of=file.type_of("Plain"))
    return file


def test_secrets_are_blanked_in_messages_lists_maps_and_recursion(tree: SchemaFile) -> None:
    def values(number: str) -> dict[str, object]:
        card = {"number": number, "name": "Ada"}
        inner = {"id": "b", "wallet": {"card": card}, "cards": [card, card], "by": {"x": card}}
        return {**inner, "id": "a", "child": {"child": inner}, "children": [inner], "plain": {"text": "shown"}}

    message, shown = _redacted(_event_type(tree), values(SECRET))
    assert shown == values(REDACTED)
    assert SECRET.encode() not in message.SerializeToString()


def _recursive() -> EventType:
    file = SchemaFile()
    event = file.event()
    field(event, "secret", redact=True)
    field(event, "child", of=file.type_of("Happened"))
    field(event, "children", of=file.type_of("Happened"), repeated=True)
    return _event_type(file)


RECURSIVE = _recursive()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["child", "children"]), max_size=12))
def test_no_depth_hides_a_secret(path: list[str]) -> None:
    values: dict[str, object] = {"secret": SECRET}
    for name in path:
        values = {name: values if name == "child" else [values, values]}
    message, _ = _redacted(RECURSIVE, values)
    assert SECRET.encode() not in message.SerializeToString()
    assert REDACTED.encode() in message.SerializeToString()
    held = json_format.ParseDict(values, RECURSIVE.message_class())
    assert set(RECURSIVE.redactor.hidden_values(held)) == {SECRET}


def test_other_kinds_of_fields_are_cleared() -> None:
    file = SchemaFile()
    secret = file.message("Secret")
    field(secret, "text")
    event = file.event()
    field(event, "texts", repeated=True, redact=True)
    field(event, "raw", BYTES, redact=True)
    field(event, "pin", INT32, redact=True)
    field(event, "held", of=file.type_of("Secret"), redact=True)
    field(event, "helds", of=file.type_of("Secret"), repeated=True, redact=True)
    map_field(event, file.type_of("Happened"), "named", redact=True)
    values = {
        "id": "a",
        "texts": [SECRET],
        "raw": "NDExMQ==",
        "pin": 4111,
        "held": {"text": SECRET},
        "helds": [{"text": SECRET}],
        "named": {"a": SECRET},
    }
    _, shown = _redacted(_event_type(file), values)
    assert shown == {"id": "a"}


def test_an_absent_secret_does_not_appear() -> None:
    redacted = Redactor(order_events_pb2.OrderCreated.DESCRIPTOR).redact(order_events_pb2.OrderCreated(order_id="a"))
    assert redacted == order_events_pb2.OrderCreated(order_id="a")


def test_a_message_without_secrets_is_not_copied(tree: SchemaFile) -> None:
    redactor = Redactor(order_events_pb2.OrderCompleted.DESCRIPTOR)
    message = order_events_pb2.OrderCompleted(order_id="a")
    assert not redactor.is_needed
    assert redactor.redact(message) is message


def test_generated_classes_are_redacted_too() -> None:
    order = order_events_pb2.OrderCreated(
        order_id="a", card=SECRET, address="a street", lines=[order_pb2.OrderLine(sku="widget")]
    )
    redacted = Redactor(order_events_pb2.OrderCreated.DESCRIPTOR).redact(order)
    assert isinstance(redacted, order_events_pb2.OrderCreated)
    assert (redacted.card, redacted.address) == (REDACTED, REDACTED)
    assert redacted.lines == order.lines


def test_what_says_nothing_of_its_content_is_cleared() -> None:
    """A `google.protobuf.Any` may hold any message, with any secret in it."""
    file = SchemaFile()
    field(file.event(), "anything", of="google.protobuf.Any")
    event_type = _event_type(file)
    held = any_pb2.Any()
    held.Pack(order_events_pb2.OrderCreated(card=SECRET))
    message = event_type.message_class(id="a", anything={"type_url": held.type_url, "value": held.value})
    assert event_type.redactor.is_needed
    assert SECRET.encode() in message.SerializeToString()
    assert event_type.redactor.redact(message) == event_type.message_class(id="a")


def test_an_extension_field_is_cleared() -> None:
    file = SchemaFile(syntax="proto2")
    event = file.event()
    field(event, "known", redact=True)
    event.extension_range.add(start=100, end=200)
    file.proto.extension.add(
        name="secret",
        number=100,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        extendee=f".{file.type_of('Happened')}",
        options=descriptor_pb2.FieldOptions(debug_redact=True),
    )
    event_type = _event_type(file)
    message = event_type.message_class.FromString(b"\x0a\x01a\x12\x01b" + b"\xa2\x06\x04" + b"4111")
    redacted = event_type.redactor.redact(message)
    assert b"4111" not in redacted.SerializeToString()


def test_the_hidden_values_are_all_that_redacting_takes_away(tree: SchemaFile) -> None:
    card = {"number": SECRET, "name": "Ada"}
    event_type = _event_type(tree)
    values = {"id": "a", "wallet": {"card": card}, "cards": [card], "by": {"x": card}, "plain": {"text": "shown"}}
    message = json_format.ParseDict(values, event_type.message_class())
    assert list(event_type.redactor.hidden_values(message)) == [SECRET] * 3
    assert list(event_type.redactor.hidden_values(event_type.message_class())) == []


def test_of_a_hidden_message_every_value_is_hidden() -> None:
    file = SchemaFile()
    secret = file.message("Secret")
    field(secret, "text")
    event = file.event()
    field(event, "texts", repeated=True, redact=True)
    field(event, "raw", BYTES, redact=True)
    field(event, "pin", INT32, redact=True)
    field(event, "held", of=file.type_of("Secret"), redact=True)
    map_field(event, file.type_of("Happened"), "named", redact=True)
    values = {
        "id": "a",
        "texts": ["b", "c"],
        "raw": "NDExMQ==",
        "pin": 4111,
        "held": {"text": "d"},
        "named": {"e": "f"},
    }
    event_type = _event_type(file)
    message = json_format.ParseDict(values, event_type.message_class())
    assert set(event_type.redactor.hidden_values(message)) == {"b", "c", b"4111", 4111, "d", "e", "f"}
