"""One participant in several replicas and lanes, over a real broker and one database: commands, status, other lanes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from choreography.v1.participant_pb2 import ParticipantStatus, ReplicaStatus
from farandole import CommandTransaction, Participant, Runtime, Transaction, step
from farandole import worker as worker_module
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.responder import replicas_subject, respond
from farandole.broker.streams import EVENTS
from farandole.database import Database
from farandole.envelope import Event, Publication, Unreadable
from farandole.lane_keeper import LaneKeeper
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.status import StatusReader
from farandole.participant.tables import ParticipantTables
from farandole.partitions import PARTITIONS, partition_key
from farandole.sql_leases import SqlLeases
from farandole.telemetry import Account
from farandole.telemetry.port import _NoAccount, _NoTelemetry
from farandole.testing.brokers import BrokerUnderTest, connect
from orders.v1.order_events_pb2 import OrderCancelled, OrderCompleted
from shipping.v1.shipping_events_pb2 import OrderShipped
from tests.integration.stored_events import keys_of_stored

metadata = sa.MetaData()
notes = sa.Table(
    "notes", metadata, sa.Column("number", sa.Integer, primary_key=True), sa.Column("key", sa.Text, nullable=False)
)


FOR = "for:"
"""Before the key of another order: that one is completed, and not the one that was shipped."""


def complete(event: OrderShipped, tx: Transaction) -> OrderCompleted:
    tx.execute(notes.insert(), {"key": tx.key})
    if event.tracking_number == "broken":
        raise RuntimeError("the book is full")
    of_another = event.tracking_number.startswith(FOR)
    order_id = event.tracking_number.removeprefix(FOR) if of_another else tx.key
    return OrderCompleted(order_id=order_id, tracking_number=event.tracking_number)


PARTICIPANT = Participant(
    "orders", step("complete-order", complete, saga="order-fulfilment"), metadata=metadata, publishes=(OrderCancelled,)
)


CALL = ContextVar("CALL", default="")
"""Which call of a remote procedure this is."""


class Counting(_NoAccount):
    """How many events a transaction has given a place in a trace, and on whose behalf."""

    def __init__(self) -> None:
        self.call = CALL.get()
        self.traced = 0
        self.is_settled = False

    def traceparent(self, cause: Event | Unreadable | None) -> str:
        self.traced += 1
        return super().traceparent(cause)

    def settled(self) -> None:
        self.is_settled = True


class Told(_NoTelemetry):
    """What a replica has told."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        """Of what it has published."""
        self.accounts: list[Counting] = []

    def account(self) -> Account:
        self.accounts.append(Counting())
        return self.accounts[-1]

    def published(self, publication: Publication, seconds: float) -> None:
        self.keys.append(publication.key)


@dataclass
class OneReplica:
    """What one replica is made of."""

    keeper: LaneKeeper
    lanes: ParticipantLanes
    runtime: Runtime
    status: StatusReader
    problems: dict[str, str | None]
    told: Told

    def works_on(self, *lanes: int) -> bool:
        return sorted(self.lanes.at_work) == list(lanes) and not any(self.problems.values())


@asynccontextmanager
async def replica(name: str, broker: Broker, database: Database, *, lanes: int) -> AsyncIterator[OneReplica]:
    """A replica at work, until an orderly stop."""
    tables = ParticipantTables()
    await database.create(tables.metadata, metadata, if_earlier="")
    problems: dict[str, str | None] = {}
    told = Told()
    at_work = ParticipantLanes(
        PARTICIPANT, database, tables, lanes=Lanes(lanes), broker=broker, batch_size=10, telemetry=told
    )
    keeper = LaneKeeper(
        PARTICIPANT.name,
        lanes=Lanes(lanes),
        replica=Replica.begun(name),
        leases=SqlLeases(database, tables.leases),
        broker=broker,
        work_of=at_work.work_of,
        report=problems.__setitem__,
    )
    runtime = Runtime(PARTICIPANT, database, tables, at_work, telemetry=told)
    status = StatusReader(
        PARTICIPANT,
        database=database,
        tables=tables,
        lanes=at_work,
        keeper=keeper,
        broker=broker,
        problems=lambda: {check: problem for check, problem in problems.items() if problem is not None},
    )
    tasks = [
        asyncio.create_task(keeper.run()),
        asyncio.create_task(at_work.listen()),
        asyncio.create_task(at_work.remove_left_over_consumers(keeper.joined)),
        asyncio.create_task(respond(broker, replicas_subject(PARTICIPANT.name), answer=status.answer_for_itself)),
    ]
    try:
        yield OneReplica(keeper, at_work, runtime, status, problems, told)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/orders.db")
    yield database
    await database.close()


@pytest.fixture
async def other_broker(provisioned: BrokerUnderTest) -> AsyncIterator[Broker]:
    connection = await connect(provisioned.url)
    yield connection
    await connection.close()


async def until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(20):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


async def ship(broker: Broker, keys: Sequence[str], *, tracking_number: str = "t") -> None:
    publisher = Publisher(broker)
    for key in keys:
        data = json.dumps({"orderId": key, "trackingNumber": tracking_number}).encode()
        await publisher.publish(Publication(key, f"events.{key}.shipping.v1.OrderShipped", {}, data))
    await publisher.stop()


async def noted(database: Database) -> list[str]:
    return await database.read(lambda c: list(c.execute(sa.select(notes.c.key).order_by(notes.c.key)).scalars()))


def cancel(key: str, tx: CommandTransaction) -> None:
    tx.publish(OrderCancelled(order_id=key, reason="changed my mind"))


async def test_a_command_is_published_whichever_replica_it_reaches(
    broker: Broker, other_broker: Broker, database: Database
) -> None:
    async with (
        replica("a", broker, database, lanes=1) as owner,
        replica("b", other_broker, database, lanes=1) as stands_by,
    ):
        await until(lambda: owner.works_on(0))
        await until(lambda: not any(stands_by.problems.values()))
        for number, one in enumerate([owner, stands_by] * 5):
            await one.runtime.execute(lambda tx, key=f"o{number}": cancel(key, tx))  # type: ignore[misc]
        await until(lambda: _are_stored(broker, 10))
    assert sorted(await keys_of_stored(broker, "OrderCancelled")) == sorted(f"o{number}" for number in range(10))


async def test_what_nobody_has_told_of_is_found_in_the_outbox(
    broker: Broker, other_broker: Broker, database: Database
) -> None:
    """As where the replica that has written it ended before it could say so."""
    async with replica("a", broker, database, lanes=2) as owner:
        await until(lambda: owner.works_on(0, 1))
        tables = ParticipantTables()
        rows = [
            Publication(key, f"events.{key}.orders.v1.OrderCancelled", {"ce-correlationid": key}, b"{}")
            for key in "xyz"
        ]
        await database.write(lambda connection: tables.outbox.add(connection, rows) and None)
        await until(lambda: _are_stored(broker, 3))


async def test_what_a_handler_publishes_for_another_lane_is_published_there(
    broker: Broker, other_broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at once: whoever has that lane is told."""
    monkeypatch.setattr(worker_module, "_OUTBOX_SECONDS", 600.0)
    async with (
        replica("a", broker, database, lanes=2) as first,
        replica("b", other_broker, database, lanes=2) as second,
    ):
        await until(lambda: len(first.lanes.at_work) == len(second.lanes.at_work) == 1)
        await until(lambda: not any([*first.problems.values(), *second.problems.values()]))
        ours, theirs = ([partition_key(p) for p in Lanes(2).partitions(*one.lanes.at_work)] for one in (first, second))
        for own, other in zip(ours, theirs, strict=True):
            await ship(broker, [own], tracking_number=FOR + other)
            await ship(broker, [other], tracking_number=FOR + own)
        await until(lambda: _are_stored(broker, len(ours + theirs), "OrderCompleted"))
        await until(lambda: _has_empty_outbox(database))
        assert (sorted(first.told.keys), sorted(second.told.keys)) == (sorted(ours), sorted(theirs))


