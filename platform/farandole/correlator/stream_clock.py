"""What time it is in the stream, without asking it at every moment and without a clock that can be set.

An estimate: it only says when it is worth asking. A deadline is judged by what the stream answers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StreamClock:
    """The stream's time as last told, and the monotonic time since: a machine's clock that is set moves nothing."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` gives seconds, as `time.monotonic` does."""
        self._monotonic = monotonic
        self._ahead: float | None = None
        """By how much the stream's seconds since 1970 are ahead of the monotonic ones."""

    def forget(self) -> None:
        """Knows nothing until it is set again."""
        self._ahead = None

    def set(self, stream_time: datetime) -> None:
        """The stream has just said what time it is."""
        self._ahead = self._ahead_of(stream_time)

    def passed(self, stream_time: datetime) -> None:
        """A message of that time was read, which may have been stored long ago: it is that late at least.

        Before the clock is set this means nothing: it may be a backlog that is read.
        """
        if self._ahead is not None:
            self._ahead = max(self._ahead, self._ahead_of(stream_time))

    def seconds_until(self, moment: datetime) -> float | None:
        """How long it is to a moment of the stream's time, negative behind it; None where that is not known."""
        if self._ahead is None:
            return None
        return self._ahead_of(moment) - self._ahead

    def _ahead_of(self, moment: datetime) -> float:
        return (moment - _EPOCH) / timedelta(seconds=1) - self._monotonic()
