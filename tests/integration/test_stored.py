"""Reading what the stream holds of one type: all of it, in order, whatever its publishers wrote into it."""

from __future__ import annotations

import asyncio

import pytest

from farandole.broker import stored as stored_module
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import last_stored_on, stored_at, stored_events, stored_on
from farandole.broker.streams import EVENTS
from farandole.envelope import Publication, StoredMessage
from farandole.errors import BrokerUnavailableError
from farandole.partitions import partition_of
from farandole.testing.brokers import BrokerUnderTest, connect, nats_py

TYPE = "choreography.v1.SagaTimedOut"
END = 10**9

HOSTILE_HEADERS = (
    b"NATS/1.0\r\nNats-Sequence: 999\r\nNats-Subject: events.1.evil\r\nNats-Time-Stamp: never\r\n\r\n",
    b"NATS/1.0\r\nStatus: 204\r\nDescription: EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 1\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
    b"NATS/1.0 404 Message Not Found\r\n\r\n",
    b"NATS/1.0 408 Bad Request\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: not a number\r\nNats-Time-Stamp:\r\n\r\n",
    b"NATS/1.0\r\n\r\nNats-Sequence: 5\r\n\r\n",
    b"NATS/1.0\r\nA: b\nNats-Sequence: 3\nX: y\r\n\r\n",
    b"NATS/1.0\r\nfoo: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nunfinished: header",
    b"no header at all",
    b"\r\n\r\n",
    b"x",
)


async def store(broker: Broker, keys: list[str], event_type: str = TYPE, data: bytes = b"{}") -> list[int]:
    """Publishes one event for each key; returns their sequences."""
    publisher = Publisher(broker)
    receipts = [
        await (await publisher.submit(Publication(key, f"events.{key}.{event_type}", {}, data))) for key in keys
    ]
    await publisher.stop()
    return [receipt.sequence for receipt in receipts]


async def read(broker: Broker, event_type: str = TYPE, *, after: int = 0, until: int = END) -> list[StoredMessage]:
    """All that is read, in the order in which it comes; each page has something."""
    messages: list[StoredMessage] = []
    async with asyncio.timeout(20):
        async for page in stored_events(broker, event_type, after=after, until=until):
            assert page
            messages += page
    return messages


async def last_sequence(broker: Broker) -> int:
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    sequence: int = info["state"]["last_seq"]
    return sequence


async def test_an_empty_stream_and_a_type_that_nobody_published_hold_nothing(broker: Broker) -> None:
    assert await read(broker) == []
    await store(broker, ["o1"], "orders.v1.OrderCreated")
    assert await read(broker) == []


async def test_all_of_one_type_come_in_stream_order_from_every_partition(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "_PAGE", 20)
    wanted: list[int] = []
    for start in range(0, 90, 30):
        wanted += await store(broker, [f"o{number}" for number in range(start, start + 30)])
        await store(broker, ["o1", "o2"], "orders.v1.OrderCreated")
        await store(broker, ["o1"], f"{TYPE}.AndMore")
    messages = await read(broker)
    assert [message.sequence for message in messages] == wanted
    assert {message.subject for message in messages} == {
        f"events.{partition_of(f'o{number}')}.{TYPE}" for number in range(90)
    }


