"""Several handlers on one stream and one store, each with its share of the partitions: together they do what one would
do, and each nothing besides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.filters import Filter
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.operator_verbs import DISCARD, Decision, OperatorVerbs
from farandole.correlator.queries import DeadLetterQuery, OpenDeadLetters
from farandole.definition import Definition
from farandole.envelope import Publication, StoredMessage
from farandole.errors import FencedError
from farandole.lanes import Lanes
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.saga import Status
from farandole.testing.store_conformance import key_of
from tests.unit.memory_correlator import Correlator, at_work, attempted, correlator, published
from tests.unit.memory_stream import HAPPY, MemoryStream
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY

SECOND_VERSION = replace(ORDER_FULFILMENT, version=2, deadline=timedelta(hours=5))
KEYS = [f"ord-{number}" for number in range(48)]
assert {partition_of(key) for key in KEYS} == set(range(PARTITIONS))


class MemoryEventsStream:
    """An `EventsStream` over a stream in memory."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def publish(self, publication: Publication) -> None:
        """See `EventsStream.publish`."""
        self._stream.publish(publication)

    async def stored_at(self, sequence: int) -> StoredMessage | None:
        """See `EventsStream.stored_at`."""
        return self._stream.stored_at(sequence)


async def lanes_at_work(
    stream: MemoryStream,
    store: MemoryCorrelatorStore,
    count: int,
    definitions: Sequence[Definition] = (ORDER_FULFILMENT,),
) -> list[Correlator]:
    """One correlator for each lane, on one store."""
    lanes = Lanes(count)
    working = [
        correlator(stream, store, definitions, replica=f"replica-{lane}", partitions=lanes.partitions(lane))
        for lane in lanes.all
    ]
    for one in working:
        await one.publish(await one.begin())
    for one in working:
        await one.settle()
    return working


async def dead_letters(store: MemoryCorrelatorStore) -> dict[int, tuple[DeadLetterState, str]]:
    page = await store.list_dead_letters(DeadLetterQuery(limit=1000))
    return {letter.sequence: (letter.state, letter.close_actor) for letter in page.dead_letters}


def misplaced(stream: MemoryStream, key: str, partition: int) -> StoredMessage:
    """Stores an event of a saga in another partition than that of its key, as a mistaken publisher may."""
    (event,) = stream.tell(key, HAPPY[0])
    moved = replace(event, subject=f"events.{partition}.{event.type}")
    stream.messages[-1] = moved
    return moved


@pytest.mark.parametrize("count", [2, 5, PARTITIONS])
async def test_lanes_together_record_and_tell_what_one_would(count: int) -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    lanes = await lanes_at_work(stream, store, count)
    assert len(stream.of_type("DefinitionActivated")) == PARTITIONS
    for key in KEYS:
        stream.tell(key, *HAPPY)
    for one in lanes:
        await one.settle()
    assert sorted(json.loads(m.data)["orderId"] for m in stream.of_type("OrderCreated")) == sorted(KEYS)
    assert len(stream.of_type("SagaCompleted")) == len(KEYS)
    alone = await at_work(stream)
    rebuilt = MemoryCorrelatorStore()
    for one in reversed(await lanes_at_work(stream, rebuilt, count)):
        assert one.handler.problem is None
    for key in KEYS:
        assert (await alone.saga(key)).status is Status.COMPLETED
        assert await store.get_sagas(key) == await alone.store.get_sagas(key) == await rebuilt.get_sagas(key)


async def test_a_lane_publishes_nothing_that_another_one_has_decided() -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    left, right = await lanes_at_work(stream, store, 2)
    key = key_of(5)
    stream.tell(key, *HAPPY)
    assert published(await right.read()) == ["SagaCompleted"]
    assert await left.handler.waiting() == ()
    (row,) = await right.handler.waiting()
    assert row.publication.key == key


async def test_each_lane_watches_its_own_deadlines_with_ticks_of_its_own() -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    left, right = await lanes_at_work(stream, store, 2)
    keys = [key_of(4), key_of(5)]
    for key in keys:
        stream.tell(key, *HAPPY[:2])
    await left.settle()
    await right.settle()
    stream.seconds += 1900
    for one, other, key in ((left, right, keys[0]), (right, left, keys[1])):
        tick = await one.until_asked()
        assert tick.partition == partition_of(key)
        other_due = other.handler.due_in()
        await one.read()
        assert other.handler.due_in() == other_due
        handled = await one.do_due()
        assert {publication.key for publication in handled.attempts} == {key}
        assert attempted(handled) == ["StepOverdue", "SagaTimedOut"]
    for one, key in ((left, keys[0]), (right, keys[1])):
        await one.settle()
        assert (await one.saga(key)).status is Status.COMPENSATING


