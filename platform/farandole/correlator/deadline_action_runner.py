"""Running deadline actions behind the stream: each over a durable consumer of its own, apart from the fold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog

from farandole.broker.connection import Broker
from farandole.broker.deliveries import Deliveries, Delivery
from farandole.broker.publisher import Publisher
from farandole.correlator.deadline_actions import EVENT_TYPES, DeadlineAction, PassedDeadline, passed_deadline
from farandole.correlator.plugin_guard import Making, Standing, close, in_own_thread
from farandole.dead_letter_copy import dead_letter_copy
from farandole.envelope import Event, decode
from farandole.errors import BrokerError, ConfigurationError, PluginError
from farandole.plugins import Plugin
from farandole.reasons import Reason
from farandole.registry import Registry

T = TypeVar("T")

AT_ONCE = 8
"""How many calls of one action run at the same time in a process. One that hangs keeps its place."""
CALL_SECONDS = 30.0
"""A call that takes longer has failed. Less than the broker waits, so that it does not deliver twice meanwhile."""
PAUSES_SECONDS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Between the tries of one deadline; the last one again and again."""
_BROKER_SECONDS = (0.25, 0.5, 1.0, 2.0)
_TELL_SECONDS = 10.0
"""What fails again and again is logged no more often."""

_log = structlog.get_logger(__name__)


def consumer_of(action: str) -> str:
    """The durable consumer of an action, and the name under which what it gives up on is kept in `DEADLETTERS`."""
    return f"deadline-action-{action}"


