"""What Farandole relies on in a NATS server with JetStream. nats-server passes it, and the simulated one must too.

A subclass says how a test gets its server and its event loop:

class TestMyServer(BrokerConformance):
    def run(self, test):
        with MyServer() as server:
            asyncio.run(test(server))
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import nats.errors
import pytest
from nats.aio.msg import Msg

from farandole.broker.connection import NatsClient
from farandole.broker.drift import unset
from farandole.broker.streams import DEADLETTERS, EVENTS, STREAMS
from farandole.partitions import PARTITIONS, partition_of

TYPE = "orders.v1.OrderCreated"
OTHER_TYPE = "orders.v1.OrderCompleted"
ALL = f"events.*.{TYPE}"
SECOND = 1_000_000_000
"""In nanoseconds, as the JetStream API counts durations."""
READER = f"{EVENTS}.reader"
NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{READER}"
_PATIENCE_SECONDS = 10.0


class ServerUnderTest(Protocol):
    """An empty server of the test's own."""

    async def connect(self, name: str = "test") -> NatsClient:
        """A client with a connection that stands, and is made again by itself."""
        ...

    async def restart(self) -> None:
        """Ends the server as a crash does, and starts it again on the same data."""
        ...


Test = Callable[[ServerUnderTest], Awaitable[None]]


def on_its_loop(test: Callable[[Any, ServerUnderTest], Awaitable[None]]) -> Callable[[BrokerConformance], None]:
    """Makes a test of a coroutine: the suite's `run` brings the event loop and the server."""

    def run(suite: BrokerConformance) -> None:
        suite.run(functools.partial(test, suite))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Inbox:
    """A subscription that keeps what comes."""

    def __init__(self) -> None:
        self.subject = ""
        self.messages: list[Msg] = []
        self._changed = asyncio.Condition()
        self._subscription: Any = None

    @classmethod
    async def of(cls, client: NatsClient, subject: str = "", queue: str = "") -> Inbox:
        """One on a subject, or on a new inbox."""
        inbox = cls()
        inbox.subject = subject or client.new_inbox()
        inbox._subscription = await client.subscribe(inbox.subject, queue, inbox._take)
        return inbox

    async def _take(self, message: Msg) -> None:
        async with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    async def has(self, count: int) -> list[Msg]:
        """The messages so far, once there are that many."""
        async with asyncio.timeout(_PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.messages) >= count)
        assert len(self.messages) == count
        return self.messages

    async def taken(self, count: int) -> list[Msg]:
        """The messages so far, once there are that many; they are forgotten."""
        messages = list(await self.has(count))
        self.messages.clear()
        return messages

    async def close(self) -> None:
        """Ends it."""
        await self._subscription.unsubscribe()


async def flushed(client: NatsClient) -> None:
    """Waits until the server has taken in all that the client has sent."""
    await ask(client, "$JS.API.STREAM.INFO.NONE")


