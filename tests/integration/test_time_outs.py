"""Who wins, a saga's commit event or its time-out: the order of the stream decides, over a real broker, in every
order of what happens, and whoever is stopped, started again, suspended or misled by its clock in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from farandole.broker import attempts as attempts_module
from farandole.broker.attempts import Attempts
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import last_stored_on
from farandole.broker.streams import EVENTS
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import RecordedSaga
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.database import Database
from farandole.definition import Definition
from farandole.envelope import Publication
from farandole.errors import FencedError
from farandole.partitions import PARTITIONS, partition_of
from farandole.saga import Cause, Disposition, Health, Saga, Status
from farandole.testing.brokers import BrokerUnderTest, connect, nats_py
from tests.integration.correlators import (
    DEFINITIONS,
    HAPPY,
    Correlator,
    correlating,
    dispositions,
    end_deduplication,
    tell,
)
from tests.integration.stored_events import keys_of_stored

KEY = "o1"
NEIGHBOUR = next(key for key in map(str, range(1000)) if partition_of(key) == partition_of(KEY))
"""Another key of the same partition."""

UNTIL_PAID, SHIPPED, COMPLETED = HAPPY[:3], HAPPY[3], HAPPY[4]
UNDONE: tuple[tuple[str, dict[str, object]], ...] = (
    ("orders.v1.OrderCancelled", {"reason": "the deadline passed"}),
    ("inventory.v1.ItemsReleased", {"reservationId": "r", "reason": "the deadline passed"}),
    ("payments.v1.PaymentRefunded", {"paymentId": "p", "amountCents": 5, "reason": "the deadline passed"}),
)
UNSHIPPED: tuple[str, dict[str, object]] = ("shipping.v1.ShipmentCancelled", {"trackingNumber": "t", "reason": "late"})

ORDERS = next(definition for definition in DEFINITIONS if definition.name == "order-fulfilment")
DEADLINE = timedelta(seconds=1.5)
HASTY = replace(ORDERS, deadline=DEADLINE)
PATIENT = replace(ORDERS, name="patient-fulfilment", deadline=timedelta(minutes=10))


@pytest.fixture(params=["memory", "sql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CorrelatorStore]:
    """A store of either kind."""
    if request.param == "memory":
        yield MemoryCorrelatorStore()
    else:
        kept = SqlCorrelatorStore(Database(f"sqlite:///{tmp_path}/correlator.db"))
        yield kept
        await kept.close()


@asynccontextmanager
async def at_work(
    broker: Broker,
    store: CorrelatorStore,
    *definitions: Definition,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    before_time_outs: Callable[[], Awaitable[None]] | None = None,
    last_stored: Callable[[Broker, str], Awaitable[int]] = last_stored_on,
) -> AsyncIterator[Correlator]:
    """A correlator whose definitions are active; orders have a second and a half where none is given."""
    async with correlating(
        broker,
        store,
        definitions or (HASTY,),
        clock=clock,
        before_time_outs=before_time_outs,
        last_stored=last_stored,
    ) as correlator:
        await correlator.problems.until_well()
        yield correlator


async def timed_out(broker: Broker) -> Counter[str]:
    """How often each saga was timed out, as the stream has it."""
    return Counter(await keys_of_stored(broker, "SagaTimedOut"))


def is_stalled(saga: Saga) -> bool:
    return saga.health is Health.STALLED


def short(recorded: RecordedSaga) -> list[str]:
    return [f"{name} {disposition.name}" for name, disposition in dispositions(recorded)]


async def pass_deadline(broker: Broker, key: str = "clock") -> None:
    """Waits until the stream's time is behind the deadlines of all that is stored now."""
    started = await stream_time(broker, key)
    async with asyncio.timeout(20):
        while await stream_time(broker, key) < started + DEADLINE:  # noqa: ASYNC110 - time passes by itself
            await asyncio.sleep(0.1)


