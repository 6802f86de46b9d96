"""Asking all processes that listen on a subject, each of which answers for itself (core request-reply)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg

from farandole.broker.connection import Broker


async def ask_all(
    broker: Broker, subject: str, body: bytes, *, is_enough: Callable[[Sequence[bytes]], bool], seconds: float
) -> list[bytes]:
    """The answers that have come once `is_enough` says so of them, or after so many seconds. Refusals are none.

    Empty where the broker can't be reached.
    """
    answers: list[bytes] = []
    enough = asyncio.Event()

    async def take(message: Msg) -> None:
        if message.data:
            answers.append(message.data)
            if is_enough(answers):
                enough.set()

    inbox = broker.client.new_inbox()
    with suppress(nats.errors.Error, OSError):
        subscription = await broker.client.subscribe(inbox, cb=take)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await broker.client.publish(subject, body, reply=inbox)
                    await enough.wait()
        finally:
            await subscription.unsubscribe()
    return answers
