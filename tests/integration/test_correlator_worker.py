"""The correlator over a real broker: what it records and publishes, across restarts, rebuilds and takeovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import last_stored_on, stored_at, stored_on
from farandole.broker.streams import EVENTS, events_state
from farandole.correlator.changes import SagaChanges
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.definition_files import load_definitions
from farandole.envelope import Publication, StoredMessage
from farandole.saga import Disposition, Status
from farandole.testing.brokers import BrokerUnderTest, connect, nats_py
from tests.integration.correlators import (
    DEFINITIONS,
    HAPPY,
    REGISTRY,
    ROOT,
    correlating,
    dispositions,
    end_deduplication,
    tell,
)
from tests.integration.stored_events import keys_of_stored


async def test_a_saga_is_followed_to_its_end_and_said_to_be_complete(broker: Broker) -> None:
    async with correlating(broker, MemoryCorrelatorStore()) as correlator:
        await tell(broker, "o1")
        recorded = await correlator.until("o1", Status.COMPLETED)
    assert dispositions(recorded) == [
        ("OrderCreated", Disposition.APPLIED),
        ("ItemsReserved", Disposition.APPLIED),
        ("PaymentProcessed", Disposition.APPLIED),
        ("OrderShipped", Disposition.APPLIED),
        ("OrderCompleted", Disposition.APPLIED),
        ("SagaCompleted", Disposition.APPLIED),
    ]
    completed = recorded.saga.history[-1].fact
    assert (completed.source, completed.causation_id) == ("correlator", recorded.saga.history[-2].fact.id)
    assert b"4111" not in b"".join(recorded.payloads.values())


async def test_what_was_stored_while_it_was_away_counts(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator:
        await tell(broker, "o1", HAPPY[:2])
        await correlator.until("o1", Status.RUNNING)
    await tell(broker, "o1", HAPPY[2:])
    async with correlating(broker, store) as correlator:
        await correlator.until("o1", Status.COMPLETED)
    assert await keys_of_stored(broker, "SagaCompleted") == ["o1"]


async def test_a_rebuild_gives_the_same_records_and_publishes_nothing_again(broker: Broker, tmp_path: Path) -> None:
    first = MemoryCorrelatorStore()
    keys = [f"o{n}" for n in range(30)]
    async with correlating(broker, first) as correlator:
        await asyncio.gather(*(tell(broker, key) for key in keys))
        for key in keys:
            await correlator.until(key, Status.COMPLETED)
    await end_deduplication(broker)
    # a store that takes its time, and small batches: the end of a saga is called for in one and found in another
    second = SqlCorrelatorStore(Database(f"sqlite:///{tmp_path}/rebuilt.db"))
    async with correlating(broker, second, batch_size=7) as correlator:
        for key in keys:
            await correlator.until(key, Status.COMPLETED)
        assert any(problem.startswith("catching up with") for problem in correlator.problems.told)
        await correlator.problems.until_well()
        await tell(broker, "after")
        await correlator.until("after", Status.COMPLETED)
    assert sorted(await keys_of_stored(broker, "SagaCompleted")) == sorted([*keys, "after"])
    for key in keys:
        assert await second.get_sagas(key) == await first.get_sagas(key)
    await second.close()


async def test_a_lifecycle_event_that_was_decided_but_not_published_comes_after_a_restart(
    provisioned: BrokerUnderTest,
) -> None:
    """The broker goes away between the commit and the publication."""
    store = MemoryCorrelatorStore()
    broker = await connect(provisioned.url)
    await tell(broker, "o1")
    await store.open()
    await store.activate(DEFINITIONS, replica="correlator-1")
    handler = CorrelatorBatchHandler(
        store=store,
        registry=REGISTRY,
        changes=SagaChanges(),
        last_stored_on=partial(last_stored_on, broker),
        stored_on=partial(stored_on, broker),
        stored_at=partial(stored_at, broker),
    )
    await handler.claim((await events_state(broker)).incarnation)
    await handler.hear(no_pages())
    stream = nats_py(broker).jetstream()
    messages = []
    for sequence in range(1, 6):
        raw = await stream.get_msg(EVENTS, sequence)
        assert raw.subject is not None
        assert raw.time is not None
        messages.append(StoredMessage(raw.subject, {}, raw.data or b"", sequence, raw.time))
    handled = await handler.handle(messages, ())
    assert [row.publication.subject for row in handled.rows] == ["events.o1.choreography.v1.SagaCompleted"]
    # that process is gone now, with the row in its store
    async with correlating(broker, store) as correlator:
        await correlator.until("o1", Status.COMPLETED)
    assert await keys_of_stored(broker, "SagaCompleted") == ["o1"]
    await broker.close()


async def no_pages() -> AsyncIterator[Sequence[StoredMessage]]:
    """What a stream holds that nobody has told anything of definitions."""
    return
    yield


async def test_events_that_an_operator_deleted_are_not_waited_for(broker: Broker) -> None:
    """Catching up ends at the last event that the stream still holds, not at the number of its last sequence."""
    await tell(broker, "o1")
    await tell(broker, "o2", HAPPY[:1])
    await broker.request(f"$JS.API.STREAM.MSG.DELETE.{EVENTS}", {"seq": 6})
    async with correlating(broker, MemoryCorrelatorStore()) as correlator:
        await correlator.until("o1", Status.COMPLETED)


async def test_a_second_correlator_on_the_same_store_shuts_the_first_out(provisioned: BrokerUnderTest) -> None:
    store = MemoryCorrelatorStore()
    first_broker, second_broker = await connect(provisioned.url), await connect(provisioned.url)
    async with correlating(first_broker, store) as first:
        await tell(first_broker, "o1")
        await first.until("o1", Status.COMPLETED)
        async with correlating(second_broker, store) as second:
            keys = [f"p{n}" for n in range(40)]
            await asyncio.gather(*(tell(second_broker, key) for key in keys))
            for key in keys:
                recorded = await second.until(key, Status.COMPLETED)
                assert all(disposition is Disposition.APPLIED for _, disposition in dispositions(recorded))
            await first.problems.until("has taken over")
            await second.problems.until_well()
    completed = await keys_of_stored(second_broker, "SagaCompleted")
    assert sorted(completed) == sorted(["o1", *keys])
    await first_broker.close()
    await second_broker.close()


async def test_takeovers_in_the_middle_of_events_leave_one_at_work_and_no_saga_behind(
    provisioned: BrokerUnderTest,
) -> None:
    """Each of a row of correlators takes the store of the one before, which must not take anything back."""
    store = MemoryCorrelatorStore()
    keys: list[str] = []
    async with AsyncExitStack() as stack:
        publisher = await connect(provisioned.url)
        for round_number in range(6):
            broker = await connect(provisioned.url)
            stack.push_async_callback(broker.close)
            correlator = await stack.enter_async_context(correlating(broker, store))
            some = [f"r{round_number}-{n}" for n in range(5)]
            keys += some
            await asyncio.gather(*(tell(publisher, key) for key in some))
            for key in some:
                await correlator.until(key, Status.COMPLETED)
            await correlator.problems.until_well()
        assert sorted(await keys_of_stored(publisher, "SagaCompleted")) == sorted(keys)
        await publisher.close()


async def test_two_definitions_on_one_event_keep_a_record_each(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "order.yaml").write_text(
        (ROOT / "services" / "correlator" / "sagas" / "order-fulfilment.yaml").read_text()
    )
    (tmp_path / "stock.yaml").write_text(
        """
