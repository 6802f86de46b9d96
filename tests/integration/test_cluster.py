"""A real cluster of three nats-servers: streams in three copies, and what the loss of a leader does to clients."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from farandole.broker.connection import Broker
from farandole.broker.provisioning import survey
from farandole.broker.publisher import Publisher
from farandole.broker.relay import OutboxRelay
from farandole.broker.stored import last_stored_on
from farandole.broker.streams import DEADLETTERS, EVENTS, events_state
from farandole.broker.subscription import Subscription
from farandole.correlator.time_outs import EXPECTED_ON, EXPECTED_SEQUENCE
from farandole.envelope import Publication
from farandole.errors import BrokerError
from farandole.outbox import OutboxRow
from farandole.partitions import partition_of
from farandole.stack.provisioning import survey_broker
from farandole.testing.brokers import EmbeddedCluster, connect, nats_py

TYPE = "orders.v1.OrderCreated"
KEYS = 40
ELECTION_SECONDS = 30.0
"""Raft elects within 4 to 9 s of a killed leader; a machine that is busy takes longer."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(tmp_path_factory.mktemp("cluster"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
async def broker(cluster: EmbeddedCluster) -> AsyncIterator[Broker]:
    """A connection to a cluster whose streams have three replicas each."""
    await asyncio.to_thread(survey_broker, cluster.url, replicas=3, apply=True)
    connection = await connect(cluster.url)
    yield connection
    await connection.close()


