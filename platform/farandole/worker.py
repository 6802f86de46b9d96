"""The loop that participants and the correlator share: read in order, commit a batch, publish, acknowledge.

What a batch *means* is behind the port `BatchHandler`; this module keeps the order of things: commit, then publish the
outbox rows, then acknowledge; and it turns every trouble of the broker or the store into a named health problem and
another try, so that nothing is lost and nothing is silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from farandole.broker.attempts import Attempts
from farandole.broker.connection import Broker
from farandole.broker.pruned import check_not_pruned
from farandole.broker.publisher import Publisher
from farandole.broker.relay import OutboxRelay, Refused
from farandole.broker.stored import check_stored, stored_events
from farandole.broker.streams import StreamState, check_position, events_state, last_stored
from farandole.broker.subscription import Batch, Subscription
from farandole.cancelling import to_the_end
from farandole.envelope import Publication, StoredMessage
from farandole.errors import BrokerError, FencedError, ReaderReplacedError, StoreError, StoreUnavailableError
from farandole.outbox import OutboxRow
from farandole.partitions import PARTITIONS
from farandole.telemetry import NO_TELEMETRY, Telemetry

_RETRY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)
_ONE_OF_TWO = "stop one of the two, then restart the one that stays"
_STABLE_SECONDS = 60.0
"""A session that lasted so long was well; what ends it is a new trouble."""
_SETTLED_SECONDS = 3.0
"""A session that has lasted so long, with nothing to commit, is over what ended the one before."""
_WATCH_SECONDS = 1.0
_MOST_UNPUBLISHED = 10_000
"""Beyond this many outbox rows nothing is read until some are published; while it catches up, none is."""
_OWNER_SECONDS = 5.0
"""How often a process looks whether another one has taken over."""
_OUTBOX_SECONDS = 1.0
"""How often it is looked for rows in the outbox that another process has written, and nobody has told of."""
_FEW_ROWS = 1000
"""Fewer rows that wait are read again without much ado; with more, it is looked only when told to, and no more often
than every `_OUTBOX_SECONDS`."""
_RELEASE_SECONDS = 5.0
"""Where a transaction takes longer, what it does is taken for what may have ended the process."""
_TIDY_SECONDS = 0.2
"""How long an acknowledged outbox row may stay where no batch comes along to remove it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a store has taken in the stream."""

    sequence: int
    incarnation: str
    """The stream that the sequence belongs to."""
    time: datetime | None = None
    """When the stream stored what stands at the sequence, where that is known: another one has another event there."""
    epoch: int = 0
    """How often the store was claimed; 0 where that is not counted."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What came of a batch that is committed."""

    rows: Sequence[OutboxRow] = ()
    """The new outbox rows, in order."""
    read_back: Sequence[tuple[str, str]] = ()
    """Events of its own that it found in the stream: key and message id. They need not be published any more."""
    attempts: Sequence[Publication] = ()
    """Publications to try once, now, in no order. Nothing is lost with one that is refused, or dropped since the worker
    is still catching up: who wanted it asks again."""


@dataclass(frozen=True, slots=True)
class FirstHeard:
    """The events that a session takes in before all others."""

    types: Sequence[str] = ()
    """Full message types."""
    from_beginning: bool = False
    """Whether all that the stream holds are wanted, or those behind the position."""
    partitions: Collection[int] = range(PARTITIONS)
    """Of which no others are needed; they may come all the same."""


