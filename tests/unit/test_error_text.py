"""What is kept and logged of an error never shows what its event marks as not to be shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole import Reject
from farandole.envelope import Event, StoredMessage, decode, encode
from farandole.participant.error_text import MAX_TEXT, blanked, text_of, traceback_of
from farandole.partitions import partition_of
from farandole.registry import Registry
from inventory.v1.inventory_events_pb2 import ItemsReserved
from shipping.v1.shipping_events_pb2 import ShippingFailed

REGISTRY = Registry.of_classes([ItemsReserved, ShippingFailed])
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CARD = "4111-2222 Zoë\\"


def event_of(body: ItemsReserved | ShippingFailed) -> Event:
    publication = encode(REGISTRY.types[body.DESCRIPTOR.full_name], body, source="s", time=NOW)
    subject = f"events.{partition_of(publication.key)}.{body.DESCRIPTOR.full_name}"
    event = decode(REGISTRY, StoredMessage(subject, publication.headers, publication.data, 1, NOW))
    assert isinstance(event, Event)
    return event


def reserved(card: str = CARD) -> Event:
    return event_of(
        ItemsReserved(
            order_id="o1", reservation_id="r1", amount_cents=1, currency="EUR", card=card, address="7 Elm Street"
        )
    )


@pytest.mark.parametrize(
    "write",
    [
        str,
        repr,
        str.upper,
        json.dumps,
        lambda card: json.dumps(card, ensure_ascii=False),
        lambda card: quote(card, safe=""),
        lambda card: f"card={card!r}, street: 7 ELM street",
        lambda card: text_format.MessageToString(reserved(card).body),
        lambda card: text_format.MessageToString(reserved(card).body, as_utf8=True),
        lambda card: str(json_format.MessageToDict(reserved(card).body)),
        lambda card: json_format.MessageToJson(reserved(card).body),
        lambda card: str(reserved(card).body),
    ],
)
def test_however_a_value_is_written_it_is_blanked(write: object) -> None:
    text = text_of(ValueError(write(CARD)), reserved())  # type: ignore[operator]
    assert "4111" not in text
    assert "elm" not in text.lower()
    assert "[REDACTED]" in text


def test_what_may_be_shown_is_shown() -> None:
    assert text_of(ValueError("no reservation r1 of o1"), reserved()) == "ValueError: no reservation r1 of o1"
    assert text_of(Reject("sku of 7 Elm Street is gone"), reserved()) == "sku of [REDACTED] is gone"
    assert text_of(KeyError("4111"), event_of(ShippingFailed(order_id="o1", reason="r"))) == "KeyError: '4111'"


def test_a_value_of_a_letter_is_blanked_where_it_stands_alone() -> None:
    assert blanked("the card c can't be charged", reserved("c")) == "the card [REDACTED] can't be charged"


@settings(deadline=None)
@given(card=st.text(min_size=4, max_size=40).filter(lambda text: text.strip() and len(text.strip()) >= 4))
def test_no_card_is_shown(card: str) -> None:
    try:
        event = reserved(card)
    except Exception:  # noqa: BLE001 - half a surrogate pair can't be in a message
        return
    without = text_of(ValueError(""), event)
    text = text_of(ValueError(f"<{card}|{card!r}|{json.dumps(card)}>"), event)
    assert card not in text.replace("[REDACTED]", "") or card in without


def test_a_traceback_is_blanked_too_with_what_led_to_it() -> None:
    def look_up() -> None:
        raise KeyError(CARD)

    def charge() -> None:
        try:
            look_up()
        except KeyError as cause:
            raise RuntimeError(f"charging {CARD} failed") from cause

    with pytest.raises(RuntimeError) as raised:
        charge()
    text = traceback_of(raised.value, reserved())
    assert "RuntimeError: charging [REDACTED] failed" in text
    assert "KeyError" in text
    assert "4111" not in text


def test_a_long_text_is_cut_after_it_was_blanked() -> None:
    text = text_of(ValueError(CARD * 10_000), reserved())
    assert len(text) <= MAX_TEXT
    assert "4111" not in text
    assert len(text_of(ValueError("x" * 10_000), reserved())) == MAX_TEXT


def test_an_error_whose_text_can_t_be_made_or_stored_is_told_all_the_same() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert text_of(Mute(), reserved()) == "Mute: (its text can't be made: RuntimeError)"
    assert text_of(ValueError("half \ud800 a pair"), reserved()) == "ValueError: half ? a pair"
    assert text_of(Reject(""), reserved()) == "rejected without a reason"
