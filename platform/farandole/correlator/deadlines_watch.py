"""When to ask the partitions of the stream what time it is, since a deadline seems to have passed there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime

from farandole.correlator.stream_clock import StreamClock

ASK_SECONDS = 1.0
"""A partition is asked no more often, also where what is due there can't be decided yet."""
REFRESH_SECONDS = 0.25
"""The store is asked for the next deadlines no more often."""


class DeadlinesWatch:
    """The earliest next deadline of each partition, against the stream's time.

    It asks by ticks, whose ids tell that they are its own. What the stream has answered is `take_answers`: up to that
    time deadlines have passed for certain, and all that was stored before the tick has been read.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` gives seconds, as `time.monotonic` does."""
        self._monotonic = monotonic
        self._clock = StreamClock(monotonic)
        self._deadlines: dict[int, datetime] = {}
        self._refreshed = monotonic()
        self._is_outdated = False
        self._asked: dict[int, float] = {}
        """By partition: when it was asked last."""
        self._answers: dict[int, datetime] = {}
        self._session = ""
        self._ticks = 0

    def begin(self, deadlines: Mapping[int, datetime]) -> None:
        """Begins a session with the earliest next deadlines by partition. What was asked before it means nothing, and
        the time is not known: what is read first may be a backlog."""
        self._session = f"{uuid.uuid4()}-"
        self._clock.forget()
        self._asked.clear()
        self._answers.clear()
        self.refresh(deadlines)

    def refresh(self, deadlines: Mapping[int, datetime]) -> None:
        """Takes the earliest next deadlines as the store has them now."""
        self._deadlines = dict(deadlines)
        self._refreshed = self._monotonic()
        self._is_outdated = False

    def outdate(self) -> None:
        """Records have changed: deadlines may have come or gone."""
        self._is_outdated = True

    @property
    def wants_refreshing(self) -> bool:
        """Whether the deadlines should be read from the store again."""
        return self._is_outdated and self._refresh_in() <= 0

    def read(self, stream_time: datetime) -> None:
        """A message was read that the stream stored then."""
        self._clock.passed(stream_time)

    def is_own(self, tick_id: str) -> bool:
        """Whether a tick was asked for in this session."""
        return bool(self._session) and tick_id.startswith(self._session)

    def answered(self, partition: int, stream_time: datetime) -> None:
        """A tick of this session was read back, and everything before it has been committed."""
        self._clock.set(stream_time)
        self._answers[partition] = stream_time

    def go_on(self, partition: int, stream_time: datetime) -> None:
        """What was told by an answer has been read back, and more is due by it."""
        self._answers.setdefault(partition, stream_time)

    def take_answers(self) -> dict[int, datetime]:
        """The stream's time in the partitions that have answered, each told once."""
        answers, self._answers = self._answers, {}
        return answers

    def ask(self) -> dict[int, str]:
        """The partitions to ask now, each with the id of its tick."""
        now = self._monotonic()
        asked = {}
        for partition in self._suspects():
            if self._ask_in(partition) <= 0:
                self._asked[partition] = now
                self._ticks += 1
                asked[partition] = f"{self._session}{self._ticks}"
        return asked

    def due_in(self) -> float | None:
        """In how many seconds there is something to do; None for never."""
        if self._answers:
            return 0.0
        waits = [self._ask_in(partition) for partition in self._suspects()]
        waits += [wait for wait in map(self._clock.seconds_until, self._deadlines.values()) if wait and wait > 0]
        if self._is_outdated:
            waits.append(self._refresh_in())
        return max(min(waits), 0.0) if waits else None

    def _suspects(self) -> list[int]:
        """The partitions whose earliest deadline has passed, as it seems; while the time is not known, the one that
        comes first: its answer tells the time for all."""
        waits = {partition: self._clock.seconds_until(moment) for partition, moment in self._deadlines.items()}
        if None in waits.values():
            return [min(self._deadlines, key=self._deadlines.__getitem__)]
        return [partition for partition, wait in waits.items() if wait is not None and wait <= 0]

    def _ask_in(self, partition: int) -> float:
        asked = self._asked.get(partition)
        return 0.0 if asked is None else asked + ASK_SECONDS - self._monotonic()

    def _refresh_in(self) -> float:
        return self._refreshed + REFRESH_SECONDS - self._monotonic()
