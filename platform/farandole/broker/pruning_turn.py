"""Whose turn it is to change the mark of what was pruned.

The broker has no compare-and-set for a stream's metadata, and whoever changes the mark writes all of it: what another
has written since it was read would be lost. So the mark is read and written in turn. A turn is a message that is stored
only where its subject has none, and is deleted after.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from farandole.broker.codes import NO_MESSAGE_FOUND, NO_SUCH_SEQUENCE
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import SNAPSHOTS, stream_state
from farandole.envelope import Publication
from farandole.errors import BrokerError, StreamMissingError

_SUBJECT = "snapshots.turn"
_LONGEST = timedelta(seconds=30)
"""A turn takes a few requests. One that is as old as this, by the broker's clock, was left by a process that died."""
_LOOK_SECONDS = 0.1


@asynccontextmanager
async def pruning_turn(broker: Broker) -> AsyncIterator[None]:
    """Waits until nobody else changes the mark; nobody does meanwhile.

    Without `SNAPSHOTS` nobody can prune, and there is nothing to wait for. Raises what the broker does.
    """
    publisher = Publisher(broker)
    try:
        turn = await _take(broker, publisher)
        try:
            yield
        finally:
            if turn is not None:
                await _give_back(broker, turn)
    finally:
        await publisher.stop()


async def _take(broker: Broker, publisher: Publisher) -> int | None:
    """The sequence of the turn that was taken; None where there is no stream for one."""
    try:
        await stream_state(broker, SNAPSHOTS)
    except StreamMissingError:
        return None
    left_over = 0
    while True:
        try:
            expected = {"Nats-Expected-Last-Subject-Sequence": str(left_over)}
            return (await publisher.publish(Publication("turn", _SUBJECT, expected, b""))).sequence
        except BrokerError as error:
            if not error.is_conflict:
                raise
        await asyncio.sleep(_LOOK_SECONDS)
        left_over = await _left_over(broker)


async def _left_over(broker: Broker) -> int:
    """The sequence of a turn that is over, though nobody gave it back; 0 where there is none."""
    try:
        held = (await broker.request(f"$JS.API.STREAM.MSG.GET.{SNAPSHOTS}", {"last_by_subj": _SUBJECT}))["message"]
    except BrokerError as error:
        if error.code == NO_MESSAGE_FOUND:
            return 0
        raise
    now = (await broker.request(f"$JS.API.STREAM.INFO.{SNAPSHOTS}"))["ts"]
    is_over = datetime.fromisoformat(now) - datetime.fromisoformat(held["time"]) > _LONGEST
    return int(held["seq"]) if is_over else 0


async def _give_back(broker: Broker, turn: int) -> None:
    try:
        await broker.request(f"$JS.API.STREAM.MSG.DELETE.{SNAPSHOTS}", {"seq": turn})
    except BrokerError as error:
        if error.code != NO_SUCH_SEQUENCE:  # it had lasted too long, and somebody else's came in its place
            raise
