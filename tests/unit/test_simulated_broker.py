"""The simulated broker's faults: each does what its real counterpart does, and Farandole's reading and publishing come
through all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import nats.errors
import pytest

from farandole.broker.connection import Broker, NatsClient
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_events
from farandole.broker.streams import EVENTS, events_state
from farandole.broker.subscription import Subscription
from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.settings import Settings
from farandole.testing.broker_conformance import (
    TYPE,
    Inbox,
    ask,
    consumer,
    info,
    publish,
    pull,
    reset,
    sequences,
    status,
)
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.client import SimulatedClient
from farandole.testing.simulation.jetstream import NotSimulatedError
from farandole.testing.simulation.loop import VirtualTimeLoop


def run(program: Callable[[SimulatedBroker], Coroutine[Any, Any, Any]], seed: int = 1) -> Any:
    """What a program returns, with a broker that has Farandole's streams."""

    async def with_broker() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        server = SimulatedBroker(loop, Random(seed))
        server.provision()
        return await program(server)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(with_broker())


async def connect(
    server: SimulatedBroker, name: str = "test", gate: Callable[[str], Awaitable[None]] | None = None
) -> Broker:
    broker = Broker(Settings.load(name, grpc_port=1), server.client(name, gate))
    broker.start()
    await broker.connected()
    return broker


def client_of(broker: Broker) -> SimulatedClient:
    assert isinstance(broker.client, SimulatedClient)
    return broker.client


async def back(client: NatsClient) -> None:
    """Waits until the client is connected, and the broker has a leader."""
    while True:
        try:
            answer = await ask(client, f"$JS.API.STREAM.INFO.{EVENTS}")
        except (nats.errors.Error, TimeoutError):
            await asyncio.sleep(0.1)
        else:
            if "error" not in answer:
                return
            await asyncio.sleep(0.1)


def event(number: int) -> Publication:
    return Publication(f"k{number}", f"events.k{number}.{TYPE}", {"Nats-Msg-Id": f"m{number}"}, b"{}")


def test_the_same_seed_is_the_same_run() -> None:
    def trace(seed: int) -> list[tuple[float, str, str]]:
        faults: list[tuple[float, str, str]] = []

        async def program(server: SimulatedBroker) -> None:
            server.on_fault = lambda kind, detail: faults.append((server.loop.time(), kind, detail))
            await stormy(server, Random(seed), events=40)
            faults.extend(
                (message.time.timestamp(), message.subject, str(message.headers)) for message in server.stored
            )

        run(program, seed)
        return faults

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_what_is_under_way_is_lost_both_ways_when_a_connection_is_cut() -> None:
    async def program(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        inbox = await Inbox.of(client, "news")
        await client.publish("news", b"1")
        await inbox.taken(1)
        await client.publish("news", b"lost on its way up")
        server.cut("test")
        await asyncio.sleep(1)
        assert client.is_connected
        await client.publish("news", b"2")
        server.weather.latency_seconds = (0.1, 0.1)
        await asyncio.sleep(0.05)
        assert [message.data for message in await inbox.taken(1)] == [b"2"]
        await client.publish("news", b"lost on its way down")
        await asyncio.sleep(0.15)
        server.cut()
        await asyncio.sleep(2)
        assert not inbox.messages
        assert server.strikes["connection cut"] == 2

    run(program)


def test_publishing_fails_while_there_is_no_connection() -> None:
    async def program(server: SimulatedBroker) -> None:
        broker = await connect(server)
        told: list[bool] = []
        broker.on_change(told.append)
        server.restart(5)
        await asyncio.sleep(0.01)
        with pytest.raises(nats.errors.OutboundBufferLimitError):
            await broker.client.publish("news")
        assert "not reachable (the simulated server is down)" in (broker.problem or "")
        await asyncio.sleep(6)
        assert broker.problem is None
        assert told[0] is told[-1] is True
        assert False in told

    run(program)


def test_a_half_open_connection_takes_messages_for_it_until_the_server_notices() -> None:
    async def program(server: SimulatedBroker) -> None:
        client, other = (await connect(server)).client, (await connect(server, "other")).client
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 1000)
        await asyncio.sleep(0.1)
        server.half_open("test", 10)
        await publish(other, "k0")
        assert client.is_connected
        assert (await info(other))["num_waiting"] == 1
        await asyncio.sleep(4)
        assert client.is_connected, "it has noticed, and connected again"
        assert (await info(other))["delivered"]["stream_seq"] == 1
        assert not inbox.messages
        await reset(client, 1)
        await pull(client, inbox, 5)
        await asyncio.sleep(10)
        assert sequences(inbox.messages) == [1]
        assert server.connections == ["other", "test"]

    run(program)


