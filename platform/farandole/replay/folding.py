"""Folding the stream into a store of one's own: what the correlator does, with nothing published and nobody told.

The handler is the correlator's own. What it wants to publish stays in the outbox of a store that is thrown away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from farandole.broker.connection import Broker
from farandole.broker.stored import events_behind, last_stored_on, stored_at, stored_events, stored_on
from farandole.broker.streams import StreamState
from farandole.correlator.changes import SagaChanges
from farandole.correlator.definitions import Definitions, Starting
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.database import Database
from farandole.definition import Definition
from farandole.envelope import Publication, StoredMessage
from farandole.partitions import PARTITIONS, partition_of
from farandole.registry import Registry
from farandole.saga import Saga

Report = Callable[[int, int], None]
"""Told now and then: how many sequences of the stream have been passed, of how many."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How far the stream is to be folded."""

    until: Mapping[int, int]
    """By partition: the sequence of the last event to be folded."""
    time: datetime | None = None
    """Where it is not None, nothing that the stream stored later is folded."""

    @classmethod
    def of(cls, sequence: int, time: datetime | None = None) -> Extent:
        """As far as a sequence in every partition."""
        return cls(dict.fromkeys(range(PARTITIONS), sequence), time)

    @property
    def last(self) -> int:
        """The sequence behind which nothing is folded."""
        return max(self.until.values())

    def has(self, message: StoredMessage) -> bool:
        """Whether an event is within. One that the broker put into no partition counts to the first."""
        partition = message.subject.split(".", 2)[1]
        return self._reaches(int(partition) if partition in _PARTITIONS else 0, message.sequence, message.time)

    def has_all_of(self, saga: Saga) -> bool:
        """Whether every event that a record was made of is within. One without events is made of nothing."""
        if not saga.history:
            return True
        last = saga.history[-1].fact
        return self._reaches(partition_of(saga.key), last.sequence, last.stream_time)

    def _reaches(self, partition: int, sequence: int, time: datetime) -> bool:
        return sequence <= self.until[partition] and (self.time is None or time <= self.time)


_PARTITIONS = frozenset(str(partition) for partition in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded."""

    after: int
    """The sequence behind which it began: 0, or that of a snapshot."""
    events: int
    last_sequence: int
    """Of the last event; that behind which it began where there was none."""
    last_time: datetime | None
    """When the stream stored it."""


class ToldDefinitions(Definitions):
    """The definitions that the stream tells of. Nothing is to be made active."""

    def __init__(self) -> None:
        super().__init__(())

    def missing(self, registry: Registry, time: datetime) -> list[Publication]:  # noqa: ARG002 - as the correlator asks
        """See `Definitions.missing`."""
        return []


class TriedDefinitions(ToldDefinitions):
    """Other definitions in place of those of their names, as if they had been the active ones from the beginning.

    A saga keeps its version's number, so that what the correlator told of it, which names that number, is still told
    of it. A name that the stream never had begins with its own number.
    """

    def __init__(self, tried: Sequence[Definition]) -> None:
        super().__init__()
        self._tried = {definition.name: definition for definition in tried}
        self._numbered: dict[tuple[str, int], Definition] = {}
        self._starting: dict[int, Starting] = {}
        """By the identity of the stretch that it stands in for, which lives as long as the timeline."""
        self._stretches: list[Starting] = []

    def of(self, saga: Saga) -> Definition:
        """See `Definitions.of`."""
        return self._under(saga.definition, saga.version) if saga.definition in self._tried else super().of(saga)

    def starting(self, partition: int, sequence: int) -> Starting:
        """See `Definitions.starting`."""
        told = super().starting(partition, sequence)
        tried = self._starting.get(id(told))
        if tried is None:
            self._stretches.append(told)
            active = dict(told.active)
            for name, definition in self._tried.items():
                version = active[name].version if name in active else definition.version
                active[name] = self._under(name, version)
            tried = self._starting[id(told)] = Starting(told.after, active)
        return tried

    def _under(self, name: str, version: int) -> Definition:
        """A tried definition under another number."""
        found = self._numbered.get((name, version))
        if found is None:
            found = self._numbered[name, version] = replace(self._tried[name], version=version)
        return found


@asynccontextmanager
async def empty_store() -> AsyncIterator[CorrelatorStore]:
    """A store in a file of its own, which is removed after."""
    with TemporaryDirectory(prefix="farandole-replay-") as directory:
        store = SqlCorrelatorStore(Database(f"sqlite:///{Path(directory) / 'replay.db'}"))
        try:
            await store.open()
            yield store
        finally:
            await store.close()


async def fold_stream(
    broker: Broker,
    store: CorrelatorStore,
    definitions: Definitions,
    *,
    registry: Registry,
    state: StreamState,
    extent: Extent,
    report: Report = lambda _done, _all: None,
) -> Folded:
    """Folds what `EVENTS` holds behind the store's position, as far as `extent` says. Publishes nothing.

    Raises what the store and the broker do.
    """
    handler = CorrelatorBatchHandler(
        store=store,
        registry=registry,
        definitions_of=lambda _known, _partitions: definitions,
        changes=SagaChanges(),
        last_stored_on=partial(last_stored_on, broker),
        stored_on=partial(stored_on, broker),
        stored_at=partial(stored_at, broker),
    )
    after = (await handler.claim(state.incarnation)).sequence
    await handler.hear(_first_heard(broker, handler, state))
    folded = Folded(after, 0, after, None)
    written: Sequence[int] = ()
    async for page in events_behind(broker, after, extent.last):
        wanted = [message for message in page if extent.has(message)]
        if wanted:
            handled = await handler.handle(wanted, written)
            written = [row.id for row in handled.rows]
            last = wanted[-1]
            folded = replace(
                folded, events=folded.events + len(wanted), last_sequence=last.sequence, last_time=last.time
            )
        report(page[-1].sequence - after, extent.last - after)
    return folded


async def _first_heard(
    broker: Broker, handler: CorrelatorBatchHandler, state: StreamState
) -> AsyncIterator[Sequence[StoredMessage]]:
    for event_type in handler.first_heard.types:
        async for page in stored_events(broker, event_type, after=0, until=state.last_sequence):
            yield page
