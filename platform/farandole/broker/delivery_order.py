"""Telling whether what a consumer delivers is what comes next. Pure.

A consumer numbers its deliveries; a reset sets that number back to 1 and goes on behind a given stream sequence. So a
delivery is the next one where its number is the one that follows, and otherwise something was lost on the way: taken
by another reader of the same consumer, or sent over a connection that broke. Then the consumer must be reset again.
Around a reset two things blur: its first delivery may overtake the answer to the reset, and deliveries from before it
may straggle in.
"""

from __future__ import annotations

import enum


class _State(enum.Enum):
    LOST = enum.auto()
    """What comes is not what comes next: the consumer has to be reset."""
    RESETTING = enum.auto()
    """It is being reset, and its first delivery has not come."""
    WAITING = enum.auto()
    """It has been reset, and its first delivery has not come."""
    READING = enum.auto()
    """What comes is what comes next."""


class DeliveryOrder:
    """Admits each stream sequence once, rising, with no gap in what the consumer delivers."""

    def __init__(self, *, after: int) -> None:
        self.last = after
        """The stream sequence admitted last; nothing up to it is admitted again."""
        self._state = _State.LOST
        self._expected = 1
        self._has_passed_over = False
        """Whether, while resetting, a delivery came in the first one's place: a straggler, or the first was lost."""

    @property
    def is_lost(self) -> bool:
        """Whether the consumer has to be reset behind `last`."""
        return self._state is _State.LOST

    def lose(self) -> None:
        """Deliveries may have been lost, as by a broken connection: nothing is admitted before the next reset."""
        self._state = _State.LOST

    def reset_begins(self) -> None:
        """To be called before the reset is asked for."""
        self._state = _State.RESETTING
        self._expected = 1
        self._has_passed_over = False

    def reset_ends(self) -> None:
        """To be called once the reset has been answered."""
        if self._state is _State.RESETTING:
            self._state = _State.LOST if self._has_passed_over else _State.WAITING

    def admits(self, stream_sequence: int, consumer_sequence: int) -> bool:
        """Whether a delivery is the next one. Where it shows that one is missing, order is lost."""
        if self._state is _State.LOST:
            return False
        is_repeated = stream_sequence <= self.last
        if is_repeated and self._state is not _State.READING:
            return False
        if consumer_sequence != self._expected:
            if self._state is _State.RESETTING:
                self._has_passed_over = True
            elif not (is_repeated and consumer_sequence < self._expected):
                self._state = _State.LOST
            return False
        self._state = _State.READING
        self._expected += 1
        if is_repeated:
            return False
        self.last = stream_sequence
        return True
