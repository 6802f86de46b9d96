"""Publishing: receipts that always come, rows in order within a key, and nothing lost when the broker goes away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.relay import OutboxRelay
from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.outbox import OutboxRow
from farandole.testing.brokers import BrokerUnderTest, EmbeddedBroker, connect, nats_py, provision_streams

TYPE = "orders.v1.OrderCreated"


def publication(key: str, number: int, *, subject: str = "") -> Publication:
    headers = {"Nats-Msg-Id": f"{key}-{number}"}
    return Publication(key, subject or f"events.{key}.{TYPE}", headers, json.dumps({"n": number}).encode())


async def stored(broker: Broker) -> list[tuple[int, int]]:
    """What the stream holds: sequence and number."""
    state = await broker.request("$JS.API.STREAM.INFO.EVENTS")
    found = []
    stream = nats_py(broker).jetstream()
    for sequence in range(1, state["state"]["last_seq"] + 1):
        message = await stream.get_msg("EVENTS", sequence)
        found.append((sequence, json.loads(message.data or b"{}")["n"]))
    return found


async def until_drained(relay: OutboxRelay) -> None:
    async with asyncio.timeout(30):
        while relay.depth:
            await relay.changed()
            relay.take_acknowledged()


async def test_a_receipt_names_the_sequence_and_a_second_one_says_duplicate(broker: Broker) -> None:
    publisher = Publisher(broker)
    first = await publisher.publish(publication("k", 1))
    second = await publisher.publish(publication("k", 1))
    assert (first.sequence, first.is_duplicate) == (1, False)
    assert (second.sequence, second.is_duplicate) == (1, True)
    await publisher.stop()


async def test_publications_are_stored_in_the_order_in_which_they_are_submitted(broker: Broker) -> None:
    publisher = Publisher(broker)
    receipts = [await publisher.submit(publication("k", n)) for n in range(200)]
    await asyncio.gather(*receipts)
    assert [number for _, number in await stored(broker)] == list(range(200))
    await publisher.stop()


async def test_a_refusal_is_an_error_with_the_brokers_code(broker: Broker) -> None:
    publisher = Publisher(broker)
    await broker.request("$JS.API.STREAM.UPDATE.EVENTS", {**(await config(broker)), "max_msg_size": 64})
    too_big = Publication("k", f"events.k.{TYPE}", {}, b"x" * 1000)
    with pytest.raises(BrokerError) as refused:
        await publisher.publish(too_big)
    assert not isinstance(refused.value, BrokerUnavailableError)
    assert refused.value.code == 10054
    await publisher.stop()


async def config(broker: Broker) -> dict[str, object]:
    info = await broker.request("$JS.API.STREAM.INFO.EVENTS")
    settings: dict[str, object] = info["config"]
    return settings


async def test_no_stream_is_no_answer_and_not_a_wait(broker: Broker) -> None:
    publisher = Publisher(broker)
    with pytest.raises(BrokerUnavailableError, match="nobody answers"):
        await publisher.publish(publication("k", 1, subject="elsewhere.k"))
    await publisher.stop()


async def test_what_is_under_way_when_the_broker_dies_fails_at_once(provisioned: BrokerUnderTest) -> None:
    broker = await connect(provisioned.url)
    publisher = Publisher(broker)
    await publisher.publish(publication("k", 0))
    receipts = [await publisher.submit(publication("k", n)) for n in range(1, 500)]
    provisioned.kill()
    async with asyncio.timeout(4):
        outcomes = await asyncio.gather(*receipts, return_exceptions=True)
    assert any(isinstance(outcome, BrokerUnavailableError) for outcome in outcomes)
    assert all(not isinstance(o, Exception) or isinstance(o, BrokerUnavailableError) for o in outcomes)
    with pytest.raises(BrokerUnavailableError):
        await publisher.publish(publication("k", 501))
    await publisher.stop()
    await broker.close()


async def test_a_broker_that_does_not_answer_fails_the_publication_in_time(
    embedded_nats_server: EmbeddedBroker,
) -> None:
    await provision_streams(embedded_nats_server.url)
    broker = await connect(embedded_nats_server.url)
    publisher = Publisher(broker)
    await publisher.publish(publication("k", 0))
    embedded_nats_server.suspend()
    async with asyncio.timeout(10):
        with pytest.raises(BrokerUnavailableError):
            await publisher.publish(publication("k", 1))
    embedded_nats_server.resume()
    await publisher.stop()
    await broker.close()


class TestRelay:
    """Outbox rows reach the stream, each once, in order within their key."""

    async def test_rows_of_one_key_keep_their_order_over_a_broker_crash(self, provisioned: BrokerUnderTest) -> None:
        broker = await connect(provisioned.url)
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        rows = [OutboxRow(n + 1, publication(f"k{n % 3}", n)) for n in range(600)]
        relay.add(rows)
        relay.run()
        while relay.depth > 400:
            await relay.changed()
            relay.take_acknowledged()
        provisioned.kill()
        provisioned.start()
        await until_drained(relay)
        numbers = [number for _, number in await stored(broker)]
        assert sorted(numbers) == list(range(600))
        for key in range(3):
            assert [n for n in numbers if n % 3 == key] == list(range(key, 600, 3))
        await relay.stop()
        await publisher.stop()
        await broker.close()

    async def test_at_most_one_row_of_a_key_is_under_way(self, broker: Broker) -> None:
        """Else a row that fails and is sent again would come behind its successor."""
        seen: list[int] = []
        acknowledged: list[int] = []

        async def slow_stream(message: Msg) -> None:
            number = json.loads(message.data)["n"]
            assert acknowledged == seen, "a second row was sent before the first was acknowledged"
            seen.append(number)
            await asyncio.sleep(0)
            acknowledged.append(number)
            await message.respond(json.dumps({"stream": "S", "seq": number + 1}).encode())

        await broker.client.subscribe("slow.>", cb=slow_stream)
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        done = relay.add([OutboxRow(n + 1, publication("k", n, subject="slow.k")) for n in range(50)])
        relay.run()
        async with asyncio.timeout(10):
            await done
        assert seen == list(range(50))
        await relay.stop()
        await publisher.stop()

    async def test_a_refused_row_holds_up_its_key_and_no_other(self, broker: Broker) -> None:
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        answers = 0

        async def refuse_twice(message: Msg) -> None:
            nonlocal answers
            answers += 1
            refusal = {"error": {"code": 400, "err_code": 10054, "description": "no"}}
            await message.respond(json.dumps(refusal if answers < 3 else {"stream": "S", "seq": 1}).encode())

        await broker.client.subscribe("refusing.>", cb=refuse_twice)
        held = relay.add(
            [OutboxRow(1, publication("bad", 1, subject="refusing.bad")), OutboxRow(2, publication("bad", 2))]
        )
        relay.run()
        async with asyncio.timeout(10):
            await relay.add([OutboxRow(3, publication("good", 3))])
            assert not held.done()
            await held
        assert [number for _, number in await stored(broker)] == [3, 2]
        assert sorted(relay.take_acknowledged()) == [1, 2, 3]
        await relay.stop()
        await publisher.stop()

    async def test_a_row_that_is_added_twice_is_published_once(self, broker: Broker) -> None:
        """A remote procedure may hand over a row that the outbox, read at the start, has too."""
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        first = relay.add([OutboxRow(1, publication("k", 1))])
        again = relay.add([OutboxRow(1, publication("k", 1)), OutboxRow(2, publication("k", 2))])
        relay.run()
        async with asyncio.timeout(10):
            await asyncio.gather(first, again)
        assert [number for _, number in await stored(broker)] == [1, 2]
        assert sorted(relay.take_acknowledged()) == [1, 2]
        await relay.stop()
        await publisher.stop()

    async def test_rows_of_one_key_go_out_in_their_order_also_where_a_later_one_was_told_of_first(
        self, broker: Broker
    ) -> None:
        """As by a remote procedure that commits while what an earlier run left is still being read."""
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        rows = [OutboxRow(n, publication("k", n)) for n in (1, 2, 3, 4)]
        relay.add(rows[3:])
        relay.add(rows[2:])
        relay.run()
        relay.add(rows[:2])  # the first of the others is under way by now
        await until_drained(relay)
        assert [number for _, number in await stored(broker)] == [3, 1, 2, 4]
        await relay.stop()
        await publisher.stop()

    async def test_what_another_stream_took_is_not_done_with_when_that_has_it_twice(self, broker: Broker) -> None:
        """It stays in the outbox until whoever reads the stream has found the right one in its place."""

        class Reader:
            """Has read further than the stream reaches, and has not noticed."""

            last = 100
            knows = asyncio.Event()
            waits = asyncio.Event()

            async def in_order(self) -> None:
                if self.knows.is_set():
                    self.waits.set()
                    await asyncio.Event().wait()

            def doubt(self) -> None:
                self.knows.set()

        publisher = Publisher(broker)
        reader = Reader()
        relay = OutboxRelay(publisher, reader)
        relay.run()
        done = relay.add([OutboxRow(1, publication("k", 1))])
        either: list[asyncio.Future[Any]] = [done, asyncio.ensure_future(reader.waits.wait())]
        async with asyncio.timeout(10):
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        either[1].cancel()
        assert (done.done(), relay.take_acknowledged()) == (False, [])
        await relay.stop()
        await publisher.stop()

    async def test_nothing_is_published_before_it_runs_and_nothing_that_was_withdrawn(self, broker: Broker) -> None:
        publisher = Publisher(broker)
        relay = OutboxRelay(publisher)
        done = relay.add([OutboxRow(n, publication("k", n)) for n in (1, 2, 3)])
        relay.withdraw("k", "k-2")
        assert await stored(broker) == []
        relay.run()
        async with asyncio.timeout(10):
            await done
        assert [number for _, number in await stored(broker)] == [1, 3]
        assert sorted(relay.take_acknowledged()) == [1, 2, 3]
        await relay.stop()
        await publisher.stop()


async def test_one_that_is_stopped_leaves_nothing_behind_at_the_connection(broker: Broker) -> None:
    subscriptions, listeners = len(nats_py(broker)._subs), len(broker._listeners)
    publisher = Publisher(broker)
    await publisher.publish(publication("last", 1))
    await publisher.stop()
    assert (len(nats_py(broker)._subs), len(broker._listeners)) == (subscriptions, listeners)