async def stream_time(broker: Broker, key: str) -> datetime:
    publisher = Publisher(broker)
    receipt = await publisher.publish(Publication(key, f"events.{key}.nobody.v1.Knows", {}, b"{}"))
    await publisher.stop()
    message = await nats_py(broker).jetstream().get_msg(EVENTS, receipt.sequence)
    assert message.time is not None
    return message.time


# ---- the commit event and the time-out, in both orders


async def test_a_commit_event_before_the_tick(broker: Broker, store: CorrelatorStore) -> None:
    async with at_work(broker, store) as correlator:
        await tell(broker, KEY, (*UNTIL_PAID, SHIPPED))
        await correlator.until_saga(KEY, is_stalled)
        await tell(broker, KEY, (COMPLETED,))
        recorded = await correlator.until(KEY, Status.COMPLETED)
    assert recorded.saga.finished_late
    assert recorded.saga.health is Health.ON_TIME
    assert await timed_out(broker) == {}
    assert correlator.handler.decided == 0


async def test_a_commit_event_between_the_tick_and_the_attempt(broker: Broker, store: CorrelatorStore) -> None:
    """The stream refuses the time-out that was decided already."""

    async def commit() -> None:
        await tell(broker, KEY, (SHIPPED,))

    async with at_work(broker, store, before_time_outs=commit) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until_saga(KEY, is_stalled)
        assert correlator.handler.decided == 1
        await tell(broker, KEY, (COMPLETED,))
        recorded = await correlator.until(KEY, Status.COMPLETED)
        await correlator.problems.until_well()
    assert recorded.saga.finished_late
    assert await timed_out(broker) == {}
    assert [name for name, _ in dispositions(recorded)] == [
        *(name.rpartition(".")[2] for name, _ in (*UNTIL_PAID, SHIPPED)),
        "SagaStalled",
        "OrderCompleted",
        "SagaCompleted",
    ]


async def test_a_commit_event_behind_the_time_out(broker: Broker, store: CorrelatorStore) -> None:
    """It is late, the saga is open again, visibly, until its participant has undone it."""
    async with at_work(broker, store) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.COMPENSATING)
        await tell(broker, KEY, UNDONE)
        recorded = await correlator.until(KEY, Status.COMPENSATED)
        assert recorded.saga.cause is Cause.DEADLINE
        await tell(broker, KEY, (SHIPPED,))
        reopened = await correlator.until(KEY, Status.COMPENSATING)
        assert short(reopened)[-1] == "OrderShipped LATE"
        assert reopened.saga.end_time is None
        await tell(broker, KEY, (UNSHIPPED,))
        recorded = await correlator.until(KEY, Status.COMPENSATED)
    assert short(recorded)[-4:] == [
        "SagaCompensated APPLIED",
        "OrderShipped LATE",
        "ShipmentCancelled APPLIED",
        "SagaCompensated APPLIED",
    ]
    assert await timed_out(broker) == {KEY: 1}


async def test_a_commit_event_that_comes_while_the_saga_is_being_undone(broker: Broker, store: CorrelatorStore) -> None:
    async with at_work(broker, store) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.COMPENSATING)
        await tell(broker, KEY, (SHIPPED, *UNDONE))
        recorded = await correlator.until_saga(KEY, lambda saga: len(saga.history) == 8)
        assert recorded.saga.status is Status.COMPENSATING, "the shipment is still to be undone"
        await tell(broker, KEY, (UNSHIPPED,))
        recorded = await correlator.until(KEY, Status.COMPENSATED)
    assert await timed_out(broker) == {KEY: 1}
    assert await keys_of_stored(broker, "SagaCompensated") == [KEY]


