"""Pages of lists: sizes and tokens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farandole.correlator.pages import page_size, page_token, position_of
from farandole.errors import InvalidArgumentError

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LISTING = ("sagas", "status = RUNNING", "update_time")


@pytest.mark.parametrize(("requested", "given_"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_has_a_size_within_bounds(requested: int, given_: int) -> None:
    assert page_size(requested) == given_


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        page_size(-1)
    assert refused.value.field == "page_size"


@given(st.integers(-(2**63), 2**63 - 1), st.text())
def test_a_token_leads_back_to_its_position(number: int, text: str) -> None:
    token = page_token((number, text), listing=LISTING)
    assert position_of(token, listing=LISTING, shape=(int, str)) == (number, text)
    assert set(token) <= set(ALPHABET)


@pytest.mark.parametrize(
    "listing",
    [
        ("sagas", "status = RUNNING", "start_time"),
        ("sagas", "", "update_time"),
        ("dead_letters", "status = RUNNING", "update_time"),
        ("sagas", "status = RUNNINGupdate_time", ""),
    ],
)
def test_a_token_of_another_listing_is_refused(listing: tuple[str, ...]) -> None:
    token = page_token((1, 2), listing=LISTING)
    with pytest.raises(InvalidArgumentError, match="belongs to another filter or order") as refused:
        position_of(token, listing=listing, shape=(int, int))
    assert refused.value.field == "page_token"


def test_a_token_that_was_cut_or_changed_is_refused() -> None:
    token = page_token((1234567, 7), listing=LISTING)
    wrong = {token[:place] for place in range(len(token))}
    for place in range(len(token)):
        wrong |= {token[:place] + letter + token[place + 1 :] for letter in ALPHABET}
    accepted = set()
    for text in wrong - {token}:
        try:
            accepted.add(position_of(text, listing=LISTING, shape=(int, int)))
        except InvalidArgumentError as refused:
            assert refused.field == "page_token"  # noqa: PT017 - see below for what is accepted
    # base64's last letter may hold bits that mean nothing: such a token still says what it said
    assert accepted <= {(1234567, 7)}


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a token"):
        position_of(text, listing=LISTING, shape=(int, int))


@pytest.mark.parametrize("position", [(1,), (1, 2, 3), (1, "2"), (True, 1), (1, 2**63), (1, -(2**63) - 1)])
def test_a_token_of_another_shape_is_refused(position: tuple[int | str, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="not a token"):
        position_of(page_token(position, listing=LISTING), listing=LISTING, shape=(int, int))
