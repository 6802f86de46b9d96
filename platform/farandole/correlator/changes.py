"""Waking those who watch a saga when a replica of the correlator has committed a change of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from farandole.broker.nudges import Nudges

CHANGES_SUBJECT = "participants.correlator.changes"
"""Where replicas of the correlator tell each other whose records have changed, by core NATS."""

_MOST_KEYS = 1000
"""Of one nudge: 128 KiB of keys at most, well below any broker's limit."""


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
    """Tells watchers about changes, by correlation key. For one event loop.

    Those in this process hear of all that it commits; of what others commit as well, where it has `nudges`. A nudge may
    be lost: whoever watches looks now and then anyway.
    """

    def __init__(self, nudges: Nudges | None = None) -> None:
        self._watches: dict[str, set[ChangeWatch]] = {}
        self._nudges = nudges
        self._own = uuid.uuid4().hex
        """Tells this process's nudges from those of others."""

    async def changed(self, keys: Collection[str]) -> None:
        """Wakes everyone who watches one of the keys, in whichever process. Call it after the commit, so that they read
        the change."""
        self._wake(keys)
        if self._nudges is not None:
            told = list(keys)
            for start in range(0, len(told), _MOST_KEYS):
                await self._nudges.send("\n".join((self._own, *told[start : start + _MOST_KEYS])).encode())

    async def listen(self) -> None:
        """Takes in what other processes tell, until it is cancelled."""
        if self._nudges is not None:
            await self._nudges.listen(self._on_nudge)

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

    @property
    def watchers(self) -> int:
        """How many watch, each of them one key."""
        return sum(map(len, self._watches.values()))

    def _wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for watch in self._watches.get(key, ()):
                watch.wake()

    def _on_nudge(self, body: bytes) -> None:
        own, *keys = body.decode(errors="replace").split("\n")
        if own != self._own:
            self._wake(keys)