async def test_who_takes_a_lane_over_asks_the_time_anew_and_times_out_once() -> None:
    """The owner dies when it has decided time-outs, and has told of one of two."""
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    _, right = await lanes_at_work(stream, store, 2)
    keys = [key_of(5, number) for number in range(2)]
    for key in keys:
        stream.tell(key, *HAPPY[:2])
    await right.settle()
    stream.seconds += 1900
    await right.until_asked()
    await right.read()
    decided = await right.handler.due()
    assert attempted(decided).count("SagaTimedOut") == 2
    stream.publish(next(one for one in decided.attempts if one.subject.endswith("SagaTimedOut")))
    tick = await right.until_asked()
    successor = correlator(stream, store, replica="successor", partitions=right.partitions)
    await successor.publish(await successor.begin())
    await successor.settle()
    assert tick.sequence <= successor.position
    assert "SagaTimedOut" not in attempted(await successor.do_due()), "the tick is not its own"
    await successor.pass_time(3)
    assert sorted(message.headers["ce-correlationid"] for message in stream.of_type("SagaTimedOut")) == sorted(keys)
    with pytest.raises(FencedError):
        await right.read()
    stream.publish_all(decided)
    await successor.settle()
    assert len(stream.of_type("SagaTimedOut")) == 2
    rebuilt = await at_work(stream)
    for key in keys:
        assert await rebuilt.store.get_sagas(key) == await store.get_sagas(key)


async def test_other_lanes_go_on_where_one_is_taken_over() -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    left, right = await lanes_at_work(stream, store, 2)
    successor = correlator(stream, store, partitions=right.partitions)
    await successor.publish(await successor.begin())
    stream.tell(key_of(4), *HAPPY)
    stream.tell(key_of(5), *HAPPY)
    await left.settle()
    with pytest.raises(FencedError):
        await right.read()
    with pytest.raises(FencedError):
        await right.handler.still_owner()
    await left.handler.still_owner()
    await successor.settle()
    assert len(stream.of_type("SagaCompleted")) == 2


# ---- lanes that come together, as where their number is changed, or a snapshot of several is restored


DRONE_RELEASED = "drones.v1.DroneReleased"
"""No order mentions it."""


def tell_unmentioned(stream: MemoryStream, key: str) -> None:
    body = {"parcelId": key, "droneId": "d", "reason": "it is worn"}
    stream.publish(Publication(key, f"events.{key}.{DRONE_RELEASED}", {}, json.dumps(body).encode()))


async def test_what_one_lane_had_folded_is_not_folded_again() -> None:
    """It would be a part of the history now, and was none when it came: no saga was there."""
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    _, right = await lanes_at_work(stream, store, 2)
    key, behind = key_of(5), key_of(4)
    stream.tell(behind, *HAPPY)
    tell_unmentioned(stream, key)
    stream.tell(key, *HAPPY)
    await right.settle()
    before = await right.saga(key)
    together = await at_work(stream, store)
    rebuilt = await at_work(stream)
    assert await together.saga(key) == before
    assert (await together.saga(behind)).status is Status.COMPLETED
    for one in (key, behind):
        assert await store.get_sagas(one) == await rebuilt.store.get_sagas(one)
    assert len(set((await store.positions()).values())) == 1


async def test_what_came_before_its_definition_was_active_stays_so() -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    other = replace(ORDER_FULFILMENT, name="audit-flow")
    _, right = await lanes_at_work(stream, store, 2, (other,))
    key = key_of(5)
    stream.tell(key, HAPPY[1])
    await right.settle()
    later = correlator(stream, store, (other, ORDER_FULFILMENT), replica="later", partitions=right.partitions)
    await later.publish(await later.begin())
    await later.settle()
    stream.tell(key, HAPPY[0])
    await later.settle()
    before = await later.saga(key)
    together = await at_work(stream, store, (other, ORDER_FULFILMENT))
    rebuilt = await at_work(stream, definitions=(other, ORDER_FULFILMENT))
    assert await together.saga(key) == before == await rebuilt.saga(key)


async def test_what_is_passed_over_is_neither_told_nor_a_dead_letter_again_but_found_to_be_stored() -> None:
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    _, right = await lanes_at_work(stream, store, 2)
    key = key_of(5)
    misplaced(stream, key_of(4), 7)
    stream.tell(key, *HAPPY)
    stream.publish_all(await right.read())  # it ends before it knows that they are stored
    await right.read()
    letters = await dead_letters(store)
    waiting = {row.publication.headers["Nats-Msg-Id"] for row in await store.waiting_publications(right.partitions)}
    together = correlator(stream, store)
    assert published(await together.begin()) == []
    handled = await together.read()
    assert published(handled) == []
    told = {identity for identity in waiting if any(m.headers.get("Nats-Msg-Id") == identity for m in stream.messages)}
    assert len(told) == 2, "SagaCompleted and EventUnreadable"
    assert told <= {identity for _, identity in handled.read_back}
    assert await dead_letters(store) == letters


