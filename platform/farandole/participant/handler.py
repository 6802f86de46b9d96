"""Taking events in: one transaction for a batch, with the inbox, the barrier, the handlers' own state and the outbox.

A batch runs first without savepoints. Where a handler raises, the whole batch is rolled back and run again with a
savepoint for each event, and the failing event moves to the queue of what isn't finished, with the saga's later
events behind it; the position goes on, and so do all other sagas.

Where the process before did not end in order, what may have ended it runs alone, counted: see `crashes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import sqlalchemy as sa
import structlog

from farandole.clock import utc_now
from farandole.database import Database
from farandole.envelope import Event, StoredMessage, Unreadable, decode
from farandole.outbox import OutboxRow
from farandole.participant.circuits import Circuit, Circuits
from farandole.participant.circuits import changed as changed_circuits
from farandole.participant.crashes import CountFirstError, Crashes
from farandole.participant.decisions import decide, forget
from farandole.participant.intake import HandlerFailedError, Intake
from farandole.participant.participant import EVENT_UNREADABLE, OPERATOR_VERBS, TIMED_OUT, Participant
from farandole.participant.position_table import Claim
from farandole.participant.queue_table import QueueEntry
from farandole.participant.run_check import NO_PROBES, RunCheck
from farandole.participant.schedule import Schedule, ScheduleChanges, Wait
from farandole.participant.tables import ParticipantTables
from farandole.participant.unfinished import Unfinished
from farandole.participant.work import Work
from farandole.partitions import PARTITIONS, partition_of
from farandole.telemetry import NO_TELEMETRY, Account, Telemetry
from farandole.worker import FirstHeard, Handled, Position

_DUE_SAGAS = 500
_DUE_MESSAGES = 500

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What a transaction has come to."""

    rows: list[OutboxRow]
    changes: ScheduleChanges
    circuits: Circuits
    counts_removed: Collection[int]
    """The events whose counts are gone."""
    account: Account
    dealt_with: int = 0
    """How many events, of those that were counted before they ran."""


async def _tell_nobody(_partitions: Collection[int]) -> None:
    """Whoever works on them looks now and then anyway."""