async def _has_empty_outbox(database: Database) -> bool:
    return await database.read(ParticipantTables().outbox.depth) == 0


async def test_of_a_command_that_runs_again_only_the_last_run_is_told(broker: Broker, postgres_url: str) -> None:
    database = Database(postgres_url)
    runs: list[str] = []

    def cancel_in_the_way_of_another(tx: CommandTransaction) -> None:
        runs.append("run")
        cancel("o1", tx)
        if len(runs) == 1:
            tx.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$"))

    try:
        async with replica("a", broker, database, lanes=1) as one:
            CALL.set("call")
            await one.runtime.execute(cancel_in_the_way_of_another)
            [account] = [account for account in one.told.accounts if account.is_settled and account.traced]
            assert (len(runs), account.traced, account.call) == (2, 1, "call")
    finally:
        await database.close()


async def _are_stored(broker: Broker, count: int, event_type: str = "OrderCancelled") -> bool:
    return len(await keys_of_stored(broker, event_type)) >= count


async def test_the_status_is_that_of_all_replicas(broker: Broker, other_broker: Broker, database: Database) -> None:
    async with (
        replica("a", broker, database, lanes=2) as first,
        replica("b", other_broker, database, lanes=2) as second,
    ):
        await until(lambda: len(first.lanes.at_work) == len(second.lanes.at_work) == 1)
        await until(lambda: not any([*first.problems.values(), *second.problems.values()]))
        second.problems["outbox"] = "the broker refuses it"
        await ship(broker, [partition_key(3)], tracking_number="broken")
        await until(lambda: _is_queued(first, partition_key(3)))
        for one in (first, second):
            status = await one.status.read(partition_key(3))
            assert (status.participant, status.lanes, status.queued_events) == ("orders", 2, 1)
            assert status.position == status.queue[0].sequence
            assert list(status.problems) == ["replica b: outbox: the broker refuses it"]
            assert [(r.replica, len(r.lanes), r.silent) for r in status.replicas] == [("a", 1, False), ("b", 1, False)]
        await other_broker.close()  # it goes on to renew its lease, and can't be asked
        status = await _told(first)
        assert "replica b: does not answer" in status.problems
        assert ReplicaStatus(replica="b", silent=True) in status.replicas


