"""A connection that nothing passes any more, and a broker that believes that it stands: what it sends there is lost."""

from __future__ import annotations

import asyncio
from random import Random

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import events_state
from farandole.broker.subscription import Subscription
from farandole.envelope import Publication
from farandole.settings import Settings
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.loop import VirtualTimeLoop

BELIEVES_SECONDS = 120.0
PATIENCE_SECONDS = 10.0
EVENT = Publication("k", "events.k.nobody.v1.Knows", {"Nats-Msg-Id": "m"}, b"{}")


async def connected(server: SimulatedBroker, name: str) -> Broker:
    broker = Broker(Settings.load(name, grpc_port=1), server.client(name))
    broker.start()
    await broker.connected()
    return broker


async def program() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    server = SimulatedBroker(loop, Random(1))
    server.provision()
    writer, reader = await connected(server, "writer"), await connected(server, "reader")
    subscription = Subscription(reader, "reader", ["events.>"])
    await subscription.start(after=0, incarnation=(await events_state(reader)).incarnation)
    publisher = Publisher(writer)
    await publisher.publish(EVENT)
    assert (await subscription.next_batch(1)).last_sequence == 1

    server.half_open("reader", BELIEVES_SECONDS)
    second = Publication("k", EVENT.subject, {"Nats-Msg-Id": "n"}, b"{}")
    assert (await publisher.publish(second)).sequence == 2
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await subscription.next_batch(1)).last_sequence == 2
    assert loop.time() < BELIEVES_SECONDS, "the broker believed all the time that the old connection stands"

    await subscription.stop()
    await publisher.stop()
    await writer.close()
    await reader.close()


def test_what_was_lost_comes_again_as_soon_as_the_reader_is_back() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(program())
