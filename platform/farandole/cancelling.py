"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_AGAIN_SECONDS = 0.5


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels until they have ended: in Python 3.11 `wait_for`, on which nats-py builds, can swallow a cancellation."""
    cancelled = list(tasks)
    waiting = {task for task in cancelled if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=_AGAIN_SECONDS)
    for task in cancelled:
        if not task.cancelled():
            task.exception()  # looked at: whoever cancels has no use for it


async def to_the_end(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """What a task that is cancelled has yet to do: whoever cancels it more than once gets no further before that."""
    task = asyncio.create_task(work, name=name)
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
    return task.result()
