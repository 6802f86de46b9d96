"""What a batch comes to: lifecycle events called for once, records that rest on what is stored now, definitions that
the stream has, deadlines that the stream's time has passed, and participants' dead letters."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from choreography.v1.correlator_events_pb2 import EventUnreadable
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_UNDECODABLE, DeadLetterReason
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.definitions import ACTIVATED, RETIRED
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import DeadLetterQuery
from farandole.envelope import Event, Publication, decode, encode
from farandole.errors import BrokerUnavailableError, DefinitionError, FencedError
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.reasons import Reason
from farandole.registry import Registry
from farandole.saga import Disposition, Health, Saga, Status
from farandole.worker import Handled
from tests.unit.memory_correlator import KEY, TICK, Correlator, at_work, attempted, correlator, published
from tests.unit.memory_stream import HAPPY, MemoryStream
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY

NEIGHBOUR = next(key for key in map(str, range(1000)) if partition_of(key) == partition_of(KEY))
"""Another key of the same partition."""
COMMIT_SUBJECT = f"events.{partition_of(KEY)}.{ORDER_FULFILMENT.commit_event}"
SECOND_VERSION = replace(ORDER_FULFILMENT, version=2, deadline=timedelta(hours=5))
RENAMED = replace(ORDER_FULFILMENT, name="another-fulfilment")


def dispositions(saga: Saga) -> list[str]:
    return [f"{entry.fact.type.rpartition('.')[2]} {entry.disposition.name}" for entry in saga.history]


# ---- ends of sagas


async def test_an_end_is_published_once_however_many_events_follow_before_it_is_read_back() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY)
    handled = await working.read()
    assert published(handled) == ["SagaCompleted"]
    stream.tell(KEY, HAPPY[-1])
    assert published(await working.read()) == []
    stream.publish_all(handled)
    assert published(await working.read()) == []
    saga = await working.saga()
    assert saga.status is Status.COMPLETED
    assert [entry.disposition for entry in saga.history] == [
        *[Disposition.APPLIED] * 5,
        Disposition.DUPLICATE,
        Disposition.APPLIED,
    ]


async def test_an_end_that_its_own_batch_holds_already_is_not_published() -> None:
    """As in a rebuild, where the whole history comes in one batch."""
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY)
    await working.settle()
    rebuilt = correlator(stream)
    assert published(await rebuilt.begin()) == []
    handled = await rebuilt.read()
    assert published(handled) == []
    assert [key for key, _ in handled.read_back if key == KEY] == [KEY]
    assert await rebuilt.store.waiting_publications() == ()
    assert await rebuilt.store.get_sagas(KEY) == await working.store.get_sagas(KEY)


async def test_who_claims_again_starts_from_what_is_stored() -> None:
    """As after trouble of the store, when it is not known what became of the last commit."""
    stream = MemoryStream()
    working = await at_work(stream)
    for event in HAPPY[:2]:
        stream.tell(KEY, event)
        await working.read()
    await working.begin()
    stream.tell(KEY, *HAPPY[2:])
    assert published(await working.read()) == ["SagaCompleted"]
    assert [entry.disposition for entry in (await working.saga()).history] == [Disposition.APPLIED] * 5


async def test_who_was_shut_out_does_not_take_the_store_back() -> None:
    stream = MemoryStream()
    first = await at_work(stream)
    stream.tell(KEY, HAPPY[0])
    await first.read()
    second = await at_work(stream, first.store)
    with pytest.raises(FencedError):
        await first.begin()
    stream.tell(KEY, HAPPY[1])
    await second.read()
    assert len((await second.saga()).history) == 2


# ---- definitions in the stream


async def test_every_partition_is_told_once_what_is_active() -> None:
    stream = MemoryStream()
    started = correlator(stream)
    handled = await started.begin()
    assert published(handled) == ["DefinitionActivated"] * PARTITIONS
    assert {row.publication.key for row in handled.rows} == {partition_key(p) for p in range(PARTITIONS)}
    assert "order-fulfilment version 1" in (started.handler.problem or "")
    stream.publish_all(handled)
    await started.read()
    assert started.handler.problem is None


@pytest.mark.parametrize("stored", [0, 1, 7, PARTITIONS])
async def test_a_restart_tells_nothing_again(stored: int) -> None:
    """Whatever part of it had been stored, and read, when the process ended."""
    stream = MemoryStream()
    first = correlator(stream)
    handled = await first.begin()
    for row in handled.rows[:stored]:
        stream.publish(row.publication)
    if stored == 7:
        await first.read()
    second = correlator(stream, first.store)
    again = await second.begin()
    assert published(again) == []
    assert len(again.read_back) == stored
    assert await second.handler.waiting() == handled.rows
    for row in handled.rows[stored:]:
        stream.publish(row.publication)
    await second.read()
    assert second.handler.problem is None
    assert published(await correlator(stream, first.store).begin()) == []
    assert published(await correlator(stream).begin()) == []


async def test_what_is_told_again_has_the_same_identity() -> None:
    """Its row is published again where the process ended before it was removed; it changes nothing then."""
    one, another = MemoryStream(), MemoryStream()
    ids = [
        [row.publication.headers["Nats-Msg-Id"] for row in (await correlator(stream).begin()).rows]
        for stream in (one, another)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == PARTITIONS


async def test_events_that_come_before_the_first_activation_start_sagas() -> None:
    """The stream may be older than its first correlator, and events may come before what it tells is stored."""
    stream = MemoryStream()
    stream.tell(KEY, HAPPY[0])
    started = correlator(stream)
    handled = await started.begin()
    await started.read()
    assert (await started.saga()).version == 1
    stream.tell(NEIGHBOUR, HAPPY[0])
    stream.publish_all(handled)
    await started.settle()
    rebuilt = await at_work(stream)
    for key in (KEY, NEIGHBOUR):
        assert await rebuilt.store.get_sagas(key) == await started.store.get_sagas(key)
        assert (await rebuilt.saga(key)).is_started


async def test_old_sagas_keep_their_version_and_new_ones_start_under_the_new_one() -> None:
    stream = MemoryStream()
    first = await at_work(stream)
    stream.tell(KEY, HAPPY[0])
    await first.settle()
    second = correlator(stream, first.store, (SECOND_VERSION,))
    handled = await second.begin()
    assert "version 2" in (second.handler.problem or "")
    stream.tell(NEIGHBOUR, HAPPY[0])
    stream.publish_all(handled)
    stream.tell("o2", HAPPY[0])
    await second.settle()
    assert second.handler.problem is None
    for key, version in ((KEY, 1), (NEIGHBOUR, 1), ("o2", 2)):
        saga = await second.saga(key)
        assert (saga.version, saga.deadline) == (
            version,
            saga.start_time + {1: ORDER_FULFILMENT, 2: SECOND_VERSION}[version].deadline,  # type: ignore[operator]
        )
        stream.tell(key, *HAPPY[1:])
    await second.settle()
    rebuilt = await at_work(stream, definitions=(SECOND_VERSION,))
    for key, version in ((KEY, 1), (NEIGHBOUR, 1), ("o2", 2)):
        assert ((await rebuilt.saga(key)).version, (await rebuilt.saga(key)).status) == (version, Status.COMPLETED)
        assert await rebuilt.store.get_sagas(key) == await second.store.get_sagas(key)
    assert [(d.name, d.version) for d in await rebuilt.store.definitions()] == [
        ("order-fulfilment", 2),
        ("order-fulfilment", 1),
    ]


async def test_a_return_to_an_old_version_is_told_too() -> None:
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    working = await at_work(stream, store)
    stream.tell("k0", HAPPY[0])
    for definition in (SECOND_VERSION, ORDER_FULFILMENT, SECOND_VERSION):
        working = await at_work(stream, store, (definition,))
        assert working.handler.problem is None
        stream.tell(f"k{stream.messages[-1].sequence}", HAPPY[0])
        await working.settle()
    keys = [json.loads(message.data)["orderId"] for message in stream.of_type("OrderCreated")]
    assert [(await working.saga(key)).version for key in keys] == [1, 2, 1, 2]
    rebuilt = await at_work(stream, definitions=(SECOND_VERSION,))
    assert [(await rebuilt.saga(key)).version for key in keys] == [1, 2, 1, 2]


async def test_a_saga_starts_under_the_version_that_is_active_at_its_initiating_event() -> None:
    """Its first events may have come under another one."""
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    first = await at_work(stream, store)
    stream.tell(KEY, HAPPY[1])
    await first.settle()
    assert (await first.saga()).version == 1
    second = await at_work(stream, store, (SECOND_VERSION,))
    stream.tell(KEY, HAPPY[2], HAPPY[0])
    await second.settle()
    saga = await second.saga()
    assert (saga.version, saga.deadline) == (2, saga.start_time + SECOND_VERSION.deadline)  # type: ignore[operator]
    assert dispositions(saga) == ["ItemsReserved APPLIED", "PaymentProcessed APPLIED", "OrderCreated APPLIED"]
    rebuilt = await at_work(stream, definitions=(SECOND_VERSION,))
    assert await rebuilt.store.get_sagas(KEY) == await store.get_sagas(KEY)


async def test_a_removed_definition_starts_no_saga_and_its_sagas_go_on() -> None:
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    first = await at_work(stream, store, (ORDER_FULFILMENT, RENAMED))
    stream.tell(KEY, HAPPY[0])
    stream.tell("unstarted", HAPPY[1])
    await first.settle()
    second = correlator(stream, store, (RENAMED,))
    handled = await second.begin()
    assert published(handled) == ["DefinitionRetired"] * PARTITIONS
    stream.publish_all(handled)
    await second.settle()
    stream.tell("o2", HAPPY[0])
    stream.tell("unstarted", HAPPY[0])
    stream.tell(KEY, *HAPPY[1:])
    await second.settle()
    assert (await second.saga()).status is Status.COMPLETED
    for key in ("o2", "unstarted"):
        started = {recorded.saga.definition for recorded in await store.get_sagas(key) if recorded.saga.is_started}
        assert started == {"another-fulfilment"}
    rebuilt = await at_work(stream, definitions=(RENAMED,))
    for key in (KEY, "o2", "unstarted"):
        assert await rebuilt.store.get_sagas(key) == await store.get_sagas(key)
    again = await at_work(stream, store, (ORDER_FULFILMENT, RENAMED))
    stream.tell("o3", HAPPY[0])
    await again.settle()
    assert (await again.saga("o3")).is_started


async def test_a_definition_that_is_added_later_starts_no_saga_of_before() -> None:
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    first = await at_work(stream, store)
    stream.tell(KEY, HAPPY[0])
    await first.settle()
    second = await at_work(stream, store, (ORDER_FULFILMENT, RENAMED))
    stream.tell("o2", HAPPY[0])
    await second.settle()
    rebuilt = await at_work(stream, definitions=(ORDER_FULFILMENT, RENAMED))
    for working in (second, rebuilt):
        assert [recorded.saga.definition for recorded in await working.store.get_sagas(KEY)] == ["order-fulfilment"]
        assert [recorded.saga.definition for recorded in await working.store.get_sagas("o2")] == [
            "another-fulfilment",
            "order-fulfilment",
        ]


def hostile(publication: Publication, **headers: str) -> Publication:
    changed = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(publication, headers={**publication.headers, **changed, "Nats-Msg-Id": f"hostile {publication.key}"})


async def test_an_activation_that_nobody_should_believe_changes_nothing() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    other = correlator(MemoryStream(), definitions=(SECOND_VERSION,))
    for row in (await other.begin()).rows:
        stream.publish(hostile(row.publication, ce_source="mallory", ce_id="m"))
    broken = {"name": "order-fulfilment", "version": 9, "deadline": "1s", "initiatingEvent": "a", "commitEvent": "b"}
    step = {"name": "s", "participant": "p", "kind": "STEP_KIND_PIVOT", "success": "c"}
    for key, definition in ((partition_key(partition_of(KEY)), {**broken, "steps": [step]}), (KEY, {})):
        data = json.dumps({"partitionKey": key, "definition": definition}).encode()
        headers = {"ce-source": "correlator", "ce-id": f"m-{key}"}
        stream.publish(Publication(key, f"events.{key}.{ACTIVATED}", headers, data))
        data = json.dumps({"partitionKey": KEY, "name": "order-fulfilment"}).encode()
        stream.publish(Publication(KEY, f"events.{KEY}.{RETIRED}", headers, data))
    stream.tell(KEY, HAPPY[0])
    await working.settle()
    assert (await working.saga()).version == 1
    assert published(await correlator(stream, working.store).begin()) == []


async def test_changed_content_of_a_version_is_refused_where_the_records_are_gone() -> None:
    """A store with records refuses it itself; one without can't tell which sagas the stream holds."""
    stream = MemoryStream()
    await at_work(stream)
    changed = replace(ORDER_FULFILMENT, deadline=timedelta(hours=9))
    with pytest.raises(DefinitionError, match="raise the version to 2"):
        await correlator(stream, definitions=(changed,)).begin()


