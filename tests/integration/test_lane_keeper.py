"""Who keeps lanes works on those that are its own, and on no other, whatever becomes of the replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from farandole import lane_keeper
from farandole.broker.connection import Broker
from farandole.errors import FencedError, ReaderReplacedError
from farandole.lane_keeper import LaneKeeper, Report
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.memory_leases import MemoryLeases
from farandole.testing.brokers import BrokerUnderTest, connect


class Idle:
    """Work that does nothing, until it is told to end."""

    def __init__(self, keeping: Keeping, lane: int, report: Report) -> None:
        self._keeping = keeping
        self._lane = lane
        self.report = report
        self.ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        others = self._keeping.works_on
        assert self._lane not in others, "the work before has ended"
        others[self._lane] = self
        self.report("events", None)
        try:
            await self.ends
        finally:
            del others[self._lane]


@dataclass
class Keeping:
    """A replica at work."""

    keeper: LaneKeeper
    works_on: dict[int, Idle] = field(default_factory=dict)
    problems: dict[str, str | None] = field(default_factory=dict)
    task: asyncio.Task[None] = field(init=False)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def leases() -> MemoryLeases:
    return MemoryLeases(time.monotonic)


@asynccontextmanager
async def keeping(
    broker: Broker, leases: MemoryLeases, name: str, lanes: int = 4, run: str = ""
) -> AsyncIterator[Keeping]:
    replica = Replica(name, run or name)
    kept: Keeping = Keeping(
        LaneKeeper(
            "till",
            lanes=Lanes(lanes),
            replica=replica,
            leases=leases,
            broker=broker,
            work_of=lambda lane, report: Idle(kept, lane, report),
            report=lambda check, problem: kept.problems.update({check: problem}),
        )
    )
    kept.task = asyncio.create_task(kept.keeper.run())
    try:
        yield kept
    finally:
        await kept.end()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what keepers do is seen from outside
            await asyncio.sleep(0.005)


async def test_lanes_are_shared_as_replicas_come_and_go(broker: Broker, leases: MemoryLeases) -> None:
    async with keeping(broker, leases, "a") as first:
        await until(lambda: len(first.works_on) == 4)
        async with keeping(broker, leases, "b") as second, keeping(broker, leases, "c") as third:
            replicas = (first, second, third)
            await until(lambda: sorted(len(one.works_on) for one in replicas) == [1, 1, 2])
            assert sorted(lane for one in replicas for lane in one.works_on) == [0, 1, 2, 3]
            assert first.keeper.replicas == ("a", "b", "c")
        await until(lambda: len(first.works_on) == 4)
    assert not first.works_on


async def test_lanes_change_hands_at_once_and_not_with_the_next_renewal(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_keeper, "RENEWAL_SECONDS", 3600.0)
    leases = MemoryLeases(lambda: 0.0)  # nothing runs out either
    async with keeping(broker, leases, "a") as first:
        await until(lambda: len(first.works_on) == 4)
        async with keeping(broker, leases, "b") as second:
            await until(lambda: len(first.works_on) == len(second.works_on) == 2)
        await until(lambda: len(first.works_on) == 4)


async def test_the_lanes_of_one_that_says_nothing_any_more_are_taken_over(broker: Broker, leases: MemoryLeases) -> None:
    await leases.join(Replica("dead", "dead"), 4, is_able=True)
    async with keeping(broker, leases, "a") as kept:
        await until(lambda: len(kept.works_on) == 4)


async def test_a_later_process_of_the_same_name_takes_over_and_the_earlier_one_says_so(
    broker: Broker, leases: MemoryLeases
) -> None:
    async with keeping(broker, leases, "a", run="1") as first:
        await until(lambda: len(first.works_on) == 4)
        async with keeping(broker, leases, "a", run="2") as second:
            await until(lambda: not first.works_on)
            await until(lambda: len(second.works_on) == 4)
            await until(lambda: "has taken over as replica a" in (first.problems["events"] or ""))
            assert second.problems["events"] is None
        await until(lambda: len(first.works_on) == 4)
        assert first.problems["events"] is None


async def test_a_later_process_of_the_same_name_gives_others_their_share_of_what_it_inherits(
    broker: Broker, leases: MemoryLeases
) -> None:
    await leases.join(Replica("a", "earlier"), 4, is_able=True)
    async with keeping(broker, leases, "b") as other, keeping(broker, leases, "a", run="later") as later:
        await until(lambda: len(other.works_on) == len(later.works_on) == 2)


async def test_another_number_of_lanes_is_told_until_the_others_have_stopped(
    broker: Broker, leases: MemoryLeases
) -> None:
    async with keeping(broker, leases, "a", lanes=4) as first:
        await until(lambda: len(first.works_on) == 4)
        async with keeping(broker, leases, "b", lanes=2) as second:
            await until(lambda: "FARANDOLE_LANES=4" in (second.problems.get("events") or ""))
            await first.end()
            await until(lambda: len(second.works_on) == 2)
            assert second.problems["events"] is None


async def test_who_stands_by_has_no_problem(broker: Broker, leases: MemoryLeases) -> None:
    async with keeping(broker, leases, "a", lanes=1) as first:
        await until(lambda: len(first.works_on) == 1)
        async with keeping(broker, leases, "b", lanes=1) as second:
            await until(lambda: second.problems.get("events", "") is None)
            assert set(second.problems.values()) == {None}
            assert not second.works_on


async def test_work_that_was_displaced_begins_anew_while_its_lane_is_held(broker: Broker, leases: MemoryLeases) -> None:
    async with keeping(broker, leases, "a", lanes=1) as kept:
        await until(lambda: len(kept.works_on) == 1)
        earlier = kept.works_on[0]
        earlier.ends.set_exception(FencedError("somebody who was suspended has claimed it"))
        await until(lambda: kept.works_on.get(0, earlier) is not earlier)


async def test_a_lane_whose_consumer_another_database_reads_is_left_alone_and_told(
    broker: Broker, leases: MemoryLeases
) -> None:
    async with keeping(broker, leases, "a") as kept:
        await until(lambda: len(kept.works_on) == 4)
        kept.works_on[2].ends.set_exception(ReaderReplacedError("another process has taken over the consumer till-2"))
        await until(lambda: "lane 2: another process has taken over" in (kept.problems["events"] or ""))
        await leases.renew(Replica("a", "a"), 4, is_able=True)
        assert sorted(kept.works_on) == [0, 1, 3]


async def test_what_else_ends_work_ends_the_keeper(broker: Broker, leases: MemoryLeases) -> None:
    async with keeping(broker, leases, "a") as kept:
        await until(lambda: len(kept.works_on) == 4)
        kept.works_on[1].ends.set_exception(RuntimeError("a mistake"))
        with pytest.raises(RuntimeError, match="a mistake"):
            await kept.task
        assert not kept.works_on


async def test_problems_of_several_lanes_are_told_as_one(broker: Broker, leases: MemoryLeases) -> None:
    async with keeping(broker, leases, "a", lanes=2) as kept:
        await until(lambda: len(kept.works_on) == 2)
        for lane in (1, 0):
            kept.works_on[lane].report("outbox", f"problem {lane}")
        assert kept.problems["outbox"] == "lane 0: problem 0; lane 1: problem 1"
        kept.works_on[0].report("outbox", None)
        assert kept.problems["outbox"] == "lane 1: problem 1"


async def test_who_has_no_broker_for_long_gives_its_lanes_to_those_who_have(
    provisioned: BrokerUnderTest, broker: Broker, leases: MemoryLeases
) -> None:
    cut_off = await connect(provisioned.url)
    async with keeping(cut_off, leases, "a", lanes=1) as first:
        await until(lambda: len(first.works_on) == 1)
        async with keeping(broker, leases, "b", lanes=1) as second:
            await cut_off.close()
            await until(lambda: len(second.works_on) == 1)
            assert not first.works_on
