"""Folding batches of events into sagas: what the correlator does with what it reads, and with the time that passes.

A handler has some of the stream's partitions, those of its lane: it reads, tells and times out nothing else.

One batch is one commit: the records with their history, the dead letters, the lifecycle events that the records call
for, and the position. Where partitions come together that have been folded differently far, reading begins behind the
lowest position, and what the others have taken in is passed over: to fold it at a later time would make other records.

Time is judged in the stream. Where a deadline seems to have passed, the partition is asked by a `PartitionTick`; once
that is read back and all before it is committed, what is due by its time is published. All of this is *attempts*: it
follows from the records, so an attempt that is lost is made again, and one that was stored is read back and is not due
any more. `SagaTimedOut` is stored by compare-and-set: no commit event of its partition that has not been read yet may
come before it. Where one did, the time-out is decided again as soon as that has been folded.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from choreography.v1 import correlator_events_pb2, dead_letter_events_pb2
from farandole.advance import pending_lifecycle
from farandole.clock import utc_now
from farandole.correlator.changes import SagaChanges
from farandole.correlator.dead_letters import (
    ClosedDeadLetter,
    DeadLetter,
    DeadLetterState,
    closing,
    dead_letter_of,
    dead_letter_publication,
    participant_dead_letter,
)
from farandole.correlator.deadlines_watch import DeadlinesWatch
from farandole.correlator.definitions import (
    ACTIVATED,
    PLATFORM_KEYS,
    RETIRED,
    Activation,
    Definitions,
    activation_of,
)
from farandole.correlator.lifecycle_messages import lifecycle_publication
from farandole.correlator.observers import Observe, Transition, tell_nobody
from farandole.correlator.queries import StoredDefinition
from farandole.correlator.records import fold
from farandole.correlator.store import (
    ALL_PARTITIONS,
    Claim,
    CorrelatorStore,
    FoldedBatch,
    NewDeadLetter,
    SagaChange,
    dead_letter_change,
)
from farandole.correlator.time_outs import LastStoredOn, Races, TimeOut, guarded
from farandole.correlator.unreadable import (
    EVENT_UNREADABLE,
    StoredAt,
    as_it_was,
    read_again,
    told_unreadable,
    unreadable_publication,
)
from farandole.deadlines import due_lifecycle
from farandole.envelope import Event, Publication, StoredMessage, Unreadable, decode, encode
from farandole.errors import BrokerError
from farandole.ids import message_id
from farandole.lifecycle import CORRELATOR, SAGA_TIMED_OUT
from farandole.outbox import OutboxRow
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.reasons import Reason
from farandole.registry import Registry
from farandole.saga import Disposition, Lifecycle, Saga
from farandole.telemetry import NO_TELEMETRY, Account, Telemetry
from farandole.telemetry.catalogue import GIVEN_UP
from farandole.worker import FirstHeard, Handled, Position

_CACHED_KEYS = 20_000
"""By who has all partitions; others keep as much less as they have fewer."""
_MOST_DUE = 100
"""How many sagas of a partition are told at a time that they are late; the next ones once that has been read back."""
_TOLD_SECONDS = 3.0
"""Where there are more, those who were told are not told again before so long."""
_OWNER_SECONDS = 0.5
"""How long who has made sure that nobody has taken over may take to tell anyone anything without making sure again."""
_AGAIN_SECONDS = 0.5
"""After so long the stream is asked again for an event that it could not give."""
_TICK = correlator_events_pb2.PartitionTick.DESCRIPTOR.full_name

_log = structlog.get_logger(__name__)

StoredOn = Callable[[str, int], Awaitable[Sequence[StoredMessage]]]
"""The events stored on one exact subject behind a sequence, in stream order. Raises `BrokerError`."""


@dataclass(slots=True)
class _Folding:
    """What has come of a batch so far."""

    account: Account
    before: dict[tuple[str, str], Saga | None] = field(default_factory=dict)
    records: dict[str, dict[str, Saga]] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)
    publications: dict[str, Publication] = field(default_factory=dict)
    """Lifecycle events to publish, by message id, in order."""
    dead_letters: list[NewDeadLetter] = field(default_factory=list)
    closed_dead_letters: list[ClosedDeadLetter] = field(default_factory=list)
    read_back: list[tuple[str, str]] = field(default_factory=list)
    """The correlator's own events, found in the stream: key and message id."""
    answers: dict[int, datetime] = field(default_factory=dict)
    """By partition: the stream's time as the last tick of this session told it."""
    transitions: list[Transition] = field(default_factory=list)
    """What to tell observers, in order."""