async def test_content_that_changed_while_no_saga_kept_it_counts_from_its_place_on() -> None:
    """A saga that starts between the check of the store and the activation keeps the content of before."""
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    await at_work(stream, store)
    last_step = ORDER_FULFILMENT.steps[-1]
    changed = replace(ORDER_FULFILMENT, steps=(*ORDER_FULFILMENT.steps, replace(last_step, name="x", success="x.v1.X")))
    stream.tell(KEY, HAPPY[0])
    stream.tell("unstarted", HAPPY[1])
    second = await at_work(stream, store, (changed,))
    stream.tell("o2", HAPPY[0])
    for key in (KEY, "unstarted", "o2"):
        stream.tell(key, *HAPPY)
    await second.settle()
    for key, steps in ((KEY, 5), ("unstarted", 6), ("o2", 6)):
        assert len((await second.saga(key)).steps) == steps
    assert (await second.saga()).status is Status.COMPLETED


async def test_what_bears_a_key_of_the_platform_belongs_to_no_saga() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(partition_key(3), *HAPPY)
    await working.settle()
    assert await working.store.get_sagas(partition_key(3)) == ()


# ---- what no one can read


def without(event_type: str) -> Registry:
    return Registry({name: known for name, known in REGISTRY.types.items() if name != event_type})


