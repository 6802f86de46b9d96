"""Telling observers of transitions: each in a thread of its own, behind a queue that has an end."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Sequence

import structlog

from farandole.correlator.observers import Observer, Transition
from farandole.correlator.plugin_guard import CLOSE_SECONDS, Making, Standing, close, in_own_thread
from farandole.plugins import Plugin, described

QUEUE_LENGTH = 10_000
"""How many transitions may wait for an observer; more are missed."""
SLOW_SECONDS = 5.0
"""An observer that is at one transition for longer is in trouble."""
_TELL_SECONDS = 10.0
"""What fails again and again is logged no more often."""

_log = structlog.get_logger(__name__)


class ObserverRunner:
    """Tells one observer. `tell` is called from the event loop; it never waits and never raises."""

    def __init__(
        self,
        plugin: Plugin,
        factory: Callable[[], Observer],
        *,
        queue_length: int = QUEUE_LENGTH,
        slow_seconds: float = SLOW_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plugin = plugin
        self._making = Making(plugin, factory)
        self._queue: queue.SimpleQueue[Transition | None] = queue.SimpleQueue()
        self._queue_length = queue_length
        self._slow_seconds = slow_seconds
        self._monotonic = monotonic
        self._done = 0
        self._failed = 0
        self._missed = 0
        self._busy_since: float | None = None
        """Since when it has been at one transition."""
        self._last_error = ""
        """What its last call raised; empty where that returned."""
        self._told: dict[str, float] = {}
        """By message: when it was logged last."""
        self._observing: asyncio.Task[None] | None = None

    @property
    def standing(self) -> Standing:
        """How the observer does."""
        return Standing(
            self._plugin,
            done=self._done,
            failed=self._failed,
            missed=self._missed,
            waiting=self._queue.qsize() + (self._busy_since is not None),
            problem=self._making.problem or self._hangs() or self._last_error,
        )

    async def begin(self) -> None:
        """Makes the observer. Raises `ConfigurationError` where a setting of its own is wrong."""
        await self._making.begin()
        self._observing = asyncio.create_task(self._observe(), name=f"observer-{self._plugin.name}")

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Hands transitions over, in order. What there is no room for is missed."""
        room = max(self._queue_length - self._queue.qsize(), 0)
        for transition in transitions[:room]:
            self._queue.put(transition)
        if len(transitions) > room:
            self._missed += len(transitions) - room
            self._log_seldom("an observer misses transitions", missed=self._missed, problem=self.standing.problem)

    async def stop(self) -> None:
        """Lets the observer take in what waits, for a moment, and closes it. What it is not told then is missed."""
        if self._observing is not None:
            self._queue.put(None)
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.shield(self._observing)
            except TimeoutError:
                _log.warning(
                    "an observer was not told everything at the end",
                    plugin=self._plugin.name,
                    waiting=self._queue.qsize() - 1,
                    problem=self.standing.problem,
                )
                self._observing.cancel()
            await asyncio.gather(self._observing, return_exceptions=True)
        await self._making.stop()

    async def _observe(self) -> None:
        observer = await self._making.made()
        working = asyncio.ensure_future(
            in_own_thread(lambda: self._work(observer), name=f"observer-{self._plugin.name}")
        )
        while not working.done():
            await asyncio.wait([working], timeout=self._slow_seconds)
            if problem := self._hangs():
                self._log_seldom("an observer hangs", problem=problem)
        await close(self._plugin, observer.close)

    def _work(self, observer: Observer) -> None:
        """In the observer's own thread: until the end is told."""
        while (transition := self._queue.get()) is not None:
            self._busy_since = self._monotonic()
            try:
                observer.observe(transition)
            except BaseException as error:  # noqa: BLE001 - somebody else's code, which may raise SystemExit too
                self._failed += 1
                self._last_error = f"raised {described(error)}"
                self._log_seldom(
                    "an observer raised",
                    saga_id=transition.after.key,
                    sequence=transition.event.sequence,
                    error=described(error),
                    failed=self._failed,
                )
            else:
                self._done += 1
                self._last_error = ""
            finally:
                self._busy_since = None

    def _hangs(self) -> str:
        busy_since = self._busy_since
        busy = 0.0 if busy_since is None else self._monotonic() - busy_since
        return f"has been at one transition for {busy:.0f} s" if busy > self._slow_seconds else ""

    def _log_seldom(self, message: str, **facts: str | int) -> None:
        now = self._monotonic()
        if now - self._told.get(message, -_TELL_SECONDS) >= _TELL_SECONDS:
            self._told[message] = now
            _log.warning(message, plugin=self._plugin.name, **facts)
