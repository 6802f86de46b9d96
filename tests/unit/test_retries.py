"""How often an event is tried whose handler raises, and with which pauses."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole import Reject, Retries
from farandole.errors import ContractError

SECOND = timedelta(seconds=1)


def test_an_event_is_tried_three_times_unless_a_participant_says_otherwise() -> None:
    assert [Retries().pause_after(failed) for failed in (1, 2, 3)] == [0.5 * SECOND, SECOND, None]


def test_each_pause_is_twice_the_last_one_up_to_the_longest() -> None:
    retries = Retries(tries=8, first=SECOND, longest=10 * SECOND)
    pauses = [retries.pause_after(failed) for failed in range(1, 9)]
    assert pauses == [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND, None]


def test_one_try_has_no_pause() -> None:
    assert Retries(tries=1).pause_after(1) is None


@settings(deadline=None)
@given(
    tries=st.integers(1, 10**9),
    first=st.integers(1, 10**6),
    longer=st.integers(0, 10**6),
    failed=st.integers(1, 10**9),
)
def test_no_pause_is_shorter_than_the_one_before_or_longer_than_the_longest(
    tries: int, first: int, longer: int, failed: int
) -> None:
    longest = timedelta(microseconds=first + longer)
    retries = Retries(tries=tries, first=timedelta(microseconds=first), longest=longest)
    pause = retries.pause_after(failed)
    assert (pause is None) == (failed >= tries)
    if pause is not None:
        earlier = retries.pause_after(failed - 1) if failed > 1 else retries.first
        assert earlier is not None
        assert retries.first <= earlier <= pause <= longest


@pytest.mark.parametrize(
    ("tries", "first", "longest"),
    [(0, SECOND, SECOND), (-1, SECOND, SECOND), (3, 0 * SECOND, SECOND), (3, -SECOND, SECOND), (3, 2 * SECOND, SECOND)],
)
def test_numbers_that_make_no_sense_are_refused(tries: int, first: timedelta, longest: timedelta) -> None:
    with pytest.raises(ContractError, match="Retries"):
        Retries(tries=tries, first=first, longest=longest)


def test_a_rejection_says_why() -> None:
    rejection = Reject("no such sku")
    assert (rejection.reason, str(rejection)) == ("no such sku", "no such sku")
