"""Three correlators on one database, which are killed, suspended and stopped while sagas go on, fail to, and are timed
out: they record and tell what one correlator would that nothing happens to."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from choreography.v1 import (
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    saga_pb2,
    saga_service_pb2,
    saga_service_pb2_grpc,
)
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_events
from farandole.broker.streams import last_stored
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import DeadLetterQuery
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.definition_files import load_definitions
from farandole.envelope import Publication
from farandole.errors import BrokerUnavailableError
from farandole.saga import Status
from farandole.testing.brokers import BrokerUnderTest
from farandole.testing.store_conformance import key_of
from tests.integration.correlator_replicas import PATIENCE_SECONDS, ROOT, Replicas, replicas_on
from tests.integration.correlators import HAPPY, REGISTRY, correlating, tell

LANES = 6
DEADLINE = timedelta(seconds=3)
LIFECYCLE = ("SagaCompleted", "SagaTimedOut", "StepOverdue", "SagaStalled", "SagaCompensated", "SagaFailed")
WATCHED = [key_of(partition) for partition in range(LANES)]
"""A key of each lane."""


@pytest.fixture
def sagas(tmp_path: Path) -> Path:
    """Orders with a short deadline."""
    directory = tmp_path / "sagas"
    directory.mkdir()
    text = (ROOT / "services" / "correlator" / "sagas" / "order-fulfilment.yaml").read_text()
    (directory / "order-fulfilment.yaml").write_text(text.replace('"1800s"', f'"{DEADLINE.seconds}s"', 1))
    return directory


@pytest.fixture
def replicas(provisioned: BrokerUnderTest, postgres_url: str, tmp_path: Path, sagas: Path) -> Iterator[Replicas]:
    with replicas_on(tmp_path, provisioned.url, postgres_url, sagas=sagas, lanes=LANES) as replicas:
        yield replicas


class Load:
    """Sagas of every kind, five of them every tenth of a second, until it is told to end."""

    def __init__(self, broker: Broker) -> None:
        self._publisher = Publisher(broker)
        self._random = random.Random(20261127)
        self.completing: list[str] = []
        self.stuck: list[str] = []
        self.late: list[str] = []
        """Those whose commit event comes when they are timed out, or nearly."""
        self.unreadable = 0
        self._going_on = True

    async def run(self) -> None:
        """Begins sagas until `end`; returns once all has been told."""
        number = 0
        async with asyncio.TaskGroup() as telling:
            while self._going_on:
                for _ in range(5):
                    number += 1
                    telling.create_task(self._tell(f"o{number}"))
                await asyncio.sleep(0.1)
        await self._publisher.stop()

    def end(self) -> None:
        """Begins no more."""
        self._going_on = False

    @property
    def sagas(self) -> int:
        """How many have been begun that can be read."""
        return len(self.completing) + len(self.stuck) + len(self.late)

    async def _tell(self, key: str) -> None:
        match self._random.randrange(10):
            case 0 | 1:
                self.stuck.append(key)
                await self._publish(key, HAPPY[:2])
            case 2 | 3:
                self.late.append(key)
                await self._publish(key, HAPPY[:3])
                await asyncio.sleep(DEADLINE.total_seconds() + self._random.uniform(-0.2, 0.2))
                await self._publish(key, HAPPY[3:])
            case 4:
                self.unreadable += 1
                await self._publish_until_stored(key, "orders.v1.OrderCreated", b"\xff\x00garbage")
            case _:
                self.completing.append(key)
                await self._publish(key, HAPPY)

    async def _publish(self, key: str, events: Iterable[tuple[str, dict[str, object]]]) -> None:
        for name, body in events:
            await self._publish_until_stored(key, name, json.dumps({"orderId": key, **body}).encode())

    async def _publish_until_stored(self, key: str, name: str, data: bytes) -> None:
        """A machine that has much to do may let the broker wait."""
        publication = Publication(key, f"events.{key}.{name}", {"Nats-Msg-Id": f"{key}/{name}"}, data)
        while True:
            try:
                await self._publisher.publish(publication)
            except BrokerUnavailableError:
                await asyncio.sleep(0.1)
            else:
                return


async def strike(replicas: Replicas) -> None:
    """Everything that may happen to replicas, at least once to each, and to two of them at once."""
    replicas.kill("a")
    await replicas.until_shared_by("b", "c")
    await asyncio.sleep(1.0)
    replicas.suspend("b")
    await replicas.until_shared_by("c")
    await asyncio.sleep(1.0)
    replicas.start("a")
    replicas.resume("b")
    await replicas.until_shared_by("a", "b", "c")
    replicas.stop("c")
    assert "c" not in replicas.holders().values(), "who stops in order gives its lanes back"
    await replicas.until_shared_by("a", "b")
    replicas.start("c")
    replicas.kill("b")
    replicas.suspend("a")
    await replicas.until_shared_by("c")
    replicas.start("b")
    await asyncio.sleep(1.0)
    replicas.resume("a")
    await replicas.until_shared_by("a", "b", "c")


async def test_records_and_lifecycle_events_are_those_of_one_that_nothing_happens_to(
    broker: Broker, replicas: Replicas, sagas: Path, postgres_url: str
) -> None:
    for name in ("a", "b", "c"):
        replicas.start(name)
    await replicas.until_shared_by("a", "b", "c")
    load = Load(broker)
    async with asyncio.TaskGroup() as loading:
        loading.create_task(load.run())
        await watch_everywhere(broker, replicas)
        await strike(replicas)
        load.end()
    store = SqlCorrelatorStore(Database(postgres_url))
    try:
        await until_settled(store, load)
        await discard_through(replicas, "b", store)
        told = await lifecycle_events(broker)
        assert max(Counter(one.id for one in told).values()) == 1
        timed_out = {one.key: one for one in told if one.name == "SagaTimedOut"}
        started = {one.key: one for one in await stored(broker, "orders.v1.OrderCreated")}
        shipped = {one.key: one for one in await stored(broker, "shipping.v1.OrderShipped")}
        for key, one in timed_out.items():
            assert one.time >= started[key].time + DEADLINE
            assert key not in shipped or one.sequence < shipped[key].sequence
        assert timed_out.keys() >= set(load.stuck)
        completed = {one.key for one in told if one.name == "SagaCompleted"}
        assert completed == {*load.completing, *load.late, *WATCHED} - timed_out.keys()

        rebuilt = MemoryCorrelatorStore()
        definitions = load_definitions(sagas, REGISTRY)
        async with correlating(broker, rebuilt, definitions) as correlator:
            await correlator.problems.until_well()
        for key in (*load.completing, *load.stuck, *load.late, *WATCHED):
            assert await store.get_sagas(key) == await rebuilt.get_sagas(key)
        letters = [await one.list_dead_letters(DeadLetterQuery(limit=10_000)) for one in (store, rebuilt)]
        assert len(letters[0].dead_letters) == load.unreadable
        assert {one.id: one for one in letters[0].dead_letters} == {one.id: one for one in letters[1].dead_letters}
        assert await lifecycle_events(broker) == told, "a rebuild tells nothing"
    finally:
        await store.close()


async def until_settled(store: SqlCorrelatorStore, load: Load) -> None:
    """Waits until nothing is left to fold, to publish or to time out."""
    async with asyncio.timeout(60):
        while True:
            counts = await store.summarize()
            if (
                not any(count.status is Status.RUNNING for count in counts)
                and sum(count.count for count in counts) == load.sagas + len(WATCHED)
                and not await store.waiting_publications()
            ):
                return
            await asyncio.sleep(0.1)


async def watch_everywhere(broker: Broker, replicas: Replicas) -> None:
    """Has every replica watch a saga of every lane to its end, whichever of them folds it."""
    options = [("grpc.enable_http_proxy", 0)]
    async with AsyncExitStack() as stack:
        watching = []
        for name in replicas.processes:
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(replicas.address(name), options=options)
            )
            stub = saga_service_pb2_grpc.SagaServiceStub(channel)
            for key in WATCHED:
                responses = stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id=key), wait_for_ready=True)
                watching.append(asyncio.create_task(last_status(responses)))
        for key in WATCHED:
            await tell(broker, key, HAPPY)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert set(await asyncio.gather(*watching)) == {saga_pb2.SAGA_STATUS_COMPLETED}


async def last_status(responses: Any) -> object:
    return [response.saga.status async for response in responses][-1]


async def discard_through(replicas: Replicas, name: str, store: SqlCorrelatorStore) -> None:
    """Has an operator discard every dead letter, whichever replica folds what that comes to."""
    channel = grpc.aio.insecure_channel(replicas.address(name), options=[("grpc.enable_http_proxy", 0)])
    stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
    request = dead_letter_service_pb2.DiscardDeadLettersRequest(actor="ada", reason="a test", filter="state = OPEN")
    progress = [response.progress async for response in stub.DiscardDeadLetters(request)]
    await channel.close()
    assert progress[-1].told == progress[-1].matched
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await store.count_open_dead_letters()).count:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Stored:
    """An event as the stream has it."""

    name: str
    key: str
    id: str
    sequence: int
    time: datetime


async def stored(broker: Broker, event_type: str) -> list[Stored]:
    """All that the stream holds of a type."""
    until = await last_stored(broker, ["events.>"])
    return [
        Stored(
            one.type.rpartition(".")[2],
            one.headers.get("ce-correlationid") or json.loads(one.data)["orderId"],
            one.headers.get("ce-id", ""),
            one.sequence,
            one.time,
        )
        async for page in stored_events(broker, event_type, after=0, until=until)
        for one in page
        if not one.data.startswith(b"\xff")
    ]


async def lifecycle_events(broker: Broker) -> list[Stored]:
    """All that the stream holds of what correlators tell of sagas."""
    return [one for name in LIFECYCLE for one in await stored(broker, f"choreography.v1.{name}")]