class DeadlineActionRunner:
    """Has one action act on each deadline that passes. What the action does harms nothing but itself.

    Tries are deliveries, as the broker counts them over all replicas: one that a stop or a crash cut short counts too.
    What is given up on has failed in this process at least once.
    """

    def __init__(
        self,
        plugin: Plugin,
        factory: Callable[[], DeadlineAction],
        *,
        tries: int,
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
        call_seconds: float = CALL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plugin = plugin
        self._consumer = consumer_of(plugin.name)
        self._making = Making(plugin, factory)
        self._tries = tries
        self._pauses_seconds = pauses_seconds
        self._call_seconds = call_seconds
        self._monotonic = monotonic
        self._done = 0
        self._failed = 0
        self._given_up = 0
        self._calls: dict[asyncio.Future[None], float] = {}
        """What is under way, hanging calls too, with when it began."""
        self._call_ended = asyncio.Event()
        self._action: DeadlineAction | None = None
        self._last_error = ""
        """Why the last call that ended failed; empty where it did not."""
        self._broker_problem = ""
        self._told_at = -_TELL_SECONDS

    @property
    def standing(self) -> Standing:
        """How the action does."""
        return Standing(
            self._plugin,
            done=self._done,
            failed=self._failed,
            missed=self._given_up,
            waiting=len(self._calls),
            problem=self._making.problem or self._hanging() or self._broker_problem or self._last_error,
        )

    async def begin(self) -> None:
        """Makes the action. Raises `ConfigurationError` where a setting of its own is wrong."""
        await self._making.begin()

    async def run(self, broker: Broker, registry: Registry) -> None:
        """Acts until cancelled."""
        deliveries = Deliveries(
            broker,
            self._consumer,
            [f"events.*.{event_type}" for event_type in EVENT_TYPES],
            description=f"Farandole deadline action {self._plugin.name}",
        )
        publisher = Publisher(broker)
        answering: set[asyncio.Task[None]] = set()
        try:
            await self._patiently(deliveries.make)  # what passes from now on is kept, also while there is no action yet
            self._action = await self._making.made()
            while True:
                while len(self._calls) >= AT_ONCE:
                    self._call_ended.clear()
                    await self._call_ended.wait()
                await self._patiently(deliveries.make)
                for delivery in await self._patiently(partial(deliveries.take, AT_ONCE - len(self._calls))):
                    event = decode(registry, delivery.message)
                    passed = passed_deadline(event) if isinstance(event, Event) else None
                    if passed is None:
                        await deliveries.done(delivery)
                        continue
                    call = self._call(self._action, passed)
                    answer = self._answer(deliveries, publisher, delivery, passed, call)
                    task = asyncio.create_task(answer, name=f"{self._consumer}-{passed.sequence}")
                    answering.add(task)
                    task.add_done_callback(answering.discard)
        finally:
            await deliveries.stop()  # comes first: what is given back must not be delivered to this process again
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)
            await publisher.stop()

    async def stop(self) -> None:
        """Closes the action, after `run` has ended; or gives up making it."""
        await self._making.stop()
        if self._action is not None:
            await close(self._plugin, self._action.close)

    def _call(self, action: DeadlineAction, passed: PassedDeadline) -> asyncio.Future[None]:
        call = asyncio.ensure_future(in_own_thread(partial(action.act, passed), name=f"{self._consumer}-act"))
        self._calls[call] = self._monotonic()
        call.add_done_callback(self._end)
        return call

    def _end(self, call: asyncio.Future[None]) -> None:
        del self._calls[call]
        self._call_ended.set()
        if not call.cancelled():
            call.exception()  # of one that had been given up on before

    async def _answer(
        self,
        deliveries: Deliveries,
        publisher: Publisher,
        delivery: Delivery,
        passed: PassedDeadline,
        call: asyncio.Future[None],
    ) -> None:
        """Waits for a call, and tells the broker what has come of it."""
        try:
            problem = await self._problem_of(call)
            if not problem:
                self._done += 1
                self._last_error = ""
                await deliveries.done(delivery)
                return
            self._failed += 1
            self._last_error = problem
            if delivery.count < self._tries:
                pause = self._pauses_seconds[min(delivery.count, len(self._pauses_seconds)) - 1]
                self._log_failure(passed, problem, delivery.count, pause)
                await deliveries.again(delivery, pause)
                return
            await self._give_up(deliveries, publisher, delivery, passed, problem)
        except asyncio.CancelledError:
            await deliveries.again(delivery)
            raise

    async def _problem_of(self, call: asyncio.Future[None]) -> str:
        """What is wrong with a call; empty where nothing is."""
        try:
            async with asyncio.timeout(self._call_seconds):
                await asyncio.shield(call)
        except TimeoutError:
            return f"has not come back after {self._call_seconds:.0f} s"
        except (PluginError, ConfigurationError) as error:
            return f"raised {error}"
        return ""

    async def _give_up(
        self, deliveries: Deliveries, publisher: Publisher, delivery: Delivery, passed: PassedDeadline, problem: str
    ) -> None:
        copy = dead_letter_copy(
            delivery.message,
            participant=self._consumer,
            key=passed.saga_id,
            reason=Reason.RETRIES_EXHAUSTED,
            detail=problem,
        )
        try:
            await publisher.publish(copy)
        except BrokerError as error:
            _log.warning("what is given up on can't be kept yet", saga_id=passed.saga_id, error=str(error))
            await deliveries.again(delivery, self._pauses_seconds[0])
            return
        self._given_up += 1
        await deliveries.done(delivery)
        _log.error(
            "a deadline action is given up on",
            action=self._plugin.name,
            saga_id=passed.saga_id,
            event_id=passed.event_id,
            type=passed.event_type,
            sequence=passed.sequence,
            tries=delivery.count,
            problem=problem,
        )

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the broker answers in the end; meanwhile the problem is told."""
        failures = 0
        while True:
            try:
                answer = await work()
            except BrokerError as error:
                self._broker_problem = str(error)
                if failures == 0:
                    _log.warning("a deadline action waits for the broker", action=self._plugin.name, error=str(error))
                await asyncio.sleep(_BROKER_SECONDS[min(failures, len(_BROKER_SECONDS) - 1)])
                failures += 1
            else:
                self._broker_problem = ""
                return answer

    def _hanging(self) -> str:
        now = self._monotonic()
        hanging = sum(now - began > self._call_seconds for began in self._calls.values())
        if not hanging:
            return ""
        standstill = "; no other is begun before one comes back" if hanging >= AT_ONCE else ""
        return f"{hanging} calls have not come back after {self._call_seconds:.0f} s{standstill}"

    def _log_failure(self, passed: PassedDeadline, problem: str, tries: int, pause: float) -> None:
        now = self._monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            _log.warning(
                "a deadline action failed",
                action=self._plugin.name,
                saga_id=passed.saga_id,
                event_id=passed.event_id,
                problem=problem,
                tries=tries,
                again_in_seconds=pause,
                failed=self._failed,
            )
