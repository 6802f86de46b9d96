"""The durable consumers of `EVENTS`: all of them, whose one is, and which are left from another number of lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import structlog

from farandole.broker.codes import CONSUMER_NOT_FOUND
from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.lanes import Lanes
from farandole.lifecycle import CORRELATOR

_RETRY_SECONDS = 1.0

_PARTICIPANT = "Farandole participant "

_log = structlog.get_logger(__name__)


def description_of(service: str) -> str:
    """The description of a service's durable consumers. Nobody else's have it: the name alone, as `orders-2025`, tells
    nothing."""
    return "Farandole correlator" if service == CORRELATOR else f"{_PARTICIPANT}{service}"


def service_of(name: str, description: str) -> str | None:
    """Whose a durable consumer is, or one of its lanes: a participant, or the correlator; None for anybody else."""
    service = CORRELATOR
    if description != description_of(CORRELATOR):
        service = description.removeprefix(_PARTICIPANT)
        if description != description_of(service):
            return None
    return service if name == service or name in Lanes().left_over(service) else None


async def durable_consumers(broker: Broker) -> list[dict[str, Any]]:
    """All durable consumers of `EVENTS`, by name, each as JetStream tells of it (`ConsumerInfo`)."""
    found: dict[str, dict[str, Any]] = {}
    told = 0
    while True:
        # the server tells a page of 256; one whose consumers are made or removed meanwhile may tell of one twice
        page = await broker.request(f"$JS.API.CONSUMER.LIST.{EVENTS}", {"offset": told})
        consumers = page.get("consumers") or []
        found |= {info["name"]: info for info in consumers if info["config"].get("durable_name")}
        told += len(consumers)
        if not consumers or told >= page["total"]:
            return [found[name] for name in sorted(found)]


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
            if error.code != CONSUMER_NOT_FOUND:
                raise