class BatchHandler(Protocol):
    """What a worker drives. Its calls never overlap. Every call raises `StoreError` where the store is in trouble."""

    first_heard: FirstHeard

    @property
    def problem(self) -> str | None:
        """What keeps the handler from doing its work, for health, and the remedy; None where nothing does."""
        ...

    @property
    def dependencies_problem(self) -> str | None:
        """What it depends on and finds to be down, for health; None where nothing is."""
        ...

    async def claim(self, incarnation: str) -> Position:
        """Takes over the store: every earlier owner's next write fails with `FencedError`.

        `incarnation` is remembered where the store is new; else the stored position comes back with its own. Called
        again by the same owner, it raises `FencedError` where another one has claimed the store in between.
        """
        ...

    async def still_owner(self) -> None:
        """Raises `FencedError` where another owner has claimed the store since."""
        ...

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """Takes in what `first_heard` asks for: each page in stream order, type by type, and of some partitions one
        after the other. Comes after `claim` and before everything else, also where the stream holds none. The events
        come again at their place in the stream.
        """
        ...

    async def waiting(self) -> Sequence[OutboxRow]:
        """The outbox rows that an earlier run left, in order."""
        ...

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """Takes the messages in, in stream order, in one transaction that also moves the position and removes the
        outbox rows `published`; returns once it is committed.

        Raises `FencedError`, with nothing written, where another owner has taken over.
        """
        ...

    async def due(self) -> Handled:
        """Does what has become due by time since, in a transaction of its own."""
        ...

    def due_in(self) -> float | None:
        """In how many seconds something becomes due; None for never."""
        ...

    async def remove(self, published: Collection[int]) -> None:
        """Removes outbox rows that the broker has acknowledged."""
        ...

    async def release(self) -> None:
        """Leaves the store in order: the process ends because it was told to. Does nothing before `claim`, and where
        another owner has taken over."""
        ...


