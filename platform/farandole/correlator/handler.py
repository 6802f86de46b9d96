"""Folding batches of events into sagas: what the correlator does with what it reads.

One batch is one commit: the records with their history, what no one can read as dead letters, the lifecycle events
that the records call for, and the position.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from google.protobuf.message import Message

from choreography.v1 import lifecycle_pb2
from farandole.advance import PendingLifecycle, advance, pending_lifecycle
from farandole.correlator.changes import SagaChanges
from farandole.correlator.dead_letters import CORRELATOR, dead_letter_of, dead_letter_publication
from farandole.correlator.store import Claim, CorrelatorStore, FoldedBatch, NewDeadLetter, SagaChange
from farandole.definition import Definition
from farandole.envelope import Event, Publication, StoredMessage, Unreadable, decode, encode, message_id
from farandole.errors import StoreError
from farandole.outbox import OutboxRow
from farandole.registry import Registry
from farandole.saga import Saga
from farandole.worker import FirstHeard, Handled, Position

_CACHED_KEYS = 20_000

_log = structlog.get_logger(__name__)


class Definitions:
    """The definitions under which sagas start, and every version that a saga keeps."""

    def __init__(self, active: Sequence[Definition], stored: Sequence[Definition] = ()) -> None:
        self._active = {d.name: d for d in sorted(active, key=lambda d: d.version)}
        self._versions = {(d.name, d.version): d for d in (*stored, *active)}
        self._mentioned: dict[str, tuple[Definition, ...]] = {}

    def of(self, saga: Saga) -> Definition:
        """The definition that a saga keeps. Raises `StoreError` where neither files nor store have it."""
        try:
            return self._versions[saga.definition, saga.version]
        except KeyError:
            raise StoreError(
                f"saga {saga.key!r} keeps version {saga.version} of the definition {saga.definition!r}, "
                "which the store does not have"
            ) from None

    def active(self, name: str) -> Definition | None:
        """The newest version of a definition under which sagas start; None where none do."""
        return self._active.get(name)

    def that_mention(self, event_type: str) -> tuple[Definition, ...]:
        """The active definitions in which an event type plays a part."""
        found = self._mentioned.get(event_type)
        if found is None:
            found = self._mentioned[event_type] = tuple(d for d in self._active.values() if event_type in d.event_types)
        return found


Records = Mapping[str, Saga]
"""The sagas under one key, by definition."""


def fold(definitions: Definitions, records: Records, event: Event) -> dict[str, Saga]:
    """The records under the event's key that the event changes.

    An event goes to the sagas whose definitions mention it, a lifecycle event to the one that it names; one that no
    definition mentions is recorded, unmatched, by every saga under the key.
    """
    fact = event.fact
    if fact.lifecycle is not None:
        named = records.get(fact.lifecycle.definition)
        definition = definitions.of(named) if named is not None else definitions.active(fact.lifecycle.definition)
        return {} if definition is None else {definition.name: advance(definition, named, fact, key=event.key)}
    changed: dict[str, Saga] = {}
    for saga in records.values():
        definition = definitions.of(saga)
        if fact.type in definition.event_types:
            changed[saga.definition] = advance(definition, saga, fact, key=event.key)
    for definition in definitions.that_mention(fact.type):
        if definition.name not in records:
            changed[definition.name] = advance(definition, None, fact, key=event.key)
    if not changed:
        changed = {name: advance(definitions.of(saga), saga, fact, key=event.key) for name, saga in records.items()}
    return changed


@dataclass(slots=True)
class _Folding:
    """What has come of a batch so far."""

    before: dict[tuple[str, str], Saga | None] = field(default_factory=dict)
    records: dict[str, dict[str, Saga]] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)
    publications: dict[str, Publication] = field(default_factory=dict)
    """Lifecycle events to publish, by message id, in order."""
    dead_letters: list[NewDeadLetter] = field(default_factory=list)
    read_back: list[tuple[str, str]] = field(default_factory=list)
    """Lifecycle events found in the stream: key and message id."""


class CorrelatorBatchHandler:
    """The correlator's `farandole.worker.BatchHandler`."""

    def __init__(
        self,
        *,
        store: CorrelatorStore,
        registry: Registry,
        definitions: Definitions,
        changes: SagaChanges,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._registry = registry
        self._definitions = definitions
        self._changes = changes
        self._clock = clock
        self.first_heard = FirstHeard()
        self.problem: str | None = None
        self._claim: Claim | None = None
        self._cache: OrderedDict[str, dict[str, Saga]] = OrderedDict()

    async def claim(self, incarnation: str) -> Position:
        """See `BatchHandler.claim`."""
        self._cache.clear()
        self._claim = await self._store.claim(incarnation, held=self._claim)
        return Position(self._claim.position, self._claim.incarnation)

    async def hear(self, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        """See `BatchHandler.hear`."""
        async for _ in pages:
            pass
        return Handled()

    async def waiting(self) -> Sequence[OutboxRow]:
        """See `BatchHandler.waiting`."""
        return await self._store.waiting_publications()

    async def remove(self, published: Collection[int]) -> None:
        """See `BatchHandler.remove`."""
        await self._store.remove_publications(published)

    def due_in(self) -> float | None:
        """See `BatchHandler.due_in`."""
        return None

    async def due(self) -> Handled:
        """See `BatchHandler.due`."""
        return Handled()

    async def handle(self, messages: Sequence[StoredMessage], published: Collection[int]) -> Handled:
        """See `BatchHandler.handle`."""
        assert self._claim is not None, "claim() comes first"
        decoded = [decode(self._registry, message) for message in messages]
        records = await self._load({event.key for event in decoded if isinstance(event, Event)})
        folding = _Folding(records={key: dict(sagas) for key, sagas in records.items()})
        for event in decoded:
            if isinstance(event, Unreadable):
                self._give_up(folding, event)
            else:
                self._fold(folding, event)
        committed = await self._store.commit(
            self._claim,
            FoldedBatch(
                position=messages[-1].sequence,
                changes=[
                    SagaChange(before, folding.records[key][definition])
                    for (definition, key), before in folding.before.items()
                ],
                payloads=folding.payloads,
                publications=tuple(folding.publications.values()),
                dead_letters=folding.dead_letters,
                acknowledged=published,
            ),
        )
        self._claim = committed.claim
        self._remember(folding.records)
        self._changes.changed({key for _, key in folding.before})
        return Handled(committed.publications, folding.read_back)

    async def _load(self, keys: set[str]) -> dict[str, dict[str, Saga]]:
        missing = {key for key in keys if key not in self._cache}
        loaded = await self._store.load(missing) if missing else {}
        found = {key: {saga.definition: saga for saga in sagas} for key, sagas in loaded.items()}
        return {key: self._cache[key] if key in self._cache else found[key] for key in keys}

    def _remember(self, records: Mapping[str, dict[str, Saga]]) -> None:
        for key, sagas in records.items():
            self._cache[key] = sagas
            self._cache.move_to_end(key)
        while len(self._cache) > _CACHED_KEYS:
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
        folding.dead_letters.append(NewDeadLetter(dead_letter, dead_letter_publication(dead_letter, unreadable)))

    def _fold(self, folding: _Folding, event: Event) -> None:
        records = folding.records[event.key]
        changed = fold(self._definitions, records, event)
        if not changed:
            _log.info("unmatched event", saga_id=event.key, event_id=event.id, type=event.type)
        for name, after in changed.items():
            before = records.get(name)
            if after is before:
                continue
            folding.before.setdefault((name, event.key), before)
            records[name] = after
            for publication in self._called_for(before, after, event):
                folding.publications[publication.headers["Nats-Msg-Id"]] = publication
        if changed:
            redacted = event.event_type.redactor.redact(event.body)
            folding.payloads[event.sequence] = redacted.SerializeToString(deterministic=True)
        if event.fact.lifecycle is not None:
            identity = message_id(event.source, event.id)
            folding.publications.pop(identity, None)
            folding.read_back.append((event.key, identity))

    def _called_for(self, before: Saga | None, after: Saga, cause: Event) -> Iterator[Publication]:
        """The lifecycle events that the record calls for now and did not before."""
        definition = self._definitions.of(after)
        already = {p.id for p in pending_lifecycle(definition, before)} if before is not None else set()
        for pending in pending_lifecycle(definition, after):
            if pending.id not in already:
                event_type = self._registry.types[pending.type]
                yield encode(
                    event_type,
                    _lifecycle_message(pending),
                    source=CORRELATOR,
                    event_id=pending.id,
                    time=self._clock(),
                    causation_id=pending.causation_id,
                    traceparent=cause.traceparent,
                )


def _lifecycle_message(pending: PendingLifecycle) -> Message:
    return _MESSAGES[pending.type](
        saga_id=pending.key,
        definition=pending.definition,
        version=pending.version,
        cause=pending.cause.value,  # type: ignore[arg-type]  # the numbers are the same, see farandole.saga
    )


_MESSAGES = {
    message_class.DESCRIPTOR.full_name: message_class
    for message_class in (lifecycle_pb2.SagaCompleted, lifecycle_pb2.SagaCompensated, lifecycle_pb2.SagaFailed)
}
