"""What is kept, shown and published of what is given up on, and what becomes of it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from choreography.v1 import dead_letter_events_pb2, dead_letter_pb2, lifecycle_pb2
from farandole.bodies import MAX_BODY_BYTES
from farandole.correlator.dead_letters import (
    ClosedDeadLetter,
    DeadLetter,
    DeadLetterState,
    closing,
    dead_letter_of,
    dead_letter_publication,
    parse_dead_letter_id,
    participant_dead_letter,
)
from farandole.correlator.store import FoldedBatch, NewDeadLetter, dead_letter_change
from farandole.envelope import Event, StoredMessage, Unreadable, decode, encode
from farandole.partitions import partition_of
from farandole.reasons import Reason
from farandole.redaction import REDACTED
from farandole.registry import Registry
from farandole.testing.store_conformance import closed, entry, given_up
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


# dead letters of participants

TOLD = Registry.of_classes(
    [
        dead_letter_events_pb2.DeadLetterRecorded,
        dead_letter_events_pb2.DeadLetterRedriven,
        dead_letter_events_pb2.DeadLetterDiscarded,
        dead_letter_events_pb2.DeadLetterSuperseded,
        lifecycle_pb2.StepVoided,
    ]
)
RECORDED = dead_letter_events_pb2.DeadLetterRecorded(
    saga_id="ord-1",
    definition="order-fulfilment",
    step="take-payment",
    participant="payments",
    sequence=7,
    compensation=True,
    event_type="orders.v1.OrderCreated",
    event_source="käse",
    event_id="e 7",
    reason=dead_letter_pb2.DEAD_LETTER_REASON_REJECTED,
    detail="no such card",
    attempts=4,
)


def event(body: Message, sequence: int = 42) -> Event:
    """An event of a participant as it is read back from the stream."""
    published = encode(TOLD.types[body.DESCRIPTOR.full_name], body, source="payments", event_id="x", time=NOW)
    subject = f"events.{partition_of(published.key)}.{body.DESCRIPTOR.full_name}"
    decoded = decode(TOLD, StoredMessage(subject, published.headers, published.data, sequence, NOW))
    assert isinstance(decoded, Event), decoded
    return decoded


def test_a_participants_dead_letter_is_what_it_told() -> None:
    assert participant_dead_letter(event(RECORDED), [entry(6), entry(7), entry(8)]) == DeadLetter(
        participant="payments",
        sequence=7,
        subject=f"events.{partition_of('ord-1')}.orders.v1.OrderCreated",
        event_type="orders.v1.OrderCreated",
        key="ord-1",
        reason=Reason.REJECTED,
        detail="no such card",
        stream_time=entry(7).fact.stream_time,
        headers={"ce-id": "e 7", "ce-source": "käse", "ce-type": "orders.v1.OrderCreated"},
        body_size=0,
        body_sha256="",
        state_sequence=42,
        definition="order-fulfilment",
        step="take-payment",
        compensation=True,
        attempts=4,
        state=DeadLetterState.OPEN,
        close_time=None,
    )


def test_a_dead_letter_of_an_event_that_the_history_lacks_has_the_time_of_the_telling() -> None:
    letter = participant_dead_letter(event(RECORDED), [entry(6)])
    assert letter is not None
    assert letter.stream_time == NOW


def test_no_one_records_dead_letters_in_the_correlators_name() -> None:
    forged = dead_letter_events_pb2.DeadLetterRecorded()
    forged.CopyFrom(RECORDED)
    forged.participant = "correlator"
    assert participant_dead_letter(event(forged), [entry(7)]) is None


@pytest.mark.parametrize(
    ("body", "state", "said"),
    [
        (
            dead_letter_events_pb2.DeadLetterRedriven(actor="ann", reason="fixed"),
            DeadLetterState.REDRIVEN,
            ("ann", "fixed"),
        ),
        (dead_letter_events_pb2.DeadLetterDiscarded(actor="ann"), DeadLetterState.DISCARDED, ("ann", "")),
        (dead_letter_events_pb2.DeadLetterSuperseded(), DeadLetterState.SUPERSEDED, ("", "")),
    ],
)
def test_a_dead_letter_is_closed_by_each_of_three_events(
    body: Message, state: DeadLetterState, said: tuple[str, str]
) -> None:
    body.MergeFrom(
        type(body)(saga_id="ord-1", definition="order-fulfilment", step="ship", participant="drone-fleet", sequence=7)
    )
    told = event(body)
    assert closing(told) == ClosedDeadLetter("drone-fleet", 7, "order-fulfilment", "ship", state, NOW, 42, *said)
    assert participant_dead_letter(told) is None


def test_other_events_open_and_close_no_dead_letter() -> None:
    voided = lifecycle_pb2.StepVoided(saga_id="ord-1", definition="order-fulfilment", step="ship", participant="ship")
    assert participant_dead_letter(event(voided)) is None
    assert closing(event(voided)) is None
    assert closing(event(RECORDED)) is None


Said = NewDeadLetter | ClosedDeadLetter
SAID: st.SearchStrategy[list[Said]] = st.lists(
    st.tuples(st.booleans(), st.sampled_from([1, 2]), st.sampled_from(list(DeadLetterState)[1:])), max_size=12
).map(
    lambda said: [
        given_up(letter, at_sequence=at, attempts=at) if is_recorded else closed(letter, at_sequence=at, state=state)
        for at, (is_recorded, letter, state) in enumerate(said, start=10)
    ]
)


def committed(batches: list[list[Said]]) -> dict[tuple[str, int], DeadLetter]:
    """What is stored after batches, by (participant, sequence)."""
    stored: dict[tuple[str, int], DeadLetter] = {}
    for batch in batches:
        change = dead_letter_change(
            stored,
            FoldedBatch(
                99,
                dead_letters=[one for one in batch if isinstance(one, NewDeadLetter)],
                closed_dead_letters=[one for one in batch if isinstance(one, ClosedDeadLetter)],
            ),
        )
        assert not {(one.participant, one.sequence) for one in change.added} & stored.keys()
        stored |= {(one.participant, one.sequence): one for one in (*change.added, *change.changed)}
    return stored


@given(said=SAID, data=st.data())
def test_dead_letters_do_not_depend_on_how_events_fall_into_batches_nor_on_reading_some_again(
    said: list[Said], data: st.DataObject
) -> None:
    one_by_one = committed([[one] for one in said])
    assert committed([said]) == one_by_one
    cut = data.draw(st.integers(0, len(said)))
    back = data.draw(st.integers(0, cut))
    assert committed([said[:cut], said[back:]]) == one_by_one
    assert committed([said[:cut], said[cut:], *([one] for one in said[back:])]) == one_by_one


def test_a_dead_letter_is_as_the_last_event_that_meant_something_left_it() -> None:
    opened, again = given_up(1, at_sequence=10), given_up(1, at_sequence=13, attempts=6)
    identity = ("payments", 1)
    redriven = closed(1, at_sequence=12)
    said: list[Said] = [closed(1, at_sequence=9), opened, given_up(1, at_sequence=11, attempts=9), redriven, again]
    states = [committed([said[:count]]).get(identity) for count in range(1, 6)]
    ended = replace(opened.dead_letter, state=DeadLetterState.REDRIVEN, close_time=redriven.time, state_sequence=12)
    assert states == [None, opened.dead_letter, opened.dead_letter, ended, again.dead_letter]