name: stock-watch
version: 1
deadline: 60s
initiating_event: orders.v1.OrderCreated
commit_event: inventory.v1.ItemsReserved
steps:
  - name: reserve
    participant: inventory
    kind: PIVOT
    triggers: [orders.v1.OrderCreated]
    success: inventory.v1.ItemsReserved
    failures: [inventory.v1.ReservationFailed]
"""
    )
    definitions = load_definitions(tmp_path, REGISTRY)
    async with correlating(broker, MemoryCorrelatorStore(), definitions) as correlator:
        await tell(broker, "o1")
        orders = await correlator.until("o1", Status.COMPLETED)
        stock = await correlator.until("o1", Status.COMPLETED, definition="stock-watch")
    assert len(orders.saga.history) == 6
    assert [name for name, _ in dispositions(stock)] == ["OrderCreated", "ItemsReserved", "SagaCompleted"]


async def test_what_no_one_can_read_is_a_dead_letter_once_and_holds_up_nothing(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    publisher = Publisher(broker)
    async with correlating(broker, store) as correlator:
        await publisher.publish(Publication("o1", "events.o1.orders.v1.OrderCreated", {}, b"\xff\x00garbage"))
        await publisher.publish(Publication("o1", "events.o1.nobody.v1.Knows", {}, b"{}"))
        await tell(broker, "o1")
        await correlator.until("o1", Status.COMPLETED)
        assert await store.get_dead_letter("correlator", 1) is not None
        assert await store.get_dead_letter("correlator", 2) is not None
        async with asyncio.timeout(10):
            while await store.waiting_publications():  # noqa: ASYNC110 - the store has no signal for it
                await asyncio.sleep(0.02)
    await publisher.stop()
    info = await broker.request("$JS.API.STREAM.INFO.DEADLETTERS")
    assert info["state"]["messages"] == 2


async def test_an_event_before_the_saga_starts_is_remembered(broker: Broker) -> None:
    async with correlating(broker, MemoryCorrelatorStore()) as correlator:
        await tell(broker, "o1", HAPPY[1:2])
        await tell(broker, "o1", HAPPY[:1])
        recorded = await correlator.until("o1", Status.RUNNING)
    assert dispositions(recorded) == [
        ("ItemsReserved", Disposition.APPLIED),
        ("OrderCreated", Disposition.APPLIED),
    ]


async def test_a_worker_whose_store_was_taken_over_says_so(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator:
        await tell(broker, "o1", HAPPY[:1])
        await correlator.until("o1", Status.RUNNING)
        await store.claim((await events_state(broker)).incarnation)
        await tell(broker, "o2", HAPPY[:1])
        await correlator.problems.until("has taken over")
    assert await store.get_sagas("o2") == ()
