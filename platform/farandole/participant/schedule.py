"""Which sagas are held up in a participant, and what each waits for: the queue's table of contents, in memory."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Wait:
    """What a saga that is held up waits for: a time or a dependency. Where it is neither, it waits to be told."""

    due: datetime | None = None
    """When it is looked at again."""
    pause: timedelta = timedelta(0)
    """How long that was when it began: who seems to have to wait longer saw the clock being set back."""
    dependency: str = ""
    """What is down."""


UNTIL_TOLD = Wait()

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_FEW = 1000
"""A heap as small as that is not worth clearing out."""


@dataclass(slots=True)
class ScheduleChanges:
    """What one transaction changes about who waits for what."""

    held: dict[str, Wait] = field(default_factory=dict)
    """By saga."""
    released: set[str] = field(default_factory=set)
    """The sagas of which nothing waits any more."""


class Schedule:
    """The sagas that have something in the queue, and what each waits for."""

    def __init__(self) -> None:
        self._held: dict[str, Wait] = {}
        self._dependants: dict[str, dict[str, None]] = {}
        """The sagas that wait for each dependency, those first that have waited longest."""
        self._timed: list[tuple[datetime, int, str]] = []
        """A heap of who waits for which time. Those that have come to wait for something else are among them, until
        their time comes."""
        self._numbers: dict[str, int] = {}
        """By saga that waits for a time: which of the heap is its own."""
        self._count = 0
        self._last_begun = _LONG_AGO
        """When the last pause began: an earlier time shows that the clock was set back since."""

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def is_quarantined(self, key: str) -> bool:
        """Whether a saga is held up until it is told to go on."""
        return self._held.get(key) == UNTIL_TOLD

    def load(self, waits: Mapping[str, Wait]) -> None:
        """Begins anew with what each saga waits for, in the order in which they came."""
        self._held.clear()
        self._dependants.clear()
        self._timed.clear()
        self._numbers.clear()
        self._last_begun = _LONG_AGO
        for key, wait in waits.items():
            self._hold(key, wait)

    def apply(self, changes: ScheduleChanges) -> None:
        """Takes on what a transaction has changed that is committed."""
        for key in changes.released:
            self._drop(key)
        for key, wait in changes.held.items():
            self._hold(key, wait)

    def dependants(self, dependency: str) -> Sequence[str]:
        """The sagas that wait for a dependency, those first that have waited longest."""
        return list(self._dependants.get(dependency, ()))

    def restore(self, dependency: str, now: datetime) -> None:
        """Has all that wait for a dependency looked at now."""
        for key in self.dependants(dependency):
            self._hold(key, Wait(now))

    def due_in(self, now: datetime) -> float | None:
        """In how many seconds a saga is due; None where none is going to be."""
        self._mind_the_clock(now)
        while self._timed and not self._is_current(*self._timed[0][1:]):
            heapq.heappop(self._timed)
        return (self._timed[0][0] - now).total_seconds() if self._timed else None

    def is_due(self, key: str, now: datetime) -> bool:
        """Whether a saga is to be looked at now."""
        wait = self._held.get(key)
        return wait is not None and wait.due is not None and wait.due <= now

    def due(self, now: datetime, most: int) -> list[str]:
        """The sagas that are due, longest waiting first, and no more than so many."""
        self._mind_the_clock(now)
        found: list[tuple[datetime, int, str]] = []
        while self._timed and self._timed[0][0] <= now and len(found) < most:
            timed = heapq.heappop(self._timed)
            if self._is_current(*timed[1:]):
                found.append(timed)
        for timed in found:  # they stay due until a transaction that deals with them has committed
            heapq.heappush(self._timed, timed)
        return [key for _, _, key in found]

    def _mind_the_clock(self, now: datetime) -> None:
        """Has each pause begin anew that the clock shows to begin later than now: it was set back."""
        if now >= self._last_begun:
            return
        self._last_begun = now
        for key, wait in list(self._held.items()):
            if wait.due is not None and wait.due - now > wait.pause:
                self._hold(key, Wait(now + wait.pause, wait.pause))

    def _is_current(self, number: int, key: str) -> bool:
        return self._numbers.get(key) == number

    def _hold(self, key: str, wait: Wait) -> None:
        before = self._held.get(key)
        if before is not None and before.dependency and before.dependency != wait.dependency:
            self._leave(key, before.dependency)
        self._held[key] = wait
        if wait.dependency:
            self._dependants.setdefault(wait.dependency, {})[key] = None
        if wait.due is None:
            self._numbers.pop(key, None)
        else:
            self._count += 1
            self._numbers[key] = self._count
            heapq.heappush(self._timed, (wait.due, self._count, key))
            self._last_begun = max(self._last_begun, wait.due - wait.pause)
            self._clear_out()

    def _clear_out(self) -> None:
        """Drops from the heap what has come to wait for something else, once that is most of it."""
        if len(self._timed) > _FEW and len(self._timed) > 2 * len(self._numbers):
            self._timed = [timed for timed in self._timed if self._is_current(*timed[1:])]
            heapq.heapify(self._timed)

    def _drop(self, key: str) -> None:
        self._numbers.pop(key, None)
        wait = self._held.pop(key, None)
        if wait is not None and wait.dependency:
            self._leave(key, wait.dependency)

    def _leave(self, key: str, dependency: str) -> None:
        dependants = self._dependants[dependency]
        del dependants[key]
        if not dependants:
            del self._dependants[dependency]
