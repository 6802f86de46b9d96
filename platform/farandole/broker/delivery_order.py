"""Telling whether what a consumer delivers is what comes next. Pure.

A consumer numbers its deliveries; a reset sets that number back to 1 and goes on behind a given stream sequence. So a
delivery is the next one where its number is the one that follows, and otherwise something was lost on the way: taken
by another reader of the same consumer, or sent over a connection that broke. Then the consumer must be reset again.
"""

from __future__ import annotations


class DeliveryOrder:
    """Admits each stream sequence once, rising, with no gap in what the consumer delivers.

    It is told of deliveries since the last reset only: one that was sent before, and arrives late, must not reach it.
    """

    def __init__(self, *, after: int) -> None:
        self.last = after
        """The stream sequence admitted last; nothing up to it is admitted again."""
        self.is_lost = True
        """Whether the consumer has to be reset behind `last`."""
        self._expected = 1

    def lose(self) -> None:
        """Deliveries may have been lost, as by a broken connection: nothing is admitted before the next reset."""
        self.is_lost = True

    def reset(self) -> None:
        """The consumer was reset behind `last`."""
        self.is_lost = False
        self._expected = 1

    def hear_of(self, consumer_sequence: int) -> None:
        """The consumer says which number its last delivery had, behind all that it has sent here. Where that has not
        come, order is lost: else it would come again only once nobody acknowledges it in time.
        """
        if consumer_sequence >= self._expected:
            self.is_lost = True

    def admits(self, stream_sequence: int, consumer_sequence: int) -> bool:
        """Whether a delivery is the next one. Where it shows that one is missing, order is lost."""
        if self.is_lost:
            return False
        if consumer_sequence != self._expected:
            self.is_lost = True
            return False
        self._expected += 1
        if stream_sequence <= self.last:
            return False  # delivered again, since it was not acknowledged in time
        self.last = stream_sequence
        return True