@pytest.mark.parametrize("commits_first", [True, False])
async def test_a_commit_event_of_another_saga_of_the_partition(
    broker: Broker, store: CorrelatorStore, commits_first: bool
) -> None:
    """Before the decision it is what the time-out is bound to; behind it the time-out is refused, and decided again."""

    async def commit() -> None:
        await tell(broker, NEIGHBOUR, (SHIPPED,))

    async with at_work(broker, store, before_time_outs=None if commits_first else commit) as correlator:
        await tell(broker, NEIGHBOUR, UNTIL_PAID)
        await tell(broker, KEY, UNTIL_PAID)
        if commits_first:
            await commit()
        recorded = await correlator.until(KEY, Status.COMPENSATING)
        await tell(broker, NEIGHBOUR, (COMPLETED,))
        await correlator.until(NEIGHBOUR, Status.COMPLETED)
        await correlator.problems.until_well()
    assert short(recorded)[-1] == "SagaTimedOut APPLIED"
    assert await timed_out(broker) == {KEY: 1}
    if not commits_first:
        assert correlator.handler.decided >= 2


@pytest.mark.parametrize("commits_first", [True, False])
async def test_an_early_commit_event(broker: Broker, store: CorrelatorStore, commits_first: bool) -> None:
    """One that came before its turn counts like one that was applied: what it says has happened."""
    async with at_work(broker, store) as correlator:
        await tell(broker, KEY, UNTIL_PAID[:2])
        if commits_first:
            await tell(broker, KEY, (SHIPPED,))
            recorded = await correlator.until_saga(KEY, is_stalled)
            assert "OrderShipped EARLY" in short(recorded)
            await tell(broker, KEY, (UNTIL_PAID[2], COMPLETED))
            recorded = await correlator.until(KEY, Status.COMPLETED)
            assert recorded.saga.finished_late
        else:
            await correlator.until(KEY, Status.COMPENSATING)
            await tell(broker, KEY, (SHIPPED,))
            recorded = await correlator.until_saga(KEY, lambda saga: len(saga.history) == 4)
            assert short(recorded)[-1] == "OrderShipped LATE"
    assert await timed_out(broker) == ({} if commits_first else {KEY: 1})


async def test_a_commit_event_that_is_stored_but_not_folded_yet_is_waited_for(
    broker: Broker, store: CorrelatorStore
) -> None:
    """The broker says where the last one stands when the time-out is decided, and that is behind what was folded."""
    asked: list[int] = []

    async def commit_then_ask(broker: Broker, subject: str) -> int:
        if not asked:
            await tell(broker, KEY, (SHIPPED,))
        asked.append(await last_stored_on(broker, subject))
        return asked[-1]

    async with at_work(broker, store, last_stored=commit_then_ask) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        recorded = await correlator.until_saga(KEY, is_stalled)
    assert "OrderShipped APPLIED" in short(recorded)
    assert asked[0] > 0
    assert correlator.handler.decided == 0
    assert await timed_out(broker) == {}


@pytest.mark.parametrize("is_known", [True, False])
async def test_commit_events_of_other_sagas_that_never_cease(
    broker: Broker, store: CorrelatorStore, is_known: bool
) -> None:
    """They put a time-out off by moments, whether they come before or after the broker has said which is the last."""
    others = iter([key for key in map(str, range(10_000)) if partition_of(key) == partition_of(KEY)][:10])
    asked = 0

    async def ask_while_others_commit(broker: Broker, subject: str) -> int:
        nonlocal asked
        asked += 1
        answer = 0 if is_known else await last_stored_on(broker, subject)
        if (other := next(others, None)) is not None:
            await tell(broker, other, (SHIPPED,))
        return await last_stored_on(broker, subject) if is_known else answer

    async with at_work(broker, store, last_stored=ask_while_others_commit) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        recorded = await correlator.until(KEY, Status.COMPENSATING)
    assert asked == (1 if is_known else 11)
    assert len(await keys_of_stored(broker, "PartitionTick")) <= 5, "it does not take a tick for each"
    assert short(recorded)[-1] == "SagaTimedOut APPLIED"
    assert await timed_out(broker) == {KEY: 1}


# ---- away over the deadline