OLDER_REGISTRY = without("inventory.v1.ItemsReserved")
"""Of a correlator that was deployed before the descriptor set had the type."""
UNREADABLE = "EventUnreadable"


async def dead_letters(working: Correlator) -> list[DeadLetter]:
    return [*(await working.store.list_dead_letters(DeadLetterQuery())).dead_letters]


async def test_what_no_one_can_read_is_told_once_under_the_key_of_its_partition() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    (garbage,) = stream.tell(KEY, ("orders.v1.OrderCreated", {"customerId": 7}))
    handled = await working.read()
    assert len(handled.rows) == 2, "the copy for DEADLETTERS, and the event"
    (told,) = stream.publish_all(handled)
    event = decode(REGISTRY, told)
    assert isinstance(event, Event)
    assert (event.key, event.source) == (partition_key(partition_of(KEY)), "correlator")
    assert event.body == EventUnreadable(
        partition_key=partition_key(partition_of(KEY)),
        sequence=garbage.sequence,
        event_type="orders.v1.OrderCreated",
        reason=DEAD_LETTER_REASON_UNDECODABLE,
    )
    # the row is withdrawn once the stream is known to have it
    assert (event.key, told.headers["Nats-Msg-Id"]) in (await working.read()).read_back
    again = correlator(stream)
    assert published(await again.begin()) == []
    await again.settle()
    assert len(stream.of_type(UNREADABLE)) == 1
    assert await dead_letters(again) == await dead_letters(working)


async def test_what_could_not_be_read_stays_so_for_whoever_folds_the_stream_again() -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    stream.tell(KEY, *HAPPY[:2])
    await older.settle()
    assert dispositions(await older.saga()) == ["OrderCreated APPLIED"]
    rebuilt = correlator(stream)
    await rebuilt.begin()
    rows = (await rebuilt.read()).rows
    assert not any(UNREADABLE in row.publication.subject for row in rows)
    assert await rebuilt.saga() == await older.saga()
    assert await dead_letters(rebuilt) == await dead_letters(older)
    (letter,) = await dead_letters(older)
    assert (letter.reason, letter.participant, letter.key) == (Reason.UNKNOWN_TYPE, "correlator", "")
    # what comes from now on is read
    stream.tell(NEIGHBOUR, *HAPPY[:2])
    await rebuilt.settle()
    assert dispositions(await rebuilt.saga(NEIGHBOUR)) == ["OrderCreated APPLIED", "ItemsReserved APPLIED"]


