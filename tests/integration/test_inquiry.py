"""Asking participants over a real broker: those that answer, answer late, wrongly or not at all, and who answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock, patch

import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from choreography.v1.participant_pb2 import ParticipantStatus
from choreography.v1.participant_service_pb2 import GetStatusRequest, GetStatusResponse
from farandole.broker.connection import Broker
from farandole.broker.responder import ERROR_CODE_HEADER, respond, status_subject
from farandole.broker.streams import EVENTS
from farandole.correlator.held_up import Standing
from farandole.correlator.inquiry import BrokerInquiry
from farandole.errors import FencedError, QueryError
from farandole.lanes import Lanes
from farandole.partitions import partition_of
from farandole.testing.brokers import BrokerUnderTest, nats_py

SUBJECT = status_subject("shipping")


def answer(participant: str = "shipping", position: int = 7) -> bytes:
    status = ParticipantStatus(participant=participant, position=position)
    return GetStatusResponse(status=status).SerializeToString()


@asynccontextmanager
async def answering(broker: Broker, take: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
    """Somebody who takes the requests for the status of shipping."""
    subscription = await broker.client.subscribe(SUBJECT, cb=take)
    await nats_py(broker).flush()
    yield
    await subscription.unsubscribe()


async def standing(broker: Broker) -> Standing:
    return (await BrokerInquiry(broker).ask(["shipping"], "ord-1"))["shipping"]


async def test_nobody_answers_at_once_for_a_participant_that_does_not_run(broker: Broker) -> None:
    began = time.monotonic()
    assert await BrokerInquiry(broker, time_limit_seconds=30).ask(["shipping", "b", "b"], "ord-1") == {
        "b": Standing(),
        "shipping": Standing(),
    }
    assert time.monotonic() - began < 10


async def test_a_participant_is_asked_about_the_saga(broker: Broker) -> None:
    asked: list[str] = []

    async def take(request: Msg) -> None:
        asked.append(GetStatusRequest.FromString(request.data).saga_id)
        await request.respond(answer())

    async with answering(broker, take):
        found = await standing(broker)
    assert found.status is not None
    assert (found.status.position, found.consumer, asked) == (7, None, ["ord-1"])


async def test_who_does_not_answer_in_time_is_asked_again_and_then_given_up(broker: Broker) -> None:
    requests: list[Msg] = []

    async def take(request: Msg) -> None:
        requests.append(request)
        if len(requests) == 2:
            await request.respond(answer())

    async with answering(broker, take):
        found = await standing(broker)
        assert found.status is not None, "the second request was answered"
        requests += requests
        began = time.monotonic()
        assert await standing(broker) == Standing()
        assert 0.9 < time.monotonic() - began < 5


@pytest.mark.parametrize("wrong", [b"\xff\xff", b"", answer("payments")], ids=["garbage", "a refusal", "another's"])
async def test_a_wrong_answer_is_none(broker: Broker, wrong: bytes) -> None:
    async def take(request: Msg) -> None:
        await request.respond(wrong)

    async with answering(broker, take):
        assert await standing(broker) == Standing()


async def test_the_consumer_is_read_from_the_broker(broker: Broker) -> None:
    stream = nats_py(broker).jetstream()
    await stream.add_consumer(EVENTS, name="shipping", durable_name="shipping", ack_policy="all")
    for _ in range(5):
        await broker.client.request("events.ord-1.a.v1.Something", b"{}")
    consumer = (await standing(broker)).consumer
    assert consumer is not None
    assert (consumer.lag, consumer.acknowledged, consumer.acknowledged_time, consumer.is_read) == (5, 0, None, False)
    pulled = await stream.pull_subscribe_bind("shipping", EVENTS)
    messages = await pulled.fetch(5)
    await messages[1].ack_sync()
    waiting = asyncio.create_task(pulled.fetch(10, timeout=20))
    async with asyncio.timeout(10):
        # it is the broker's state that changes, which tells nobody
        while (consumer := (await standing(broker)).consumer) is None or not consumer.is_read:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (consumer.lag, consumer.acknowledged) == (3, 2)
    assert consumer.acknowledged_time is not None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_of_several_lanes_the_consumer_of_the_saga_s_is_read(broker: Broker) -> None:
    partition = partition_of("ord-1")
    lanes = Lanes(4)
    for lane in lanes.all:
        await durable(broker, lanes.durable("shipping", lane), *(f"events.{p}.>" for p in lanes.partitions(lane)))
    await durable(broker, f"shipping-{(lanes.of(partition) + 1) % 4}-other", f"events.{partition}.>")
    await broker.client.request("events.ord-1.a.v1.Something", b"{}")
    consumer = (await standing(broker)).consumer
    assert consumer is not None
    assert (consumer.name, consumer.lag) == (lanes.durable("shipping", lanes.of(partition)), 1)


@pytest.mark.parametrize("was", [1, 2])
async def test_of_earlier_lanes_no_consumer_is_read(broker: Broker, was: int) -> None:
    """They stay behind where the number of lanes has been changed."""
    partition = partition_of("ord-1")
    for lanes in (Lanes(was), Lanes(3)):
        for lane in lanes.all:
            await durable(broker, lanes.durable("shipping", lane), *(f"events.{p}.>" for p in lanes.partitions(lane)))
    consumer = (await standing(broker)).consumer
    assert consumer is not None
    assert consumer.name == f"shipping-{partition % 3}"


async def test_another_participant_with_such_a_name_is_not_taken_for_a_lane(broker: Broker) -> None:
    await durable(broker, "shipping", "events.*.a.v1.Something")
    for number in (0, 1, 12, 123):
        await durable(broker, f"shipping-{number}", "events.*.a.v1.Something")
    consumer = (await standing(broker)).consumer
    assert consumer is not None
    assert consumer.name == "shipping"


async def test_there_may_be_more_consumers_than_the_broker_tells_at_once(broker: Broker) -> None:
    async def names(_subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """Two at a time."""
        return {"consumers": every[body["offset"] : body["offset"] + 2], "total": len(every)}

    every = ["a", "b", "c", "d", "shipping"]
    for name in every:
        await durable(broker, name, "events.*.a.v1.Something")
    asked = AsyncMock(side_effect=names)
    request = broker.request

    async def answer(subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await (asked(subject, body) if ".NAMES." in subject else request(subject, body))

    with patch.object(broker, "request", answer):
        consumer = (await standing(broker)).consumer
    assert consumer is not None
    assert asked.await_count == 3


async def durable(broker: Broker, name: str, *subjects: str) -> None:
    """Makes a durable consumer, which nobody reads."""
    stream = nats_py(broker).jetstream()
    config = ConsumerConfig(name=name, durable_name=name, ack_policy=AckPolicy.ALL, filter_subjects=list(subjects))
    await stream.add_consumer(EVENTS, config)


async def test_without_a_broker_that_is_what_is_said(broker: Broker, provisioned: BrokerUnderTest) -> None:
    provisioned.kill()
    async with asyncio.timeout(10):
        found = await standing(broker)
    assert found.trouble
    assert (found.status, found.consumer) == (None, None)


async def test_a_responder_refuses_fails_and_goes_on(broker: Broker) -> None:
    outcomes: list[bytes | Exception] = [QueryError("not\nthat"), RuntimeError("a bug"), b"well"]

    async def take(_request: bytes) -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    responding = asyncio.create_task(respond(broker, "asked", queue="q", answer=take))
    replies = [await _request(broker, "asked") for _ in range(3)]
    assert [(reply.data, (reply.headers or {}).get(ERROR_CODE_HEADER)) for reply in replies] == [
        (b"", "400"),
        (b"", "500"),
        (b"well", None),
    ]
    assert "a bug" not in str(replies[1].headers)
    responding.cancel()
    await asyncio.gather(responding, return_exceptions=True)
    with pytest.raises(nats.errors.NoRespondersError):
        await broker.client.request("asked", b"", timeout=5)


async def test_a_responder_that_is_fenced_answers_no_more(broker: Broker) -> None:
    async def take(_request: bytes) -> bytes:
        raise FencedError("another process has taken over")

    responding = asyncio.create_task(respond(broker, "asked", queue="q", answer=take))
    with pytest.raises(nats.errors.TimeoutError):
        await _request(broker, "asked")
    await asyncio.wait_for(responding, 10)
    with pytest.raises(nats.errors.NoRespondersError):
        await broker.client.request("asked", b"", timeout=5)


async def test_a_responder_goes_on_when_the_broker_is_back(broker: Broker, provisioned: BrokerUnderTest) -> None:
    async def take(request: bytes) -> bytes:
        return request

    responding = asyncio.create_task(respond(broker, "asked", queue="q", answer=take))
    await _request(broker, "asked")
    changes: asyncio.Queue[bool] = asyncio.Queue()
    broker.on_change(changes.put_nowait)
    assert await changes.get()
    provisioned.kill()
    async with asyncio.timeout(20):
        while await changes.get():
            pass
        provisioned.start()
        while not await changes.get():
            pass
    assert (await _request(broker, "asked")).data == b"hello"
    responding.cancel()
    await asyncio.gather(responding, return_exceptions=True)


async def _request(broker: Broker, subject: str) -> Msg:
    """An answer, as soon as somebody listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await broker.client.request(subject, b"hello", timeout=1)
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.02)