@pytest.mark.parametrize("is_new_store", [True, False])
async def test_who_was_away_over_the_deadline_times_out_the_stuck_ones_only(
    broker: Broker, store: CorrelatorStore, is_new_store: bool
) -> None:
    done, stuck, unseen = ([f"{kind}{number}" for number in range(15)] for kind in "dsu")
    async with at_work(broker, store) as correlator:
        await asyncio.gather(*(tell(broker, key, UNTIL_PAID) for key in (*done, *stuck)))
        for key in (*done, *stuck):
            await correlator.until(key, Status.RUNNING)
    assert await timed_out(broker) == {}
    await asyncio.gather(*(tell(broker, key, (SHIPPED, COMPLETED)) for key in done))
    await asyncio.gather(*(tell(broker, key, UNTIL_PAID[:1]) for key in unseen))
    await pass_deadline(broker)
    async with at_work(broker, MemoryCorrelatorStore() if is_new_store else store) as correlator:
        for key in (*stuck, *unseen):
            await correlator.until(key, Status.COMPENSATING)
        for key in done:
            assert not (await correlator.until(key, Status.COMPLETED)).saga.finished_late
        await pass_deadline(broker)
    assert await timed_out(broker) == dict.fromkeys((*stuck, *unseen), 1)
    assert sorted(await keys_of_stored(broker, "SagaCompleted")) == sorted(done)


async def test_a_crash_between_the_tick_and_the_attempt(broker: Broker, store: CorrelatorStore) -> None:
    decided = asyncio.Event()

    async def crash() -> None:
        decided.set()
        await asyncio.get_running_loop().create_future()

    async with at_work(broker, store, before_time_outs=crash) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await asyncio.wait_for(decided.wait(), 20)
        correlator.running.cancel()
    assert await timed_out(broker) == {}
    async with at_work(broker, store) as correlator:
        await correlator.until(KEY, Status.COMPENSATING)
        await pass_deadline(broker)
    assert await timed_out(broker) == {KEY: 1}


async def test_a_crash_between_the_attempt_and_its_reading_back(broker: Broker, store: CorrelatorStore) -> None:
    async with at_work(broker, store) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.RUNNING)
        async with asyncio.timeout(20):
            while not await timed_out(broker):  # noqa: ASYNC110 - a stream is polled
                await asyncio.sleep(0.005)
        correlator.running.cancel()
    async with at_work(broker, store) as correlator:
        await correlator.until(KEY, Status.COMPENSATING)
        await pass_deadline(broker)
    assert await timed_out(broker) == {KEY: 1}


@pytest.mark.parametrize("first_has_decided", [True, False])
async def test_two_correlators_of_which_the_first_was_suspended(
    provisioned: BrokerUnderTest, store: CorrelatorStore, first_has_decided: bool
) -> None:
    """It goes on where it was suspended: before the decision, or with the decision in its hands."""
    suspended, resume = asyncio.Event(), asyncio.Event()

    async def suspend() -> None:
        suspended.set()
        await resume.wait()

    async def suspend_then_ask(broker: Broker, subject: str) -> int:
        await suspend()
        return await last_stored_on(broker, subject)

    first_broker, second_broker = await connect(provisioned.url), await connect(provisioned.url)
    suspended_first = (
        at_work(first_broker, store, before_time_outs=suspend)
        if first_has_decided
        else at_work(first_broker, store, last_stored=suspend_then_ask)
    )
    async with suspended_first as first:
        await tell(first_broker, KEY, UNTIL_PAID)
        await asyncio.wait_for(suspended.wait(), 20)
        async with at_work(second_broker, store) as second:
            recorded = await second.until(KEY, Status.COMPENSATING)
            resume.set()
            with pytest.raises(FencedError):
                await asyncio.wait_for(first.running, 20)
            await first.problems.until("has taken over")
            await tell(second_broker, KEY, UNDONE)
            recorded = await second.until(KEY, Status.COMPENSATED)
            assert second.problems.now is None
    assert [disposition for _, disposition in dispositions(recorded)] == [Disposition.APPLIED] * 8
    assert await timed_out(second_broker) == {KEY: 1}
    await first_broker.close()
    await second_broker.close()


