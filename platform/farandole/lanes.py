"""Lanes: how the 16 partitions of the stream are shared out among the replicas of one service.

A lane is a fixed share of the partitions, has one durable consumer, and is read by one replica at a time. All of a
saga's events are in one partition, so they are in one lane, and keep their order whichever replica reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from farandole.partitions import PARTITIONS


@dataclass(frozen=True, slots=True)
class Lanes:
    """How many lanes a service has, from 1 to 16. All its replicas have the same number."""

    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= PARTITIONS:
            raise ValueError(f"there are from 1 to {PARTITIONS} lanes, not {self.count}")

    @property
    def all(self) -> range:
        """The lanes, by number from 0."""
        return range(self.count)

    def partitions(self, lane: int) -> frozenset[int]:
        """The partitions of one lane."""
        return frozenset(range(lane, PARTITIONS, self.count))

    def of(self, partition: int) -> int:
        """The lane that has a partition."""
        return partition % self.count

    def durable(self, service: str, lane: int) -> str:
        """The name of a lane's durable consumer: the service's own where it has one lane, as `payments`, or
        `payments-3`."""
        return service if self.count == 1 else f"{service}-{lane}"

    def left_over(self, service: str) -> frozenset[str]:
        """The names that durable consumers of the service would have with any other number of lanes, and with this one
        have not."""
        own = {self.durable(service, lane) for lane in self.all}
        others = {service} | {f"{service}-{lane}" for lane in range(PARTITIONS)}
        return frozenset(others - own)
