"""The estimate of the stream's time: told by the stream, carried on by a clock that nobody can set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from farandole.correlator.stream_clock import StreamClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Monotonic:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
def clock(monotonic: Monotonic) -> StreamClock:
    """A clock to which the stream has just said that it is noon."""
    set_clock = StreamClock(monotonic)
    set_clock.set(NOON)
    return set_clock


def seconds(clock: StreamClock, after_noon: float) -> float:
    """How long it is until so many seconds after noon, to the millisecond."""
    left = clock.seconds_until(NOON + timedelta(seconds=after_noon))
    assert left is not None
    return round(left, 3)


def test_it_knows_nothing_before_it_is_told(monotonic: Monotonic) -> None:
    clock = StreamClock(monotonic)
    assert clock.seconds_until(NOON) is None
    clock.passed(NOON)
    assert clock.seconds_until(NOON) is None, "what is read may be a backlog"


def test_it_goes_on_by_itself(clock: StreamClock, monotonic: Monotonic) -> None:
    assert seconds(clock, 10) == 10
    monotonic.now += 7.5
    assert seconds(clock, 10) == 2.5
    monotonic.now += 3600
    assert seconds(clock, 10) == -3597.5


def test_what_is_read_late_does_not_set_it_back(clock: StreamClock, monotonic: Monotonic) -> None:
    monotonic.now += 60
    clock.passed(NOON + timedelta(seconds=5))
    assert seconds(clock, 60) == 0


def test_what_is_read_sets_it_on(clock: StreamClock, monotonic: Monotonic) -> None:
    """As after a machine that slept."""
    monotonic.now += 1
    clock.passed(NOON + timedelta(hours=8))
    assert seconds(clock, 8 * 3600) == 0


def test_the_stream_s_answer_sets_it_back_too(clock: StreamClock) -> None:
    """As after the clock of the broker's machine was set back: else it would be ahead of it until that has passed."""
    clock.passed(NOON + timedelta(hours=1))
    clock.set(NOON)
    assert seconds(clock, 10) == 10


def test_it_forgets(clock: StreamClock) -> None:
    clock.forget()
    assert clock.seconds_until(NOON) is None