async def eventually(look: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(ELECTION_SECONDS):
        while not look():  # noqa: ASYNC110 - what it looks at signals nobody
            await asyncio.sleep(0.02)
    assert look(), what


async def group(broker: Broker, asset: str) -> dict[str, Any]:
    """Who has a stream (`STREAM.INFO.EVENTS`) or a consumer, and who leads."""
    found: dict[str, Any] = (await broker.request(f"$JS.API.{asset}"))["cluster"]
    return found


class Load:
    """A relay that publishes for many sagas at once, and a subscription that reads it all; each has a connection."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self.acknowledged: set[str] = set()
        self.read: list[str] = []
        self.sequences: list[int] = []
        self.batches = 0
        self.told: set[str] = set()
        """What health was told meanwhile."""
        self._number = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._going = True

    async def __aenter__(self) -> Load:
        self.writing = await connect(self._cluster.url, service="writing")
        self.reading = await connect(self._cluster.url, service="reading")
        state = await events_state(self.reading)
        self._publisher = Publisher(self.writing)
        self.relay = OutboxRelay(self._publisher)
        self.relay.run()
        self.subscription = Subscription(self.reading, "load", [f"events.*.{TYPE}"])
        await self.subscription.start(after=state.last_sequence, incarnation=state.incarnation)
        self._publishing = [asyncio.create_task(self._publish(f"ord-{key}")) for key in range(KEYS)]
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._publishing, *self._tasks]:
            task.cancel()
        await asyncio.gather(*self._publishing, *self._tasks, return_exceptions=True)
        await self.subscription.stop()
        await self.relay.stop()
        await self._publisher.stop()
        await self.writing.close()
        await self.reading.close()

    async def finish(self) -> None:
        """Publishes no more, and waits until all is read."""
        self._going = False
        await asyncio.gather(*self._publishing)
        await eventually(lambda: len(self.read) >= len(self.acknowledged), "all is read")

    @property
    def in_vain(self) -> tuple[int, int]:
        """How many messages each connection has sent beyond what came of it: publications that were not acknowledged,
        and requests and pulls, without the acknowledgement of each batch."""
        published, asked = (nats_py(one).stats["out_msgs"] for one in (self.writing, self.reading))
        return published - len(self.acknowledged), asked - self.batches

    async def _publish(self, key: str) -> None:
        while self._going:
            self._number += 1
            headers = {"Nats-Msg-Id": uuid.uuid4().hex}
            row = OutboxRow(self._number, Publication(key, f"events.{key}.{TYPE}", headers, b"{}"))
            await self.relay.add([row])
            self.relay.take_acknowledged()
            self.acknowledged.add(row.publication.headers["Nats-Msg-Id"])
            await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        while True:
            self.told |= {problem for problem in (self.relay.problem, self.subscription.problem) if problem}
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        while True:
            batch = await self.subscription.next_batch(500)
            self.batches += 1
            self.read += [message.headers["Nats-Msg-Id"] for message in batch.messages]
            self.sequences += [message.sequence for message in batch.messages]
            await self.subscription.acknowledge(batch)


async def test_streams_with_one_copy_get_three_in_place_and_their_consumers_with_them(cluster: EmbeddedCluster) -> None:
    await asyncio.to_thread(survey_broker, cluster.url, replicas=1, apply=False)
    broker = await connect(cluster.url)
    subscription = Subscription(broker, "inherits", ["events.>"])
    await subscription.start(after=0, incarnation=(await events_state(broker)).incarnation)
    await subscription.in_order()
    shown = await survey(broker, replicas=3)
    assert [(one.stream, str(one), one.obstacle) for one in shown.drift] == [
        (EVENTS, "num_replicas is 1, not 3", ""),
        (DEADLETTERS, "num_replicas is 1, not 3", ""),
    ]
    assert [one.setting for one in (await survey(broker, replicas=3, apply=True)).changed] == ["num_replicas"] * 2
    copies: dict[str, int] = {}
    async with asyncio.timeout(ELECTION_SECONDS):
        while set(copies.values()) != {2}:
            for asset in (f"STREAM.INFO.{EVENTS}", f"CONSUMER.INFO.{EVENTS}.inherits"):
                others = (await group(broker, asset)).get("replicas") or []
                copies[asset] = sum(1 for other in others if other["current"])
            await asyncio.sleep(0.1)
    fewer = await survey(broker, replicas=1, apply=True)
    assert {one.setting for one in fewer.drift} == {"num_replicas"}
    assert all("fewer copies would be kept" in one.obstacle for one in fewer.drift)
    await subscription.stop()
    await broker.close()


async def test_a_time_out_is_refused_behind_a_commit_event_that_was_not_seen(broker: Broker) -> None:
    """The comparison is with one exact subject: with a wildcard three copies let some through that one copy refuses."""
    publisher = Publisher(broker)
    commit = f"events.{partition_of('race')}.shipping.v1.OrderShipped"
    accepted = 0
    for number in range(100):
        seen = await last_stored_on(broker, commit)
        guard = {EXPECTED_SEQUENCE: str(seen), EXPECTED_ON: commit}
        shipped = Publication("race", "events.race.shipping.v1.OrderShipped", {}, b"{}")
        timed_out = replace(shipped, subject="events.race.choreography.v1.SagaTimedOut", headers=guard)
        both = [shipped, timed_out] if number % 2 else [timed_out, shipped]
        receipts = [await publisher.submit(one) for one in both]
        first, second = await asyncio.gather(*receipts, return_exceptions=True)
        committed, stored = (first, second) if number % 2 else (second, first)
        if isinstance(stored, BrokerError):
            assert stored.is_conflict
            continue
        assert not isinstance(committed, BaseException)
        assert not isinstance(stored, BaseException)
        assert stored.sequence < committed.sequence, "the time-out has not passed a commit event"
        accepted += 1
    assert 0 < accepted < 100, "both have come first"
    await publisher.stop()


@pytest.mark.parametrize("whom", ["the leader", "the one that a client is connected to"])
async def test_the_loss_of_a_server_loses_nothing_and_makes_nobody_spin(
    broker: Broker, cluster: EmbeddedCluster, whom: str
) -> None:
    """A killed leader is missed for seconds, until the others have elected one."""
    async with Load(cluster) as load:
        await eventually(lambda: len(load.read) > KEYS, "events are read")
        if whom == "the leader":
            killed = (await group(broker, f"STREAM.INFO.{EVENTS}"))["leader"]
        else:
            connected_to = nats_py(load.reading).connected_url
            assert connected_to is not None
            killed = next(name for name, one in cluster.servers.items() if one.url.endswith(f":{connected_to.port}"))
        load.told.clear()
        before = load.in_vain
        cluster.servers[killed].kill()
        try:
            # what an operator does meanwhile waits for the new leader
            survey = await asyncio.to_thread(survey_broker, cluster.url, replicas=3, apply=False)
            stood, seen = len(load.acknowledged), len(load.read)
            await eventually(lambda: len(load.acknowledged) > stood + 2 * KEYS, "events are stored again")
            await eventually(lambda: len(load.read) > seen + 2 * KEYS, "events are read again")
            published, asked = (after - earlier for after, earlier in zip(load.in_vain, before, strict=True))
            assert published < 12 * KEYS, "each publication waits longer from try to try"
            assert asked < 60
            assert (load.relay.problem, load.subscription.problem) == (None, None)
        finally:
            cluster.servers[killed].start()
        await load.finish()
    assert (survey.made, survey.drift) == ([], [])
    assert all(re.search(r"no answer|electing a leader|not reachable|was lost|not sent", text) for text in load.told)
    assert len(load.read) == len(set(load.read)), "nothing is read twice"
    assert set(load.read) >= load.acknowledged, "what was acknowledged is stored"
    assert load.sequences == sorted(load.sequences)
