"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

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
