"""Which sagas are held up in a participant, and until when: the queue's table of contents, in memory."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta


@dataclass(slots=True)
class ScheduleChanges:
    """What one transaction changes about who waits for what."""

    held: dict[str, datetime | None] = field(default_factory=dict)
    """By saga: when it is looked at again; None for not before it is told to go on."""
    released: set[str] = field(default_factory=set)
    """The sagas of which nothing waits any more."""


class Schedule:
    """The sagas that have something in the queue, and when each is looked at again.

    A quarantined saga has no time: it waits to be told.
    """

    def __init__(self, longest: timedelta) -> None:
        """`longest` is the longest pause: who seems to have to wait longer saw the clock being set back."""
        self._longest = longest
        self._held: dict[str, datetime | None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def is_quarantined(self, key: str) -> bool:
        """Whether a saga is held up until it is told to go on."""
        return key in self._held and self._held[key] is None

    def load(self, heads: Mapping[str, datetime]) -> None:
        """Begins anew with when the first of each queue is due. A dead letter is looked at once, and then waits."""
        self._held = dict(heads)

    def apply(self, changes: ScheduleChanges) -> None:
        """Takes on what a transaction has changed that is committed."""
        for key in changes.released:
            self._held.pop(key, None)
        self._held |= changes.held

    def due_in(self, now: datetime) -> float | None:
        """In how many seconds a saga is due; None where none is going to be."""
        first = min((due for due in self._held.values() if due is not None), default=None)
        if first is None:
            return None
        if first - now > self._longest:
            latest = now + self._longest
            self._held = {key: None if due is None else min(due, latest) for key, due in self._held.items()}
            first = latest
        return (first - now).total_seconds()

    def is_due(self, key: str, now: datetime) -> bool:
        """Whether a saga is to be looked at now."""
        due = self._held.get(key)
        return due is not None and due <= now

    def due(self, now: datetime, most: int) -> list[str]:
        """The sagas that are due, longest waiting first, and no more than so many."""
        due = ((time, key) for key, time in self._held.items() if time is not None and time <= now)
        return [key for _, key in heapq.nsmallest(most, due)]