@pytest.mark.parametrize(
    ("reason", "has_key"), [("DEAD_LETTER_REASON_RULE_VIOLATION", True), ("DEAD_LETTER_REASON_UNDECODABLE", False)]
)
async def test_what_was_not_read_shows_no_more_than_it_did_then(reason: str, has_key: bool) -> None:
    stream = MemoryStream()
    (event,) = stream.tell(KEY, HAPPY[0])
    told = EventUnreadable(partition_key=partition_key(partition_of(KEY)), sequence=1, event_type=event.type)
    told.reason = DeadLetterReason.Value(reason)
    stream.publish(encode(REGISTRY.types[told.DESCRIPTOR.full_name], told, source="correlator", time=datetime.now(UTC)))
    working = await at_work(stream)
    (letter,) = await dead_letters(working)
    assert (letter.key == KEY, letter.payload is not None) == (has_key, has_key)
    assert await working.store.get_sagas(KEY) == ()


async def test_only_the_correlator_says_what_no_one_can_read() -> None:
    stream = MemoryStream()
    (event,) = stream.tell(KEY, HAPPY[0])
    own = partition_key(partition_of(KEY))
    for source, key, sequence in (("mallory", own, 1), ("correlator", KEY, 1), ("correlator", own, 99)):
        body = EventUnreadable(
            partition_key=key, sequence=sequence, event_type=event.type, reason=DEAD_LETTER_REASON_UNDECODABLE
        )
        event_type = REGISTRY.types[body.DESCRIPTOR.full_name]
        stream.publish(encode(event_type, body, source=source, time=datetime.now(UTC)))
    working = await at_work(stream)
    assert await dead_letters(working) == []
    assert dispositions(await working.saga()) == ["OrderCreated APPLIED", "EventUnreadable UNMATCHED"]


def about_unreadable(name: str, sequence: int, key: str, actor: str = "ada") -> tuple[str, dict[str, object]]:
    body = {"sagaId": key, "participant": "correlator", "sequence": sequence, "actor": actor, "reason": "new schemas"}
    return f"choreography.v1.DeadLetter{name}", body


async def rebuilds(stream: MemoryStream) -> AsyncIterator[Correlator]:
    """Correlators with empty stores that have folded the whole stream, in one batch and event by event."""
    for in_one_batch in (True, False):
        rebuilt = correlator(stream)
        await rebuilt.begin()
        for until in [len(stream.messages)] if in_one_batch else range(1, len(stream.messages) + 1):
            await rebuilt.read(until)
        yield rebuilt


async def test_what_can_be_read_now_is_redriven_at_its_place_among_its_sagas_events() -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY[:3])
    await older.settle()
    assert dispositions(await older.saga()) == ["OrderCreated APPLIED", "PaymentProcessed EARLY"]
    newer = await at_work(stream, older.store)
    assert [letter.state for letter in await dead_letters(newer)] == [DeadLetterState.OPEN], (
        "a restart alone reads nothing"
    )
    key = partition_key(partition_of(KEY))
    stream.tell(key, about_unreadable("Redriven", events[1].sequence, key))
    await newer.settle()
    saga = await newer.saga()
    assert dispositions(saga) == ["OrderCreated APPLIED", "ItemsReserved APPLIED", "PaymentProcessed APPLIED"]
    assert [entry.fact.sequence for entry in saga.history] == [event.sequence for event in events]
    (recorded_saga,) = await newer.store.get_sagas(KEY)
    assert events[1].sequence in recorded_saga.payloads
    (letter,) = await dead_letters(newer)
    assert (letter.state, letter.close_actor, letter.close_reason) == (DeadLetterState.REDRIVEN, "ada", "new schemas")
    async for rebuilt in rebuilds(stream):
        assert await rebuilt.store.get_sagas(KEY) == (recorded_saga,)
        assert await dead_letters(rebuilt) == [letter]


async def test_a_saga_that_is_complete_once_an_event_is_read_is_said_to_be_so() -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY)
    await older.settle()
    newer = await at_work(stream, older.store)
    key = partition_key(partition_of(KEY))
    stream.tell(key, about_unreadable("Redriven", events[1].sequence, key))
    await newer.settle()
    assert (await newer.saga()).status is Status.COMPLETED
    assert len(stream.of_type("SagaCompleted")) == 1


async def test_a_saga_starts_where_its_initiating_event_is_read_at_last() -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=without("orders.v1.OrderCreated"))
    events = stream.tell(KEY, *HAPPY[:2])
    await older.settle()
    assert dispositions(await older.saga()) == ["ItemsReserved UNMATCHED"]
    newer = await at_work(stream, older.store)
    key = partition_key(partition_of(KEY))
    stream.tell(key, about_unreadable("Redriven", events[0].sequence, key))
    await newer.settle()
    saga = await newer.saga()
    assert dispositions(saga) == ["OrderCreated APPLIED", "ItemsReserved APPLIED"]
    assert saga.start_time == events[0].time
    async for rebuilt in rebuilds(stream):
        assert await rebuilt.saga() == saga


