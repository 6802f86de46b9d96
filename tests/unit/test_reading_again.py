"""Reading on after a connection was lost: what the broker sent into the void, and who of two readers goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import pytest

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import events_state
from farandole.broker.subscription import Subscription
from farandole.envelope import Publication
from farandole.errors import FencedError
from farandole.settings import Settings
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.loop import VirtualTimeLoop

BELIEVES_SECONDS = 120.0
PATIENCE_SECONDS = 10.0


def event(number: int) -> Publication:
    return Publication("k", "events.k.nobody.v1.Knows", {"Nats-Msg-Id": f"m{number}"}, b"{}")


def run(program: Callable[[SimulatedBroker, Publisher], Coroutine[Any, Any, None]]) -> None:
    """Runs a program on a simulated broker, with a publisher."""

    async def with_broker() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        server = SimulatedBroker(loop, Random(1))
        server.provision()
        writer = await connected(server, "writer")
        publisher = Publisher(writer)
        await program(server, publisher)
        await publisher.stop()
        await writer.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(with_broker())


async def connected(server: SimulatedBroker, name: str, gate: Callable[[str], Awaitable[None]] | None = None) -> Broker:
    broker = Broker(Settings.load(name, grpc_port=1), server.client(name, gate))
    broker.start()
    await broker.connected()
    return broker


def test_what_was_lost_comes_again_as_soon_as_the_reader_is_back() -> None:
    async def program(server: SimulatedBroker, publisher: Publisher) -> None:
        reader = await connected(server, "reader")
        subscription = Subscription(reader, "reader", ["events.>"])
        await subscription.start(after=0, incarnation=(await events_state(reader)).incarnation)
        await publisher.publish(event(1))
        assert (await subscription.next_batch(1)).last_sequence == 1

        server.half_open("reader", BELIEVES_SECONDS)
        assert (await publisher.publish(event(2))).sequence == 2
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await subscription.next_batch(1)).last_sequence == 2
        assert server.loop.time() < BELIEVES_SECONDS, "the broker believed all the time that the connection stands"
        await subscription.stop()
        await reader.close()

    run(program)


def test_who_takes_the_consumer_from_its_successor_finds_out_and_the_successor_goes_on() -> None:
    """As a process that is suspended just before it makes the consumer anew, and goes on after it was replaced."""
    is_there, goes_on = asyncio.Event(), asyncio.Event()
    publishes, suspended_at = 0, -1

    async def gate(point: str) -> None:
        nonlocal publishes
        publishes += point == "publish"
        if publishes == suspended_at:
            is_there.set()
            await goes_on.wait()

    async def program(server: SimulatedBroker, publisher: Publisher) -> None:
        nonlocal suspended_at
        first = await connected(server, "first", gate)
        incarnation = (await events_state(first)).incarnation
        displaced = Subscription(first, "reader", ["events.>"])
        await displaced.start(after=0, incarnation=incarnation, epoch=9)
        await publisher.publish(event(1))
        assert (await displaced.next_batch(1)).last_sequence == 1

        suspended_at = publishes + 3  # it asks how the stream stands and how the consumer stands, and deletes it
        server.cut("first")
        await is_there.wait()
        second = await connected(server, "second")
        successor = Subscription(second, "reader", ["events.>"])
        await successor.start(after=1, incarnation=incarnation, epoch=10)
        await publisher.publish(event(2))
        assert (await successor.next_batch(1)).last_sequence == 2

        goes_on.set()
        with pytest.raises(FencedError):
            await displaced.next_batch(1)
        await publisher.publish(event(3))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await successor.next_batch(1)).last_sequence == 3
        for subscription, broker in ((displaced, first), (successor, second)):
            await subscription.stop()
            await broker.close()

    run(program)


def test_what_another_reader_took_comes_again_soon() -> None:
    """As one that was suspended before it asked for more, and asks after its successor has taken over."""

    async def program(server: SimulatedBroker, publisher: Publisher) -> None:
        reader, thief = await connected(server, "reader"), await connected(server, "thief")
        subscription = Subscription(reader, "reader", ["events.>"])
        await subscription.start(after=0, incarnation=(await events_state(reader)).incarnation)
        await publisher.publish(event(1))
        assert (await subscription.next_batch(1)).last_sequence == 1

        request = b'{"batch": 1000, "expires": 60000000000}'
        for _ in range(3):  # of several pulls each gets its turn
            await thief.client.publish(
                "$JS.API.CONSUMER.MSG.NEXT.EVENTS.reader", request, reply=await swallowing(thief)
            )
        for number in (2, 3):
            await publisher.publish(event(number))
        async with asyncio.timeout(PATIENCE_SECONDS):
            last = 0
            while last < 3:
                last = (await subscription.next_batch(1)).last_sequence
        await subscription.stop()
        await reader.close()
        await thief.close()

    async def swallowing(broker: Broker) -> str:
        async def swallow(_message: object) -> None:
            return

        inbox = broker.client.new_inbox()
        await broker.client.subscribe(inbox, cb=swallow)
        return inbox

    run(program)


def test_a_reader_that_is_slow_is_not_taken_for_one_that_has_lost_its_pull() -> None:
    """It has all that it can take, and so asks for nothing: nothing is heard of the broker then."""

    async def program(server: SimulatedBroker, publisher: Publisher) -> None:
        reader = await connected(server, "reader")
        subscription = Subscription(reader, "reader", ["events.>"])
        await subscription.start(after=0, incarnation=(await events_state(reader)).incarnation)
        for first in range(0, 2500, 500):
            await asyncio.gather(*(publisher.publish(event(number)) for number in range(first, first + 500)))
        await asyncio.sleep(5.0)
        generation = (await subscription.next_batch(1)).generation
        await asyncio.sleep(30.0)
        read = 1
        while read < 2500:
            batch = await asyncio.wait_for(subscription.next_batch(500), PATIENCE_SECONDS)
            read += len(batch.messages)
            assert batch.generation == generation
        await subscription.stop()
        await reader.close()

    run(program)
