"""An asyncio event loop whose time is virtual: it goes on only where nothing is left to do, and then at once.

An hour of waiting costs nothing, and the same program runs the same way each time: callbacks in the order in which
they were asked for, timers in the order of their times.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, NoReturn

_MOST_AT_ONE_TIME = 200_000
"""Callbacks at one moment of virtual time; a program that needs more waits for something by asking again and again."""
_COMPACT_ABOVE = 256
"""Cancelled timers are removed early where they are more than so many, and more than half of all."""


class NothingLeftToHappenError(RuntimeError):
    """Every task waits for something that can't come any more: there is no callback and no timer left."""


class NoProgressError(RuntimeError):
    """Callbacks go on at one moment of virtual time, without end: a loop that waits for nothing."""


_Plain = tuple[Callable[..., object], tuple[Any, ...]]
"""A callback and its arguments, without what asyncio puts around them."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An event loop without sockets, threads or signals; its time begins at 0 and is counted in virtual seconds.

    `run_until_complete` raises `NothingLeftToHappenError` where its future can't be done any more,
    `NoProgressError` where time stands still, and whatever a callback raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(False)
        self._now = 0.0
        self._callbacks: deque[asyncio.Handle | _Plain] = self._ready  # type: ignore[attr-defined]
        """BaseEventLoop's own queue: its `call_soon`, which futures and tasks use, appends there."""
        self._timers: list[tuple[float, int, asyncio.TimerHandle | _Plain]] = []
        self._order = itertools.count()
        self._cancelled = 0
        self.iterations = 0
        """Rounds of callbacks so far, as a measure of a run's cost."""

    def time(self) -> float:
        """The virtual time, in seconds since the loop was made."""
        return self._now

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_later`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`. Timers of one time come in the order in which they were asked for."""
        self._check_closed()  # type: ignore[attr-defined]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - so that it tells of its cancellation
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def schedule(self, when: float, callback: Callable[..., object], *args: object) -> None:
        """Like `call_at`, for what is never cancelled and needs no context of its own: it costs a third."""
        heapq.heappush(self._timers, (when, next(self._order), (callback, args)))

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon_threadsafe`; there is one thread only."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: object, func: object, *args: object) -> NoReturn:  # noqa: ARG002
        """Raises: what other threads do is not reproducible."""
        raise RuntimeError("a simulation has one thread; nothing can run in another")

    def _run_once(self) -> None:
        """Runs callbacks, and moves time where there are none, until the loop is stopped. `run_forever` calls it.

        What a callback raises ends the run, where asyncio's own loop would log it; tasks keep what they raise.
        """
        callbacks = self._callbacks
        at_this_time = 0
        while True:
            count = len(callbacks)
            if count == 0:
                if self._move_time():
                    at_this_time = 0
                continue
            self.iterations += 1
            for _ in range(count):
                handle = callbacks.popleft()
                if isinstance(handle, tuple):
                    handle[0](*handle[1])
                elif not handle._cancelled:  # noqa: SLF001 - what asyncio's own loop does, without a log of errors
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # noqa: SLF001
            if self._stopping:  # type: ignore[attr-defined]
                return
            at_this_time += count
            if at_this_time > _MOST_AT_ONE_TIME:
                raise NoProgressError(f"something loops without waiting, at {self._now:.6f} s")

    def _move_time(self) -> bool:
        """To the next timer; all timers of that time become callbacks. Whether it has become later."""
        timers, callbacks, before = self._timers, self._callbacks, self._now
        due = 0
        while timers:
            when, _, handle = timers[0]
            if due and when > self._now:
                break
            heapq.heappop(timers)
            if not isinstance(handle, tuple):
                handle._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
                if handle._cancelled:  # noqa: SLF001
                    self._cancelled -= 1
                    continue
            if when > self._now:
                self._now = when
            callbacks.append(handle)
            due += 1
        if not due:
            raise NothingLeftToHappenError(f"nothing is left to happen at {before:.6f} s, and something still waits")
        return self._now > before

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A timer tells that it is cancelled, once."""
        if not handle._scheduled:  # type: ignore[attr-defined]  # noqa: SLF001 - its time had come
            return
        self._cancelled += 1
        if self._cancelled > _COMPACT_ABOVE and self._cancelled * 2 > len(self._timers):
            self._timers = [t for t in self._timers if isinstance(t[2], tuple) or not t[2]._cancelled]  # noqa: SLF001
            # the handle that tells is not yet marked, and stays until its time comes
            heapq.heapify(self._timers)
            self._cancelled = 1

    def _process_events(self, event_list: object) -> None:
        """There are no sockets to hear of."""

    def _write_to_self(self) -> None:
        """Nothing has to be woken: there is one thread."""