@dataclass(slots=True)
class _Late:
    """What to tell the sagas of a partition whose deadlines have passed."""

    partition: int
    now: datetime
    """The stream's time by which they have."""
    publications: list[Publication] = field(default_factory=list)
    time_outs: list[TimeOut] = field(default_factory=list)


def _as_stored(known: Sequence[StoredDefinition], partitions: Collection[int]) -> Definitions:
    """Those that are active in the store shall be so in the stream."""
    wanted = [one.definition() for one in known if one.is_active]
    return Definitions(wanted, [one.definition() for one in known], partitions=partitions)


async def _as_it_is(_store: CorrelatorStore) -> None:
    """Begins with a store as it is."""


@dataclass(slots=True)
class _Told:
    """Sagas of a partition that have been told that they are late, where there are more of them."""

    now: datetime
    """The stream's time by which they are."""
    at: float
    """When they were told, by the monotonic clock."""
    waiting: set[str]
    """The message ids that have not been read back."""


class CorrelatorBatchHandler:
    """The correlator's `farandole.worker.BatchHandler` for some partitions."""

    def __init__(
        self,
        *,
        store: CorrelatorStore,
        registry: Registry,
        partitions: Collection[int] = ALL_PARTITIONS,
        changes: SagaChanges,
        observe: Observe = tell_nobody,
        last_stored_on: LastStoredOn,
        stored_on: StoredOn,
        stored_at: StoredAt,
        begin: Callable[[CorrelatorStore], Awaitable[None]] = _as_it_is,
        definitions_of: Callable[[Sequence[StoredDefinition], Collection[int]], Definitions] = _as_stored,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """`begin` fills a new store with what the stream does not hold any more; see `begin_from_snapshot`.
        `definitions_of` makes of what the store knows the definitions of some partitions. `clock` only says when an
        event was decided, for people. `monotonic`, in seconds, only says when to ask the stream for its time."""
        self._store = store
        self._begin = begin
        self._definitions_of = definitions_of
        self._registry = registry
        self.partitions = frozenset(partitions)
        self.first_heard = FirstHeard((ACTIVATED, RETIRED), from_beginning=True, partitions=self.partitions)
        self._definitions = Definitions((), partitions=self.partitions)
        self._changes = changes
        self._observe = observe
        self._last_stored_on = last_stored_on
        self._stored_on = stored_on
        self._stored_at = stored_at
        self._clock = clock
        self._telemetry = telemetry
        self._watch = DeadlinesWatch(monotonic)
        self._monotonic = monotonic
        self._races = Races(monotonic)
        self._told: dict[int, _Told] = {}
        """By partition."""
        self._unreadable: Mapping[int, Reason] = {}
        """By sequence: what the stream says of events behind the position at which this session began."""
        self._claim: Claim | None = None
        self._cache: OrderedDict[str, dict[str, Saga]] = OrderedDict()

    @property
    def problem(self) -> str | None:
        """See `BatchHandler.problem`: definitions that are not active yet."""
        return self._definitions.problem

    @property
    def dependencies_problem(self) -> None:
        """See `BatchHandler.dependencies_problem`: it depends on its store and the broker alone."""

    async def claim(self, incarnation: str) -> Position:
        """See `BatchHandler.claim`."""
        self._cache.clear()
        await self._begin(self._store)
        self._claim = await self._store.claim(incarnation, self.partitions, held=self._claim)
        self._watch.begin(await self._store.next_deadlines(self.partitions))
        self._races = Races(self._monotonic)
        self._told.clear()
        return Position(self._claim.position, self._claim.incarnation, self._claim.time, self._claim.epoch)

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """See `BatchHandler.hear`: learns which definitions are active where, and makes those active that are so in the
        store; and which of the events to come no one could read before.

        The store is asked behind the claim: whoever has the partitions later never goes back to an earlier answer.

        Raises `DefinitionError` where a new store would fold old sagas under the changed content of their version.
        """
        assert self._claim is not None, "claim() comes first"
        self._definitions = self._definitions_of(await self._store.definitions(), self.partitions)
        self._unreadable = await self._heard_unreadable(self._claim.position)
        stored = [activation async for page in pages for activation in self._activations(page)]
        waiting = [row.publication for row in await self._store.waiting_publications(self.partitions)]
        self._definitions.hear(stored, self._activations(map(_not_stored, waiting)))
        if self._claim.position == 0:
            self._definitions.refuse_changed()
        await self._store.remember(self._definitions.versions)
        rows: Sequence[OutboxRow] = ()
        if missing := self._definitions.missing(self._registry, self._clock()):
            batch = FoldedBatch(position=self._claim.position, publications=missing)
            committed = await self._store.commit(self._claim, batch)
            self._claim, rows = committed.claim, committed.publications
            self._definitions.hear(stored, self._activations(map(_not_stored, (*waiting, *missing))))
        return Handled(rows, [(activation.key, activation.message_id) for activation in stored])

    async def waiting(self) -> Sequence[OutboxRow]:
        """See `BatchHandler.waiting`."""
        return await self._store.waiting_publications(self.partitions)

    async def remove(self, published: Collection[int]) -> None:
        """See `BatchHandler.remove`."""
        await self._store.remove_publications(published)

    async def release(self) -> None:
        """See `BatchHandler.release`: the store keeps no account of how a process ended."""

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        return min((wait for wait in (self._watch.due_in(), self._races.due_in()) if wait is not None), default=None)

    async def due(self) -> Handled:
        """See `BatchHandler.due`: publishes what the stream's answers call for, and asks where it seems to be time."""
        assert self._claim is not None, "claim() comes first"
        if self._watch.wants_refreshing:
            self._watch.refresh(await self._store.next_deadlines(self.partitions))
        attempts = [self._tick(partition, tick_id) for partition, tick_id in self._watch.ask().items()]
        answered = {p: now for p, now in self._watch.take_answers().items() if not self._is_waiting(p)}
        answers = self._races.lost() | answered
        account = self._telemetry.account()
        late = [await self._late(partition, now, account) for partition, now in answers.items()]
        if late:
            checked = self._monotonic()
            await self.still_owner()
            attempts += [publication for one in late for publication in one.publications]
            attempts += await self._begin_races(late)  # comes last: each moment counts once the broker has answered
            if self._monotonic() - checked > _OWNER_SECONDS:
                await self.still_owner()
        account.settled()
        return Handled(attempts=attempts)

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        assert self._claim is not None, "claim() comes first"
        decoded = [(self._decode(message), self._is_taken_in(message)) for message in messages]
        records = await self._load({event.key for event, old in decoded if isinstance(event, Event) and not old})
        folding = _Folding(self._telemetry.account(), records={key: dict(sagas) for key, sagas in records.items()})
        for event, is_taken_in in decoded:
            if is_taken_in:
                self._pass_over(folding, event)
                continue
            if isinstance(event, Unreadable):
                self._give_up(folding, event)
            elif event.key in PLATFORM_KEYS:
                self._take_in(folding, event)
            else:
                self._fold(folding, event)
            if isinstance(event, Event) and _redrives_own(event):
                await self._redrive(folding, event)
        committed = await self._store.commit(
            self._claim,
            FoldedBatch(
                position=messages[-1].sequence,
                time=messages[-1].time,
                changes=[
                    SagaChange(before, folding.records[key][definition])
                    for (definition, key), before in folding.before.items()
                ],
                payloads=folding.payloads,
                publications=tuple(folding.publications.values()),
                dead_letters=folding.dead_letters,
                closed_dead_letters=folding.closed_dead_letters,
                acknowledged=published,
            ),
        )
        self._claim = committed.claim
        for (definition, key), before in folding.before.items():
            folding.account.changed(before, folding.records[key][definition])
        folding.account.settled()
        self._remember(folding.records)
        self._observe(folding.transitions)
        await self._changes.changed({key for _, key in folding.before})
        self._watch.read(messages[-1].time)
        for message in messages:
            self._races.read(message.subject, message.sequence)
        for partition, now in folding.answers.items():
            self._watch.answered(partition, now)
        if folding.before:
            self._watch.outdate()
        for key, identity in folding.read_back:
            self._read_back(key, identity)
        return Handled(committed.publications, folding.read_back)

    def _activations(self, messages: Iterable[StoredMessage]) -> list[Activation]:
        events = (decode(self._registry, message) for message in messages if message.type in (ACTIVATED, RETIRED))
        found = (activation_of(event) for event in events if isinstance(event, Event))
        return [one for one in found if one is not None and one.partition in self.partitions]

    async def _heard_unreadable(self, position: int) -> dict[int, Reason]:
        """Which events behind a position no correlator could read that came so far, as the stream tells."""
        pages = await asyncio.gather(
            *(self._stored_on(f"events.{partition}.{EVENT_UNREADABLE}", position) for partition in self.partitions)
        )
        events = (decode(self._registry, message) for page in pages for message in page)
        told = (told_unreadable(event) for event in events if isinstance(event, Event))
        return dict(one for one in told if one is not None and one[0] > position)

    def _decode(self, message: StoredMessage) -> Event | Unreadable:
        event = decode(self._registry, message)
        reason = self._unreadable.get(message.sequence)
        return as_it_was(event, reason) if reason is not None and isinstance(event, Event) else event

    async def _late(self, partition: int, now: datetime, account: Account) -> _Late:
        """What to tell the sagas of a partition whose deadlines have passed by then."""
        found = await self._store.due(now, _MOST_DUE, partition)
        records = await self._load({due.key for due in found})
        late = _Late(partition, now)
        for due in found:
            saga = records[due.key][due.definition]
            definition = self._definitions.of(saga)
            for pending in due_lifecycle(definition, saga, now):
                trace = account.traceparent(None)
                publication = lifecycle_publication(self._registry, pending, time=self._clock(), traceparent=trace)
                _log.info("deadline passed", saga_id=due.key, definition=due.definition, type=pending.type)
                if pending.type == SAGA_TIMED_OUT:
                    late.time_outs.append(TimeOut(publication, f"events.{partition}.{definition.commit_event}"))
                else:
                    late.publications.append(publication)
        self._told.pop(partition, None)
        if len(found) == _MOST_DUE:
            told = (*late.publications, *(time_out.publication for time_out in late.time_outs))
            self._told[partition] = _Told(now, self._monotonic(), {one.headers["Nats-Msg-Id"] for one in told})
        return late

    def _is_waiting(self, partition: int) -> bool:
        """Whether sagas that are late were told just now, and are to be read back before others are told."""
        told = self._told.get(partition)
        return told is not None and self._monotonic() - told.at < _TOLD_SECONDS

    def _read_back(self, key: str, identity: str) -> None:
        """An event of its own was read and committed: where it was the last of those told, others are to be told."""
        partition = partition_of(key)
        told = self._told.get(partition)
        if told is not None and identity in told.waiting:
            told.waiting.remove(identity)
            if not told.waiting:
                del self._told[partition]
                self._watch.go_on(partition, told.now)

    async def _begin_races(self, late: Sequence[_Late]) -> list[Publication]:
        """The time-outs to publish, each to be refused where a commit event comes before it."""
        assert self._claim is not None, "claim() comes first"
        publications = await guarded(
            [time_out for one in late for time_out in one.time_outs],
            position=self._claim.position,
            last_stored_on=self._last_stored_on,
            stored_behind=self._commits_behind,
        )
        for one in late:
            self._races.begin(one.partition, one.now)
        self._races.attempt(publications)
        return publications

    async def _commits_behind(self, subject: str, after: int) -> list[tuple[int, str]]:
        """See `StoredBehind`. What can't be read belongs to no saga."""
        decoded = [
            (message.sequence, decode(self._registry, message)) for message in await self._stored_on(subject, after)
        ]
        return [(sequence, event.key if isinstance(event, Event) else "") for sequence, event in decoded]

    async def still_owner(self) -> None:
        """See `BatchHandler.still_owner`: who was suspended finds out before it tells anyone anything."""
        assert self._claim is not None, "claim() comes first"
        committed = await self._store.commit(self._claim, FoldedBatch(position=self._claim.position))
        self._claim = committed.claim

    def _tick(self, partition: int, tick_id: str) -> Publication:
        message = correlator_events_pb2.PartitionTick(partition_key=partition_key(partition))
        return encode(self._registry.types[_TICK], message, source=CORRELATOR, event_id=tick_id, time=self._clock())

    async def _load(self, keys: set[str]) -> dict[str, dict[str, Saga]]:
        missing = {key for key in keys if key not in self._cache}
        loaded = await self._store.load(missing) if missing else {}
        found = {key: {saga.definition: saga for saga in sagas} for key, sagas in loaded.items()}
        return {key: self._cache[key] if key in self._cache else found[key] for key in keys}

    def _remember(self, records: Mapping[str, dict[str, Saga]]) -> None:
        for key, sagas in records.items():
            self._cache[key] = sagas
            self._cache.move_to_end(key)
        while len(self._cache) > _CACHED_KEYS * len(self.partitions) // PARTITIONS:
            self._cache.popitem(last=False)

    def _give_up(self, folding: _Folding, unreadable: Unreadable) -> None:
        dead_letter = dead_letter_of(unreadable, self._registry)
        _log.warning(
            "dead letter",
            dead_letter_id=dead_letter.id,
            saga_id=dead_letter.key,
            type=dead_letter.event_type,
            reason=dead_letter.reason.name,
            detail=dead_letter.detail,
        )
        publications = [dead_letter_publication(dead_letter, unreadable)]
        if dead_letter.sequence not in self._unreadable:
            publications.append(unreadable_publication(self._registry, dead_letter, time=self._clock()))
        folding.dead_letters.append(NewDeadLetter(dead_letter, publications))
        folding.account.put_off(unreadable, GIVEN_UP)

    def _is_taken_in(self, message: StoredMessage) -> bool:
        """Whether a message's partition had been folded as far when this handler claimed it."""
        assert self._claim is not None, "claim() comes first"
        return message.partition is not None and message.sequence <= self._claim.taken_in.get(message.partition, 0)

    def _pass_over(self, folding: _Folding, event: Event | Unreadable) -> None:
        """Makes nothing of an event that has been folded, but for what this session has to know: which definitions are
        active, and which of its own events, that may wait in the outbox, are stored."""
        if not isinstance(event, Event):
            return
        if activation := activation_of(event):
            self._definitions.read(activation)
        if event.source == CORRELATOR:
            folding.read_back.append((event.key, message_id(event.source, event.id)))

    def _take_in(self, folding: _Folding, event: Event) -> None:
        """What the platform says to a whole partition."""
        if activation := activation_of(event):
            self._definitions.read(activation)
            folding.read_back.append((activation.key, activation.message_id))
        elif event.type == _TICK and event.source == CORRELATOR and self._watch.is_own(event.id):
            folding.answers[event.partition] = event.stream_time
        elif told_unreadable(event):
            folding.read_back.append((event.key, message_id(event.source, event.id)))
        elif event.fact.lifecycle is not None:
            self._follow_dead_letters(folding, event, event.fact.lifecycle, {})

    def _fold(self, folding: _Folding, event: Event) -> None:
        records = folding.records[event.key]
        folding.account.begin(event)
        changed = fold(self._definitions, records, event)
        if not changed:
            _log.info("unmatched event", saga_id=event.key, event_id=event.id, type=event.type)
        for name, after in changed.items():
            before = records.get(name)
            if after is before:
                continue
            folding.before.setdefault((name, event.key), before)
            records[name] = after
            folding.transitions.append(Transition(before, after, event.fact))
            for publication in self._called_for(before, after, event, folding.account):
                folding.publications[publication.headers["Nats-Msg-Id"]] = publication
        folding.account.folded(event, changed)
        if changed:
            redacted = event.event_type.redactor.redact(event.body)
            folding.payloads[event.sequence] = redacted.SerializeToString(deterministic=True)
        if event.fact.lifecycle is not None:
            identity = message_id(event.source, event.id)
            folding.publications.pop(identity, None)
            folding.read_back.append((event.key, identity))
            self._follow_dead_letters(folding, event, event.fact.lifecycle, records)

    def _follow_dead_letters(
        self, folding: _Folding, event: Event, lifecycle: Lifecycle, records: Mapping[str, Saga]
    ) -> None:
        """What the event says of a participant's dead letter, if it says anything, and says it for the first time."""
        saga = records.get(lifecycle.definition)
        history = saga.history if saga is not None else ()
        if any(e.fact.sequence == event.sequence and e.disposition is Disposition.DUPLICATE for e in history[-1:]):
            return
        if _redrives_own(event):
            return
        if dead_letter := participant_dead_letter(event, history):
            folding.dead_letters.append(NewDeadLetter(dead_letter))
        elif closed := closing(event):
            folding.closed_dead_letters.append(closed)

    async def _redrive(self, folding: _Folding, verb: Event) -> None:
        """Folds an event that no one could read at its place among its saga's, where it can be read now."""
        closed = closing(verb)
        assert closed is not None, "the event is an operator's verb"
        letter = await self._own_dead_letter(folding, closed.sequence)
        if letter is None or letter.state is not DeadLetterState.OPEN or closed.definition or closed.step:
            _log.warning("no such dead letter", sequence=closed.sequence, event_id=verb.id, actor=closed.actor)
            return
        event = await read_again(letter, self._registry, self._stored_at_last)
        if isinstance(event, str):
            _log.warning("still can't be read", dead_letter_id=letter.id, detail=event, actor=closed.actor)
            return
        _log.info("dead letter redriven", dead_letter_id=letter.id, saga_id=event.key, actor=closed.actor)
        folding.closed_dead_letters.append(closed)
        if event.key not in folding.records:
            folding.records |= {key: dict(sagas) for key, sagas in (await self._load({event.key})).items()}
        self._fold(folding, event)

    async def _own_dead_letter(self, folding: _Folding, sequence: int) -> DeadLetter | None:
        """A dead letter of the correlator, as this batch has left it so far."""
        identity = (CORRELATOR, sequence)
        stored = await self._store.get_dead_letter(*identity)
        so_far = FoldedBatch(
            sequence,
            dead_letters=[one for one in folding.dead_letters if one.dead_letter.sequence == sequence],
            closed_dead_letters=[one for one in folding.closed_dead_letters if one.sequence == sequence],
        )
        change = dead_letter_change({} if stored is None else {identity: stored}, so_far)
        found = (one for one in (*change.changed, *change.added) if one.participant == CORRELATOR)
        return next(found, stored)

    async def _stored_at_last(self, sequence: int) -> StoredMessage | None:
        """What the stream holds at a sequence, once the broker says it: who folds on without it folds another record
        than a rebuild would."""
        while True:
            try:
                return await self._stored_at(sequence)
            except BrokerError as error:
                _log.warning("a redriven event can't be read from the stream now", sequence=sequence, error=str(error))
                await asyncio.sleep(_AGAIN_SECONDS)

    def _called_for(self, before: Saga | None, after: Saga, event: Event, account: Account) -> Iterator[Publication]:
        """The lifecycle events that the record calls for now and did not before."""
        definition = self._definitions.of(after)
        already = {p.id for p in pending_lifecycle(definition, before)} if before is not None else set()
        for pending in pending_lifecycle(definition, after):
            if pending.id not in already:
                trace = account.traceparent(event)
                yield lifecycle_publication(self._registry, pending, time=self._clock(), traceparent=trace)


def _redrives_own(event: Event) -> bool:
    """Whether an operator has the correlator read an event again."""
    body = event.body
    return isinstance(body, dead_letter_events_pb2.DeadLetterRedriven) and body.participant == CORRELATOR


def _not_stored(publication: Publication) -> StoredMessage:
    """A publication as the stream would store it, at no place yet."""
    event_type = publication.subject.split(".", 2)[2]
    subject = f"events.{partition_of(publication.key)}.{event_type}"
    return StoredMessage(subject, publication.headers, publication.data, 0, _NOT_STORED)


_NOT_STORED = datetime.min.replace(tzinfo=UTC)