async def _is_queued(one: OneReplica, key: str) -> bool:
    return bool((await one.status.read(key)).queue)


async def _told(one: OneReplica) -> ParticipantStatus:
    return await one.status.read("")


@pytest.mark.parametrize("counts", [(1, 4, 16, 3, 1), (16, 1, 5)])
async def test_the_number_of_lanes_may_change_while_all_are_stopped(
    broker: Broker, database: Database, counts: Sequence[int]
) -> None:
    """Each partition goes on where it stood, though another of its new lane may have been further, or behind."""
    keys = [partition_key(partition) for partition in range(PARTITIONS)]
    expected: list[str] = []
    for round_number, count in enumerate(counts):
        some = [f"{key}-{round_number}" for key in keys[round_number::2]] + [f"o{round_number}-{n}" for n in range(20)]
        broken = f"broken-{round_number}"
        async with replica("a", broker, database, lanes=count):
            await ship(broker, [broken], tracking_number="broken")
            await ship(broker, some)
            expected = sorted([*expected, *some])
            await until(partial(_are_stored, broker, len(expected), "OrderCompleted"))
            await until(partial(_has_no_left_over_consumer, broker, Lanes(count)))
        assert await noted(database) == expected
    assert sorted(await keys_of_stored(broker, "OrderCompleted")) == expected


async def _has_no_left_over_consumer(broker: Broker, lanes: Lanes) -> bool:
    info = await broker.request(f"$JS.API.CONSUMER.NAMES.{EVENTS}")
    return sorted(info["consumers"]) == sorted(lanes.durable("orders", lane) for lane in lanes.all)
