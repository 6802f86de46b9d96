"""The schedule of what waits: whom it names when, also with many, and with a clock that is set back."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from farandole.participant.schedule import UNTIL_TOLD, Schedule, ScheduleChanges, Wait

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = ("a", "b", "c", "d")
MANY = 100_000


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


class Clerk:
    """Does what the schedule does by going through all that waits, each time."""

    def __init__(self) -> None:
        self.held: dict[str, Wait] = {}

    def look(self, now: datetime) -> None:
        """Has each pause begin anew that seems to begin later than now."""
        for key, wait in self.held.items():
            if wait.due is not None and wait.due - now > wait.pause:
                self.held[key] = Wait(now + wait.pause, wait.pause)

    def due_in(self, now: datetime) -> float | None:
        self.look(now)
        times = [wait.due for wait in self.held.values() if wait.due is not None]
        return (min(times) - now).total_seconds() if times else None

    def due(self, now: datetime) -> set[str]:
        self.look(now)
        return {key for key, wait in self.held.items() if wait.due is not None and wait.due <= now}


moves = st.lists(
    st.one_of(
        st.tuples(st.just("pause"), st.sampled_from(KEYS), st.integers(0, 20)),
        st.tuples(st.just("depend"), st.sampled_from(KEYS), st.sampled_from(("x", "y"))),
        st.tuples(st.just("quarantine"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("release"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("clock"), st.none(), st.integers(-30, 30)),
        st.tuples(st.just("restore"), st.none(), st.sampled_from(("x", "y"))),
    ),
    max_size=40,
)


@given(moves)
def test_it_names_whoever_is_due_whatever_the_clock_does(made: list[tuple[str, str, int | str]]) -> None:
    schedule, clerk, now = Schedule(), Clerk(), START
    for move, key, value in made:
        held: dict[str, Wait] = {}
        released: set[str] = set()
        match move, value:
            case "pause", int():
                held[key] = Wait(now + seconds(value), seconds(value))
            case "depend", str():
                held[key] = Wait(dependency=value)
            case "quarantine", _:
                held[key] = UNTIL_TOLD
            case "release", _:
                released.add(key)
            case "clock", int():
                now += seconds(value)
            case "restore", str():
                waiting = {k for k, wait in clerk.held.items() if wait.dependency == value}
                assert set(schedule.dependants(value)) == waiting
                schedule.restore(value, now)
                clerk.held |= dict.fromkeys(waiting, Wait(now))
        schedule.apply(ScheduleChanges(held, released))
        clerk.held |= held
        for gone in released:
            clerk.held.pop(gone, None)
        assert schedule.due_in(now) == clerk.due_in(now)
        due = schedule.due(now, len(KEYS))
        assert sorted(due) == sorted(clerk.due(now)), "each once"
        assert all(schedule.is_due(key, now) is (key in due) for key in KEYS)
        assert len(schedule.due(now, 1)) == min(1, len(due))


def test_who_has_waited_longest_comes_first() -> None:
    schedule = Schedule()
    schedule.load({"late": Wait(START + seconds(2)), "early": Wait(START), "later": Wait(START + seconds(2))})
    assert schedule.due(START + seconds(3), 9) == ["early", "late", "later"]


def test_with_many_that_wait_it_costs_little_to_ask_who_is_due() -> None:
    """The worker asks some times a second, in the event loop's thread; and 500 at a time where a dependency is back."""
    schedule = Schedule()
    schedule.load({f"o{number}": Wait(dependency="card-processor") for number in range(MANY)})
    schedule.restore("card-processor", START)
    begun = time.process_time()
    for _ in range(MANY // 500):
        assert schedule.due_in(START) == 0
        due = schedule.due(START, 500)
        assert len(due) == 500
        schedule.apply(ScheduleChanges(released=set(due)))
    assert schedule.due_in(START) is None
    schedule.load({f"o{number}": Wait(START + seconds(9), seconds(9)) for number in range(MANY)})
    for _ in range(100):
        assert schedule.due_in(START) == 9
    assert time.process_time() - begun < 8


def test_what_one_saga_has_waited_for_takes_no_room() -> None:
    schedule = Schedule()
    for number in range(10_000):
        schedule.apply(ScheduleChanges({"o1": Wait(START + seconds(number), seconds(number))}))
    assert len(schedule._timed) <= 1001
    assert schedule.due_in(START) == 9999