async def test_what_still_can_not_be_read_stays_a_dead_letter() -> None:
    stream = MemoryStream()
    working = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY[:2])
    key = partition_key(partition_of(KEY))
    stream.tell(key, about_unreadable("Redriven", events[1].sequence, key))
    await working.settle()
    (letter,) = await dead_letters(working)
    assert (letter.state, letter.close_actor) == (DeadLetterState.OPEN, "")
    assert dispositions(await working.saga()) == ["OrderCreated APPLIED"]


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_what_was_discarded_is_not_redriven(in_one_batch: bool) -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY[:2])
    await older.settle()
    newer = await at_work(stream, older.store)
    key = partition_key(partition_of(KEY))
    for name, actor in (("Discarded", "ada"), ("Redriven", "bob"), ("Redriven", "eve")):
        stream.tell(key, about_unreadable(name, events[1].sequence, key, actor))
        if not in_one_batch:
            await newer.settle()
    await newer.settle()
    (letter,) = await dead_letters(newer)
    assert (letter.state, letter.close_actor) == (DeadLetterState.DISCARDED, "ada")
    assert dispositions(await newer.saga()) == ["OrderCreated APPLIED"]
    async for rebuilt in rebuilds(stream):
        assert await rebuilt.saga() == await newer.saga()
        assert await dead_letters(rebuilt) == [letter]


async def test_what_names_a_step_redrives_nothing_that_no_one_could_read() -> None:
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY[:2])
    await older.settle()
    newer = await at_work(stream, older.store)
    key = partition_key(partition_of(KEY))
    name, body = about_unreadable("Redriven", events[1].sequence, key)
    stream.tell(key, (name, {**body, "definition": "order-fulfilment", "step": "take-payment"}))
    stream.tell(key, about_unreadable("Redriven", events[0].sequence, key))  # which is no dead letter
    await newer.settle()
    assert [letter.state for letter in await dead_letters(newer)] == [DeadLetterState.OPEN]
    assert dispositions(await newer.saga()) == ["OrderCreated APPLIED"]


async def test_a_decision_about_what_no_one_can_read_is_in_the_history_of_its_saga() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, HAPPY[0])
    (garbage,) = stream.tell(KEY, ("inventory.v1.ItemsReserved", {"amountCents": -5}))
    await working.settle()
    (letter,) = await dead_letters(working)
    assert (letter.reason, letter.key) == (Reason.RULE_VIOLATION, KEY)
    assert (await working.saga()).health is Health.ON_TIME, "it holds nothing up"
    stream.tell(KEY, about_unreadable("Discarded", garbage.sequence, KEY))
    await working.settle()
    assert dispositions(await working.saga()) == ["OrderCreated APPLIED", "DeadLetterDiscarded APPLIED"]
    (letter,) = await dead_letters(working)
    assert (letter.state, letter.close_actor) == (DeadLetterState.DISCARDED, "ada")


async def test_a_redriven_event_is_waited_for_where_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.correlator.handler._AGAIN_SECONDS", 0.0)
    stream = MemoryStream()
    older = await at_work(stream, registry=OLDER_REGISTRY)
    events = stream.tell(KEY, *HAPPY[:2])
    await older.settle()
    stream.refusals = 3
    newer = await at_work(stream, older.store)
    key = partition_key(partition_of(KEY))
    stream.tell(key, about_unreadable("Redriven", events[1].sequence, key))
    await newer.settle()
    assert stream.refusals == 0
    assert dispositions(await newer.saga()) == ["OrderCreated APPLIED", "ItemsReserved APPLIED"]


async def test_a_dead_letter_without_a_saga_is_followed_under_the_key_of_its_partition() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    key = partition_key(5)
    states = (
        (recorded(3, key), DeadLetterState.OPEN),
        (verb("Redriven", "new schemas", key), DeadLetterState.REDRIVEN),
        (recorded(6, key), DeadLetterState.OPEN),
        (about_dead_letter("Superseded", sagaId=key), DeadLetterState.SUPERSEDED),
    )
    for event, state in states:
        stream.tell(key, event)
        await working.settle()
        letter = await working.store.get_dead_letter("payments", 18)
        assert letter is not None
        assert (letter.state, letter.key, letter.partition) == (state, "", 5)
    stream.tell(key, recorded(6, key))
    await working.settle()
    letter = await working.store.get_dead_letter("payments", 18)
    assert letter is not None
    assert letter.state is DeadLetterState.SUPERSEDED, "the same as before says nothing new"


# ---- deadlines


async def test_who_waits_for_nothing_asks_nothing() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY)
    await working.settle()
    await working.pass_time(3600)
    assert stream.of_type("PartitionTick") == []


async def test_a_stuck_saga_is_told_overdue_then_timed_out_once_each() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:2])
    await working.settle()
    started = stream.seconds
    await working.pass_time(50)
    assert len(stream.of_type("PartitionTick")) == 1, "one, to learn the time"
    await working.pass_time(11)
    assert (await working.saga()).health is Health.OVERDUE
    assert len(stream.of_type("StepOverdue")) == 1
    await working.pass_time(1700)
    assert stream.of_type("SagaTimedOut") == []
    await working.pass_time(100)
    (timed_out,) = stream.of_type("SagaTimedOut")
    assert 1800 < (timed_out.time - stream.messages[0].time).total_seconds() < 1802 + started
    assert (await working.saga()).status is Status.COMPENSATING
    await working.pass_time(290)
    assert len(stream.of_type("PartitionTick")) <= 5, "no more than there are deadlines"
    await working.pass_time(3600)
    assert len(stream.of_type("SagaTimedOut")) == 1
    told = [(message.headers["ce-id"]) for message in stream.of_type("StepOverdue", "SagaTimedOut", "SagaStalled")]
    assert len(told) == len(set(told))