# ---- definitions, where replicas have different ones


async def test_a_replica_with_earlier_definitions_does_not_bring_them_back() -> None:
    """In a rolling deployment: one replica has been started with the new files, which then takes a lane, and dies."""
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    old, _ = await lanes_at_work(stream, store, 2)
    newer = correlator(stream, store, (SECOND_VERSION,), replica="newer", partitions=Lanes(2).partitions(1))
    await newer.publish(await newer.begin())
    await newer.settle()
    assert len(stream.of_type("DefinitionActivated")) == PARTITIONS * 3 // 2
    # an old one gets that lane, first while it runs, then after a crash
    for take_over in (Correlator.take_over, Correlator.begin):
        running = correlator(stream, store, (ORDER_FULFILMENT,), replica=old.replica, partitions=newer.partitions)
        assert published(await take_over(running)) == []
        stream.tell(f"after-{stream.seconds}", HAPPY[0])
        await running.settle()
    # what the old one has had all the time stays as it was until somebody else takes it
    stream.tell(key_of(4), HAPPY[0])
    await old.settle()
    assert (await old.saga(key_of(4))).version == 1
    another = correlator(stream, store, (SECOND_VERSION,), replica="another", partitions=old.partitions)
    assert published(await another.begin()) == ["DefinitionActivated"] * (PARTITIONS // 2)


async def test_a_lane_goes_back_where_a_replica_is_started_with_earlier_definitions() -> None:
    """As in a deployment that is taken back."""
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    lanes = await lanes_at_work(stream, store, 2, (SECOND_VERSION,))
    await store.leave("replica-0")
    back = correlator(stream, store, (ORDER_FULFILMENT,), replica="replica-0", partitions=lanes[1].partitions)
    handled = await back.begin()
    assert published(handled) == ["DefinitionActivated"] * (PARTITIONS // 2)
    await back.publish(handled)
    await back.settle()
    stream.tell(key_of(5), HAPPY[0])
    await back.settle()
    assert (await back.saga(key_of(5))).version == 1


# ---- dead letters


class BehindStore(MemoryCorrelatorStore):
    """A store that counts when another replica is about to commit one more dead letter, among those before."""

    async def count_open_dead_letters(self, filter: Filter | None = None) -> OpenDeadLetters:  # noqa: A002
        """See `CorrelatorQueries.count_open_dead_letters`."""
        counted = await super().count_open_dead_letters(filter)
        return replace(counted, count=counted.count - 1)


async def test_a_dead_letter_that_was_about_to_be_recorded_counts_as_soon_as_it_is_told() -> None:
    stream, store = MemoryStream(), BehindStore()
    working = await at_work(stream, store)
    for partition in (3, 4):
        misplaced(stream, key_of(partition), 7)
    await working.settle()
    verbs = OperatorVerbs(store, REGISTRY, MemoryEventsStream(stream))
    told = [progress async for progress in verbs.tell(Decision(DISCARD, "ada", "a mistake", filter="state = OPEN"))]
    assert told[0].matched == 1
    assert (told[-1].matched, told[-1].told, told[-1].passed_over) == (2, 2, 0)


async def test_what_concerns_a_misplaced_event_is_told_where_it_is_stored() -> None:
    """Its key is of another partition, whose lane knows nothing of it, and may be far ahead or behind."""
    stream, store = MemoryStream(), MemoryCorrelatorStore()
    left, right = await lanes_at_work(stream, store, 2)
    event = misplaced(stream, key_of(4), 7)
    handled = await right.read()
    assert published(handled) == ["OrderCreated", "EventUnreadable"]
    assert {row.publication.key for row in handled.rows} == {partition_key(7)}
    assert await left.handler.waiting() == ()
    await right.publish(handled)
    verbs = OperatorVerbs(store, REGISTRY, MemoryEventsStream(stream))
    async for _ in verbs.tell(Decision(DISCARD, "ada", "a mistake", f"correlator-{event.sequence}")):
        pass
    assert stream.messages[-1].partition == 7
    await right.settle()
    closed = {event.sequence: (DeadLetterState.DISCARDED, "ada")}
    assert await dead_letters(store) == closed
    rebuilt = MemoryCorrelatorStore()
    await lanes_at_work(stream, rebuilt, 2)  # the left one has read all when the right begins
    assert await dead_letters(rebuilt) == closed
