"""What every `Leases` must do. Subclass the suite and give it yours, empty, with a short time to live:

class TestMyLeases(LeasesConformance):
    @pytest.fixture
    async def leases(self):
        leases = MyLeases(time_to_live_seconds=TIME_TO_LIVE_SECONDS)
        yield leases
        await leases.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from farandole.errors import FencedError, LanesDifferError
from farandole.leases import Leases, Replica, Tenure

TIME_TO_LIVE_SECONDS = 0.6
LANES = 4
A, B, C = Replica("a", "a1"), Replica("b", "b1"), Replica("c", "c1")
NEXT_A = Replica("a", "a2")
"""A process that is started after `A`, of the same name."""
_BOUND_SECONDS = 20.0


class LeasesConformance:
    """Each test gets new `leases` that live for `TIME_TO_LIVE_SECONDS`."""

    @pytest.fixture
    def leases(self) -> Leases:
        """The leases under test. Override it."""
        raise NotImplementedError

    async def test_who_is_alone_holds_every_lane(self, leases: Leases) -> None:
        tenure = await leases.join(A, LANES, is_able=True)
        assert tenure == Tenure(frozenset(range(LANES)), frozenset(), ("a",))
        assert await leases.renew(A, LANES, is_able=True) == tenure

    async def test_who_comes_later_gets_its_share_once_that_is_given_back(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        assert (await leases.join(B, LANES, is_able=True)).lanes == frozenset()
        first = await leases.renew(A, LANES, is_able=True)
        assert (len(first.lanes), len(first.due), first.replicas) == (4, 2, ("a", "b"))
        assert (await leases.renew(B, LANES, is_able=True)).lanes == frozenset()
        await leases.give_back(A, first.due)
        second = await leases.renew(B, LANES, is_able=True)
        assert second.lanes == first.due
        assert await leases.renew(A, LANES, is_able=True) == Tenure(first.lanes - first.due, frozenset(), ("a", "b"))

    async def test_with_fewer_lanes_than_replicas_one_stands_by(self, leases: Leases) -> None:
        await leases.join(A, 1, is_able=True)
        await leases.join(B, 1, is_able=True)
        assert await leases.renew(A, 1, is_able=True) == Tenure(frozenset({0}), frozenset(), ("a", "b"))
        assert (await leases.renew(B, 1, is_able=True)).lanes == frozenset()

    async def test_what_is_left_is_anothers_at_once(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        await leases.join(B, LANES, is_able=True)
        await leases.leave(A)
        assert await leases.renew(B, LANES, is_able=True) == Tenure(frozenset(range(LANES)), frozenset(), ("b",))

    async def test_who_does_not_renew_loses_its_lanes(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        assert (await leases.join(B, LANES, is_able=True)).lanes == frozenset()
        tenure = await _until(leases, B, lambda tenure: len(tenure.lanes) == LANES)
        assert tenure.replicas == ("b",)
        assert (await leases.renew(A, LANES, is_able=True)).lanes == frozenset()

    async def test_who_renews_keeps_them_for_longer_than_the_time_to_live(self, leases: Leases) -> None:
        await leases.join(A, 1, is_able=True)
        until = asyncio.get_running_loop().time() + 2 * TIME_TO_LIVE_SECONDS
        while asyncio.get_running_loop().time() < until:
            assert (await leases.renew(A, 1, is_able=True)).lanes == {0}
            assert (await leases.renew(B, 1, is_able=True)).lanes == frozenset()
            await asyncio.sleep(TIME_TO_LIVE_SECONDS / 30)

    async def test_what_ran_out_and_nobody_took_is_still_its_own(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        await asyncio.sleep(1.5 * TIME_TO_LIVE_SECONDS)
        assert len((await leases.renew(A, LANES, is_able=True)).lanes) == LANES

    async def test_a_process_of_the_same_name_takes_over_at_once(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        assert len((await leases.join(NEXT_A, LANES, is_able=True)).lanes) == LANES
        with pytest.raises(FencedError, match="replica a"):
            await leases.renew(A, LANES, is_able=True)
        await leases.give_back(A, range(LANES))
        await leases.leave(A)
        assert len((await leases.renew(NEXT_A, LANES, is_able=True)).lanes) == LANES

    async def test_who_was_displaced_goes_on_once_the_other_has_ended(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        await leases.join(NEXT_A, LANES, is_able=True)
        await leases.leave(NEXT_A)
        assert len((await leases.renew(A, LANES, is_able=True)).lanes) == LANES

    async def test_another_number_of_lanes_is_refused_while_others_live(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        for call in (leases.join, leases.renew):
            with pytest.raises(LanesDifferError, match="FARANDOLE_LANES=4"):
                await call(B, LANES - 1, is_able=True)
        assert (await leases.renew(A, LANES, is_able=True)).replicas == ("a",)
        await leases.leave(A)
        assert (await leases.join(B, LANES - 1, is_able=True)).lanes == frozenset(range(LANES - 1))

    async def test_who_is_alone_may_have_another_number_than_before(self, leases: Leases) -> None:
        await leases.join(A, LANES, is_able=True)
        assert (await leases.join(NEXT_A, 2, is_able=True)).lanes == {0, 1}
        assert (await leases.join(B, 2, is_able=True)).lanes == frozenset()

    async def test_who_is_not_able_has_no_share_while_another_is(self, leases: Leases) -> None:
        assert len((await leases.join(A, LANES, is_able=False)).lanes) == LANES
        assert (await leases.join(B, LANES, is_able=True)).lanes == frozenset()
        tenure = await leases.renew(A, LANES, is_able=False)
        assert tenure.due == tenure.lanes == frozenset(range(LANES))
        await leases.give_back(A, tenure.due)
        assert len((await leases.renew(B, LANES, is_able=True)).lanes) == LANES
        assert len((await leases.renew(A, LANES, is_able=True)).lanes) == 0
        assert len((await leases.renew(B, LANES, is_able=True)).due) == LANES // 2

    async def test_however_calls_overlap_no_lane_has_two_holders(self, leases: Leases) -> None:
        replicas = (A, B, C)
        await asyncio.gather(*(leases.join(replica, LANES, is_able=True) for replica in replicas))
        async with asyncio.timeout(_BOUND_SECONDS):
            while True:
                tenures = await asyncio.gather(*(leases.renew(replica, LANES, is_able=True) for replica in replicas))
                held = [lane for tenure in tenures for lane in tenure.lanes - tenure.due]
                assert len(held) == len(set(held))
                if len(held) == LANES and not any(tenure.due for tenure in tenures):
                    break
                await asyncio.gather(
                    *(leases.give_back(r, t.due) for r, t in zip(replicas, tenures, strict=True) if t.due)
                )
        assert sorted(len(tenure.lanes) for tenure in tenures) == [1, 1, 2]


async def _until(leases: Leases, replica: Replica, holds: Callable[[Tenure], bool]) -> Tenure:
    """Renews until that holds."""
    async with asyncio.timeout(_BOUND_SECONDS):
        while not holds(tenure := await leases.renew(replica, LANES, is_able=True)):  # noqa: ASYNC110 - as replicas do
            await asyncio.sleep(TIME_TO_LIVE_SECONDS / 30)
    return tenure
