"""The rules of the sample services."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.v1.order_pb2 import OrderLine
from services.delivery import domain as delivery
from services.drones import domain as drones
from services.inventory import domain as inventory
from services.orders import domain as orders
from services.packaging import domain as packaging
from services.payments import domain as payments
from services.shipping import domain as shipping

SKUS = st.sampled_from(["widget", "gadget", "unicorn"])
LINES = st.lists(
    st.builds(
        OrderLine,
        sku=SKUS,
        quantity=st.integers(1, 1_000_000),
        unit_price_cents=st.integers(0, 100_000_000),
    ),
    min_size=1,
    max_size=100,
)


@given(LINES)
def test_an_order_costs_the_same_in_orders_and_inventory_and_to_the_cent(lines: list[OrderLine]) -> None:
    one_piece_at_a_time = 0
    for line in lines:
        one_piece_at_a_time += line.unit_price_cents * line.quantity
    assert orders.amount_cents(lines) == one_piece_at_a_time
    assert inventory.amount_cents(lines) == one_piece_at_a_time
    assert one_piece_at_a_time < 2**63, "the largest order that the schema allows fits in an int64"


@given(LINES)
def test_lines_of_one_article_add_up(lines: list[OrderLine]) -> None:
    pieces = inventory.pieces(lines)
    assert sum(pieces.values()) == sum(line.quantity for line in lines)
    assert pieces.keys() == {line.sku for line in lines}


@given(st.dictionaries(SKUS, st.integers(1, 20), min_size=1), st.dictionaries(SKUS, st.integers(0, 20)))
def test_there_is_a_shortage_where_any_article_is_short_and_it_is_named(
    wanted: Mapping[str, int], available: Mapping[str, int]
) -> None:
    shortage = inventory.shortage(wanted, available)
    short = {sku for sku, quantity in wanted.items() if available.get(sku, 0) - quantity < 0}
    if shortage is None:
        assert not short
    else:
        assert shortage.sku in short
        assert shortage.wanted == wanted[shortage.sku]
        assert shortage.left == available.get(shortage.sku, 0)


def test_a_shortage_says_what_is_wanted_and_what_is_left() -> None:
    assert str(inventory.Shortage("unicorn", wanted=3, left=1)) == "unicorn: 3 wanted, 1 left"


@pytest.mark.parametrize(("card", "charged"), [("card-declined", False), ("card-ok", True), ("card-declined ", True)])
def test_only_the_declined_card_is_declined(card: str, charged: bool) -> None:
    assert (payments.refusal(card) is None) == charged


@pytest.mark.parametrize(("address", "delivered"), [("nowhere", False), ("1 Main Street", True), ("nowhere 5", True)])
def test_only_nowhere_cannot_be_delivered_to(address: str, delivered: bool) -> None:
    assert (shipping.obstacle(address) is None) == delivered


@pytest.mark.parametrize(
    ("card", "charged", "frozen"),
    [("card-frozen", True, True), ("card-declined", False, False), ("card-ok", True, False)],
)
def test_a_frozen_account_is_charged_and_takes_nothing_back(card: str, charged: bool, frozen: bool) -> None:
    assert ((payments.refusal(card) is None), payments.is_frozen(card)) == (charged, frozen)


@pytest.mark.parametrize(("address", "legible"), [("illegible", False), ("nowhere", True), ("1 Main Street", True)])
def test_only_one_address_is_illegible(address: str, legible: bool) -> None:
    assert shipping.is_legible(address) == legible


@pytest.mark.parametrize(
    ("item", "available", "reason"),
    [("book", 1, None), ("book", 0, "book: none left"), ("dragon", None, "dragon: not in the catalogue")],
)
def test_what_is_left_can_be_packed(item: str, available: int | None, reason: str | None) -> None:
    assert packaging.obstacle(item, available) == reason


@pytest.mark.parametrize(
    ("grams", "available", "reason"),
    [
        (1, 1, None),
        (5000, 1, None),
        (5001, 1, "the package weighs 5001 g, and a drone carries 5000 g"),
        (5000, 0, "no drone stands idle"),
    ],
)
def test_a_drone_that_stands_idle_carries_five_kilograms(grams: int, available: int, reason: str | None) -> None:
    assert drones.obstacle(grams, available) == reason


@pytest.mark.parametrize(("address", "found"), [("nowhere", False), ("1 Main Street", True), ("nowhere 5", True)])
def test_only_nowhere_is_not_found(address: str, found: bool) -> None:
    assert (delivery.obstacle(address) is None) == found


@given(st.uuids(), st.uuids())
def test_a_shipment_keeps_its_tracking_number_and_shares_it_with_none(one: object, other: object) -> None:
    assert shipping.tracking_number(str(one)) == shipping.tracking_number(str(one))
    assert (shipping.tracking_number(str(one)) == shipping.tracking_number(str(other))) == (one == other)