async def test_a_time_out_is_bound_to_the_last_commit_event_of_its_partition() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:2])
    stream.tell(NEIGHBOUR, *HAPPY)
    await working.settle()
    last = stream.last_stored_on(COMMIT_SUBJECT)
    assert last > 0
    await working.pass_time(1802)
    (timed_out,) = stream.of_type("SagaTimedOut")
    assert timed_out.headers["Nats-Expected-Last-Subject-Sequence"] == str(last)
    assert timed_out.headers["Nats-Expected-Last-Subject-Sequence-Subject"] == COMMIT_SUBJECT
    (overdue,) = stream.of_type("StepOverdue")
    assert not any(name.startswith("Nats-Expected") for name in overdue.headers)


async def until_late(working: Correlator) -> None:
    """Lets time pass until a saga's deadline is a moment away."""
    saga = await working.saga()
    assert saga.deadline is not None
    left = (saga.deadline - working.stream.messages[0].time).total_seconds() - working.stream.seconds
    await working.pass_time(left - 1)
    assert working.stream.of_type("SagaTimedOut") == []


async def test_what_is_stored_before_the_tick_counts() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    await working.settle()
    await until_late(working)
    stream.seconds += 5
    stream.tell(KEY, HAPPY[3])
    tick = await working.until_asked()
    assert stream.messages[-2].type == HAPPY[3][0]
    await working.read(tick.sequence)
    assert set(attempted(await working.handler.due())) <= {"StepOverdue", "SagaStalled"}
    await working.pass_time(60)
    assert stream.of_type("SagaTimedOut") == []


async def test_a_commit_event_behind_the_tick_that_is_not_folded_yet_is_waited_for() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    await working.settle()
    await until_late(working)
    tick = await working.until_asked()
    await working.read(tick.sequence)
    stream.tell(KEY, HAPPY[3])
    assert "SagaTimedOut" not in attempted(await working.handler.due())
    await working.pass_time(60)
    assert stream.of_type("SagaTimedOut") == []
    assert (await working.saga()).steps[3].status.name == "SUCCEEDED"


async def test_commit_events_of_others_that_are_not_folded_yet_put_no_time_out_off() -> None:
    """Where they come all the time, there always are some."""
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    stream.tell(NEIGHBOUR, *HAPPY[:3])
    await working.settle()
    stream.tell(NEIGHBOUR, HAPPY[2])
    await until_late(working)
    tick = await working.until_asked()
    await working.read(tick.sequence)
    stream.tell(NEIGHBOUR, HAPPY[3])
    last = stream.last_stored_on(COMMIT_SUBJECT)
    assert last > tick.sequence
    decided = [attempt for attempt in (await working.handler.due()).attempts if "SagaTimedOut" in attempt.subject]
    assert [(attempt.key, attempt.headers["Nats-Expected-Last-Subject-Sequence"]) for attempt in decided] == [
        (KEY, str(last))
    ]


async def test_refused_time_outs_are_decided_again_once_what_refused_them_is_folded() -> None:
    """Without another tick: what was due by the stream's time stays due."""
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    *others, last = [str(n) for n in range(1000) if partition_of(str(n)) == partition_of(KEY)][:10]
    await working.settle()
    await until_late(working)
    tick = await working.until_asked()
    await working.read(tick.sequence)
    decided = await working.handler.due()
    ticks = len(stream.of_type("PartitionTick"))
    for other in others:
        stream.tell(other, HAPPY[3])
        assert stream.publish_all(decided) == []
        await working.read()
        assert attempted(await working.do_due()) == [], "soon, but not as often as commit events come"
        stream.seconds += 0.05
        assert working.handler.due_in() == 0.0
        decided = await working.handler.due()
        assert attempted(decided) == ["SagaTimedOut"]
    assert len(stream.of_type("PartitionTick")) == ticks
    await working.publish(decided)
    await working.settle()
    assert (await working.saga()).status is Status.COMPENSATING
    stream.tell(last, HAPPY[3])
    await working.read()
    stream.seconds += 0.05
    assert attempted(await working.do_due()) == [], "nothing is due any more"


@pytest.mark.parametrize("of", [KEY, NEIGHBOUR])
async def test_a_commit_event_between_the_decision_and_the_storing_refuses_the_time_out(of: str) -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    stream.tell(NEIGHBOUR, *HAPPY[:3])
    await working.settle()
    stream.tell(NEIGHBOUR, HAPPY[2])
    await until_late(working)
    tick = await working.until_asked()
    await working.read(tick.sequence)
    decided = await working.handler.due()
    assert "SagaTimedOut" in attempted(decided)
    stream.tell(of, HAPPY[3])
    assert "SagaTimedOut" not in [message.type.rpartition(".")[2] for message in stream.publish_all(decided)]
    await working.settle()
    await working.pass_time(60)
    assert len(stream.of_type("SagaTimedOut")) == 1
    other = NEIGHBOUR if of == KEY else KEY
    assert (await working.saga(other)).status is Status.COMPENSATING
    assert (await working.saga(of)).status is Status.RUNNING


async def test_an_early_commit_event_keeps_a_saga_from_being_timed_out() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:2], HAPPY[3])
    await working.settle()
    assert dispositions(await working.saga())[-1] == "OrderShipped EARLY"
    await working.pass_time(1900)
    assert stream.of_type("SagaTimedOut") == []
    assert (await working.saga()).health is Health.STALLED
    stream.tell(KEY, HAPPY[2], HAPPY[4])
    await working.settle()
    saga = await working.saga()
    assert (saga.status, saga.finished_late) == (Status.COMPLETED, True)


