"""What the broker refuses parks its own saga, in order, and follows by itself once the broker takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import structlog.testing

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.relay import OutboxRelay
from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.outbox import OutboxRow
from farandole.testing.brokers import EmbeddedBroker, connect, nats_py, provision_streams

TYPE = "orders.v1.OrderCreated"


def row(number: int, key: str, *, size: int = 10) -> OutboxRow:
    headers = {"Nats-Msg-Id": f"{key}-{number}"}
    return OutboxRow(number, Publication(key, f"events.{key}.{TYPE}", headers, f"{number}".ljust(size).encode()))


async def stored(broker: Broker) -> list[int]:
    """The numbers of the rows that the stream holds, in its order."""
    info = await broker.request("$JS.API.STREAM.INFO.EVENTS")
    stream = nats_py(broker).jetstream()
    messages = [await stream.get_msg("EVENTS", sequence + 1) for sequence in range(info["state"]["last_seq"])]
    return [int(message.data or b"") for message in messages]


async def limit(broker: Broker, size: int) -> None:
    """The largest message that the stream takes, in bytes; -1 for any."""
    info = await broker.request("$JS.API.STREAM.INFO.EVENTS")
    await broker.request("$JS.API.STREAM.UPDATE.EVENTS", {**info["config"], "max_msg_size": size})


@asynccontextmanager
async def relay_on(broker: Broker) -> AsyncIterator[OutboxRelay]:
    publisher = Publisher(broker)
    relay = OutboxRelay(publisher)
    relay.run()
    try:
        yield relay
    finally:
        await relay.stop()
        await publisher.stop()


async def until_refused(relay: OutboxRelay, *keys: str) -> None:
    async with asyncio.timeout(10):
        while {refused.key for refused in relay.refused} != set(keys):  # noqa: ASYNC110 - it is asked by health too
            await asyncio.sleep(0.01)


async def test_a_row_that_is_refused_parks_its_saga_in_order_and_no_other(
    broker: Broker,
) -> None:
    await limit(broker, 1000)
    with structlog.testing.capture_logs() as logged:
        async with relay_on(broker) as relay:
            parked = relay.add([row(1, "a"), row(2, "a", size=2000), row(3, "a"), row(4, "a")])
            await relay.add([row(n, f"k{n % 3}") for n in range(10, 40)])
            await until_refused(relay, "a")
            assert not parked.done()
            assert sorted(await stored(broker)) == [1, *range(10, 40)]
            [refused] = relay.refused
            assert refused.subject == f"events.a.{TYPE}"
            assert refused.error.endswith("message size exceeds maximum allowed; raise the stream's max_msg_size")
            assert relay.problem is not None
            assert relay.problem.startswith("the broker refuses an event of a saga, which waits; saga a: ")

            more = relay.add([row(50, "b", size=3000), row(51, "b")])
            await until_refused(relay, "a", "b")
            assert [refused.key for refused in relay.refused] == ["a", "b"]
            assert relay.problem.startswith("the broker refuses events of 2 sagas, which wait; saga a: ")

            await limit(broker, -1)
            async with asyncio.timeout(35):
                await asyncio.gather(parked, more)
            assert relay.refused == []
            assert relay.problem is None
            order = await stored(broker)
            assert [n for n in order if n < 10] == [1, 2, 3, 4]
            assert [n for n in order if n >= 50] == [50, 51]
            assert sorted(order) == [1, 2, 3, 4, *range(10, 40), 50, 51]
    said = [line for line in logged if line["log_level"] == "error"]
    assert len(said) == 2, "each refusal is logged once, however often it is tried"


async def test_a_refused_row_stays_refused_while_the_broker_is_away(embedded_nats_server: EmbeddedBroker) -> None:
    """And its saga's order holds over that."""
    await provision_streams(embedded_nats_server.url)
    broker = await connect(embedded_nats_server.url)
    await limit(broker, 1000)
    async with relay_on(broker) as relay:
        parked = relay.add([row(1, "a", size=2000), row(2, "a")])
        await until_refused(relay, "a")
        embedded_nats_server.kill()
        others = relay.add([row(n, f"k{n}") for n in range(10, 20)])
        await until_refused(relay, "a")
        embedded_nats_server.start()
        async with asyncio.timeout(30):
            await others
        await until_refused(relay, "a")
        await limit(broker, -1)
        async with asyncio.timeout(35):
            await parked
        assert [n for n in await stored(broker) if n < 10] == [1, 2]
    await broker.close()


@dataclass
class ReaderAt:
    """Somebody who has read up to a sequence."""

    last: int
    stands: asyncio.Event = field(default_factory=asyncio.Event)

    async def in_order(self) -> None:
        await self.stands.wait()

    def doubt(self) -> None:
        self.stands.clear()


async def test_a_row_that_another_stream_takes_is_not_done(broker: Broker) -> None:
    """As where a stream was deleted and made again, which nobody may have noticed yet."""
    publisher = Publisher(broker)
    reader = ReaderAt(100)
    relay = OutboxRelay(publisher, reader)
    relay.run()
    done = relay.add([row(1, "a")])
    await publisher.publish(row(2, "b").publication)
    assert await stored(broker) == [2], "nothing is published before the reader is sure of the stream"
    reader.stands.set()
    async with asyncio.timeout(10):
        while 1 not in await stored(broker):  # noqa: ASYNC110 - a stream is polled
            await asyncio.sleep(0.01)
    reader.stands.clear()
    await publisher.publish(row(3, "b").publication)
    assert not done.done()
    assert relay.take_acknowledged() == []

    reader.last = 1
    reader.stands.set()
    async with asyncio.timeout(10):
        await done
    await relay.stop()
    await publisher.stop()


async def test_what_exceeds_the_brokers_payload_is_refused_and_cuts_no_connection(
    embedded_nats_server: EmbeddedBroker,
) -> None:
    """The broker would close the connection of whoever sends it, again and again, and so hold up everything else."""
    await provision_streams(embedded_nats_server.url)
    broker = await connect(embedded_nats_server.url)
    size = nats_py(broker).max_payload
    headers = {"Nats-Msg-Id": "x" * 100}
    block = len("NATS/1.0\r\nNats-Msg-Id: \r\n\r\n") + 100
    publisher = Publisher(broker)
    fits = Publication("k", f"events.k.{TYPE}", headers, b"x" * (size - block))
    await publisher.publish(fits)
    with pytest.raises(BrokerError, match=f"raise its max_payload of {size} bytes") as refused:
        await publisher.publish(Publication("k", fits.subject, headers, b"x" * (size - block + 1)))
    assert not isinstance(refused.value, BrokerUnavailableError)
    assert broker.is_connected
    assert (await publisher.publish(fits)).is_duplicate, "on the same connection"
    await publisher.stop()
    await broker.close()