async def ask(client: NatsClient, subject: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An answer of the JetStream API."""
    answer = await client.request(subject, json.dumps(request).encode() if request is not None else b"", timeout=2)
    read: dict[str, Any] = json.loads(answer.data)
    return read


async def error_of(client: NatsClient, subject: str, request: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """The code and the error code of a refusal by the JetStream API."""
    error = (await ask(client, subject, request))["error"]
    return error["code"], error["err_code"]


async def provision(client: NatsClient, **settings: object) -> None:
    """Makes Farandole's streams, `EVENTS` with other settings too."""
    for name, config in STREAMS.items():
        wanted = {**config, **settings} if name == EVENTS else dict(config)
        assert "error" not in await ask(client, f"$JS.API.STREAM.CREATE.{name}", wanted)


async def publish(
    client: NatsClient, key: str = "k", *, type_: str = TYPE, data: bytes = b"{}", on: str = "", **headers: str
) -> dict[str, Any]:
    """Publishes an event, and returns the receipt. Headers without their prefix `Nats-`; `on` is the subject of a
    compare-and-set."""
    inbox = await Inbox.of(client)
    named = {f"Nats-{name.replace('_', '-')}": value for name, value in headers.items()}
    if on:
        named["Nats-Expected-Last-Subject-Sequence-Subject"] = on
    await client.publish(f"events.{key}.{type_}", data, reply=inbox.subject, headers=named or None)
    (answer,) = await inbox.has(1)
    await inbox.close()
    receipt: dict[str, Any] = json.loads(answer.data)
    return receipt


async def publish_all(client: NatsClient, keys: int, type_: str = TYPE) -> None:
    """Publishes an event for each of the keys k0, k1, …"""
    for number in range(keys):
        await publish(client, f"k{number}", type_=type_)


async def consumer(client: NatsClient, name: str = "reader", **settings: object) -> dict[str, Any]:
    """Makes a durable consumer as Farandole does, with other settings too; returns the answer."""
    config = {
        "name": name,
        "durable_name": name,
        "description": "",
        "deliver_policy": "all",
        "ack_policy": "all",
        "ack_wait": 60 * SECOND,
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": 512,
        "replay_policy": "instant",
        "filter_subjects": [ALL],
        "metadata": {"farandole.reader": "one"},
        **settings,
    }
    return await ask(
        client, f"$JS.API.CONSUMER.CREATE.EVENTS.{name}", {"stream_name": EVENTS, "config": config, "action": ""}
    )


async def info(client: NatsClient) -> dict[str, Any]:
    """The state of the consumer `reader`."""
    return await ask(client, f"$JS.API.CONSUMER.INFO.{READER}")


async def info_with(client: NatsClient, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The state of the consumer `reader`, once it is as wanted."""
    found: dict[str, Any] = {}

    async def is_as_wanted() -> bool:
        found.update(await info(client))
        return wanted(found)

    await until(is_as_wanted)
    return found


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits until a condition holds, of which nobody tells."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


async def pull(client: NatsClient, inbox: Inbox, batch: int, **settings: object) -> None:
    """Asks for messages of the consumer `reader`."""
    request = {"batch": batch, "expires": 30 * SECOND, **settings}
    await client.publish(NEXT, json.dumps(request).encode(), reply=inbox.subject)


async def reset(client: NatsClient, sequence: int) -> dict[str, Any]:
    """Sets the consumer `reader` to a stream sequence."""
    return await ask(client, f"$JS.API.CONSUMER.RESET.{READER}", {"seq": sequence})


def place(message: Msg) -> tuple[int, int, int, int]:
    """Of a delivery: how often it was delivered, its stream and consumer sequence, and how many are still to come."""
    prefix, _, stream, reader, *numbers = message.reply.split(".")
    assert (prefix, stream, reader) == ("$JS", EVENTS, "reader")
    times, stream_sequence, consumer_sequence, _, pending = map(int, numbers)
    return times, stream_sequence, consumer_sequence, pending


def sequences(messages: list[Msg]) -> list[int]:
    """The stream sequences of deliveries."""
    return [place(message)[1] for message in messages]


def status(message: Msg) -> tuple[str, str]:
    """What a message without a body says of a pull."""
    assert message.data == b""
    headers = message.headers or {}
    return headers["Status"], headers.get("Description", "")


class BrokerConformance:
    """The suite. `run` is what a subclass must bring."""

    def run(self, test: Test) -> None:
        """Runs a test against an empty server, on an event loop; ends both."""
        raise NotImplementedError

    # messages

    @on_its_loop
    async def test_messages_come_in_order_to_all_who_listen(self, server: ServerUnderTest) -> None:
        client, other = await server.connect(), await server.connect("other")
        first, second = await Inbox.of(client, "news"), await Inbox.of(other, "news")
        await flushed(client)
        await flushed(other)
        for number in range(20):
            await client.publish("news", str(number).encode())
        for inbox in (first, second):
            assert [message.data for message in await inbox.has(20)] == [str(n).encode() for n in range(20)]
            assert {(message.subject, message.reply) for message in inbox.messages} == {("news", "")}
            assert [message.headers for message in inbox.messages] == [None] * 20

    @on_its_loop
    async def test_of_a_queue_one_gets_each_message(self, server: ServerUnderTest) -> None:
        client, other = await server.connect(), await server.connect("other")
        inboxes = [await Inbox.of(client, "work", "workers"), await Inbox.of(other, "work", "workers")]
        alone = await Inbox.of(client, "work")
        await flushed(client)
        await flushed(other)
        for number in range(20):
            await client.publish("work", str(number).encode())
        await alone.has(20)
        await until(lambda: sum(len(inbox.messages) for inbox in inboxes) == 20)
        found = [int(message.data) for inbox in inboxes for message in inbox.messages]
        assert sorted(found) == list(range(20))

    @on_its_loop
    async def test_patterns_match_one_token_or_all_that_follow(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        one, more = await Inbox.of(client, "a.*.c"), await Inbox.of(client, "a.>")
        subjects = ["a.b.c", "a", "a.b", "a.b.c.d", "b.b.c"]
        for subject in subjects:
            await client.publish(subject)
        await flushed(client)
        assert [message.subject for message in await one.has(1)] == ["a.b.c"]
        assert [message.subject for message in await more.has(3)] == ["a.b.c", "a.b", "a.b.c.d"]

    @on_its_loop
    async def test_headers_come_as_they_were_sent_without_the_space_around(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        inbox = await Inbox.of(client)
        await client.publish(inbox.subject, b"", headers={"ce-source": "urn:källa", "b": "  wide  "})
        await client.publish(inbox.subject, b"", headers={})
        first, second = await inbox.has(2)
        assert first.headers == {"ce-source": "urn:källa", "b": "wide"}
        assert not second.headers

    @on_its_loop
    async def test_who_has_unsubscribed_gets_nothing_more(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        inbox, kept = await Inbox.of(client, "news"), await Inbox.of(client, "news")
        await client.publish("news", b"1")
        await inbox.has(1)
        await inbox.close()
        await client.publish("news", b"2")
        await kept.has(2)
        assert len(inbox.messages) == 1
        with pytest.raises(nats.errors.Error):
            await inbox.close()

    @on_its_loop
    async def test_messages_beyond_what_may_wait_are_dropped(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        goes_on, taken = asyncio.Event(), []

        async def take(message: Msg) -> None:
            await goes_on.wait()
            taken.append(message.data)

        await client.subscribe("news", cb=take, pending_msgs_limit=2)
        everything = await Inbox.of(client, "news")
        await client.publish("news", b"0")
        await everything.has(1)
        for number in range(1, 6):
            await client.publish("news", str(number).encode())
        await everything.has(6)
        goes_on.set()
        await client.publish("news", b"last")
        await everything.has(7)
        await flushed(client)
        assert taken[:3] == [b"0", b"1", b"2"]
        assert b"5" not in taken

    @on_its_loop
    async def test_a_request_is_answered_once(self, server: ServerUnderTest) -> None:
        client, other = await server.connect(), await server.connect("other")

        async def answer(message: Msg) -> None:
            await other.publish(message.reply, b"first of " + message.data)
            await other.publish(message.reply, b"second")

        await other.subscribe("question", cb=answer)
        await flushed(other)
        answers = await asyncio.gather(*(client.request("question", str(n).encode(), timeout=2) for n in range(5)))
        assert [found.data for found in answers] == [f"first of {n}".encode() for n in range(5)]

    @on_its_loop
    async def test_a_request_that_nobody_takes_is_refused_at_once(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("nobody", b"", timeout=_PATIENCE_SECONDS)
        inbox = await Inbox.of(client)
        await client.publish("nobody", b"", reply=inbox.subject)
        (refusal,) = await inbox.has(1)
        assert (refusal.data, status(refusal)[0]) == (b"", "503")

    @on_its_loop
    async def test_a_request_that_is_not_answered_ends_in_time(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await Inbox.of(client, "silence")
        with pytest.raises(nats.errors.TimeoutError):
            await client.request("silence", b"", timeout=0.1)

    @on_its_loop
    async def test_every_inbox_is_another_one(self, server: ServerUnderTest) -> None:
        client, other = await server.connect(), await server.connect("other")
        inboxes = {each.new_inbox() for each in (client, other) for _ in range(100)}
        assert len(inboxes) == 200
        assert all(inbox.startswith("_INBOX") for inbox in inboxes)

    @on_its_loop
    async def test_a_message_that_is_too_large_is_not_sent(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        inbox = await Inbox.of(client)
        with pytest.raises(nats.errors.MaxPayloadError):
            await client.publish(inbox.subject, bytes(client.max_payload + 1))
        await client.publish(inbox.subject, bytes(client.max_payload))
        (message,) = await inbox.has(1)
        assert len(message.data) == client.max_payload

    @on_its_loop
    async def test_a_message_whose_headers_make_it_too_large_ends_the_client(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await client.publish("news", bytes(client.max_payload), headers={"a": "b"})
        await until(lambda: not client.is_connected)
        with pytest.raises(nats.errors.ConnectionClosedError):
            await client.publish("news")

    @on_its_loop
    async def test_a_closed_client_does_nothing_any_more(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        inbox = await Inbox.of(client, "news")
        await client.close()
        assert not client.is_connected
        with pytest.raises(nats.errors.ConnectionClosedError):
            await client.publish("news")
        with pytest.raises(nats.errors.ConnectionClosedError):
            await Inbox.of(client)
        with pytest.raises(nats.errors.Error):
            await inbox.close()

    @on_its_loop
    async def test_a_client_comes_back_with_its_subscriptions(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        inbox = await Inbox.of(client, "news")
        await server.restart()
        await _reconnected(client)
        await client.publish("news", b"again")
        assert [message.data for message in await inbox.has(1)] == [b"again"]
        assert (await ask(client, "$JS.API.STREAM.INFO.NONE"))["error"]["err_code"] == 10059

    # streams

    @on_its_loop
    async def test_a_stream_is_made_once(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        assert await error_of(client, f"$JS.API.STREAM.INFO.{EVENTS}") == (404, 10059)
        await provision(client)
        made = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        await provision(client)
        again = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        assert made["created"] == again["created"]
        assert made["state"]["last_seq"] == made["state"]["messages"] == 0
        for setting, value in STREAMS[EVENTS].items():
            assert made["config"].get(setting, unset(value)) == value or setting == "metadata"
        assert made["config"]["metadata"].items() >= STREAMS[EVENTS]["metadata"].items()
        other = {**STREAMS[EVENTS], "max_msgs": 5}
        assert await error_of(client, f"$JS.API.STREAM.CREATE.{EVENTS}", other) == (400, 10058)

    @on_its_loop
    async def test_a_stream_that_is_made_anew_is_another_one(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client)
        before = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        assert (await ask(client, f"$JS.API.STREAM.DELETE.{EVENTS}"))["success"]
        assert await error_of(client, f"$JS.API.STREAM.DELETE.{EVENTS}") == (404, 10059)
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(f"events.k.{TYPE}", b"{}", timeout=2)
        await provision(client)
        after = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        assert before["created"] != after["created"]
        assert (await publish(client))["seq"] == 1

    @on_its_loop
    async def test_receipts_count_each_stream_by_itself(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        assert [await publish(client, f"k{n}") for n in range(3)] == [{"stream": EVENTS, "seq": n} for n in (1, 2, 3)]
        answer = await client.request("deadletters.payments.orders.v1.OrderCreated", b"{}", timeout=2)
        assert json.loads(answer.data) == {"stream": DEADLETTERS, "seq": 1}
        assert (await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}"))["state"]["last_seq"] == 3

    @on_its_loop
    async def test_events_are_stored_by_the_partition_of_their_key(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        live = await Inbox.of(client, "events.>")
        keys = [f"{prefix}{n}" for prefix in ("ord-", "Ä", "x_") for n in range(20)]
        for key in keys:
            await publish(client, key)
        stored = await _page(client, {"seq": 1, "batch": 100})
        expected = [f"events.{partition_of(key)}.{TYPE}" for key in keys]
        assert [message.headers["Nats-Subject"] for message in stored[:-1] if message.headers] == expected
        assert len(set(expected)) == PARTITIONS
        assert [message.subject for message in await live.has(len(keys))] == [f"events.{key}.{TYPE}" for key in keys]

    @on_its_loop
    async def test_what_no_stream_captures_has_no_responder(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        for subject in ("events", "events.k", "other.k.t"):
            with pytest.raises(nats.errors.NoRespondersError):
                await client.request(subject, b"{}", timeout=2)

    @on_its_loop
    async def test_a_message_id_is_stored_once_within_the_window(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client, duplicate_window=SECOND // 2)
        assert (await publish(client, Msg_Id="m"))["seq"] == 1
        assert (await publish(client, "other"))["seq"] == 2
        for _ in range(2):
            assert await publish(client, "elsewhere", data=b"[]", Msg_Id="m") == {
                "stream": EVENTS,
                "seq": 1,
                "duplicate": True,
            }
        await asyncio.sleep(0.7)
        assert await publish(client, Msg_Id="m") == {"stream": EVENTS, "seq": 3}
        assert (await publish(client, Msg_Id="m"))["duplicate"]

    @on_its_loop
    async def test_compare_and_set_on_another_subject(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        commit = f"events.{partition_of('k')}.{OTHER_TYPE}"
        assert (await publish(client, Expected_Last_Subject_Sequence="0", on=commit))["seq"] == 1
        assert (await publish(client, type_=OTHER_TYPE))["seq"] == 2
        refused = await publish(client, Expected_Last_Subject_Sequence="0", on=commit)
        assert refused["error"]["code"] == 400
        assert refused["error"]["err_code"] == 10071
        assert refused["seq"] == 0
        assert (await publish(client, Expected_Last_Subject_Sequence="2", on=commit))["seq"] == 3
        for other in ("1", "3", "100", "no number"):
            assert "error" in await publish(client, Expected_Last_Subject_Sequence=other, on=commit)
        assert (await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}"))["state"]["last_seq"] == 3

    @on_its_loop
    async def test_compare_and_set_on_its_own_subject_by_default(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        assert (await publish(client, Expected_Last_Subject_Sequence="0"))["seq"] == 1
        assert "error" in await publish(client, Expected_Last_Subject_Sequence="0")
        assert (await publish(client, Expected_Last_Subject_Sequence="1"))["seq"] == 2

    @on_its_loop
    async def test_a_wrong_sequence_refuses_a_duplicate_too(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client, Msg_Id="m")
        refused = await publish(client, Msg_Id="m", Expected_Last_Subject_Sequence="7")
        assert refused["error"]["err_code"] == 10071
        again = await publish(client, Msg_Id="m", Expected_Last_Subject_Sequence="1")
        assert again == {"stream": EVENTS, "seq": 1, "duplicate": True}

    @on_its_loop
    async def test_what_was_refused_is_no_duplicate_later(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        assert "error" in await publish(client, Msg_Id="m", Expected_Last_Subject_Sequence="7")
        assert await publish(client, Msg_Id="m") == {"stream": EVENTS, "seq": 1}

    @on_its_loop
    async def test_a_message_larger_than_the_stream_takes_is_refused(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client, max_msg_size=100)
        refused = await publish(client, data=bytes(101))
        assert (refused["error"]["code"], refused["error"]["err_code"]) == (400, 10054)
        refused = await publish(client, data=bytes(80), Msg_Id="with headers")
        assert refused["error"]["err_code"] == 10054
        assert (await publish(client, data=bytes(100)))["seq"] == 1

    @on_its_loop
    async def test_a_full_stream_refuses_and_is_still_read(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client, max_bytes=10_000)
        for number in range(9):
            assert (await publish(client, f"k{number}", data=bytes(1000)))["seq"] == number + 1
        refused = await publish(client, data=bytes(1000), Msg_Id="m")
        assert (refused["error"]["code"], refused["error"]["err_code"]) == (503, 10077)
        assert (await publish(client, data=bytes(100), Msg_Id="m")) == {"stream": EVENTS, "seq": 10}
        assert len(await _page(client, {"seq": 1, "batch": 100})) == 11

    @on_its_loop
    async def test_stored_messages_are_read_by_sequence_or_subject(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        get = f"$JS.API.STREAM.MSG.GET.{EVENTS}"
        assert await error_of(client, get, {"last_by_subj": "events.>"}) == (404, 10037)
        assert await error_of(client, get, {"seq": 1}) == (404, 10037)
        assert await error_of(client, "$JS.API.STREAM.MSG.GET.NONE", {"seq": 1}) == (404, 10059)
        await publish(client, "k1", data=b"\x00\xff", Msg_Id="m1")
        await publish(client, "k2", type_=OTHER_TYPE, data=b"")
        await publish(client, "k3")
        found = (await ask(client, get, {"seq": 1}))["message"]
        assert found["seq"] == 1
        assert found["subject"] == f"events.{partition_of('k1')}.{TYPE}"
        assert base64.b64decode(found["data"]) == b"\x00\xff"
        assert base64.b64decode(found["hdrs"]) == b"NATS/1.0\r\nNats-Msg-Id: m1\r\n\r\n"
        bare = (await ask(client, get, {"seq": 2}))["message"]
        assert "hdrs" not in bare
        assert "data" not in bare

        async def sequence_of(**request: object) -> int:
            sequence: int = (await ask(client, get, request))["message"]["seq"]
            return sequence

        assert await sequence_of(last_by_subj="events.>") == 3
        assert await sequence_of(last_by_subj=f"events.{partition_of('k1')}.{TYPE}") == 1
        assert await sequence_of(last_by_subj=f"events.*.{OTHER_TYPE}") == 2
        assert await sequence_of(next_by_subj=ALL, seq=2) == 3
        assert await error_of(client, get, {"last_by_subj": "events.1.none"}) == (404, 10037)
        assert await error_of(client, get, {"seq": 4}) == (404, 10037)

    @on_its_loop
    async def test_times_never_go_back_along_the_stream(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        inbox = await Inbox.of(client)
        for number in range(50):
            await client.publish(f"events.k{number}.{TYPE}", b"{}", reply=inbox.subject)
        await inbox.has(50)
        stored = await _page(client, {"seq": 1, "batch": 100})
        times = [message.headers["Nats-Time-Stamp"] for message in stored[:-1] if message.headers]
        assert times == sorted(times)
        assert len(times) == 50

    # reading without a consumer

    @on_its_loop
    async def test_a_page_of_stored_messages(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client, "k1", data=b"one", Msg_Id="m1")
        await publish(client, "k2", type_=OTHER_TYPE)
        await publish(client, "k3", data=b"")
        await publish(client, "k4", data=b"four")
        first, second, end = await _page(client, {"seq": 1, "batch": 2, "next_by_subj": ALL})
        assert first.data == b"one"
        assert _without_time(first) == {
            "Nats-Msg-Id": "m1",
            "Nats-Stream": EVENTS,
            "Nats-Subject": f"events.{partition_of('k1')}.{TYPE}",
            "Nats-Sequence": "1",
            "Nats-Num-Pending": "2",
            "Nats-Last-Sequence": "0",
        }
        assert _without_time(second) == {
            "Nats-Stream": EVENTS,
            "Nats-Subject": f"events.{partition_of('k3')}.{TYPE}",
            "Nats-Sequence": "3",
            "Nats-Num-Pending": "1",
            "Nats-Last-Sequence": "1",
        }
        assert end.headers == {
            "Status": "204",
            "Description": "EOB",
            "Nats-Num-Pending": "1",
            "Nats-Last-Sequence": "3",
        }
        last, end = await _page(client, {"seq": 4, "batch": 2, "next_by_subj": ALL})
        assert (last.data, (last.headers or {})["Nats-Num-Pending"]) == (b"four", "0")
        assert (end.headers or {})["Nats-Num-Pending"] == "0"

    @on_its_loop
    async def test_a_page_ends_behind_the_message_that_fills_it(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        for number in range(5):
            await publish(client, f"k{number}", data=bytes(1000))
        page = await _page(client, {"seq": 1, "batch": 10, "max_bytes": 2500, "next_by_subj": "events.>"})
        assert len(page) == 4
        assert status(page[-1]) == ("204", "EOB")
        assert (page[-1].headers or {})["Nats-Num-Pending"] == "2"

    @on_its_loop
    async def test_a_page_of_nothing(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        nothing = ("404", "Message Not Found")
        (answer,) = await _page(client, {"seq": 1, "batch": 10, "next_by_subj": ALL})
        assert status(answer) == nothing
        await publish(client)
        for request in (
            {"seq": 2, "batch": 10, "next_by_subj": ALL},
            {"seq": 1, "batch": 10, "next_by_subj": f"events.*.{OTHER_TYPE}"},
            {"seq": 2},
            {"last_by_subj": "events.1.none"},
        ):
            (answer,) = await _page(client, request)
            assert status(answer) == nothing
        assert status((await _page(client, {}))[0]) == ("408", "Empty Request")
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("$JS.API.DIRECT.GET.NONE", b'{"seq":1}', timeout=2)

    @on_its_loop
    async def test_one_stored_message(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client, data=b"one")
        await publish(client, data=b"two", type_=OTHER_TYPE)
        subject = f"events.{partition_of('k')}.{TYPE}"
        for request in ({"seq": 1}, {"last_by_subj": subject}, {"next_by_subj": ALL, "seq": 1}):
            (found,) = await _page(client, request)
            assert found.data == b"one"
            assert _without_time(found) == {"Nats-Stream": EVENTS, "Nats-Subject": subject, "Nats-Sequence": "1"}
        found = await client.request(f"$JS.API.DIRECT.GET.{EVENTS}.{subject}", b"", timeout=2)
        assert found.data == b"one"

    # consumers

    @on_its_loop
    async def test_a_consumer_is_made_told_of_and_deleted(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        assert await error_of(client, f"$JS.API.CONSUMER.INFO.{READER}") == (404, 10059)
        assert await error_of(client, f"$JS.API.CONSUMER.DELETE.{READER}") == (404, 10059)
        assert (await consumer(client))["error"]["err_code"] == 10059
        await provision(client)
        assert await error_of(client, f"$JS.API.CONSUMER.INFO.{READER}") == (404, 10014)
        assert await error_of(client, f"$JS.API.CONSUMER.DELETE.{READER}") == (404, 10014)
        made = await consumer(client)
        assert made["config"]["metadata"].items() >= {"farandole.reader": "one"}.items()
        assert made["num_pending"] == made["num_waiting"] == made["num_ack_pending"] == 0
        again = await consumer(client)
        changed = await consumer(client, metadata={"farandole.reader": "two"})
        assert made["created"] == again["created"] == changed["created"]
        found = await info(client)
        assert found["config"]["metadata"].items() >= {"farandole.reader": "two"}.items()
        assert found["config"]["filter_subjects"] == [ALL]
        assert (await ask(client, f"$JS.API.CONSUMER.DELETE.{READER}"))["success"]
        assert (await consumer(client))["created"] != made["created"]

    @on_its_loop
    async def test_a_pull_gets_what_is_there_in_order(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client, "k0", data=b"zero", Msg_Id="m0")
        await publish(client, "k1", type_=OTHER_TYPE)
        await publish_all(client, 3)
        assert (await consumer(client))["num_pending"] == 4
        inbox = await Inbox.of(client)
        await pull(client, inbox, 3)
        messages = await inbox.taken(3)
        assert [place(message) for message in messages] == [(1, 1, 1, 3), (1, 3, 2, 2), (1, 4, 3, 1)]
        assert messages[0].subject == f"events.{partition_of('k0')}.{TYPE}"
        assert (messages[0].data, messages[0].headers) == (b"zero", {"Nats-Msg-Id": "m0"})
        assert messages[1].headers is None
        told = await info(client)
        assert (told["delivered"]["consumer_seq"], told["delivered"]["stream_seq"]) == (3, 4)
        assert (told["num_pending"], told["num_ack_pending"], told["num_waiting"]) == (1, 3, 0)
        await pull(client, inbox, 5)
        assert [place(message) for message in await inbox.taken(1)] == [(1, 5, 4, 0)]
        await info_with(client, lambda found: found["num_waiting"] == 1)

    @on_its_loop
    async def test_a_delivery_tells_the_time_at_which_it_was_stored(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 1)
        (message,) = await inbox.has(1)
        (stored,) = await _page(client, {"seq": 1})
        fraction = (stored.headers or {})["Nats-Time-Stamp"].removesuffix("Z").partition(".")[2]
        assert message.reply.split(".")[7].endswith(f"{fraction:0<9}")

    @on_its_loop
    async def test_several_filters_pass_what_one_of_them_matches(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        for type_ in (TYPE, "other.v1.Thing", OTHER_TYPE, TYPE):
            await publish(client, type_=type_)
        await consumer(client, filter_subjects=[ALL, f"events.*.{OTHER_TYPE}"])
        inbox = await Inbox.of(client)
        await pull(client, inbox, 10)
        assert sequences(await inbox.has(3)) == [1, 3, 4]

    @on_its_loop
    async def test_a_pull_waits_for_what_is_stored_later(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 3)
        await publish(client, type_=OTHER_TYPE)
        await publish_all(client, 5)
        assert sequences(await inbox.has(3)) == [2, 3, 4]
        assert (await info(client))["num_pending"] == 2

    @on_its_loop
    async def test_a_waiting_pull_beats_and_ends(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish(client)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5, expires=SECOND, idle_heartbeat=SECOND * 3 // 10, max_bytes=10_000)
        delivered, *beats, end = await inbox.has(5)
        assert sequences([delivered]) == [1]
        assert [status(beat) for beat in beats] == [("100", "Idle Heartbeat")] * 3
        told = beats[0].headers or {}
        assert (told["Nats-Last-Consumer"], told["Nats-Last-Stream"]) == ("1", "1")
        assert status(end) == ("408", "Request Timeout")
        assert (end.headers or {})["Nats-Pending-Messages"] == "4"
        assert 9_000 < int((end.headers or {})["Nats-Pending-Bytes"]) < 10_000
        assert (await info(client))["num_waiting"] == 0

    @on_its_loop
    async def test_a_pull_that_does_not_wait(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 2)
        await consumer(client)
        inbox = await Inbox.of(client)
        await client.publish(NEXT, b'{"batch":5,"no_wait":true}', reply=inbox.subject)
        *messages, end = await inbox.has(3)
        assert sequences(messages) == [1, 2]
        assert status(end) == ("404", "No Messages")

    @on_its_loop
    async def test_a_message_that_does_not_fit_ends_the_pull(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        for size in (500, 500, 2000):
            await publish(client, data=bytes(size))
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5, max_bytes=1500)
        *messages, end = await inbox.taken(3)
        assert sequences(messages) == [1, 2]
        assert status(end) == ("409", "Message Size Exceeds MaxBytes")
        assert (end.headers or {})["Nats-Pending-Messages"] == "3"
        await pull(client, inbox, 5, max_bytes=3000)
        assert sequences(await inbox.has(1)) == [3]

    @on_its_loop
    async def test_pulls_get_messages_in_turn(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await consumer(client)
        first, second = await Inbox.of(client), await Inbox.of(client)
        await pull(client, first, 3)
        await pull(client, second, 2)
        await info_with(client, lambda found: found["num_waiting"] == 2)
        await publish_all(client, 5)
        assert sequences(await first.has(3)) == [1, 3, 5]
        assert sequences(await second.has(2)) == [2, 4]

    @on_its_loop
    async def test_a_pull_that_nobody_waits_for_gets_nothing(self, server: ServerUnderTest) -> None:
        client, gone = await server.connect(), await server.connect("gone")
        await provision(client)
        await consumer(client)
        unsubscribed, closed, kept = await Inbox.of(client), await Inbox.of(gone), await Inbox.of(client)
        await pull(client, unsubscribed, 5)
        await pull(gone, closed, 5)
        await flushed(gone)
        await pull(client, kept, 5)
        await unsubscribed.close()
        await gone.close()
        await info_with(client, lambda found: found["num_waiting"] == 1)
        await publish_all(client, 3)
        assert sequences(await kept.has(3)) == [1, 2, 3]

    @on_its_loop
    async def test_a_pull_on_no_consumer_has_no_responder(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 1)
        (refusal,) = await inbox.has(1)
        assert status(refusal)[0] == "503"

    @on_its_loop
    async def test_more_pulls_than_may_wait_are_refused(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await consumer(client, max_waiting=2)
        inboxes = [await Inbox.of(client) for _ in range(3)]
        for inbox in inboxes:
            await pull(client, inbox, 1)
        (refusal,) = await inboxes[2].has(1)
        assert status(refusal) == ("409", "Exceeded MaxWaiting")

    @on_its_loop
    async def test_an_acknowledgement_covers_all_before_it(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 5)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5)
        messages = await inbox.has(5)
        for number, floor in ((2, 3), (0, 3), (4, 5)):
            await client.publish(messages[number].reply, b"+ACK")
            told = await info_with(client, lambda found: bool(found["ack_floor"]["stream_seq"] == floor))  # noqa: B023
            assert told["ack_floor"]["consumer_seq"] == floor
            assert told["num_ack_pending"] == 5 - floor
            assert "last_active" in told["ack_floor"]

    @on_its_loop
    async def test_what_is_not_acknowledged_in_time_comes_again_before_what_is_new(
        self, server: ServerUnderTest
    ) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 4)
        await consumer(client, ack_wait=SECOND // 2)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 3)
        messages = await inbox.taken(3)
        await client.publish(messages[0].reply, b"+ACK")
        await info_with(client, lambda found: found["ack_floor"]["stream_seq"] == 1)
        await asyncio.sleep(0.8)
        await pull(client, inbox, 3)
        again = await inbox.has(3)
        assert [place(message)[:3] for message in again] == [(2, 2, 4), (2, 3, 5), (1, 4, 6)]
        await client.publish(again[2].reply, b"+ACK")
        await info_with(client, lambda found: found["num_ack_pending"] == 0)

    @on_its_loop
    async def test_what_comes_again_does_not_wait_for_a_new_pull(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 2)
        await consumer(client, ack_wait=SECOND // 2)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 10)
        assert [place(message)[:3] for message in await inbox.taken(2)] == [(1, 1, 1), (1, 2, 2)]
        assert [place(message)[:3] for message in await inbox.has(2)] == [(2, 1, 3), (2, 2, 4)]

    @on_its_loop
    async def test_a_reset_goes_back_and_counts_anew(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 5)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 4)
        before = await inbox.taken(4)
        await client.publish(before[1].reply, b"+ACK")
        told = await reset(client, 2)
        assert told["reset_seq"] == 2
        assert (told["delivered"], told["ack_floor"]) == ({"consumer_seq": 0, "stream_seq": 1},) * 2
        assert (told["num_pending"], told["num_ack_pending"]) == (4, 0)
        await pull(client, inbox, 2)
        assert [place(message) for message in await inbox.taken(2)] == [(1, 2, 1, 3), (1, 3, 2, 2)]
        told = await reset(client, 5)
        assert told["num_pending"] == 1
        await pull(client, inbox, 1)
        assert [place(message) for message in await inbox.has(1)] == [(1, 5, 1, 0)]

    @on_its_loop
    async def test_an_acknowledgement_of_what_a_reset_took_back_does_nothing(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 5)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5)
        before = await inbox.taken(5)
        await reset(client, 1)
        await client.publish(before[4].reply, b"+ACK")
        await pull(client, inbox, 2)
        assert sequences(await inbox.has(2)) == [1, 2]
        told = await info(client)
        assert told["ack_floor"]["stream_seq"] == 0
        assert told["num_ack_pending"] == 2

    @on_its_loop
    async def test_pulls_wait_on_over_a_reset(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 3)
        await consumer(client)
        await reset(client, 4)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5)
        await info_with(client, lambda found: found["num_waiting"] == 1)
        await reset(client, 2)
        assert [place(message) for message in await inbox.has(2)] == [(1, 2, 1, 1), (1, 3, 2, 0)]

    @on_its_loop
    async def test_a_reset_past_the_end_waits_for_that_sequence(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 2)
        await consumer(client)
        assert (await reset(client, 5))["num_pending"] == 0
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5)
        await publish_all(client, 4)
        assert sequences(await inbox.has(2)) == [5, 6]

    @on_its_loop
    async def test_a_reset_without_a_sequence_goes_behind_what_was_acknowledged(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        await publish_all(client, 4)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 4)
        await client.publish((await inbox.taken(4))[1].reply, b"+ACK")
        await info_with(client, lambda found: found["ack_floor"]["stream_seq"] == 2)
        assert (await reset(client, 0))["reset_seq"] == 3
        await pull(client, inbox, 4)
        assert sequences(await inbox.has(2)) == [3, 4]

    @on_its_loop
    async def test_a_reset_of_no_consumer_is_not_answered(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        with pytest.raises(nats.errors.TimeoutError):
            await client.request(f"$JS.API.CONSUMER.RESET.{READER}", b'{"seq":1}', timeout=0.3)

    @on_its_loop
    async def test_pulls_end_with_their_consumer(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        inbox = await Inbox.of(client)
        for end in (f"$JS.API.CONSUMER.DELETE.{READER}", f"$JS.API.STREAM.DELETE.{EVENTS}"):
            await consumer(client)
            await pull(client, inbox, 5)
            await info_with(client, lambda found: found["num_waiting"] == 1)
            await ask(client, end)
            (told,) = await inbox.taken(1)
            assert status(told) == ("409", "Consumer Deleted")

    @on_its_loop
    async def test_a_crash_keeps_what_was_acknowledged(self, server: ServerUnderTest) -> None:
        client = await server.connect()
        await provision(client)
        for number in range(5):
            await publish(client, f"k{number}", Msg_Id=f"m{number}")
        made = await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 2)
        messages = await inbox.taken(2)
        await client.publish(messages[1].reply, b"+ACK")
        await info_with(client, lambda found: found["ack_floor"]["stream_seq"] == 2)
        before = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        await pull(client, inbox, 1000)
        await inbox.taken(3)
        await server.restart()
        await _reconnected(client)
        after = await _answered(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        assert after["created"] == before["created"]
        assert after["state"]["last_seq"] == 5
        again = await info(client)
        assert again["created"] == made["created"]
        assert again["num_waiting"] == 0, "a pull does not outlive its server"
        assert (await publish(client, Msg_Id="m4"))["duplicate"]
        assert (await publish(client, "k5"))["seq"] == 6
        await reset(client, 3)
        await pull(client, inbox, 4)
        assert sequences(await inbox.has(4)) == [3, 4, 5, 6]


async def _page(client: NatsClient, request: Mapping[str, Any]) -> list[Msg]:
    """All that answers a direct get of `EVENTS`: one message, or some and the status that ends them."""
    inbox = await Inbox.of(client)
    await client.publish(f"$JS.API.DIRECT.GET.{EVENTS}", json.dumps(request).encode(), reply=inbox.subject)
    count = 0
    while True:
        count += 1
        messages = await _at_least(inbox, count)
        if "batch" not in request or "Status" in (messages[count - 1].headers or {}):
            await inbox.close()
            return list(inbox.messages)


async def _at_least(inbox: Inbox, count: int) -> list[Msg]:
    async with asyncio.timeout(_PATIENCE_SECONDS), inbox._changed:  # noqa: SLF001 - of this file
        await inbox._changed.wait_for(lambda: len(inbox.messages) >= count)  # noqa: SLF001
    return inbox.messages


def _without_time(message: Msg) -> dict[str, str]:
    headers = dict(message.headers or {})
    del headers["Nats-Time-Stamp"]
    return headers


async def _reconnected(client: NatsClient) -> None:
    """Waits until a connection stands, and JetStream answers over it."""
    await _answered(client, "$JS.API.STREAM.INFO.NONE")


async def _answered(client: NatsClient, subject: str) -> dict[str, Any]:
    """An answer of the JetStream API, which may not be there yet."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            try:
                answer = await ask(client, subject)
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(0.05)
            else:
                if answer.get("error", {}).get("code") != 503:
                    return answer
