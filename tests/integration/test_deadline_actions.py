"""Deadline actions behind a real broker: at least once, with pauses, apart from each other, and given up on visibly."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import EntryPoint

from google.protobuf.timestamp_pb2 import Timestamp

from choreography.v1 import lifecycle_pb2
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import DEADLETTERS, EVENTS
from farandole.correlator.deadline_action_runner import AT_ONCE, DeadlineActionRunner
from farandole.correlator.deadline_actions import DeadlineAction, PassedDeadline
from farandole.envelope import encode
from farandole.plugins import Kind, Plugin
from farandole.testing.brokers import EmbeddedBroker, connect, nats_py, provision_streams
from tests.integration.correlators import REGISTRY

PLUGIN = Plugin(
    Kind.DEADLINE_ACTION, "pager", "pager", "1.0", EntryPoint("pager", "pager:Pager", Kind.DEADLINE_ACTION.value)
)
CONSUMER = "deadline-action-pager"
PAUSES = (0.05,)


class Pager:
    """An action that remembers, and does before what a test wants."""

    def __init__(self, before: Callable[[PassedDeadline], None] = lambda _passed: None) -> None:
        self.tried: list[PassedDeadline] = []
        self.acted: list[str] = []
        self.closed = False
        self._before = before
        self._lock = threading.Lock()

    def act(self, passed: PassedDeadline) -> None:
        with self._lock:
            self.tried.append(passed)
        self._before(passed)
        with self._lock:
            self.acted.append(passed.saga_id)

    def close(self) -> None:
        self.closed = True

    async def until_acted(self, *keys: str) -> None:
        await until(lambda: set(keys) <= set(self.acted))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what threads of somebody else's do is not told
            await asyncio.sleep(0.01)


@asynccontextmanager
async def acting(
    broker: Broker,
    action: DeadlineAction,
    *,
    tries: int = 12,
    call_seconds: float = 20,
) -> AsyncIterator[DeadlineActionRunner]:
    runner = DeadlineActionRunner(PLUGIN, lambda: action, tries=tries, pauses_seconds=PAUSES, call_seconds=call_seconds)
    await runner.begin()
    running = asyncio.create_task(runner.run(broker, REGISTRY))
    try:
        await until_made(broker)
        yield runner
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.stop()


async def until_made(broker: Broker) -> None:
    async with asyncio.timeout(20):
        while CONSUMER not in await consumers(broker):  # noqa: ASYNC110 - the broker does not tell when
            await asyncio.sleep(0.01)


async def consumers(broker: Broker) -> list[str]:
    return list((await broker.request(f"$JS.API.CONSUMER.NAMES.{EVENTS}"))["consumers"] or [])


async def unacknowledged(broker: Broker) -> int:
    info = await broker.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.{CONSUMER}")
    return int(info["num_ack_pending"] + info["num_pending"])


async def until_nothing_waits(broker: Broker) -> None:
    async with asyncio.timeout(20):
        while await unacknowledged(broker):  # noqa: ASYNC110 - the broker does not tell when
            await asyncio.sleep(0.01)


DUE = Timestamp(seconds=int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()))


async def pass_deadlines(broker: Broker, *keys: str, source: str = "correlator", due: Timestamp = DUE) -> None:
    """Stores what the correlator would say of late steps."""
    publisher = Publisher(broker)
    for key in keys:
        body = lifecycle_pb2.StepOverdue(
            saga_id=key, definition="order-fulfilment", version=1, step="take-payment", participant="payments",
            deadline=due,
        )  # fmt: skip
        event_type = REGISTRY.types[body.DESCRIPTOR.full_name]
        await publisher.publish(
            encode(event_type, body, source=source, event_id=f"overdue-{key}", time=datetime.now(UTC))
        )
    await publisher.stop()


async def test_each_deadline_is_acted_on_and_told_with_what_is_known_of_it(broker: Broker) -> None:
    pager = Pager()
    async with acting(broker, pager) as runner:
        await pass_deadlines(broker, "a", "b")
        await pager.until_acted("a", "b")
        await until(lambda: runner.standing.done == 2)
        await until_nothing_waits(broker)
    passed = next(passed for passed in pager.tried if passed.saga_id == "a")
    assert passed.event_id == "overdue-a"
    assert (passed.step, passed.participant, passed.compensation) == ("take-payment", "payments", False)
    assert passed.deadline == datetime(2026, 3, 1, tzinfo=UTC)
    assert passed.sequence > 0
    assert Counter(pager.acted) == {"a": 1, "b": 1}
    assert pager.closed


async def test_who_is_not_the_correlator_has_nobody_act(broker: Broker) -> None:
    pager = Pager()
    async with acting(broker, pager):
        await pass_deadlines(broker, "forged", source="anonymous")
        await pass_deadlines(broker, "real")
        await pager.until_acted("real")
        await until_nothing_waits(broker)
    assert pager.acted == ["real"]


async def test_a_deadline_outside_the_calendar_is_passed_over(broker: Broker) -> None:
    pager = Pager()
    async with acting(broker, pager):
        await pass_deadlines(broker, "absurd", due=Timestamp(seconds=10**13))
        await pass_deadlines(broker, "real")
        await pager.until_acted("real")
        await until_nothing_waits(broker)
    assert pager.acted == ["real"]


async def test_one_that_fails_is_tried_again_and_holds_up_no_other(broker: Broker) -> None:
    def fail_twice(passed: PassedDeadline) -> None:
        if passed.saga_id == "hard" and sum(one.saga_id == "hard" for one in pager.tried) < 3:
            raise SystemExit("not now")

    pager = Pager(fail_twice)
    async with acting(broker, pager) as runner:
        await pass_deadlines(broker, "hard", "easy")
        await pager.until_acted("hard", "easy")
        await until_nothing_waits(broker)
        assert runner.standing.failed == 2
        assert runner.standing.missed == 0
    assert pager.acted.index("easy") < pager.acted.index("hard")
    assert {passed.event_id for passed in pager.tried if passed.saga_id == "hard"} == {"overdue-hard"}


async def test_one_that_always_fails_is_given_up_on_and_kept(broker: Broker) -> None:
    def fail(passed: PassedDeadline) -> None:
        if passed.saga_id == "hopeless":
            raise ConnectionError("nobody there")

    pager = Pager(fail)
    async with acting(broker, pager, tries=3) as runner:
        await pass_deadlines(broker, "hopeless", "easy")
        await until(lambda: runner.standing.missed == 1)
        await pager.until_acted("easy")
        await until_nothing_waits(broker)
        assert sum(passed.saga_id == "hopeless" for passed in pager.tried) == 3
        subject = f"deadletters.{CONSUMER}.choreography.v1.StepOverdue"
        kept = await nats_py(broker).jetstream().get_last_msg(DEADLETTERS, subject)
    assert kept.headers is not None
    assert kept.headers["farandole-reason"] == "RETRIES_EXHAUSTED"
    assert kept.headers["farandole-detail"] == "raised ConnectionError: nobody there"
    assert kept.headers["ce-id"] == "overdue-hopeless"


async def test_calls_that_hang_fail_in_time_and_leave_room_for_others(broker: Broker) -> None:
    go_on = threading.Event()

    def hang(passed: PassedDeadline) -> None:
        if passed.saga_id.startswith("hung") and not go_on.is_set():
            assert go_on.wait(20)

    pager = Pager(hang)
    hung = [f"hung-{number}" for number in range(3)]
    async with acting(broker, pager, call_seconds=0.1) as runner:
        await pass_deadlines(broker, *hung, "easy")
        await pager.until_acted("easy")
        # each try keeps a place until it comes back; when none is left, nothing new is begun
        await until(lambda: runner.standing.waiting == AT_ONCE and "no other is begun" in runner.standing.problem)
        tried = len(pager.tried)
        await pass_deadlines(broker, "later")
        assert len(pager.tried) == tried
        go_on.set()
        await pager.until_acted(*hung, "later")
        await until_nothing_waits(broker)
        assert runner.standing.problem == ""


async def test_what_passes_while_nobody_acts_waits_and_nothing_is_lost_at_a_stop(broker: Broker) -> None:
    go_on = threading.Event()
    leaving = Pager(lambda _passed: assert_soon(go_on))
    async with acting(broker, leaving):
        await pass_deadlines(broker, "under-way")
        await until(lambda: len(leaving.tried) == 1)
    await pass_deadlines(broker, "meanwhile")
    pager = Pager()
    async with acting(broker, pager):
        await pager.until_acted("under-way", "meanwhile")
        await until_nothing_waits(broker)
    go_on.set()


async def test_replicas_share_the_deadlines(broker: Broker, nats_server: EmbeddedBroker) -> None:
    """Two processes with one action each have one consumer: what one is at the other does not begin."""
    second = await connect(nats_server.url, service="second")
    held = threading.Event()
    both = (Pager(lambda _passed: assert_soon(held)), Pager(lambda _passed: assert_soon(held)))
    keys = [f"k{number}" for number in range(2 * AT_ONCE)]
    async with acting(broker, both[0]), acting(second, both[1]):
        await pass_deadlines(broker, *keys)
        await until(lambda: sum(len(pager.tried) for pager in both) == len(keys))
        held.set()
        await until_nothing_waits(broker)
    assert Counter(one for pager in both for one in pager.acted) == dict.fromkeys(keys, 1)
    assert [len(pager.acted) for pager in both] == [AT_ONCE, AT_ONCE]
    await second.close()


async def test_a_broker_that_goes_away_is_waited_for(embedded_nats_server: EmbeddedBroker) -> None:
    await provision_streams(embedded_nats_server.url)
    broker = await connect(embedded_nats_server.url)
    pager = Pager()
    async with acting(broker, pager) as runner:
        await pass_deadlines(broker, "before")
        await pager.until_acted("before")
        embedded_nats_server.kill()
        await until(lambda: runner.standing.problem != "")
        embedded_nats_server.start()
        await until(lambda: runner.standing.problem == "" and broker.is_connected)
        await pass_deadlines(broker, "after")
        await pager.until_acted("after")
    await broker.close()


def assert_soon(event: threading.Event) -> None:
    assert event.wait(20), "the test lets go of it"