class Worker:
    """Drives one `BatchHandler` over the stream `EVENTS`.

    It works in sessions. A session begins by claiming the store, which tells where to go on; any trouble of the store
    ends it and begins another, since what became of the last transaction is not known.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        durable: str,
        description: str,
        filters: Sequence[str],
        handler: BatchHandler,
        batch_size: int,
        report: Callable[[str, str | None], None],
        hold_until_caught_up: bool,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """`report(check, problem)` takes what health should know, under `events`, `outbox` and `dependencies`.

        With `hold_until_caught_up` nothing is published before everything is taken in that the stream held when the
        session began.
        """
        self._broker = broker
        self._durable = durable
        self._description = description
        self._filters = filters
        self._handler = handler
        self._batch_size = batch_size
        self._report = report
        self._hold = hold_until_caught_up
        self._publisher = Publisher(broker, telemetry)
        self._relay = OutboxRelay(self._publisher)
        self._lock = asyncio.Lock()
        self._attempts = Attempts(self._publisher)
        self._catching_up: str | None = None
        """What keeps the records from being up to date, or None."""
        self._trouble: str | None = None
        """What ended the session before, until this one has committed something or lasted; or None."""
        self._in_doubt = asyncio.Event()
        """Set where the outbox may hold rows that nobody has told of."""

    async def run(self) -> None:
        """Reads until cancelled. Raises `FencedError` where another process has taken over; `ReaderReplacedError` of
        those where it has in all but the store."""
        self._report("events", "has not begun to read")
        self._report("outbox", None)
        self._report("dependencies", None)
        failures = 0
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self._session()
                except BaseExceptionGroup as group:
                    error = _only_store_error(group)
                    if asyncio.get_running_loop().time() - began > _STABLE_SECONDS:
                        failures = 0
                    if isinstance(error, FencedError):
                        self._report("events", f"another process has taken over {self._durable}; {_ONE_OF_TWO}")
                        if isinstance(error, ReaderReplacedError):
                            await self._still_owner()
                        raise error from None
                    self._trouble = str(error)
                    failures = await self._pause(error, failures)
        except asyncio.CancelledError:
            await to_the_end(self._release(), name=f"{self._durable}-release")
            raise
        finally:
            await self._publisher.stop()

    async def _still_owner(self) -> None:
        """Raises `FencedError` where it is in the store too that another process has taken over."""
        failures = 0
        while True:
            try:
                return await self._handler.still_owner()
            except StoreUnavailableError as error:
                failures = await self._pause(error, failures)

    @property
    def refused(self) -> Sequence[Refused]:
        """The outbox rows that the broker refuses."""
        return self._relay.refused

    @property
    def unpublished(self) -> Sequence[OutboxRow]:
        """The outbox rows that the broker has not acknowledged, in the order in which they were written."""
        return self._relay.unpublished

    def publish_rows(self, rows: Sequence[OutboxRow]) -> None:
        """Publishes outbox rows that were committed elsewhere, as by a remote procedure call."""
        self._relay.add(rows)

    def look_into_outbox(self) -> None:
        """Has what waits in the outbox read again: something has come to it, or may have."""
        self._in_doubt.set()

    async def _release(self) -> None:
        """Comes behind the transaction that runs, if one does."""
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._handler.release()
        except (StoreError, TimeoutError) as error:
            _log.info("the store was not left in order", error=str(error))

    async def _session(self) -> None:
        subscription = Subscription(self._broker, self._durable, self._filters, description=self._description)
        self._relay = OutboxRelay(self._publisher, subscription)
        try:
            target = await self._take_over(subscription)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(subscription, target), name=f"{self._durable}-read")
                tasks.create_task(self._tidy(), name=f"{self._durable}-tidy")
                tasks.create_task(self._keep_time(), name=f"{self._durable}-due")
                tasks.create_task(self._look_into_outbox(), name=f"{self._durable}-outbox")
                tasks.create_task(self._watch(subscription), name=f"{self._durable}-watch")
                tasks.create_task(self._stay_owner(), name=f"{self._durable}-owner")
        finally:
            await subscription.stop()
            await self._relay.stop()
            await self._attempts.stop()

    async def _take_over(self, subscription: Subscription) -> int:
        """Claims the store and begins to read; returns the sequence up to which it has to catch up."""
        await self._broker.connected()
        failures = 0
        while True:
            try:
                state = await events_state(self._broker)
                position = await self._handler.claim(state.incarnation)
                check_position(state, incarnation=position.incarnation, position=position.sequence)
                check_not_pruned(state, self._durable, position.sequence)
                await check_stored(self._broker, position.sequence, position.time)
                heard = await self._handler.hear(self._first_heard(position, state))
                self._relay.add(await self._handler.waiting())
                for key, message_id in heard.read_back:
                    self._relay.withdraw(key, message_id)
                target = await last_stored(self._broker, self._filters) if self._hold else 0
                await subscription.start(
                    after=position.sequence,
                    incarnation=position.incarnation,
                    time=position.time,
                    epoch=position.epoch,
                )
            except FencedError as error:
                raise BaseExceptionGroup("fenced", [error]) from None
            except (BrokerError, StoreError) as error:
                failures = await self._pause(error, failures)
            else:
                if position.sequence >= target:
                    self._catching_up = None
                    self._relay.run()
                else:
                    self._catching_up = f"catching up with the {target - position.sequence} events stored before"
                self._take_on(heard)
                _log.info("reading", consumer=self._durable, after=position.sequence, until=state.last_sequence)
                return target

    async def _first_heard(self, position: Position, state: StreamState) -> AsyncIterator[Sequence[StoredMessage]]:
        first = self._handler.first_heard
        after = 0 if first.from_beginning else position.sequence
        for event_type in first.types:
            async for page in stored_events(
                self._broker, event_type, after=after, until=state.last_sequence, partitions=first.partitions
            ):
                yield page

    async def _read(self, subscription: Subscription, target: int) -> None:
        acknowledging: set[asyncio.Task[None]] = set()

        async def acknowledge(published: asyncio.Future[None], batch: Batch) -> None:
            await published
            await subscription.acknowledge(batch)

        try:
            while True:
                batch = await subscription.next_batch(self._batch_size)
                while self._catching_up is None and self._relay.depth > _MOST_UNPUBLISHED:
                    await self._relay.changed()
                    await self._remove_published()
                told = self._trouble, self._handler.problem
                async with self._lock:
                    handled = await self._handler.handle(batch.messages, self._relay.take_acknowledged())
                self._trouble = None
                self._report_dependencies()
                if told != (None, self._handler.problem):
                    self._report_events(subscription)
                for key, message_id in handled.read_back:
                    self._relay.withdraw(key, message_id)
                published = self._take_on(handled)
                if batch.last_sequence >= target:
                    self._relay.run()
                    if self._catching_up:
                        self._catching_up = None
                        self._report_events(subscription)
                task = asyncio.create_task(acknowledge(published, batch))
                acknowledging.add(task)
                task.add_done_callback(acknowledging.discard)
        finally:
            for task in acknowledging:
                task.cancel()

    async def _tidy(self) -> None:
        """Removes acknowledged rows that no batch came along to remove."""
        while True:
            await self._relay.changed()
            await asyncio.sleep(_TIDY_SECONDS)
            await self._remove_published()

    async def _remove_published(self) -> None:
        async with self._lock:
            if removable := self._relay.take_acknowledged():
                await self._handler.remove(removable)

    async def _keep_time(self) -> None:
        while True:
            due_in = self._handler.due_in()
            if due_in is not None and due_in <= 0:
                async with self._lock:
                    handled = await self._handler.due()
                self._take_on(handled)
                self._report_dependencies()
            else:
                await asyncio.sleep(_TIDY_SECONDS if due_in is None else min(due_in, _TIDY_SECONDS))

    async def _look_into_outbox(self) -> None:
        """Takes over the rows that other processes have written, or this one in a transaction of which it is not known
        whether it was committed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_OUTBOX_SECONDS):
                    await self._in_doubt.wait()
            if self._in_doubt.is_set() or self._relay.depth < _FEW_ROWS:
                self._in_doubt.clear()
                async with self._lock:
                    self._relay.add(await self._handler.waiting())
                if self._relay.depth >= _FEW_ROWS:
                    await asyncio.sleep(_OUTBOX_SECONDS)

    async def _stay_owner(self) -> None:
        """Ends the session where another process has taken over: who has nothing to do would not find out, and what
        the other one has left in the outbox would wait until there is something."""
        while True:
            await asyncio.sleep(_OWNER_SECONDS)
            async with self._lock:
                await self._handler.still_owner()

    async def _watch(self, subscription: Subscription) -> None:
        """Reports what the subscription and the relay have to say."""
        settled = asyncio.get_running_loop().time() + _SETTLED_SECONDS
        while True:
            if asyncio.get_running_loop().time() > settled:
                self._trouble = None
            self._report_events(subscription)
            self._report("outbox", self._relay.problem or self._attempts.problem)
            self._report_dependencies()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await subscription.problem_changed()

    def _report_dependencies(self) -> None:
        self._report("dependencies", self._handler.dependencies_problem)

    def _report_events(self, subscription: Subscription) -> None:
        self._report("events", subscription.problem or self._trouble or self._catching_up or self._handler.problem)

    def _take_on(self, handled: Handled) -> asyncio.Future[None]:
        """Publishes what came of a batch; the result comes once the broker has acknowledged the rows."""
        if self._catching_up is None:
            self._attempts.begin(handled.attempts)
        return self._relay.add(handled.rows)

    async def _pause(self, error: Exception, failures: int) -> int:
        self._report("events", str(error))
        log = _log.warning if failures == 0 else _log.debug
        log("trying again", error=str(error))
        await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
        return failures + 1


def _only_store_error(group: BaseExceptionGroup[BaseException]) -> StoreError:
    """The store's error where a session ended for nothing else; raises the group otherwise."""
    errors, others = group.split(StoreError)
    if others is not None or errors is None:
        raise group
    found = [error for error in _leaves(errors) if isinstance(error, StoreError)]
    return next((error for error in found if isinstance(error, FencedError)), found[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
