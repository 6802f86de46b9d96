"""Waking those who watch a saga when this process has committed a change of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


class ChangeWatch:
    """One watcher's wake-up call. A change between two waits is remembered, so none is lost."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> None:
        """Returns once something changed since the last wait returned, or after the time-out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Ends the wait that is under way, or the next one."""
        self._changed.set()


class SagaChanges:
    """Tells watchers in this process about changes, by correlation key. For one event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[ChangeWatch]] = {}

    def changed(self, keys: Iterable[str]) -> None:
        """Wakes everyone who watches one of the keys. Call it after the commit, so that they read the change."""
        for key in keys:
            for watch in self._watches.get(key, ()):
                watch.wake()

    @contextmanager
    def watch(self, key: str) -> Iterator[ChangeWatch]:
        """Watches a key until the block ends. Begin it before the first read: then no change slips between them."""
        watch = ChangeWatch()
        self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            watches = self._watches[key]
            watches.discard(watch)
            if not watches:
                del self._watches[key]

    @property
    def watched(self) -> int:
        """How many keys are watched."""
        return len(self._watches)
