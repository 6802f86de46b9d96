"""Reading the stream: every event once, in order, whatever happens to the broker or to the consumer."""

from __future__ import annotations

import asyncio
import json

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import events_state
from farandole.broker.subscription import Subscription
from farandole.envelope import Publication
from farandole.testing.brokers import BrokerUnderTest, EmbeddedBroker, connect, nats_py, provision_streams

TYPE = "orders.v1.OrderCreated"


async def publish(broker: Broker, numbers: range) -> None:
    publisher = Publisher(broker)
    receipts = [
        await publisher.submit(
            Publication(f"k{n}", f"events.k{n}.{TYPE}", {"Nats-Msg-Id": f"m{n}"}, json.dumps({"n": n}).encode())
        )
        for n in numbers
    ]
    await asyncio.gather(*receipts)
    await publisher.stop()


async def read(subscription: Subscription, count: int) -> list[int]:
    """The stream sequences of the next `count` messages."""
    found: list[int] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            batch = await subscription.next_batch(100)
            found.extend(message.sequence for message in batch.messages)
            await subscription.acknowledge(batch)
    return found


async def subscribed(broker: Broker, *, after: int = 0, filters: tuple[str, ...] = ("events.>",)) -> Subscription:
    state = await events_state(broker)
    subscription = Subscription(broker, "reader", filters)
    await subscription.start(after=after, incarnation=state.incarnation)
    return subscription


async def until_problem(subscription: Subscription, part: str) -> None:
    """Waits until the subscription's problem holds `part`; "" for none."""
    async with asyncio.timeout(20):
        while not (part in (subscription.problem or "") if part else subscription.problem is None):
            await subscription.problem_changed()


async def test_reads_everything_in_order(broker: Broker) -> None:
    await publish(broker, range(3000))
    subscription = await subscribed(broker)
    assert await read(subscription, 3000) == list(range(1, 3001))
    await subscription.stop()


async def test_goes_on_behind_the_position_it_is_given_not_behind_what_was_acknowledged(broker: Broker) -> None:
    await publish(broker, range(50))
    first = await subscribed(broker)
    assert len(await read(first, 50)) == 50
    await first.stop()
    second = await subscribed(broker, after=20)
    assert await read(second, 30) == list(range(21, 51))
    await second.stop()


async def test_a_filter_by_type_takes_only_that_type(broker: Broker) -> None:
    await publish(broker, range(5))
    subscription = await subscribed(broker, filters=("events.*.orders.v1.OrderCompleted",))
    publisher = Publisher(broker)
    await publisher.publish(Publication("k", "events.k.orders.v1.OrderCompleted", {}, b"{}"))
    assert await read(subscription, 1) == [6]
    await subscription.stop()
    await publisher.stop()


async def test_a_broker_that_crashes_loses_and_reorders_nothing(provisioned: BrokerUnderTest) -> None:
    reader, writer = await connect(provisioned.url, service="reader"), await connect(provisioned.url, service="writer")
    subscription = await subscribed(reader)
    await publish(writer, range(500))
    assert await read(subscription, 200) == list(range(1, 201))
    provisioned.kill()
    await until_problem(subscription, "not reachable")
    provisioned.start()
    await until_problem(subscription, "")
    async with asyncio.timeout(10):
        back = asyncio.Event()
        writer.on_change(lambda connected: back.set() if connected else None)
        await back.wait()
    await publish(writer, range(500, 900))
    assert await read(subscription, 700) == list(range(201, 901))
    await subscription.stop()
    await reader.close()
    await writer.close()


async def test_messages_that_another_reader_of_the_same_consumer_took_are_fetched_again(broker: Broker) -> None:
    """Another process on the same durable, such as one that was suspended and is fenced, must not make holes."""
    subscription = await subscribed(broker)
    await until_problem(subscription, "")
    stolen = asyncio.Event()

    async def steal(_message: object) -> None:
        stolen.set()

    inbox = broker.client.new_inbox()
    await broker.client.subscribe(inbox, cb=steal)
    await broker.client.publish(
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.reader", json.dumps({"batch": 20, "expires": 10**10}).encode(), reply=inbox
    )
    await nats_py(broker).flush()
    await publish(broker, range(200))
    assert await read(subscription, 200) == list(range(1, 201))
    assert stolen.is_set()
    await subscription.stop()


async def test_a_deleted_consumer_is_made_again(broker: Broker) -> None:
    subscription = await subscribed(broker)
    await publish(broker, range(10))
    await read(subscription, 10)
    await broker.request("$JS.API.CONSUMER.DELETE.EVENTS.reader")
    await publish(broker, range(10, 30))
    assert await read(subscription, 20) == list(range(11, 31))
    await subscription.stop()


async def test_a_stream_that_was_made_anew_is_refused_with_the_remedy(
    broker: Broker, provisioned: BrokerUnderTest
) -> None:
    await publish(broker, range(10))
    subscription = await subscribed(broker)
    await read(subscription, 10)
    await broker.request("$JS.API.STREAM.DELETE.EVENTS")
    await until_problem(subscription, "does not exist; `farandole provision` makes it")
    await provision_streams(provisioned.url)
    await until_problem(subscription, "restore the stream from its backup")
    await subscription.stop()


async def test_a_position_past_the_streams_end_is_refused(broker: Broker) -> None:
    await publish(broker, range(10))
    subscription = await subscribed(broker, after=11)
    await until_problem(subscription, "ends at 10, before the stored position 11")
    await subscription.stop()


async def test_a_suspended_broker_is_noticed_and_survived(embedded_nats_server: EmbeddedBroker) -> None:
    await provision_streams(embedded_nats_server.url)
    broker = await connect(embedded_nats_server.url)
    subscription = await subscribed(broker)
    await publish(broker, range(10))
    await read(subscription, 10)
    embedded_nats_server.suspend()
    await until_problem(subscription, "not reachable")
    embedded_nats_server.resume()
    await until_problem(subscription, "")
    await publish(broker, range(10, 20))
    assert await read(subscription, 10) == list(range(11, 21))
    await subscription.stop()
    await broker.close()


async def test_a_publisher_cannot_pass_a_message_off_as_a_status_of_the_broker(broker: Broker) -> None:
    """A hostile header block with an inline status is stored like any other; it must come through as a message."""
    subscription = await subscribed(broker)
    await until_problem(subscription, "")
    hostile = b"NATS/1.0 409 Consumer Deleted\r\n\r\n"
    command = f"HPUB events.k1.{TYPE} {len(hostile)} {len(hostile)}\r\n".encode() + hostile + b"\r\n"
    await nats_py(broker)._send_command(command)
    await nats_py(broker).flush()
    await publish(broker, range(3))
    assert await read(subscription, 4) == [1, 2, 3, 4]
    await subscription.stop()
