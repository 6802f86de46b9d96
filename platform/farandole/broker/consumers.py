"""The durable consumers of one service: which of them are left from another number of lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS
from farandole.errors import BrokerError, BrokerUnavailableError

_CONSUMER_NOT_FOUND = 10014
_RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)


async def remove_consumers(broker: Broker, names: Collection[str], *, description: str) -> None:
    """Removes the consumers of `EVENTS` that have one of these names and this description: those that another service
    made have another one. One that is not there is passed over. Tries until the broker answers; where that refuses,
    they stay.

    Nothing is lost with a consumer: what it knew its readers know better. One that nobody reads would seem to lag
    behind for ever.
    """
    await broker.connected()
    while True:
        try:
            return await _remove(broker, names, description)
        except BrokerUnavailableError:
            await asyncio.sleep(_RETRY_SECONDS)
        except BrokerError as error:
            _log.warning("can't look for consumers of another number of lanes", error=str(error))
            return None


async def _remove(broker: Broker, names: Collection[str], description: str) -> None:
    for name in sorted(names):
        try:
            info = await broker.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.{name}")
            if info["config"].get("description") == description:
                await broker.request(f"$JS.API.CONSUMER.DELETE.{EVENTS}.{name}")
                _log.info("removed a consumer of another number of lanes", consumer=name)
        except BrokerError as error:
            if error.code != _CONSUMER_NOT_FOUND:
                raise
