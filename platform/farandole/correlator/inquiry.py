"""Learning how participants stand: the broker shows their durable consumers, and they themselves tell their status."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

import nats.errors
import structlog
from google.protobuf.message import DecodeError

from choreography.v1 import participant_pb2, participant_service_pb2
from farandole.broker.codes import CONSUMER_NOT_FOUND
from farandole.broker.connection import Broker
from farandole.broker.responder import status_subject
from farandole.broker.streams import EVENTS
from farandole.correlator.held_up import Consumer, Standing
from farandole.errors import BrokerError
from farandole.partitions import partition_of

TIME_LIMIT_SECONDS = 1.0
"""For all participants together: they are asked at once."""
_AGAIN_SECONDS = 0.3
"""After so long a participant is asked again, beside the first time: of several processes of it, the one that was
asked may hang."""

_log = structlog.get_logger(__name__)


class Inquiry(Protocol):
    """Learns how participants stand. Never raises for what it can't learn: `Standing.trouble` says so."""

    async def ask(self, participants: Iterable[str], saga_id: str) -> dict[str, Standing]:
        """How each participant stands, by name, with what it has not finished of one saga."""
        ...


class BrokerInquiry:
    """An `Inquiry` over the broker."""

    def __init__(self, broker: Broker, *, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> None:
        self._broker = broker
        self._time_limit_seconds = time_limit_seconds

    async def ask(self, participants: Iterable[str], saga_id: str) -> dict[str, Standing]:
        """See `Inquiry.ask`. Takes at most the time limit."""
        names = sorted(set(participants))
        standings = await asyncio.gather(*(self._standing(name, saga_id) for name in names))
        return dict(zip(names, standings, strict=True))

    async def _standing(self, participant: str, saga_id: str) -> Standing:
        if self._broker.problem is not None:
            return Standing(trouble=self._broker.problem)
        asking = asyncio.create_task(self._status(participant, saga_id))
        try:
            async with asyncio.timeout(self._time_limit_seconds):
                consumer = await self._consumer(participant, partition_of(saga_id))
        except BrokerError as error:
            return Standing(trouble=str(error))
        except TimeoutError:
            return Standing(trouble="the broker does not answer")
        else:
            return Standing(consumer, await asking)
        finally:
            asking.cancel()

    async def _consumer(self, participant: str, partition: int) -> Consumer | None:
        """The durable consumer of the lane that has a partition. Of several, as after a change of the number of lanes,
        the one that was made last."""
        names = [name for name in await self._names() if _is_of(name, participant)]
        found = await asyncio.gather(*(self._info(name) for name in names))
        of_lane = [info for info in found if info is not None and _reads(info, participant, partition)]
        newest = max(of_lane, key=lambda info: datetime.fromisoformat(info["created"]), default=None)
        return None if newest is None else consumer_of(newest)

    async def _names(self) -> list[str]:
        """The names of all durable consumers."""
        names: list[str] = []
        total = 1
        while len(names) < total:
            page = await self._broker.request(f"$JS.API.CONSUMER.NAMES.{EVENTS}", {"offset": len(names)})
            if not page.get("consumers"):
                break
            names += page["consumers"]
            total = page["total"]
        return names

    async def _info(self, name: str) -> dict[str, Any] | None:
        """What the broker tells of a durable consumer; None where it has gone."""
        try:
            return await self._broker.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.{name}")
        except BrokerError as error:
            if error.code == CONSUMER_NOT_FOUND:
                return None
            raise

    async def _status(self, participant: str, saga_id: str) -> participant_pb2.ParticipantStatus | None:
        """What the participant answers within the time limit; None where nothing that can be read."""
        body = participant_service_pb2.GetStatusRequest(saga_id=saga_id).SerializeToString()
        first = asyncio.create_task(self._request(participant, body, self._time_limit_seconds))
        asking = {first}
        try:
            done, _ = await asyncio.wait(asking, timeout=_AGAIN_SECONDS)
            if not done:
                asking.add(
                    asyncio.create_task(self._request(participant, body, self._time_limit_seconds - _AGAIN_SECONDS))
                )
            while asking:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for status in (task.result() for task in done):
                    if status is not None:
                        return status
            return None
        finally:
            for task in asking:
                task.cancel()

    async def _request(
        self, participant: str, body: bytes, timeout_seconds: float
    ) -> participant_pb2.ParticipantStatus | None:
        with suppress(nats.errors.Error, OSError, TimeoutError):
            reply = await self._broker.client.request(status_subject(participant), body, timeout=timeout_seconds)
            return _status_of(reply.data, participant)
        return None


def _is_of(name: str, participant: str) -> bool:
    """Whether a durable consumer can be of a participant, or of one of its lanes."""
    return name == participant or re.fullmatch(rf"{re.escape(participant)}-\d\d?", name) is not None


def _reads(info: dict[str, Any], participant: str, partition: int) -> bool:
    """Whether a consumer that can be of a participant reads a partition; that of a lane names the partitions that it
    reads, that of another participant with such a name does not."""
    if info["name"] == participant:
        return True
    return any(subject.startswith(f"events.{partition}.") for subject in info["config"].get("filter_subjects") or ())


def consumer_of(info: dict[str, Any]) -> Consumer:
    """What a durable consumer's state, as the JetStream API tells it, means for who waits for its participant."""
    floor = info.get("ack_floor") or {}
    last = floor.get("last_active")
    return Consumer(
        # not delivered yet, and delivered but not acknowledged
        lag=info.get("num_pending", 0) + info.get("num_ack_pending", 0),
        acknowledged=floor.get("stream_seq", 0),
        acknowledged_time=datetime.fromisoformat(last) if last else None,
        is_read=info.get("num_waiting", 0) > 0,
        name=info.get("name", ""),
    )


def _status_of(data: bytes, participant: str) -> participant_pb2.ParticipantStatus | None:
    """The status in an answer; None where the answer is a refusal, or no answer to what was asked."""
    try:
        response = participant_service_pb2.GetStatusResponse.FromString(data)
    except DecodeError:
        response = participant_service_pb2.GetStatusResponse()
    if not response.HasField("status") or response.status.participant != participant:
        _log.warning("a participant's status can't be read", participant=participant)
        return None
    return response.status
