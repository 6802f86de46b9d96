"""A correlator's handler over a stream in memory, driven by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from farandole.correlator.changes import SagaChanges
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.store import ALL_PARTITIONS
from farandole.definition import Definition
from farandole.envelope import StoredMessage
from farandole.registry import Registry
from farandole.saga import Saga
from farandole.worker import Handled
from tests.unit.memory_stream import MemoryStream
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY

KEY = "o1"
TICK = "choreography.v1.PartitionTick"


class WrongClock:
    """A machine's clock that is an hour off, and wrong in another way each time."""

    def __init__(self) -> None:
        self._readings = 0

    def __call__(self) -> datetime:
        self._readings += 1
        off = timedelta(hours=1 if self._readings % 2 else -1, microseconds=self._readings)
        return datetime(2026, 1, 1, tzinfo=UTC) + off


WRONG_CLOCK = WrongClock()


@dataclass
class Correlator:
    """A correlator's handler over a stream, driven by the test."""

    stream: MemoryStream
    store: MemoryCorrelatorStore
    handler: CorrelatorBatchHandler
    definitions: Sequence[Definition]
    replica: str
    partitions: Collection[int]
    position: int = 0

    async def begin(self) -> Handled:
        """Starts with its definitions, claims its partitions and hears what a session hears first."""
        await self.store.activate(self.definitions, replica=self.replica)
        return await self.take_over()

    async def take_over(self) -> Handled:
        """Claims its partitions as a running process does that gets them, and hears what a session hears first."""
        self.position = (await self.handler.claim("stream-1")).sequence
        return await self.handler.hear(self._heard())

    async def _heard(self) -> AsyncIterator[Sequence[StoredMessage]]:
        for event_type in self.handler.first_heard.types:
            if page := [message for message in self._own() if message.type == event_type]:
                yield page

    def _own(self) -> list[StoredMessage]:
        return [message for message in self.stream.messages if message.partition in self.partitions]

    async def read(self, until: int | None = None) -> Handled:
        """Takes in, as one batch, what the stream holds behind the position."""
        last = until or self._own()[-1].sequence
        batch = [message for message in self._own() if self.position < message.sequence <= last]
        self.position = last
        return await self.handler.handle(batch, ())

    async def publish(self, handled: Handled) -> None:
        """Stores what came of a batch, as the worker does."""
        self.stream.publish_all(handled)
        await self.handler.remove([row.id for row in handled.rows])

    async def settle(self) -> None:
        """Reads, and publishes what comes of it, until nothing comes any more."""
        while (own := self._own()) and self.position < own[-1].sequence:
            await self.publish(await self.read())

    async def pass_time(self, seconds: float) -> None:
        """Lets time pass, doing what is due when it is, a quarter of a second late at most, and reading it back."""
        until = self.stream.seconds + seconds
        while (left := until - self.stream.seconds) > 0:
            due_in = self.handler.due_in()
            self.stream.seconds += left if due_in is None else min(max(due_in, 0.25), left)
            await self.do_due()
            await self.settle()

    async def do_due(self) -> Handled:
        """Does what is due just now and publishes it, without reading it back."""
        handled = Handled()
        if (due_in := self.handler.due_in()) is not None and due_in <= 0:
            handled = await self.handler.due()
            await self.publish(handled)
        return handled

    async def until_asked(self) -> StoredMessage:
        """Lets time pass until a tick is stored, and returns it unread."""
        for _ in range(1000):
            self.stream.seconds += 0.25
            handled = await self.do_due()
            if any(TICK in attempt.subject for attempt in handled.attempts):
                return self.stream.messages[-1]
        raise AssertionError("nobody asks")

    async def saga(self, key: str = KEY, definition: str = "order-fulfilment") -> Saga:
        (recorded,) = await self.store.get_sagas(key, definition)
        return recorded.saga


def correlator(
    stream: MemoryStream,
    store: MemoryCorrelatorStore | None = None,
    definitions: Sequence[Definition] = (ORDER_FULFILMENT,),
    *,
    registry: Registry = REGISTRY,
    last_stored_on: Callable[[str], int] | None = None,
    replica: str = "one",
    partitions: Collection[int] = ALL_PARTITIONS,
) -> Correlator:
    """A correlator over a stream, for some of its partitions; with a store of its own where none is given."""
    known = store or MemoryCorrelatorStore()
    ask = last_stored_on or stream.last_stored_on

    async def answer(subject: str) -> int:
        return ask(subject)

    async def stored_on(subject: str, after: int) -> list[StoredMessage]:
        return [m for m in stream.messages if m.subject == subject and m.sequence > after]

    async def stored_at(sequence: int) -> StoredMessage | None:
        return stream.stored_at(sequence)

    handler = CorrelatorBatchHandler(
        store=known,
        registry=registry,
        partitions=partitions,
        changes=SagaChanges(),
        last_stored_on=answer,
        stored_on=stored_on,
        stored_at=stored_at,
        clock=WRONG_CLOCK,
        monotonic=lambda: stream.seconds,
    )
    return Correlator(stream, known, handler, definitions, replica, partitions)


async def at_work(
    stream: MemoryStream,
    store: MemoryCorrelatorStore | None = None,
    definitions: Sequence[Definition] = (ORDER_FULFILMENT,),
    registry: Registry = REGISTRY,
) -> Correlator:
    """A correlator that has claimed its store, whose definitions are active."""
    started = correlator(stream, store, definitions, registry=registry)
    await started.publish(await started.begin())
    await started.settle()
    return started


def published(handled: Handled) -> list[str]:
    """The short types of the rows."""
    return [row.publication.subject.rpartition(".")[2] for row in handled.rows]


def attempted(handled: Handled) -> list[str]:
    """The short types of the attempts."""
    return [publication.subject.rpartition(".")[2] for publication in handled.attempts]
