"""What is kept, shown and published of a message that no one can read."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime

import pytest

from farandole.correlator.dead_letters import (
    DeadLetter,
    dead_letter_of,
    dead_letter_publication,
    parse_dead_letter_id,
)
from farandole.envelope import MAX_BODY_BYTES, Reason, StoredMessage, Unreadable, decode
from farandole.partitions import partition_of
from farandole.redaction import REDACTED
from farandole.registry import Registry
from inventory.v1 import inventory_events_pb2
from orders.v1 import order_events_pb2

REGISTRY = Registry.of_classes([order_events_pb2.OrderCreated, inventory_events_pb2.ReservationFailed])
SENSITIVE = "orders.v1.OrderCreated"
PLAIN = "inventory.v1.ReservationFailed"
SECRET = "4111-1111-secret"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def unreadable(
    data: bytes, *, type_: str = SENSITIVE, headers: dict[str, str] | None = None, partition: int = 3
) -> Unreadable:
    message = StoredMessage(f"events.{partition}.{type_}", headers or {}, data, 42, NOW)
    outcome = decode(REGISTRY, message)
    assert isinstance(outcome, Unreadable)
    return outcome


def kept(one: Unreadable) -> DeadLetter:
    return dead_letter_of(one, REGISTRY)


def published_headers(one: Unreadable) -> dict[str, str]:
    return dict(dead_letter_publication(kept(one), one).headers)


def order(**changes: object) -> bytes:
    content = {
        "orderId": "ord-1",
        "customerId": "c",
        "lines": [{"sku": "widget", "quantity": 1, "unitPriceCents": 100}],
        "currency": "EUR",
        "card": SECRET,
        "address": SECRET,
    }
    return json.dumps(content | changes).encode()


def test_a_body_that_could_be_decoded_is_kept_redacted() -> None:
    letter = kept(unreadable(order(currency="euros"), partition=partition_of("ord-1")))
    assert (letter.reason, letter.key, letter.id) == (Reason.RULE_VIOLATION, "ord-1", "correlator-42")
    assert letter.payload is not None
    body = order_events_pb2.OrderCreated.FromString(letter.payload)
    assert (body.order_id, body.card, body.address) == ("ord-1", REDACTED, REDACTED)
    assert letter.body_prefix == b""


@pytest.mark.parametrize(
    "data",
    [
        order()[:-1],
        order(lines=SECRET),
        order(lines=[{"quantity": SECRET}]),
        order(card=[SECRET]),
        order(currency={SECRET: SECRET}),
        b"\x00" + SECRET.encode(),
        SECRET.encode() * MAX_BODY_BYTES,
        b'{"lines":[' + b"{}," * 10_001 + order(),
    ],
)
def test_nothing_of_a_body_that_may_hold_a_secret_is_kept(data: bytes) -> None:
    letter = kept(unreadable(data))
    assert SECRET not in repr(letter)
    assert (letter.payload, letter.body_prefix) == (None, b"")
    assert letter.body_size == len(data)
    assert letter.body_sha256 == hashlib.sha256(data).hexdigest()


def test_what_could_not_be_decoded_is_told_with_its_field() -> None:
    assert "lines" in kept(unreadable(order(lines=SECRET))).detail


def test_the_beginning_of_a_body_is_kept_where_its_type_has_no_secret() -> None:
    letter = kept(unreadable(b"\xff" * 5000, type_=PLAIN))
    assert letter.body_prefix == b"\xff" * 4096
    assert kept(unreadable(order(), type_="orders.v1.OrderCreate")).body_prefix == b""
    mismatched = unreadable(order(), type_=PLAIN, headers={"ce-type": SENSITIVE})
    assert kept(mismatched).body_prefix == b""


def test_the_copy_says_where_it_comes_from_and_why() -> None:
    one = unreadable(b"{", headers={"ce-id": "7", "X-Team": "blue"})
    publication = dead_letter_publication(kept(one), one)
    assert publication.subject == "deadletters.correlator.orders.v1.OrderCreated"
    assert publication.data == b"{"
    detail = publication.headers["farandole-detail"]
    assert detail.startswith("the body is not a ProtoJSON orders.v1.OrderCreated")
    assert {name: value for name, value in publication.headers.items() if name != "farandole-detail"} == {
        "ce-id": "7",
        "X-Team": "blue",
        "farandole-participant": "correlator",
        "farandole-sequence": "42",
        "farandole-subject": "events.3.orders.v1.OrderCreated",
        "farandole-reason": "UNDECODABLE",
        "Nats-Msg-Id": "correlator-42",
    }


def test_headers_that_would_steer_the_broker_or_break_the_copy_are_not_copied() -> None:
    headers = {
        "Nats-Rollup": "all",
        "nats-expected-stream": "OTHER",
        "Farandole-Reason": "none",
        "bad name": "x",
        "X-Folded": "line\r\nNats-Rollup: all",
        "X-Odd": "käse",
        "X-Long": "x" * 20_000,
        "X-Team": "blue",
    }
    copied = published_headers(unreadable(b"{", headers=headers))
    assert set(copied) - {"Nats-Msg-Id"} == {"X-Team"} | {
        f"farandole-{name}" for name in ("participant", "sequence", "subject", "reason", "detail")
    }
    assert copied["farandole-reason"] == "UNDECODABLE"


def test_headers_of_a_copy_are_plain_and_bounded() -> None:
    many = {f"X-{number}": "x" * 1000 for number in range(1000)} | {"ce-id": "%FF" * 400}
    copied = published_headers(unreadable(b"{", headers=many))
    assert sum(len(name) + len(value) for name, value in copied.items()) < 24 * 1024
    odd = unreadable(b"{}", headers={"ce-datacontenttype": "text/ü\nx"})
    detail = published_headers(odd)["farandole-detail"]
    assert detail.isascii()
    assert detail.isprintable()


def test_a_body_above_the_limit_is_published_as_what_it_was() -> None:
    data = b"x" * (MAX_BODY_BYTES + 1)
    one = unreadable(data)
    publication = dead_letter_publication(kept(one), one)
    summary = json.loads(publication.data)
    assert summary["size"] == len(data)
    assert summary["sha256"] == hashlib.sha256(data).hexdigest()
    assert base64.b64decode(summary["prefix"]) == data[:4096]
    assert publication.headers["farandole-body"] == "summary"


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("correlator-42", ("correlator", 42)),
        ("drone-fleet-7", ("drone-fleet", 7)),
        ("correlator", None),
        ("-7", None),
        ("a-0", None),
        ("a-07", None),
        ("a-x", None),
        ("a-\u0663", None),
        ("a-99999999999999999999", None),
        ("", None),
    ],
)
def test_an_id_names_participant_and_sequence(text: str, identity: tuple[str, int] | None) -> None:
    assert parse_dead_letter_id(text) == identity