async def test_what_the_broker_does_not_say_is_asked_again() -> None:
    stream = MemoryStream()
    answers = 0

    def last_stored_on(subject: str) -> int:
        nonlocal answers
        answers += 1
        if answers <= 3:
            raise BrokerUnavailableError("no answer")
        return stream.last_stored_on(subject)

    working = correlator(stream, last_stored_on=last_stored_on)
    stream.publish_all(await working.begin())
    stream.tell(KEY, HAPPY[0])
    await working.settle()
    await working.pass_time(1799)
    before = len(stream.of_type("PartitionTick"))
    await working.pass_time(10)
    assert len(stream.of_type("SagaTimedOut")) == 1
    assert answers == 4
    assert len(stream.of_type("PartitionTick")) - before == 4


async def test_a_lost_attempt_is_made_again_about_once_a_second() -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, HAPPY[0])
    await working.settle()
    lost = 0
    while lost < 5:
        stream.seconds += 0.05
        handled = Handled()
        if (due_in := working.handler.due_in()) is not None and due_in <= 0:
            handled = await working.handler.due()
        ticks = [attempt for attempt in handled.attempts if TICK in attempt.subject]
        others = [attempt for attempt in handled.attempts if TICK not in attempt.subject]
        lost += len(others)
        stream.publish_all(Handled(attempts=ticks))
        await working.settle()
    overdue_since = stream.seconds
    assert 64 <= overdue_since <= 68
    assert stream.of_type("StepOverdue") == []
    await working.pass_time(2)
    assert len(stream.of_type("StepOverdue")) == 1


async def test_ticks_of_others_and_of_before_mean_nothing() -> None:
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    first = await at_work(stream, store)
    stream.tell(KEY, *HAPPY[:3])
    await first.settle()
    await until_late(first)
    tick = await first.until_asked()
    stream.publish(Publication(tick.headers["ce-correlationid"], f"events.x.{TICK}", {"ce-source": "m"}, tick.data))
    second = correlator(stream, store)
    await second.begin()
    await second.read()
    assert second.handler.due_in() == 0.0, "it asks for itself"
    assert attempted(await second.handler.due()) == ["PartitionTick"]


async def test_each_session_asks_for_the_time_once() -> None:
    """What was known before may be wrong: the machine may have slept."""
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, HAPPY[0])
    await working.settle()
    for session in range(1, 4):
        await working.pass_time(5)
        assert len(stream.of_type("PartitionTick")) == session
        await working.begin()
        assert working.handler.due_in() == 0.0


async def test_a_backlog_does_not_make_a_correlator_think_that_it_is_earlier() -> None:
    """What is read first may have been stored long ago, by sagas that began when nobody looked."""
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    await at_work(stream, store)
    stream.tell(KEY, HAPPY[0])
    stream.seconds += 7200
    late = await at_work(stream, store)
    await late.pass_time(3)
    assert len(stream.of_type("SagaTimedOut")) == 1


async def test_who_was_away_over_the_deadline_times_out_who_is_stuck_and_nobody_else() -> None:
    stream = MemoryStream()
    store = MemoryCorrelatorStore()
    first = await at_work(stream, store)
    done, stuck = [f"d{n}" for n in range(20)], [f"s{n}" for n in range(20)]
    for key in (*done, *stuck):
        stream.tell(key, *HAPPY[:3])
    await first.settle()
    for key in done:
        stream.tell(key, *HAPPY[3:])
    stream.seconds += 7200
    second = await at_work(stream, store)
    await second.pass_time(5)
    assert {(await second.saga(key)).status for key in done} == {Status.COMPLETED}
    assert {(await second.saga(key)).status for key in stuck} == {Status.COMPENSATING}
    assert len(stream.of_type("SagaTimedOut")) == len(stuck)


async def test_more_than_are_told_at_a_time_are_told_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.correlator.handler._MOST_DUE", 2)
    stream = MemoryStream()
    working = await at_work(stream)
    keys = [str(n) for n in range(500) if partition_of(str(n)) == partition_of(KEY)][:9]
    for key in keys:
        stream.tell(key, HAPPY[0])
    await working.settle()
    await working.pass_time(1810)
    assert len(stream.of_type("SagaTimedOut")) == len(keys)


async def test_where_more_are_late_the_next_are_told_once_those_told_are_read_back_without_another_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("farandole.correlator.handler._MOST_DUE", 2)
    stream = MemoryStream()
    working = await at_work(stream)
    keys = [str(n) for n in range(500) if partition_of(str(n)) == partition_of(KEY)][:9]
    for key in keys:
        stream.tell(key, HAPPY[0])
    await working.settle()
    await working.pass_time(1700)
    stream.seconds += 200
    asked = len(stream.of_type(TICK.rpartition(".")[2]))
    for _ in range(2 * len(keys)):
        await working.do_due()
        await working.settle()
    assert len(stream.of_type("SagaTimedOut")) == len(keys)
    assert len(stream.of_type(TICK.rpartition(".")[2])) == asked + 1


