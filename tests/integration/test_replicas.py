"""Three replicas of a participant under load, killed, stopped, suspended and poisoned: nothing is lost, twice or out of
order, and what one had is another's soon."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from choreography.v1.participant_pb2 import ParticipantStatus
from choreography.v1.participant_service_pb2 import GetStatusResponse
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.responder import status_subject
from farandole.broker.stored import last_stored_on, stored_events
from farandole.broker.streams import events_state
from farandole.database import Database
from farandole.envelope import Publication
from farandole.errors import BrokerUnavailableError
from farandole.lanes import Lanes
from farandole.participant.crashes import MOST_CRASHES
from farandole.partitions import partition_of
from farandole.testing.brokers import BrokerUnderTest, free_port
from tests.integration import noting_till
from tests.integration.noting_till import DEADLY, EXIT_CODE, PARTICIPANT, SLOW
from tests.integration.service_processes import ROOT

LANES = Lanes(4)
NAMES = ("a", "b", "c")
IN_FLIGHT = 3
PATIENCE_SECONDS = 60.0
SOON_SECONDS = 20.0
"""What the tests ask for; what it takes is told, and is a tenth of that."""
LOOK_SECONDS = 0.04

STEPS = (
    ("orders.v1.OrderCreated", "OrderCreated"),
    ("inventory.v1.ItemsReserved", "ItemsReserved"),
    ("payments.v1.PaymentProcessed", "PaymentProcessed"),
    ("shipping.v1.OrderShipped", "OrderShipped"),
)


def bodies(key: str, address: str) -> list[dict[str, object]]:
    """The events of one saga, in order."""
    paid = {"orderId": key, "currency": "EUR", "amountCents": 5, "address": address}
    lines = [{"sku": "widget", "quantity": 1, "unitPriceCents": 5}]
    return [
        {"orderId": key, "customerId": "ada", "currency": "EUR", "card": "c", "address": address, "lines": lines},
        {**paid, "reservationId": "r", "card": "c"},
        {**paid, "paymentId": "p"},
        {"orderId": key, "trackingNumber": "t"},
    ]


class Replicas:
    """Replicas of the participant, as processes on one database."""

    def __init__(self, directory: Path, nats_url: str, database_url: str, database: Database) -> None:
        self._directory = directory
        self._nats_url = nats_url
        self._database_url = database_url
        self._database = database
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        for name in names:
            environment = os.environ | {
                "FARANDOLE_NATS_URL": self._nats_url,
                "FARANDOLE_DATABASE_URL": self._database_url,
                "FARANDOLE_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
                "FARANDOLE_REPLICA": name,
                "FARANDOLE_LANES": str(LANES.count),
            }
            with (self._directory / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", noting_till.__name__], cwd=ROOT, env=environment, stdout=log, stderr=log
                )

    async def stop(self, name: str) -> None:
        await self.until_ended(self.tell_to_stop(name))

    def tell_to_stop(self, name: str) -> subprocess.Popen[bytes]:
        process = self.processes.pop(name)
        process.terminate()
        return process

    async def until_ended(self, process: subprocess.Popen[bytes]) -> None:
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0, "an orderly stop"

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    async def holders(self) -> dict[int, str]:
        """Who holds each lane."""
        rows = await self._rows("SELECT lane, holder FROM farandole_lease")
        return {row[0]: row[1] for row in rows}

    async def epochs(self) -> dict[int, int]:
        """How often each partition was claimed."""
        rows = await self._rows("SELECT partition, epoch FROM farandole_position")
        return {row[0]: row[1] for row in rows}

    async def notes(self) -> dict[str, list[str]]:
        """What was handled of each saga, in order."""
        found: dict[str, list[str]] = {}
        for row in await self._rows("SELECT key, what FROM notes ORDER BY number"):
            found.setdefault(row[0], []).append(row[1])
        return found

    async def are_shared(self) -> bool:
        """Whether all that run have their share, and work on it."""
        holders = await self.holders()
        counts = Counter(holders.values())
        fair = len(holders) == LANES.count and counts.keys() == self.processes.keys()
        return fair and max(counts.values()) - min(counts.values()) <= 1

    async def of(self, holds: Callable[[Counter[str]], str]) -> str:
        """A replica, by how many lanes each has."""
        return holds(Counter((await self.holders()).values()))

    async def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda connection: [tuple(row) for row in connection.execute(sa.text(query))])


@asynccontextmanager
async def replicas_at(directory: Path, nats_url: str, database_url: str) -> AsyncIterator[Replicas]:
    database = Database(database_url)
    replicas = Replicas(directory, nats_url, database_url, database)
    try:
        yield replicas
    finally:
        replicas.kill_all()
        await database.close()


class Load:
    """Sagas that begin and go on, some at the same time, until told to end."""

    def __init__(self, broker: Broker) -> None:
        self._publisher = Publisher(broker)
        self._numbers = itertools.count(1)
        self._is_over = False
        self.keys: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._go_on())

    def end(self) -> None:
        self._is_over = True

    async def publish(self, key: str, address: str = "1 Main Street") -> None:
        self.keys.append(key)
        for (event_type, _), body in zip(STEPS, bodies(key, address), strict=True):
            headers = {"ce-correlationid": key, "Nats-Msg-Id": f"{key} {event_type}"}
            publication = Publication(key, f"events.{key}.{event_type}", headers, json.dumps(body).encode())
            while True:
                try:
                    await self._publisher.publish(publication)
                    break
                except BrokerUnavailableError:
                    await asyncio.sleep(0.05)

    async def _go_on(self) -> None:
        while not self._is_over:
            await self.publish(f"o{next(self._numbers)}")
            await asyncio.sleep(0.25)


async def until(holds: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until an asynchronous or plain condition holds."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(LOOK_SECONDS)


async def handed_over(replicas: Replicas, lanes: Iterable[int], before: dict[int, int]) -> None:
    """Waits until others have claimed all partitions of these lanes."""
    partitions = [partition for lane in lanes for partition in LANES.partitions(lane)]

    async def claimed() -> bool:
        epochs = await replicas.epochs()
        return all(epochs[partition] > before[partition] for partition in partitions)

    await until(claimed, seconds=SOON_SECONDS)


def most(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0]


@pytest.mark.timeout(240)
async def test_nothing_is_lost_twice_or_out_of_order_whatever_becomes_of_replicas(
    broker: Broker, provisioned: BrokerUnderTest, postgres_url: str, tmp_path: Path
) -> None:
    told: list[str] = []
    async with replicas_at(tmp_path, provisioned.url, postgres_url) as replicas:
        replicas.start("a")
        await until(lambda: _has_tables(replicas))
        replicas.start("b", "c")
        await until(replicas.are_shared)
        load = Load(broker)
        loading = asyncio.create_task(load.run())

        async def lose(name: str, how: str, act: Callable[[], object]) -> None:
            """Has a replica go, and waits until the others have its lanes."""
            lanes = [lane for lane, holder in (await replicas.holders()).items() if holder == name]
            before = await replicas.epochs()
            began = time.monotonic()
            act()
            await handed_over(replicas, lanes, before)
            told.append(f"{len(lanes)} lanes of a replica that was {how}: {time.monotonic() - began:.2f} s")

        name = await replicas.of(most)
        await lose(name, "killed", lambda: replicas.kill(name))
        replicas.start(name)
        await until(replicas.are_shared)

        name = await replicas.of(most)
        stopping = replicas.processes[name]
        await lose(name, "stopped", lambda: replicas.tell_to_stop(name))
        await replicas.until_ended(stopping)
        replicas.start(name)
        await until(replicas.are_shared)

        # suspended in the middle of a transaction, whose locks it holds
        await load.publish("slow", f"{SLOW}{tmp_path}")
        await until((tmp_path / "inside").exists)
        lane = LANES.of(partition_of("slow"))
        name = (await replicas.holders())[lane]
        suspended = replicas.processes.pop(name)
        await lose(name, "suspended in a transaction", lambda: suspended.send_signal(signal.SIGSTOP))
        await until(lambda: _is_noted(replicas, "slow"))
        (tmp_path / "go-on").touch()
        suspended.send_signal(signal.SIGCONT)
        replicas.processes[name] = suspended
        await until(replicas.are_shared)
        assert suspended.poll() is None, "it needs no restart"

        # an event that ends whoever handles it
        await load.publish("poison", DEADLY)
        crashes = 0
        told_of = f"events.{partition_of('poison')}.{DeadLetterRecorded.DESCRIPTOR.full_name}"
        while not await last_stored_on(broker, told_of):
            for name, process in list(replicas.processes.items()):
                if process.poll() is not None:
                    assert replicas.processes.pop(name).returncode == EXIT_CODE
                    crashes += 1
                    replicas.start(name)
            await asyncio.sleep(LOOK_SECONDS)
        assert MOST_CRASHES <= crashes <= MOST_CRASHES + 1, "once in its batch, where that was not doubted before"
        await until(replicas.are_shared)

        load.end()
        await loading
        expected = {key: [what for _, what in STEPS] for key in load.keys} | {
            "poison": ["OrderCreated", "ItemsReserved"]
        }

        async def all_is_noted() -> bool:
            notes = await replicas.notes()
            return sum(map(len, notes.values())) >= sum(map(len, expected.values()))

        await until(all_is_noted)
        status = await _status(broker)
        assert (sorted(r.replica for r in status.replicas), status.lanes) == (sorted(NAMES), LANES.count)
        assert sorted(lane for replica in status.replicas for lane in replica.lanes) == list(LANES.all)
        assert not any(replica.silent for replica in status.replicas)
        for name in NAMES:
            await replicas.stop(name)
        assert await replicas.notes() == expected
        pages = stored_events(
            broker, "orders.v1.OrderCompleted", after=0, until=(await events_state(broker)).last_sequence
        )
        completed = Counter([message.headers["ce-correlationid"] async for page in pages for message in page])
        assert completed == Counter(key for key in load.keys if key != "poison")
    sys.stdout.write("".join(f"\n{line}" for line in (f"{len(load.keys)} sagas", *told)) + "\n")


async def _has_tables(replicas: Replicas) -> bool:
    exists = await replicas._rows("SELECT to_regclass('notes')")
    return exists[0][0] is not None


async def _is_noted(replicas: Replicas, key: str) -> bool:
    return len((await replicas.notes()).get(key, ())) == len(STEPS)


async def _status(broker: Broker) -> ParticipantStatus:
    reply = await broker.client.request(status_subject(PARTICIPANT.name), b"", timeout=5)
    return GetStatusResponse.FromString(reply.data).status
