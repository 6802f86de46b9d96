"""Lanes share out the partitions: each has one lane, and shares are as even as they can be."""

from __future__ import annotations

import pytest

from farandole.lanes import Lanes
from farandole.partitions import PARTITIONS


@pytest.mark.parametrize("count", range(1, PARTITIONS + 1))
def test_each_partition_is_in_one_lane_and_shares_differ_by_one_at_most(count: int) -> None:
    lanes = Lanes(count)
    shares = [lanes.partitions(lane) for lane in lanes.all]
    assert sorted(partition for share in shares for partition in share) == list(range(PARTITIONS))
    assert all(partition in shares[lanes.of(partition)] for partition in range(PARTITIONS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_lane_is_read_through_the_consumer_that_has_the_services_name() -> None:
    assert Lanes().durable("payments", 0) == "payments"
    assert [Lanes(2).durable("payments", lane) for lane in Lanes(2).all] == ["payments-0", "payments-1"]


@pytest.mark.parametrize("count", [1, 2, PARTITIONS])
def test_what_another_number_of_lanes_may_have_left_is_known_by_name(count: int) -> None:
    lanes = Lanes(count)
    own = {lanes.durable("payments", lane) for lane in lanes.all}
    everything = {Lanes(n).durable("payments", lane) for n in range(1, PARTITIONS + 1) for lane in Lanes(n).all}
    assert lanes.left_over("payments") == everything - own


@pytest.mark.parametrize("count", [0, PARTITIONS + 1])
def test_another_number_of_lanes_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 16 lanes"):
        Lanes(count)