async def test_an_attempt_that_could_not_be_sent_for_long_is_not_sent_any_more(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process was suspended between the decision and the sending, and another one took over."""
    monkeypatch.setattr(attempts_module, "_FRESH_SECONDS", 0.01)
    publisher = Publisher(broker)
    attempts = Attempts(publisher)
    await publisher.publish(Publication("k", "events.k.nobody.v1.Knows", {}, b"{}"))
    attempts.begin([Publication(KEY, f"events.{KEY}.nobody.v1.Knows", {}, b"{}")])
    until = asyncio.get_running_loop().time() + 0.1
    while asyncio.get_running_loop().time() < until:
        pass  # the process does not run
    await publisher.publish(Publication("k", "events.k.nobody.v1.Knows", {}, b"{}"))
    await attempts.stop()
    await publisher.stop()
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    assert info["state"]["messages"] == 2


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_machine_s_clock_that_is_moved_by_an_hour(
    broker: Broker, store: CorrelatorStore, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Nothing looks at it but for what people read."""
    moved = timedelta()

    def clock() -> datetime:
        return datetime.now(UTC) + moved

    async with at_work(broker, store, HASTY, PATIENT, clock=clock) as correlator:
        await tell(broker, KEY, HAPPY[:1])
        await correlator.until(KEY, Status.RUNNING, definition=PATIENT.name)
        moved = timedelta(hours=hours)
        recorded = await correlator.until(KEY, Status.COMPENSATING)
        told = recorded.saga.history[-1].fact
        assert recorded.saga.deadline is not None
        assert timedelta() < told.stream_time - recorded.saga.deadline < timedelta(seconds=10)
        assert abs(told.time - told.stream_time - moved) < timedelta(seconds=10)
        (patient,) = await store.get_sagas(KEY, PATIENT.name)
    assert (patient.saga.status, patient.saga.health) == (Status.RUNNING, Health.ON_TIME)
    async with at_work(broker, store, HASTY, PATIENT, clock=clock) as correlator:
        await pass_deadline(broker)
    assert await timed_out(broker) == {KEY: 1}


# ---- what is published


async def test_two_definitions_on_one_event_of_which_one_times_out(broker: Broker, store: CorrelatorStore) -> None:
    async with at_work(broker, store, HASTY, PATIENT) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.COMPENSATING)
        (patient,) = await store.get_sagas(KEY, PATIENT.name)
        assert (patient.saga.status, len(patient.saga.history)) == (Status.RUNNING, 3)
        await tell(broker, KEY, (SHIPPED, COMPLETED))
        patient = await correlator.until(KEY, Status.COMPLETED, definition=PATIENT.name)
        hasty = await correlator.until(KEY, Status.COMPENSATING)
    assert [name for name, _ in dispositions(patient)][-1] == "SagaCompleted"
    assert "OrderShipped LATE" in short(hasty)
    assert await timed_out(broker) == {KEY: 1}


async def test_a_time_out_names_every_step_and_the_deadline(broker: Broker) -> None:
    async with at_work(broker, MemoryCorrelatorStore()) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        recorded = await correlator.until(KEY, Status.COMPENSATING)
    lifecycle = recorded.saga.history[-1].fact.lifecycle
    assert lifecycle is not None
    assert lifecycle.steps == tuple(step.name for step in ORDERS.steps)
    assert (lifecycle.version, lifecycle.cause) == (1, Cause.DEADLINE)


async def test_steps_and_compensations_that_are_late_are_told_once(broker: Broker, store: CorrelatorStore) -> None:
    steps = tuple(
        replace(
            step,
            deadline=timedelta(seconds=0.5) if step.deadline else None,
            compensation=replace(step.compensation, deadline=timedelta(seconds=1)) if step.compensation else None,
        )
        for step in ORDERS.steps
    )
    async with at_work(broker, store, replace(HASTY, steps=steps)) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        overdue = await correlator.until_saga(KEY, lambda saga: saga.health is Health.OVERDUE)
        assert overdue.saga.status is Status.RUNNING
        stalled = await correlator.until_saga(
            KEY, lambda saga: [e.fact.type for e in saga.history].count("choreography.v1.StepOverdue") == 4
        )
        assert stalled.saga.health is Health.STALLED
        await pass_deadline(broker)
        told = Counter(await keys_of_stored(broker, "StepOverdue"))
        assert told == {KEY: 4}, "shipping, and three compensations"
        await tell(broker, KEY, UNDONE)
        assert (await correlator.until(KEY, Status.COMPENSATED)).saga.health is Health.ON_TIME


