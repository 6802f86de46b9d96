"""What `farandole provision` finds and does: streams made, drift shown and put right on request, idle consumers.

It never deletes anything, and changes nothing that exists unless it is told to (decision 0040).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from farandole.broker.connection import Broker
from farandole.broker.consumers import durable_consumers
from farandole.broker.drift import Drift, drift_of
from farandole.broker.streams import SNAPSHOTS_STREAM, STREAMS, make_stream, stream_state
from farandole.errors import StreamMissingError


@dataclass(frozen=True, slots=True)
class Survey:
    """How the streams stand."""

    streams: Sequence[str]
    """All that were looked at."""
    made: Sequence[str]
    """Those of them that did not exist, and do now."""
    changed: Sequence[Drift]
    """What was put right in place."""
    drift: Sequence[Drift]
    """What is not as it should be, and has been left as it is."""
    idle: Sequence[IdleConsumer]


@dataclass(frozen=True, slots=True)
class IdleConsumer:
    """A durable consumer of `EVENTS` that nobody reads now: its service is stopped, or is no more.

    It holds no event and no position: both are in the stream and in the service's database.
    """

    name: str
    description: str
    pending: int
    """How many events of the stream it has not been read for."""
    last_active: datetime | None
    """When something of it was last acknowledged; None for never since the broker started."""


async def survey(broker: Broker, *, replicas: int | None = None, apply: bool = False) -> Survey:
    """Makes the streams that do not exist, and looks at those that do; at `SNAPSHOTS` too, once pruning has made it.

    `replicas` is how many copies there should be: without it, new streams have one, and of others any number is right.
    With `apply`, what can be changed in place with nothing lost is. To do it all again is safe. Raises `BrokerError`.
    """
    made = [name for name, wanted in STREAMS.items() if await make_stream(broker, wanted, replicas=replicas or 1)]
    streams: list[str] = []
    changed: list[Drift] = []
    left: list[Drift] = []
    for wanted in (*STREAMS.values(), SNAPSHOTS_STREAM):
        name = wanted["name"]
        try:
            state = await stream_state(broker, name)
        except StreamMissingError:
            if name in STREAMS:
                raise
            continue
        streams.append(name)
        drift = drift_of(wanted, state.config, replicas=replicas)
        easy = [one for one in drift if not one.obstacle] if apply else []
        if easy:
            settings = {one.setting: one.wanted for one in easy}
            await broker.request(f"$JS.API.STREAM.UPDATE.{name}", {**state.config, **settings})
        changed += easy
        left += [one for one in drift if one not in easy]
    return Survey(streams, made, changed, left, await _idle_consumers(broker))


async def _idle_consumers(broker: Broker) -> list[IdleConsumer]:
    return [_idle(info) for info in await durable_consumers(broker) if not info.get("num_waiting")]


def _idle(info: Mapping[str, Any]) -> IdleConsumer:
    active = (info.get("ack_floor") or {}).get("last_active")
    return IdleConsumer(
        info["name"],
        info["config"].get("description", ""),
        info.get("num_pending", 0) + info.get("num_ack_pending", 0),
        datetime.fromisoformat(active) if active else None,
    )
