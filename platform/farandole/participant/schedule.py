"""Which sagas are held up in a participant, and what each waits for: the queue's table of contents, in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta


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

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def is_quarantined(self, key: str) -> bool:
        """Whether a saga is held up until it is told to go on."""
        return self._held.get(key) == UNTIL_TOLD

    def load(self, waits: Mapping[str, Wait]) -> None:
        """Begins anew with what each saga waits for, in the order in which they came."""
        self._held.clear()
        self._dependants.clear()
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
        first = min((due for _, due in self._timed(now)), default=None)
        return None if first is None else (first - now).total_seconds()

    def is_due(self, key: str, now: datetime) -> bool:
        """Whether a saga is to be looked at now."""
        wait = self._held.get(key)
        return wait is not None and wait.due is not None and wait.due <= now

    def due(self, now: datetime, most: int) -> list[str]:
        """The sagas that are due, longest waiting first, and no more than so many."""
        due = ((time, place, key) for place, (key, time) in enumerate(self._timed(now)) if time <= now)
        return [key for _, _, key in heapq.nsmallest(most, due)]

    def _timed(self, now: datetime) -> Iterator[tuple[str, datetime]]:
        """Who waits for a time, and for which; a pause begins anew where the clock was set back."""
        for key, wait in self._held.items():
            if wait.due is not None:
                if wait.due - now > wait.pause:
                    wait = self._held[key] = Wait(now + wait.pause, wait.pause)
                yield key, wait.due or now

    def _hold(self, key: str, wait: Wait) -> None:
        before = self._held.get(key)
        if before is not None and before.dependency and before.dependency != wait.dependency:
            self._leave(key, before.dependency)
        self._held[key] = wait
        if wait.dependency:
            self._dependants.setdefault(wait.dependency, {})[key] = None

    def _drop(self, key: str) -> None:
        wait = self._held.pop(key, None)
        if wait is not None and wait.dependency:
            self._leave(key, wait.dependency)

    def _leave(self, key: str, dependency: str) -> None:
        dependants = self._dependants[dependency]
        del dependants[key]
        if not dependants:
            del self._dependants[dependency]
