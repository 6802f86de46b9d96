"""Telling other processes at once that there is something to look at. Any of it may be lost: they look now and then
anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import nats.errors
import structlog
from nats.aio.msg import Msg

from farandole.broker.connection import Broker, NatsSubscription

_RETRY_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class Nudges:
    """One subject of core NATS on which processes of one service nudge each other, and hear themselves too."""

    def __init__(self, broker: Broker, subject: str) -> None:
        self._broker = broker
        self._subject = subject

    async def send(self, body: bytes = b"") -> None:
        """Nudges whoever listens now."""
        with suppress(nats.errors.Error, OSError):
            await self._broker.client.publish(self._subject, body)

    async def listen(self, on_nudge: Callable[[bytes], None]) -> None:
        """Calls `on_nudge` with the body of each nudge, until it is cancelled. Over a reconnection it goes on."""

        async def take(message: Msg) -> None:
            on_nudge(message.data)

        await self._broker.connected()
        subscription: NatsSubscription | None = None
        try:
            while subscription is None:
                try:
                    subscription = await self._broker.client.subscribe(self._subject, cb=take)
                except (nats.errors.Error, OSError) as error:
                    _log.info("can't listen", subject=self._subject, error=str(error))
                    await asyncio.sleep(_RETRY_SECONDS)
            await asyncio.get_running_loop().create_future()
        finally:
            if subscription is not None:
                with suppress(nats.errors.Error, OSError):
                    await subscription.unsubscribe()