def test_single_messages_are_lost_of_every_kind() -> None:
    async def program(server: SimulatedBroker) -> dict[str, int]:
        broker = await connect(server)
        server.weather.losses = 0.3
        client = broker.client
        await asyncio.gather(*(trying(client, number) for number in range(100)))
        return dict(server.strikes)

    async def trying(client: NatsClient, number: int) -> None:
        for request in (f"events.k{number}.{TYPE}", f"$JS.API.STREAM.INFO.{EVENTS}"):
            with suppress(nats.errors.TimeoutError):
                await client.request(request, b"", timeout=1)

    strikes = run(program)
    assert strikes.keys() == {"publication lost", "receipt lost", "request lost", "answer lost"}
    assert all(10 < count < 60 for count in strikes.values())


def test_a_delayed_message_holds_up_what_follows_it() -> None:
    async def program(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        inbox = await Inbox.of(client, "news")
        server.weather.delays, server.weather.delay_seconds = 0.2, (1, 2)
        for number in range(50):
            await client.publish("news", str(number).encode())
        assert [int(message.data) for message in await inbox.has(50)] == list(range(50))
        assert server.strikes["message held up"] > 5
        assert server.loop.time() > 1

    run(program)


def test_a_connection_that_is_held_up_loses_nothing() -> None:
    async def program(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        inbox = await Inbox.of(client, "news")
        await client.publish("news", b"0")
        await inbox.has(1)
        server.hold("test", 1.5)
        began = server.loop.time()
        await client.publish("news", b"1")
        await inbox.has(2)
        assert 1.5 <= server.loop.time() - began < 3.1

    run(program)


@pytest.mark.parametrize("fault", ["restart", "leader"])
def test_of_what_was_being_stored_some_is_stored_and_nobody_is_told(fault: str) -> None:
    async def program(server: SimulatedBroker) -> tuple[int, int]:
        client = (await connect(server)).client
        inbox = await Inbox.of(client)
        server.weather.store_seconds = (0.01, 0.01)
        for number in range(10):
            await client.publish(f"events.k{number}.{TYPE}", b"{}", reply=inbox.subject)
        await asyncio.sleep(0.008)
        assert not server.stored
        if fault == "restart":
            server.restart(1)
        else:
            server.change_leader(1)
        stored = len(server.stored)
        await asyncio.sleep(3)
        assert len(server.stored) == stored
        assert not [message for message in inbox.messages if message.data]
        assert server.strikes["publication stored without a receipt"] == stored
        assert (await publish(client))["seq"] == stored + 1
        return stored, server.strikes["publication lost before it was stored"]

    found = {run(program, seed) for seed in range(20)}
    assert all(stored + lost <= 10 for stored, lost in found)
    assert any(stored for stored, _ in found)
    assert any(lost for _, lost in found)


def test_without_a_leader_nothing_is_taken_on_and_pulls_end() -> None:
    async def program(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        await publish(client)
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 1000)
        await inbox.taken(1)
        server.change_leader(2)
        (told,) = await inbox.taken(1)
        assert status(told) == ("409", "Leadership Change")
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(f"events.k.{TYPE}", b"{}", timeout=1)
        await pull(client, inbox, 1)
        assert status((await inbox.taken(1))[0])[0] == "503"
        stored = await client.request(f"$JS.API.DIRECT.GET.{EVENTS}", b'{"seq":1}', timeout=1)
        assert stored.data == b"{}", "a replica answers"
        await back(client)
        assert server.loop.time() >= 2
        assert (await publish(client))["seq"] == 2

    run(program)


def test_a_new_leader_may_deliver_again_what_the_old_one_delivered() -> None:
    async def program(server: SimulatedBroker) -> list[int]:
        client = (await connect(server)).client
        for number in range(5):
            await publish(client, f"k{number}")
        await consumer(client)
        inbox = await Inbox.of(client)
        await pull(client, inbox, 5)
        await inbox.taken(5)
        server.change_leader(1)
        await back(client)
        await pull(client, inbox, 5)
        await publish(client, "last")
        await asyncio.sleep(1)
        return sequences(inbox.messages)

    found = {tuple(run(program, seed)) for seed in range(20)}
    assert found <= {tuple(range(first, 7))[:5] for first in range(1, 7)}
    assert len(found) > 2


def test_on_a_full_disk_nothing_is_stored_and_all_else_goes_on() -> None:
    async def program(server: SimulatedBroker) -> int:
        broker = await connect(server)
        publisher = Publisher(broker)
        await publisher.publish(event(1))
        server.fill_disk()
        with pytest.raises(BrokerUnavailableError) as refused:
            await publisher.publish(event(2))
        again = await publisher.publish(event(1))
        assert (again.sequence, again.is_duplicate) == (1, True)
        server.free_disk()
        await back(broker.client)
        assert (await publisher.publish(event(2))).sequence == 2
        await publisher.stop()
        return refused.value.code

    assert {run(program, seed) for seed in range(10)} == {10023, 0}


def test_message_ids_that_are_forgotten_are_stored_again() -> None:
    async def program(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        await publish(client, Msg_Id="m")
        server.forget_message_ids()
        assert await publish(client, Msg_Id="m") == {"stream": EVENTS, "seq": 2}

    run(program)


def test_a_replica_that_is_behind_answers_direct_reads_and_what_it_lacks_comes_from_the_leader() -> None:
    async def program(server: SimulatedBroker) -> set[int]:
        broker = await connect(server)
        publisher = Publisher(broker)
        for number in range(10):
            await publisher.publish(event(number))
            await asyncio.sleep(0.1)
        await publisher.stop()
        server.weather.replica_lag_seconds = 0.5
        seen_by_replica: set[int] = set()
        for _ in range(30):
            last = await broker.client.request(f"$JS.API.DIRECT.GET.{EVENTS}", b'{"last_by_subj":"events.>"}')
            seen_by_replica.add(int((last.headers or {})["Nats-Sequence"]))
            pages = [page async for page in stored_events(broker, TYPE, after=0, until=10)]
            assert [message.sequence for page in pages for message in page] == list(range(1, 11))
        return seen_by_replica

    seen_by_replica = run(program)
    assert max(seen_by_replica) == 10
    assert 5 <= min(seen_by_replica) < 10


def test_a_process_that_ends_has_sent_what_it_has_sent_and_does_nothing_more() -> None:
    async def program(server: SimulatedBroker) -> None:
        broker, other = await connect(server), (await connect(server, "other")).client
        inbox = await Inbox.of(other, "news")
        mine = await Inbox.of(broker.client, "news")
        await ask(other, f"$JS.API.STREAM.INFO.{EVENTS}")
        await broker.client.publish("news", b"last words")
        client_of(broker).kill()
        assert [message.data for message in await inbox.has(1)] == [b"last words"]
        await asyncio.sleep(1)
        assert server.connections == ["other"]
        assert not mine.messages
        with pytest.raises(nats.errors.ConnectionClosedError):
            await broker.client.publish("news", b"from the dead")

    run(program)


def test_a_gate_stands_before_and_after_all_that_passes() -> None:
    async def program(server: SimulatedBroker) -> list[str]:
        points: list[str] = []

        async def gate(point: str) -> None:
            points.append(point)

        broker = await connect(server, gate=gate)
        inbox = await Inbox.of(broker.client)
        await broker.client.publish(inbox.subject, b"")
        await inbox.has(1)
        await ask(broker.client, f"$JS.API.STREAM.INFO.{EVENTS}")
        await inbox.close()
        server.restart(0.1)
        await asyncio.sleep(1)
        await broker.close()
        return points

    assert run(program) == [
        *("connect", "connected", "subscribe", "subscribed", "publish", "published", "message", "message taken"),
        *("publish", "published", "answered", "unsubscribe", "unsubscribed"),
        *("disconnected", "refused", "reconnected", "close"),
    ]


def test_a_suspended_process_hears_nothing_until_it_goes_on() -> None:
    async def program(server: SimulatedBroker) -> None:
        goes_on = asyncio.Event()
        goes_on.set()

        async def gate(_point: str) -> None:
            await goes_on.wait()

        broker, other = await connect(server, gate=gate), (await connect(server, "other")).client
        inbox = await Inbox.of(broker.client, "news")
        await asyncio.sleep(0.1)
        goes_on.clear()
        for number in range(3):
            await other.publish("news", str(number).encode())
        await asyncio.sleep(10)
        assert not inbox.messages
        goes_on.set()
        assert [message.data for message in await inbox.has(3)] == [b"0", b"1", b"2"]

    run(program)


def test_what_is_not_simulated_is_said_and_not_made_up() -> None:
    async def headers(server: SimulatedBroker) -> None:
        client = (await connect(server)).client
        await client.publish(f"events.k.{TYPE}", b"{}", headers={"Nats-TTL": "1s"})
        await asyncio.sleep(1)

    async def api(server: SimulatedBroker) -> None:
        await ask((await connect(server)).client, "$JS.API.STREAM.PURGE.EVENTS")

    async def policy(server: SimulatedBroker) -> None:
        await consumer((await connect(server)).client, ack_policy="explicit")

    for program in (headers, api, policy):
        with pytest.raises(NotSimulatedError):
            run(program)


async def stormy(server: SimulatedBroker, random: Random, *, events: int) -> list[int]:
    """Publishes events until each is acknowledged and reads all, in a storm that ends after a while.

    Returns the stream sequences as they were read.
    """
    server.weather.store_seconds = (0.001, 0.1)
    writer, reader = await connect(server, "writer"), await connect(server, "reader")
    publisher = Publisher(writer)
    state = await events_state(reader)
    subscription = Subscription(reader, "reader", ["events.>"])
    await subscription.start(after=0, incarnation=state.incarnation)
    acknowledged: list[int] = []
    read: list[int] = []
    grew = asyncio.Event()

    async def write(number: int) -> None:
        await asyncio.sleep(random.uniform(0, 20))
        while True:
            try:
                acknowledged.append((await publisher.publish(event(number))).sequence)
            except BrokerError:
                await asyncio.sleep(0.1)
            else:
                return

    async def take() -> None:
        while True:
            batch = await subscription.next_batch(7)
            read.extend(message.sequence for message in batch.messages)
            grew.set()
            await subscription.acknowledge(batch)

    async def strike() -> None:
        faults: list[Callable[[], object]] = [
            lambda: server.cut(random.choice(["writer", "reader"])),
            lambda: server.half_open("reader", random.uniform(1, 15)),
            lambda: server.hold(random.choice(["writer", "reader"]), random.uniform(0.1, 1.5)),
            lambda: server.restart(random.uniform(0.1, 2)),
            lambda: server.change_leader(random.uniform(0.1, 4)),
            server.fill_disk,
            server.free_disk,
            server.forget_message_ids,
            lambda: setattr(server.weather, "losses", random.choice([0.05, 0.4])),
            lambda: setattr(server.weather, "delays", random.choice([0, 0.1])),
        ]
        while server.loop.time() < 25:
            await asyncio.sleep(random.uniform(0.1, 3))
            random.choice(faults)()
        server.free_disk()
        server.weather.losses = server.weather.delays = 0

    taking = asyncio.create_task(take())
    async with asyncio.timeout(120):
        await asyncio.gather(strike(), *(write(number) for number in range(events)))
        while len(read) < len(server.stored):
            grew.clear()
            await grew.wait()
    taking.cancel()
    await subscription.stop()
    await publisher.stop()
    assert {message.headers["Nats-Msg-Id"] for message in server.stored} == {f"m{n}" for n in range(events)}
    assert set(acknowledged) <= set(range(1, len(server.stored) + 1))
    await writer.close()
    await reader.close()
    return read


def test_everything_that_was_published_is_read_once_in_order_whatever_happens() -> None:
    struck: set[str] = set()
    for seed in range(40):

        async def program(server: SimulatedBroker, seed: int = seed) -> None:
            read = await stormy(server, Random(seed), events=60)
            assert read == list(range(1, len(server.stored) + 1)), f"seed {seed}"
            struck.update(kind for kind, count in server.strikes.items() if count)

        run(program, seed)
    kinds = ["publication", "receipt", "delivery", "acknowledgement", "request", "answer", "status"]
    assert struck >= {f"{kind} lost" for kind in kinds} | {
        "connection cut",
        "connection half-open",
        "connection held up",
        "disk full",
        "leader changed",
        "message held up",
        "message ids forgotten",
        "publication refused by a full disk",
        "publication stored without a receipt",
        "server restarted",
    }