@pytest.mark.parametrize("count", [19, 20, 21, 40])
async def test_a_page_that_is_just_full_is_not_the_end_and_ends(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(stored_module, "_PAGE", 20)
    await store(broker, [f"o{number}" for number in range(count)])
    assert len(await read(broker)) == count


async def test_pages_of_large_events_are_cut_and_nothing_is_left_out(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker ends a page early where it is large."""
    monkeypatch.setattr(stored_module, "_PAGE_BYTES", 1_000_000)
    sequences = await store(broker, [f"o{number}" for number in range(30)], data=b"x" * 250_000)
    assert [message.sequence for message in await read(broker)] == sequences


@pytest.mark.parametrize(("after", "until"), [(0, 5), (3, 7), (9, 10), (4, 4), (10, END), (0, 0), (7, 3)])
async def test_what_stands_outside_the_limits_is_left_out(broker: Broker, after: int, until: int) -> None:
    await store(broker, [f"o{number}" for number in range(10)])
    found = [message.sequence for message in await read(broker, after=after, until=until)]
    assert found == list(range(after + 1, min(until, 10) + 1))


async def test_the_limits_hold_across_pages(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_PAGE", 4)
    await store(broker, [f"o{number}" for number in range(30)])
    assert [message.sequence for message in await read(broker, after=2, until=12)] == list(range(3, 13))


async def test_events_that_an_operator_deleted_are_passed_over(broker: Broker) -> None:
    await store(broker, ["o1", "o2", "o3", "o4"])
    for sequence in (1, 3):
        await broker.request(f"$JS.API.STREAM.MSG.DELETE.{EVENTS}", {"seq": sequence})
    assert [message.sequence for message in await read(broker)] == [2, 4]


@pytest.mark.parametrize("hostile", HOSTILE_HEADERS)
async def test_no_publisher_s_headers_end_the_reading_or_move_an_event(broker: Broker, hostile: bytes) -> None:
    """What the broker tells of a stored message stands in headers too, which a publisher may write as well."""
    await store(broker, ["o1"])
    command = f"HPUB events.o2.{TYPE} {len(hostile)} {len(hostile) + 2}\r\n".encode() + hostile + b"{}\r\n"
    await nats_py(broker)._send_command(command)
    async with asyncio.timeout(10):
        while await last_sequence(broker) < 2:  # noqa: ASYNC110 - the broker does not tell when it has stored it
            await asyncio.sleep(0.01)
    await store(broker, ["o3"])
    messages = await read(broker)
    assert [(message.sequence, message.subject) for message in messages] == [
        (number, f"events.{partition_of(f'o{number}')}.{TYPE}") for number in (1, 2, 3)
    ]
    assert messages[0].time <= messages[1].time <= messages[2].time
    assert [message.data for message in messages] == [b"{}"] * 3
    found = await stored_at(broker, 2)
    assert found is not None
    assert (found.sequence, found.subject, found.time, found.data) == (
        (2, messages[1].subject, messages[1].time, b"{}")
    )
    assert broker.is_connected


async def test_what_is_stored_at_one_place_is_read_as_it_is_in_its_order(broker: Broker) -> None:
    publisher = Publisher(broker)
    for headers, data in (({"ce-id": "1", "ce-source": "caf%C3%A9"}, b"\x00\xff{}"), ({}, b"")):
        await publisher.publish(Publication("o1", f"events.o1.{TYPE}", headers, data))
    await publisher.stop()
    assert [await stored_at(broker, sequence) for sequence in (1, 2, 3)] == [*await read(broker), None]


async def test_headers_and_times_are_what_a_consumer_gets(broker: Broker) -> None:
    publisher = Publisher(broker)
    headers = {"ce-id": "e1", "ce-source": "caf%C3%A9", "Nats-Msg-Id": "caf%25C3%25A9/e1"}
    await publisher.publish(Publication("o1", f"events.o1.{TYPE}", headers, b"{}"))
    await publisher.stop()
    (message,) = await read(broker)
    raw = await nats_py(broker).jetstream().get_msg(EVENTS, 1)
    assert message.headers == headers
    assert raw.time is not None
    assert abs((message.time - raw.time).total_seconds()) < 0.00001


async def test_a_broker_that_does_not_answer_is_told(provisioned: BrokerUnderTest) -> None:
    broker = await connect(provisioned.url)
    await broker.request(f"$JS.API.STREAM.DELETE.{EVENTS}")
    with pytest.raises(BrokerUnavailableError, match="503"):
        await read(broker)
    provisioned.kill()
    with pytest.raises(BrokerUnavailableError, match="can't be read"):
        await read(broker)
    await broker.close()


async def test_the_last_event_on_a_subject_is_that_of_its_partition_and_type(broker: Broker) -> None:
    subject = f"events.{partition_of('o1')}.{TYPE}"
    assert await last_stored_on(broker, subject) == 0
    first, _, third = [
        *await store(broker, ["o1"]),
        *await store(broker, ["o1"], "orders.v1.OrderCreated"),
        *await store(broker, ["o1"]),
    ]
    elsewhere = next(key for key in map(str, range(100)) if partition_of(key) != partition_of("o1"))
    await store(broker, [elsewhere])
    assert await last_stored_on(broker, subject) == third
    await broker.request(f"$JS.API.STREAM.MSG.DELETE.{EVENTS}", {"seq": third})
    assert await last_stored_on(broker, subject) == first


async def test_what_is_stored_on_one_exact_subject(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_PAGE", 3)
    key, same = "o1", next(key for key in map(str, range(1000)) if partition_of(key) == partition_of("o1"))
    other = next(key for key in map(str, range(1000)) if partition_of(key) != partition_of("o1"))
    sequences = await store(broker, [key, other, same, key, other, same, key, same])
    await store(broker, [key], f"{TYPE}.AndMore")
    wanted = [sequences[place] for place in (0, 2, 3, 5, 6, 7)]
    subject = f"events.{partition_of(key)}.{TYPE}"
    for after in (0, wanted[0], wanted[1], wanted[3], wanted[-1]):
        found = await stored_on(broker, subject, after)
        assert [message.sequence for message in found] == [sequence for sequence in wanted if sequence > after]
        assert {message.subject for message in found} <= {subject}