async def test_an_attempt_that_is_refused_for_long_is_told_and_made_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_PATIENCE_SECONDS", 1.0)
    async with at_work(broker, MemoryCorrelatorStore()) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.RUNNING)
        info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
        await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": 100})
        await correlator.problems.until_outbox("attempts to publish fail")
        assert await timed_out(broker) == {}
        await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": -1})
        await correlator.until(KEY, Status.COMPENSATING)
        await correlator.problems.until_well()
    assert await timed_out(broker) == {KEY: 1}


async def test_a_refusal_for_a_commit_event_is_no_trouble(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "_PATIENCE_SECONDS", 0.0)

    async def commit() -> None:
        await tell(broker, NEIGHBOUR, (SHIPPED,))

    async with at_work(broker, MemoryCorrelatorStore(), before_time_outs=commit) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.COMPENSATING)
        assert correlator.handler.decided == 2
        assert correlator.problems.outbox is None


async def test_a_broker_that_goes_away_over_the_deadline(provisioned: BrokerUnderTest) -> None:
    broker = await connect(provisioned.url)
    async with at_work(broker, MemoryCorrelatorStore()) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await tell(broker, NEIGHBOUR, UNTIL_PAID)
        await correlator.until(NEIGHBOUR, Status.RUNNING)
        provisioned.kill()
        await correlator.problems.until("not reachable")
        await asyncio.sleep(DEADLINE.total_seconds())
        provisioned.start()
        await tell_when_connected(broker, NEIGHBOUR, (SHIPPED, COMPLETED))
        recorded = await correlator.until(NEIGHBOUR, Status.COMPLETED, Status.COMPENSATING)
        await correlator.until(KEY, Status.COMPENSATING)
        await correlator.problems.until_well()
        counted = await timed_out(broker)
        assert counted.pop(KEY) == 1
        assert counted == ({NEIGHBOUR: 1} if recorded.saga.status is Status.COMPENSATING else {})
    await broker.close()


async def tell_when_connected(broker: Broker, key: str, events: tuple[tuple[str, dict[str, object]], ...]) -> None:
    async with asyncio.timeout(20):
        while not broker.is_connected:  # noqa: ASYNC110 - health polls it too
            await asyncio.sleep(0.01)
    await tell(broker, key, events)


# ---- definitions in the stream


async def test_every_partition_is_told_what_is_active_and_a_restart_tells_nothing_again(
    broker: Broker, store: CorrelatorStore
) -> None:
    for start in range(3):
        async with at_work(broker, store, *DEFINITIONS) as correlator:
            assert any("yet to store" in problem for problem in correlator.problems.told) == (start == 0)
        assert len(await keys_of_stored(broker, "DefinitionActivated")) == PARTITIONS * len(DEFINITIONS)
    async with at_work(broker, MemoryCorrelatorStore(), *DEFINITIONS):
        pass
    activated = Counter(await keys_of_stored(broker, "DefinitionActivated"))
    assert {partition_of(key) for key in activated} == set(range(PARTITIONS))
    assert set(activated.values()) == {len(DEFINITIONS)}
    assert await keys_of_stored(broker, "DefinitionRetired") == []


class ForgetfulStore(MemoryCorrelatorStore):
    """A store that keeps what was published, as where the process ended before it could remove it."""

    async def remove_publications(self, ids: Collection[int]) -> None:
        """Removes nothing."""