async def test_where_more_are_late_those_told_are_not_told_again_at_once_but_when_they_are_not_read_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("farandole.correlator.handler._MOST_DUE", 2)
    stream = MemoryStream()
    working = await at_work(stream)
    keys = [str(n) for n in range(500) if partition_of(str(n)) == partition_of(KEY)][:9]
    for key in keys:
        stream.tell(key, HAPPY[0])
    await working.settle()
    await working.pass_time(1700)
    stream.seconds += 200
    lost: list[float] = []
    until = stream.seconds + 8
    while stream.seconds < until:
        if (due_in := working.handler.due_in()) is not None and due_in <= 0:
            handled = await working.handler.due()
            time_outs = [attempt for attempt in handled.attempts if "SagaTimedOut" in attempt.subject]
            lost += [stream.seconds] if time_outs else []
            stream.publish_all(replace(handled, attempts=[one for one in handled.attempts if one not in time_outs]))
        await working.settle()
        stream.seconds += 0.25
    assert len(lost) >= 2, "an attempt that was lost is made again"
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(lost))


async def test_who_was_suspended_tells_nobody_anything() -> None:
    stream = MemoryStream()
    first = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    await first.settle()
    await until_late(first)
    tick = await first.until_asked()
    await first.read(tick.sequence)
    second = await at_work(stream, first.store)
    with pytest.raises(FencedError):
        await first.handler.due()
    await second.pass_time(10)
    assert len(stream.of_type("SagaTimedOut")) == 1


async def test_who_was_suspended_while_it_asked_the_broker_tells_nobody_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = MemoryStream()
    first = await at_work(stream)
    stream.tell(KEY, *HAPPY[:3])
    await first.settle()
    await until_late(first)
    tick = await first.until_asked()
    await first.read(tick.sequence)

    async def suspend_then_answer(subject: str) -> int:
        stream.seconds += 60
        second = await at_work(stream, first.store)
        await second.pass_time(10)
        return stream.last_stored_on(subject)

    monkeypatch.setattr(first.handler, "_last_stored_on", suspend_then_answer)
    with pytest.raises(FencedError):
        await first.handler.due()
    assert len(stream.of_type("SagaTimedOut")) == 1


async def test_of_two_sagas_on_one_event_only_the_late_one_is_timed_out() -> None:
    stream = MemoryStream()
    patient = replace(RENAMED, deadline=timedelta(hours=10))
    working = await at_work(stream, definitions=(ORDER_FULFILMENT, patient))
    stream.tell(KEY, HAPPY[0])
    await working.settle()
    await working.pass_time(1810)
    assert (await working.saga()).status is Status.COMPENSATING
    other = await working.saga(definition=patient.name)
    assert other.status is Status.RUNNING
    stream.tell(KEY, *HAPPY[1:])
    await working.settle()
    assert (await working.saga(definition=patient.name)).status is Status.COMPLETED
    assert (await working.saga()).status is Status.COMPENSATING


# ---- dead letters of participants


def about_dead_letter(name: str, **more: object) -> tuple[str, dict[str, object]]:
    about = {"definition": "order-fulfilment", "step": "take-payment", "participant": "payments", "sequence": 18}
    return f"choreography.v1.DeadLetter{name}", {"sagaId": KEY, **about, **more}


def recorded(attempts: int, key: str = KEY) -> tuple[str, dict[str, object]]:
    return about_dead_letter(
        "Recorded",
        sagaId=key,
        eventType="inventory.v1.ItemsReserved",
        eventSource="inventory",
        eventId="e",
        reason="DEAD_LETTER_REASON_RETRIES_EXHAUSTED",
        detail="no answer",
        attempts=attempts,
    )


def verb(name: str, reason: str = "", key: str = KEY) -> tuple[str, dict[str, object]]:
    return about_dead_letter(name, sagaId=key, actor="ada", reason=reason)


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_dead_letters_of_participants_are_followed(in_one_batch: bool) -> None:
    stream = MemoryStream()
    working = await at_work(stream)
    stream.tell(KEY, *HAPPY[:2])
    states = (
        (recorded(3), DeadLetterState.OPEN, 3),
        (verb("Redriven"), DeadLetterState.REDRIVEN, 3),
        (recorded(6), DeadLetterState.OPEN, 6),
        (verb("Discarded"), DeadLetterState.DISCARDED, 6),
        (recorded(9), DeadLetterState.OPEN, 9),
        (about_dead_letter("Superseded"), DeadLetterState.SUPERSEDED, 9),
        (recorded(12), DeadLetterState.OPEN, 12),
    )
    for event, state, attempts in states:
        stream.tell(KEY, event)
        if not in_one_batch:
            await working.settle()
            dead_letter = await working.store.get_dead_letter("payments", 18)
            assert dead_letter is not None
            assert (dead_letter.state, dead_letter.attempts) == (state, attempts)
    await working.settle()
    dead_letter = await working.store.get_dead_letter("payments", 18)
    assert dead_letter is not None
    assert (dead_letter.state, dead_letter.attempts, dead_letter.key) == (DeadLetterState.OPEN, 12, KEY)
    assert dead_letter.payload is not None
    assert await working.store.waiting_publications() == (), "the participant has published its own copy"
    assert (await working.saga()).health is Health.QUARANTINED
    stream.tell(KEY, verb("Discarded"))
    await working.settle()
    dead_letter = await working.store.get_dead_letter("payments", 18)
    assert dead_letter is not None
    assert dead_letter.state is DeadLetterState.OPEN, "the same event as before says nothing new"
    assert (await working.saga()).health is Health.QUARANTINED
    stream.tell(KEY, verb("Discarded", "enough"))
    await working.settle()
    dead_letter = await working.store.get_dead_letter("payments", 18)
    assert dead_letter is not None
    assert dead_letter.state is DeadLetterState.DISCARDED
    assert (await working.saga()).health is Health.ON_TIME
