"""Who is to hold which lane: even shares, few hand-overs, and a number that everybody works out alike."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farandole import leases
from farandole.leases import Leases, Register, Replica, given_back, renewed, shares
from farandole.memory_leases import MemoryLeases
from farandole.partitions import PARTITIONS
from farandole.testing import LeasesConformance
from farandole.testing.leases_conformance import TIME_TO_LIVE_SECONDS

NAMES = st.sampled_from("abcdefgh")


class TestMemoryLeases(LeasesConformance):
    @pytest.fixture
    def leases(self) -> Leases:
        return MemoryLeases(time.monotonic, time_to_live_seconds=TIME_TO_LIVE_SECONDS)


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, list[str], dict[int, str]]:
    """A number of lanes, who lives, and who holds what: also the dead, and what is no lane any more."""
    lanes = draw(st.integers(1, PARTITIONS))
    contenders = draw(st.lists(NAMES, unique=True, min_size=1))
    return lanes, contenders, draw(st.dictionaries(st.integers(0, PARTITIONS - 1), NAMES))


@given(situations())
def test_every_lane_is_somebodys_and_shares_differ_by_one_at_most(
    situation: tuple[int, list[str], dict[int, str]],
) -> None:
    lanes, contenders, holders = situation
    target = shares(lanes, contenders, holders)
    assert sorted(target) == list(range(lanes))
    counts = [list(target.values()).count(name) for name in contenders]
    assert sum(counts) == lanes
    assert max(counts) - min(counts) <= 1


@given(situations(), st.randoms())
def test_everybody_works_out_the_same(situation: tuple[int, list[str], dict[int, str]], random: object) -> None:
    lanes, contenders, holders = situation
    target = shares(lanes, contenders, holders)
    random.shuffle(contenders)  # type: ignore[attr-defined]  # hypothesis's own Random
    assert shares(lanes, contenders, dict(reversed(holders.items()))) == target
    assert shares(lanes, contenders, target) == target, "what has come about stays"


@given(situations())
def test_no_more_lanes_change_hands_than_an_even_share_needs(situation: tuple[int, list[str], dict[int, str]]) -> None:
    lanes, contenders, holders = situation
    target = shares(lanes, contenders, holders)
    held = [sum(holders.get(lane) == name for lane in range(lanes)) for name in contenders]
    least, odd = divmod(lanes, len(contenders))
    # at best each keeps what it has up to the least share, and as many as may have one more keep that too
    most_kept = sum(min(count, least) for count in held) + min(odd, sum(count > least for count in held))
    assert sum(holders.get(lane) == name for lane, name in target.items()) == most_kept


@given(st.integers(1, PARTITIONS), st.lists(st.tuples(NAMES, st.booleans()), max_size=60))
def test_whoever_comes_and_goes_shares_settle_and_no_lane_has_two_holders(
    lanes: int, steps: list[tuple[str, bool]]
) -> None:
    register, now = Register(), 0
    alive: set[str] = set()
    for name, lives in steps:
        now += 1
        if lives:
            alive.add(name)
            register = _renew(register, name, lanes, now)
        else:
            alive.discard(name)
            now += 1000
        for other in sorted(alive):  # they live on
            register = _renew(register, other, lanes, now)
    for _ in range(3):
        for name in sorted(alive):
            register = _renew(register, name, lanes, now)
    counts = [list(register.holders.values()).count(name) for name in alive]
    assert not alive or (sum(counts) == lanes and max(counts) - min(counts) <= 1)


def _renew(register: Register, name: str, lanes: int, now: int) -> Register:
    """Renews, and gives back at once what is another's share."""
    replica = Replica(name, "run")
    register, tenure = renewed(register, replica, lanes, is_able=True, joins=False, now=now, expires=now + 500)
    assert tenure.lanes == {lane for lane, holder in register.holders.items() if holder == name}
    return given_back(register, replica, tenure.due)


def test_nobody_holds_anything_where_nobody_lives() -> None:
    assert shares(4, [], {0: "a"}) == {}


@given(st.floats(0, leases.RENEWAL_SECONDS, exclude_max=True))
def test_within_two_seconds_of_a_death_another_one_has_all_lanes(phase: float) -> None:
    """Whenever, since then, it is the other one's turn to renew; what is left of the two seconds is for slowness."""
    now = 0.0
    store = MemoryLeases(lambda: now)
    dead, other = Replica("dead", "1"), Replica("other", "2")
    asyncio.run(store.join(dead, 4, is_able=True))
    asyncio.run(store.join(other, 4, is_able=True))
    now = phase
    while len(asyncio.run(store.renew(other, 4, is_able=True)).lanes) < 4:
        now += leases.RENEWAL_SECONDS
    assert now <= 1.7