async def test_what_is_active_is_not_told_again_by_what_an_outbox_still_holds(broker: Broker) -> None:
    """An old version that came after a new one would be active again."""
    store = ForgetfulStore()
    for version in (1, 2):
        async with at_work(broker, store, replace(ORDERS, version=version)):
            pass
    await end_deduplication(broker)
    async with at_work(broker, store, replace(ORDERS, version=2)) as correlator:
        await tell(broker, KEY, HAPPY)
        assert (await correlator.until(KEY, Status.COMPLETED)).saga.version == 2
    assert len(await keys_of_stored(broker, "DefinitionActivated")) == 2 * PARTITIONS


async def test_a_definition_that_changes_while_sagas_run(broker: Broker, store: CorrelatorStore) -> None:
    old, new = ORDERS, replace(ORDERS, version=2, deadline=timedelta(hours=5))
    expected = {"old1": 1, "old2": 1, "new1": 2, "new2": 2}
    async with at_work(broker, store, old) as correlator:
        for key in ("old1", "old2"):
            await tell(broker, key, UNTIL_PAID)
            await correlator.until(key, Status.RUNNING)
    async with at_work(broker, store, new) as correlator:
        for key in ("new1", "new2"):
            await tell(broker, key, UNTIL_PAID)
            await correlator.until(key, Status.RUNNING)
        await tell(broker, "old1", (SHIPPED, COMPLETED))
        await correlator.until("old1", Status.COMPLETED)
        assert {key: (await store.get_sagas(key))[0].saga.version for key in expected} == expected
    rebuilt = MemoryCorrelatorStore()
    async with at_work(broker, rebuilt, new) as correlator:
        for key, version in expected.items():
            recorded = await correlator.until(key, Status.COMPLETED if key == "old1" else Status.RUNNING)
            assert recorded.saga.version == version
            assert recorded == (await store.get_sagas(key))[0]
        await tell(broker, "old2", (SHIPPED, COMPLETED))
        recorded = await correlator.until("old2", Status.COMPLETED)
        assert (recorded.saga.version, recorded.saga.deadline) == (1, (await deadline_of(store, "old2")))
    assert len(await keys_of_stored(broker, "DefinitionActivated")) == 2 * PARTITIONS


async def deadline_of(store: CorrelatorStore, key: str) -> datetime | None:
    (recorded,) = await store.get_sagas(key)
    return recorded.saga.deadline


async def test_a_definition_that_is_removed_while_sagas_run(broker: Broker, store: CorrelatorStore) -> None:
    async with at_work(broker, store, ORDERS, PATIENT) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.RUNNING)
    for known in (store, MemoryCorrelatorStore()):
        async with at_work(broker, known, PATIENT) as correlator:
            recorded = await correlator.until(KEY, Status.RUNNING)
            assert recorded.saga.version == ORDERS.version
            await tell(broker, f"after-{known is store}", UNTIL_PAID)
            await correlator.until(f"after-{known is store}", Status.RUNNING, definition=PATIENT.name)
            assert await known.get_sagas(f"after-{known is store}", ORDERS.name) == ()
            assert [(stored.name, stored.is_active) for stored in await known.definitions()] == [
                (ORDERS.name, False),
                (PATIENT.name, True),
            ]
    async with at_work(broker, store, PATIENT) as correlator:
        await tell(broker, KEY, (SHIPPED, COMPLETED))
        await correlator.until(KEY, Status.COMPLETED)
    assert len(await keys_of_stored(broker, "DefinitionRetired")) == PARTITIONS


async def test_sagas_of_a_retired_version_are_timed_out_by_what_it_says(broker: Broker, store: CorrelatorStore) -> None:
    """Also where the records are rebuilt."""
    async with at_work(broker, store, HASTY) as correlator:
        await tell(broker, KEY, UNTIL_PAID)
        await correlator.until(KEY, Status.RUNNING)
    await pass_deadline(broker)
    async with at_work(broker, MemoryCorrelatorStore(), replace(ORDERS, version=2)) as correlator:
        recorded = await correlator.until(KEY, Status.COMPENSATING)
    assert recorded.saga.version == 1
    assert await timed_out(broker) == {KEY: 1}