class ParticipantBatchHandler:
    """A participant's `farandole.worker.BatchHandler`."""

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: ParticipantTables,
        *,
        partitions: Collection[int] = range(PARTITIONS),
        tell: Callable[[Collection[int]], Awaitable[None]] = _tell_nobody,
        alone: asyncio.Lock | None = None,
        clock: Clock = utc_now,
        batch_size: int = 500,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """Takes in what is in these `partitions`. `batch_size` is the most events that one call of `handle` has.
        `tell` is called with other partitions once outbox rows of theirs are committed, which are not for its own
        worker to publish: a step's handler may publish events of another saga. `alone` is held while an event runs that
        may end the process: by all handlers of one process in turn.
        """
        self._participant = participant
        self._database = database
        self._tables = tables
        self._partitions = frozenset(partitions)
        self._tell = tell
        self._alone = alone if alone is not None else asyncio.Lock()
        self._clock = clock
        self._telemetry = telemetry
        self._claim: Claim | None = None
        self._position = 0
        self._schedule = Schedule()
        self._circuits = Circuits(participant.probes)
        self._batch_size = batch_size
        self._crashes = Crashes(batch_size)
        self.first_heard = FirstHeard((TIMED_OUT,))
        self.problem: str | None = None

    @property
    def position(self) -> int:
        """The sequence in the stream up to which events have been taken in, in a transaction that is committed."""
        return self._position

    @property
    def dependencies_problem(self) -> str | None:
        """See `BatchHandler.dependencies_problem`."""
        return self._circuits.problem

    @property
    def circuits(self) -> Mapping[Circuit, int]:
        """What is found to be down, and how many sagas wait for each."""
        return {c: len(self._schedule.dependants(c.dependency)) for c in self._circuits.open.values()}

    def is_owner(self, connection: sa.Connection) -> bool:
        """Whether it is this handler that has claimed its partitions last."""
        return bool(self._epoch) and self._tables.positions.is_owner(connection, self._partitions, self._epoch)

    async def claim(self, incarnation: str) -> Position:
        """See `BatchHandler.claim`."""

        def work(connection: sa.Connection) -> tuple[Claim, list[QueueEntry], set[str], dict[int, int]]:
            tables, partitions = self._tables, self._partitions
            claim = tables.positions.claim(connection, partitions, incarnation, self._epoch)
            heads = tables.queue.heads(connection, partitions)
            timed_out = tables.queue.keys_with(connection, TIMED_OUT, partitions)
            return claim, heads, timed_out, tables.started.of(connection, partitions)

        is_first = self._claim is None
        claim, heads, timed_out, counts = await self._database.write(work)
        self._claim = claim
        self._position = claim.position.sequence
        self._load(heads, timed_out)
        if is_first:
            self._crashes.begin(counts, {head.key for head in heads}, is_unclean=claim.is_unclean)
            if claim.is_unclean:
                _log.info("the process before did not end in order: what may have ended it is run alone at first")
        return replace(claim.position, epoch=claim.epoch)

    async def still_owner(self) -> None:
        """See `BatchHandler.still_owner`."""
        await self._database.read(
            lambda connection: self._tables.positions.check_owner(connection, self._partitions, self._epoch)
        )

    @property
    def _epoch(self) -> int:
        """That of the last claim; 0 before the first."""
        return 0 if self._claim is None else self._claim.epoch

    def _move(self, connection: sa.Connection, to: int, time: datetime | None = None) -> None:
        """Moves the position, or only makes sure that it is this handler's where it stays."""
        assert self._claim is not None, "nothing is written before the claim"
        self._tables.positions.move(connection, self._claim, old=self._position, new=to, time=time)

    def _is_new(self, message: StoredMessage) -> bool:
        """Whether a message was not taken in when this handler claimed its partition: of several partitions, one may
        have been further than another."""
        assert self._claim is not None, "nothing is read before the claim"
        return message.sequence > self._claim.taken_in.get(message.partition or 0, message.sequence)

    def _load(self, heads: Sequence[QueueEntry], timed_out: Collection[str]) -> None:
        """Begins with what waits. What something may overtake is looked at once; what is down is tried at once."""
        now = self._clock()
        waits = {h.key: Wait(now) if h.given_up or h.key in timed_out else h.wait for h in heads}
        self._schedule.load(waits)
        self._circuits = Circuits(self._participant.probes)
        for head in heads:
            if waits[head.key].dependency:
                self._circuits.known_down(head.dependency, head.place, head.error, head.due, now)

    async def release(self) -> None:
        """See `BatchHandler.release`."""
        if self._epoch:
            await self._database.write(
                lambda connection: self._tables.positions.release(connection, self._partitions, self._epoch)
            )

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """Undoes and voids what the time-outs behind the position name, before any step of theirs runs.

        One whose saga has something in the queue is left for its place in the stream, unless it overtakes that; so is
        one whose handler raises. Otherwise see `BatchHandler.hear`; the outbox rows are among those `waiting`.
        """

        async def hear(messages: Sequence[StoredMessage]) -> list[OutboxRow]:
            events = [event for event in map(self._decode, messages) if isinstance(event, Event)]
            return await self._settle(lambda connection: self._hear(connection, events))

        async for page in pages:
            new = [message for message in page if self._is_new(message)]
            for first in range(0, len(new), self._batch_size):
                await self._one_by_one_where_doubtful(new[first : first + self._batch_size], hear)
        return Handled()

    async def waiting(self) -> Sequence[OutboxRow]:
        """See `BatchHandler.waiting`."""
        return await self._database.read(lambda connection: self._tables.outbox.waiting(connection, self._partitions))

    async def remove(self, published: Collection[int]) -> None:
        """See `BatchHandler.remove`."""
        await self._database.write(lambda connection: self._tables.outbox.remove(connection, published))

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        removable = published

        async def take_in(part: Sequence[StoredMessage]) -> list[OutboxRow]:
            nonlocal removable
            events = [self._decode(message) for message in part if self._is_new(message)]
            last = part[-1]

            def attempt(*, isolated: bool) -> Callable[[sa.Connection], _Settled]:
                return lambda connection: self._take_in(connection, events, last, removable, isolated=isolated)

            try:
                rows = await self._settle(attempt(isolated=bool(self._circuits.open)))
            except HandlerFailedError:
                rows = await self._settle(attempt(isolated=True))
            self._position = last.sequence
            self._crashes.took_in(len(part))
            removable = ()
            return rows

        return Handled(await self._one_by_one_where_doubtful(messages, take_in))

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        now = self._clock()
        waits = (self._schedule.due_in(now), self._circuits.due_in(now))
        return min((wait for wait in waits if wait is not None), default=None)

    async def due(self) -> Handled:
        """Goes on with the sagas whose queue is due, and tries what is down."""
        now = self._clock()
        probes = self._probes(now)
        # probes come first, and alone: what else is due may be more than one transaction has room for
        keys = list(probes.values()) or self._schedule.due(now, _DUE_SAGAS)
        if not keys:
            return Handled()
        if doubtful := next(filter(self._crashes.doubts, keys), None):
            return Handled(await self._try_alone(doubtful, probes))
        try:
            return Handled(
                await self._settle(lambda connection: self._try_again(connection, keys, _DUE_MESSAGES, probes))
            )
        except CountFirstError as first:
            self._crashes.doubt(first.key)
            return Handled()

    def _probes(self, now: datetime) -> dict[str, str]:
        """By dependency that is to be tried: the saga that is to do it, each time another of those that wait."""
        probes = {}
        for circuit in self._circuits.due(now):
            dependants = self._schedule.dependants(circuit.dependency)
            probes[circuit.dependency] = dependants[circuit.probed % len(dependants)]
        return probes

    async def _try_alone(self, key: str, probes: Mapping[str, str]) -> list[OutboxRow]:
        """Goes on with one event of a saga whose queue may have ended the process before."""
        own = {dependency: of for dependency, of in probes.items() if of == key}

        async def attempt() -> list[OutboxRow]:
            return await self._settle(lambda connection: self._try_again(connection, [key], 1, own))

        try:
            rows = await attempt()
        except CountFirstError as first:
            rows = await self._counted(first, attempt)
        if not self._schedule.is_due(key, self._clock()):
            self._crashes.trust(key)
        return rows

    async def _one_by_one_where_doubtful(
        self,
        messages: Sequence[StoredMessage],
        take: Callable[[Sequence[StoredMessage]], Awaitable[list[OutboxRow]]],
    ) -> list[OutboxRow]:
        """Has `take` deal with the messages, in order, so that each that is to be counted is, and then runs alone.

        What stands before such a message is taken in before it: nothing of that is doubtful, or it runs no handler.
        """
        rows: list[OutboxRow] = []
        while messages:
            try:
                return rows + await take(messages)
            except CountFirstError as first:
                place = next(n for n, message in enumerate(messages) if message.sequence == first.sequence)
                if place:
                    rows += await take(messages[:place])
                doubtful = messages[place : place + 1]
                rows += await self._counted(first, partial(take, doubtful))
                messages = messages[place + 1 :]
        return rows

    async def _counted(self, first: CountFirstError, run: Callable[[], Awaitable[list[OutboxRow]]]) -> list[OutboxRow]:
        """Counts an event and then has it run, with no other one that is counted beside it in this process."""
        async with self._alone:
            while True:
                await self._count(first)
                try:
                    return await run()
                except CountFirstError as another:
                    first = another

    async def _count(self, event: CountFirstError) -> None:
        """Counts an event in a transaction of its own."""
        times = self._crashes.next_count(event.sequence)

        def work(connection: sa.Connection) -> None:
            self._move(connection, self._position)
            self._tables.started.put(connection, event.sequence, partition_of(event.key), times)

        await self._database.write(work)
        self._crashes.counted(event.sequence, times)

    async def _settle(self, work: Callable[[sa.Connection], _Settled]) -> list[OutboxRow]:
        settled = await self._database.write(work)
        settled.account.settled()
        self._schedule.apply(settled.changes)
        self._crashes.dealt_with(settled.counts_removed)
        self._crashes.heard(settled.dealt_with)
        self._take_on(settled.circuits)
        others = {partition_of(row.publication.key) for row in settled.rows} - self._partitions
        if not others:
            return settled.rows
        await self._tell(others)
        return [row for row in settled.rows if partition_of(row.publication.key) in self._partitions]

    def _take_on(self, circuits: Circuits) -> None:
        """Goes on with the circuits as a transaction left them. One that nothing waits for any more is of no use."""
        for dependency in list(circuits.open):
            if not self._schedule.dependants(dependency):
                del circuits.open[dependency]
        opened, closed = changed_circuits(self._circuits.open, circuits.open)
        for circuit in opened:
            _log.warning("circuit opened", dependency=circuit.dependency, error=circuit.error)
        for circuit in closed:
            _log.info("circuit closed", dependency=circuit.dependency)
            self._schedule.restore(circuit.dependency, self._clock())
        self._circuits = circuits

    def _take_in(
        self,
        connection: sa.Connection,
        events: Sequence[Event | Unreadable],
        last: StoredMessage,
        published: Collection[int],
        *,
        isolated: bool,
    ) -> _Settled:
        self._move(connection, last.sequence, last.time)
        self._tables.outbox.remove(connection, published)
        work, check = self._begin(connection, events, doubtful=self._crashes.doubts_events)
        unfinished = Unfinished(work)
        for event in events:
            if isinstance(event, Unreadable):
                unfinished.add_unreadable(event)
            elif event.type in _DECISIONS:
                unfinished.save()  # what it is about may have come just before
                _DECISIONS[event.type](work, event)
            elif unfinished.holds(event.key):
                unfinished.add_behind(event)
            elif failure := work.intake.run(event, isolated=isolated):
                unfinished.add_failed(event, failure)
        unfinished.save()
        return self._settled(work, check.ran | check.crashed)

    def _hear(self, connection: sa.Connection, events: Sequence[Event]) -> _Settled:
        self._move(connection, self._position)
        work, check = self._begin(connection, events, doubtful=self._crashes.doubts_heard)
        unfinished = Unfinished(work)
        for event in events:
            if unfinished.holds(event.key):
                unfinished.overtake(event)
            elif failure := work.intake.run(event, isolated=True):
                _log.warning(
                    "time-out left for its place in the stream: a handler failed",
                    saga_id=event.key,
                    sequence=event.sequence,
                    step=failure.reaction.step.name,
                )
        # what failed runs again at its place, and counts as not dealt with; what must not run keeps its count till then
        dealt_with = sum(event.sequence in check.ran and work.intake.knows(event) for event in events)
        return replace(self._settled(work, check.ran), dealt_with=dealt_with)

    def _try_again(
        self, connection: sa.Connection, keys: Sequence[str], most: int, probes: Mapping[str, str]
    ) -> _Settled:
        """Goes on with so many of the events that wait, in stream order."""
        self._move(connection, self._position)
        entries = self._tables.queue.of(connection, keys, most)
        events = [self._decode(entry.message) for entry in entries]
        doubtful = any(map(self._crashes.doubts, keys))
        work, check = self._begin(connection, events, doubtful=doubtful, probes=probes)
        Unfinished(work).try_again(keys, entries, is_cut=len(entries) == most)
        for dependency in probes:
            was_well = dependency not in work.circuits.found_down if dependency in check.probed else None
            work.circuits.probed(dependency, was_well, work.now)
        return self._settled(work, check.ran | check.crashed)

    def _begin(
        self,
        connection: sa.Connection,
        events: Collection[Event | Unreadable],
        *,
        doubtful: bool,
        probes: Mapping[str, str] = NO_PROBES,
    ) -> tuple[Work, RunCheck]:
        circuits = self._circuits.copy()
        check = RunCheck(self._crashes, circuits, doubtful=doubtful, probes=probes)
        legible = [event for event in events if isinstance(event, Event)]
        outgoing = self._participant.outgoing(self._clock, self._telemetry.account())
        intake = Intake(self._participant, self._tables, connection, outgoing, legible, before_run=check)
        work = Work(
            participant=self._participant,
            queue=self._tables.queue,
            set_aside=self._tables.set_aside,
            intake=intake,
            schedule=self._schedule,
            circuits=circuits,
            decode=self._decode,
            now=self._clock(),
        )
        return work, check

    def _settled(self, work: Work, counts_removed: Collection[int]) -> _Settled:
        self._tables.started.remove(work.connection, counts_removed)
        return _Settled(work.intake.save(), work.changes, work.circuits, counts_removed, work.account)

    def _decode(self, message: StoredMessage) -> Event | Unreadable:
        return decode(self._participant.registry, message)


_DECISIONS = {**dict.fromkeys(OPERATOR_VERBS, decide), EVENT_UNREADABLE: forget}
"""What is decided elsewhere about events in the queue, by type. It waits behind nothing."""
