"""A correlator's store in memory: for tests, and for correlators that need no past."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from farandole.correlator.contents import Item, PartitionPosition, Take
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.filters import Filter, Value, matches
from farandole.correlator.queries import (
    DeadLetterGroup,
    DeadLetterGroupPage,
    DeadLetterGroupQuery,
    DeadLetterPage,
    DeadLetterQuery,
    DueSaga,
    GroupCursor,
    OpenDeadLetters,
    RecordedSaga,
    SagaCount,
    SagaCursor,
    SagaOrder,
    SagaPage,
    SagaQuery,
    StoredDefinition,
)
from farandole.correlator.store import (
    ALL_PARTITIONS,
    Claim,
    Committed,
    FoldedBatch,
    SagaChange,
    changed_definitions,
    claim_after,
    dead_letter_change,
    digest_of,
    history_change,
    outdated_starts,
    refuse_changed_definitions,
    refuse_other_content,
    refuse_other_incarnation,
    refuse_outdated,
    refuse_step_back,
    taken_in_beyond,
    without_history,
)
from farandole.deadlines import next_deadline
from farandole.definition import Definition
from farandole.envelope import Publication
from farandole.errors import FencedError, StoreError
from farandole.leases import Leases
from farandole.memory_leases import MemoryLeases
from farandole.outbox import OutboxRow
from farandole.partitions import partition_of
from farandole.saga import Saga
from farandole.times import microseconds_of


@dataclass(frozen=True, slots=True)
class _Position:
    epoch: int
    position: int
    incarnation: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    row: int
    recorded: RecordedSaga
    next_deadline: datetime | None


class MemoryCorrelatorStore:
    """Keeps everything in this process, for one event loop. Every method runs without a pause, so it is atomic."""

    def __init__(self) -> None:
        self._leases = MemoryLeases(time.monotonic)
        self._positions: dict[int, _Position] = {}
        self._records: dict[tuple[str, str], _Record] = {}
        """By (key, definition)."""
        self._rows = 0
        self._outbox: dict[int, Publication] = {}
        self._published = 0
        self._dead_letters: dict[tuple[str, int], DeadLetter] = {}
        """By (participant, sequence), in the order in which they were recorded."""
        self._definitions: dict[tuple[str, int], StoredDefinition] = {}
        self._started: dict[str, str] = {}
        """By replica: the digest of the definitions with which it started."""

    @property
    def leases(self) -> Leases:
        """See `CorrelatorStore.leases`."""
        return self._leases

    async def open(self, *, to_read: bool = False) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def check(self) -> None:
        """Always passes."""

    async def claim(
        self, incarnation: str, partitions: Iterable[int] = ALL_PARTITIONS, *, held: Claim | None = None
    ) -> Claim:
        """See `CorrelatorStore.claim`."""
        owned = frozenset(partitions)
        refuse_outdated(held, {partition: position.epoch for partition, position in self._positions.items()})
        new = _Position(0, 0, incarnation)
        stored = {partition: self._positions.get(partition, new) for partition in owned}
        for at in stored.values():
            if at.incarnation != incarnation:
                raise refuse_other_incarnation(at.incarnation, incarnation)
        lowest = min(stored.values(), key=lambda at: at.position, default=new)
        epoch = 1 + max((at.epoch for at in stored.values()), default=0)
        self._positions |= {partition: replace(at, epoch=epoch) for partition, at in stored.items()}
        return Claim(
            incarnation=incarnation,
            epoch=epoch,
            position=lowest.position,
            time=lowest.time,
            partitions=owned,
            taken_in=taken_in_beyond(lowest.position, {partition: at.position for partition, at in stored.items()}),
        )

    async def load(self, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
        """See `CorrelatorStore.load`."""
        found: dict[str, list[Saga]] = {key: [] for key in keys}
        for (key, _), record in sorted(self._records.items()) if found else ():
            if key in found:
                found[key].append(record.recorded.saga)
        return {key: tuple(sagas) for key, sagas in found.items()}

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        """See `CorrelatorStore.commit`."""
        refuse_step_back(claim, batch)
        for partition in claim.partitions:
            at = self._positions.get(partition)
            if at is None or (at.epoch, at.position) != (claim.epoch, claim.position_of(partition)):
                raise FencedError("another correlator has claimed these partitions")
        for change in batch.changes:
            self._refuse_stale(change)
        after = claim_after(claim, batch)
        moved = _Position(claim.epoch, after.position, claim.incarnation, after.time)
        self._positions |= dict.fromkeys(claim.partitions - after.taken_in.keys(), moved)
        for change in batch.changes:
            self._record(change, batch.payloads)
        letters = dead_letter_change(self._dead_letters, batch)
        self._dead_letters |= {(one.participant, one.sequence): one for one in (*letters.changed, *letters.added)}
        publications = (*batch.publications, *letters.publications)
        await self.remove_publications(batch.acknowledged)
        rows = tuple(self._enqueue(publication) for publication in publications)
        return Committed(after, rows)

    async def waiting_publications(self, partitions: Collection[int] = ALL_PARTITIONS) -> tuple[OutboxRow, ...]:
        """See `CorrelatorStore.waiting_publications`."""
        return tuple(
            OutboxRow(row, publication)
            for row, publication in self._outbox.items()
            if partition_of(publication.key) in partitions
        )

    async def remove_publications(self, ids: Collection[int]) -> None:
        """See `CorrelatorStore.remove_publications`."""
        for row in ids:
            self._outbox.pop(row, None)

    async def activate(self, definitions: Collection[Definition], *, replica: str) -> bool:
        """See `CorrelatorStore.activate`."""
        digest = digest_of(definitions)
        active = digest_of(one for one in self._definitions.values() if one.is_active)
        if self._started.get(replica) == digest:
            return digest == active
        living = self._leases.living()
        refuse_changed_definitions(
            changed_definitions(definitions, self._definitions.values()),
            kept={(record.recorded.saga.definition, record.recorded.saga.version) for record in self._records.values()},
            is_alone=living <= {replica},
        )
        for outdated in outdated_starts(self._started, active=active, activated=digest, living=living):
            del self._started[outdated]
        self._definitions = {
            identity: replace(definition, is_active=False) for identity, definition in self._definitions.items()
        } | {(new.name, new.version): StoredDefinition.of(new) for new in definitions}
        self._started[replica] = digest
        return True

    async def leave(self, replica: str) -> None:
        """See `CorrelatorStore.leave`."""
        self._started.pop(replica, None)

    async def remember(self, definitions: Collection[Definition]) -> None:
        """See `CorrelatorStore.remember`."""
        for new in definitions:
            self._definitions.setdefault((new.name, new.version), replace(StoredDefinition.of(new), is_active=False))

    async def due(self, until: datetime, limit: int, partition: int) -> tuple[DueSaga, ...]:
        """See `CorrelatorStore.due`."""
        passed = sorted(
            (record.next_deadline, record.row, name, key)
            for (key, name), record in self._records.items()
            if record.next_deadline is not None and record.next_deadline <= until and partition_of(key) == partition
        )
        return tuple(DueSaga(name, key, deadline) for deadline, _, name, key in passed[:limit])

    async def next_deadlines(self, partitions: Collection[int] = ALL_PARTITIONS) -> dict[int, datetime]:
        """See `CorrelatorStore.next_deadlines`. Looks at every saga."""
        earliest: dict[int, datetime] = {}
        for (key, _), record in self._records.items():
            partition = partition_of(key)
            if record.next_deadline is not None and partition in partitions:
                earliest[partition] = min(earliest.get(partition, record.next_deadline), record.next_deadline)
        return earliest

    async def positions(self) -> dict[int, int]:
        """See `CorrelatorStore.positions`."""
        return {partition: at.position for partition, at in self._positions.items()}

    async def export(self, take: Take) -> None:
        """See `CorrelatorStore.export`."""
        for partition, at in sorted(self._positions.items()):
            take(PartitionPosition(partition, at.position, at.incarnation, at.time))
        for definition in await self.definitions():
            take(definition)
        for _, record in sorted(self._records.items()):
            take(record.recorded)
        for dead_letter in self._dead_letters.values():
            take(dead_letter)
        for publication in self._outbox.values():
            take(publication)

    async def restore(self, contents: Callable[[], Iterable[Item]]) -> bool:
        """See `CorrelatorStore.restore`."""
        if self._positions:
            return False
        items = list(contents())  # what can't be read is found out before anything is written
        kept = {(one.saga.definition, one.saga.version) for one in items if isinstance(one, RecordedSaga)}
        refuse_other_content(self._definitions, items, kept)
        for item in items:
            match item:
                case PartitionPosition():
                    self._positions[item.partition] = _Position(1, item.position, item.incarnation, item.time)
                case StoredDefinition():
                    self._definitions.setdefault((item.name, item.version), replace(item, is_active=False))
                case RecordedSaga():
                    self._record(SagaChange(None, item.saga), item.payloads)
                case DeadLetter():
                    self._dead_letters[item.participant, item.sequence] = item
                case Publication():
                    self._enqueue(item)
        return True

    async def get_sagas(self, key: str, definition: str | None = None) -> tuple[RecordedSaga, ...]:
        """See `CorrelatorQueries.get_sagas`."""
        return tuple(
            record.recorded
            for (saga_key, name), record in sorted(self._records.items())
            if saga_key == key and definition in {None, name}
        )

    async def list_sagas(self, query: SagaQuery) -> SagaPage:
        """See `CorrelatorQueries.list_sagas`."""
        direction = -1 if query.descending else 1
        placed = sorted(
            (direction * place, direction * record.row, record.recorded.saga)
            for record in self._records.values()
            if _is_listed(record.recorded.saga, query.filter)
            for place in (_place(record.recorded.saga, query.order),)
        )
        if query.after is not None:
            after = (direction * query.after.value, direction * query.after.row)
            placed = [place for place in placed if place[:2] > after]
        page = placed[: query.limit]
        more = len(placed) > len(page)
        return SagaPage(
            tuple(without_history(saga) for _, _, saga in page),
            SagaCursor(direction * page[-1][0], direction * page[-1][1]) if more else None,
        )

    async def summarize(self, filter: Filter | None = None) -> tuple[SagaCount, ...]:  # noqa: A002 - the API's word
        """See `CorrelatorQueries.summarize`."""
        counts = Counter(
            (saga.definition, saga.status, saga.health)
            for record in self._records.values()
            if _is_listed(saga := record.recorded.saga, filter)
        )
        return tuple(SagaCount(*alike, count) for alike, count in sorted(counts.items()))

    async def list_dead_letters(self, query: DeadLetterQuery) -> DeadLetterPage:
        """See `CorrelatorQueries.list_dead_letters`."""
        found = [
            (row, dead_letter)
            for row, dead_letter in reversed(list(enumerate(self._dead_letters.values(), start=1)))
            if (query.before is None or row < query.before) and _dead_letter_matches(dead_letter, query.filter)
        ]
        page = found[: query.limit]
        return DeadLetterPage(
            tuple(dead_letter for _, dead_letter in page), page[-1][0] if len(found) > len(page) else None
        )

    async def group_dead_letters(self, query: DeadLetterGroupQuery) -> DeadLetterGroupPage:
        """See `CorrelatorQueries.group_dead_letters`."""
        alike: dict[tuple[Value | None, ...], list[tuple[int, DeadLetter]]] = {}
        for row, dead_letter in enumerate(self._dead_letters.values(), start=1):
            if _dead_letter_matches(dead_letter, query.filter):
                values = tuple(_DEAD_LETTER_VALUES[key](dead_letter) for key in query.keys)
                alike.setdefault(values, []).append((row, dead_letter))
        groups = sorted((_group(query, rows) for rows in alike.values()), key=lambda group: (-group.count, group.row))
        if query.after is not None:
            last = (-query.after.count, query.after.row)
            groups = [group for group in groups if (-group.count, group.row) > last]
        page = groups[: query.limit]
        more = len(groups) > len(page)
        return DeadLetterGroupPage(tuple(page), GroupCursor(page[-1].count, page[-1].row) if more else None)

    async def count_open_dead_letters(self, filter: Filter | None = None) -> OpenDeadLetters:  # noqa: A002
        """See `CorrelatorQueries.count_open_dead_letters`."""
        found = self._open_dead_letters(filter)
        return OpenDeadLetters(
            count=len(found),
            last_row=found[-1][0] if found else 0,
            last_state_sequence=max((dead_letter.state_sequence for _, dead_letter in found), default=0),
        )

    async def open_dead_letters(
        self,
        counted: OpenDeadLetters,
        filter: Filter | None = None,  # noqa: A002 - the API's word
        *,
        after: int = 0,
        limit: int = 500,
    ) -> DeadLetterPage:
        """See `CorrelatorQueries.open_dead_letters`."""
        found = [
            (row, dead_letter)
            for row, dead_letter in self._open_dead_letters(filter)
            if after < row <= counted.last_row and dead_letter.state_sequence <= counted.last_state_sequence
        ]
        page = found[:limit]
        return DeadLetterPage(
            tuple(dead_letter for _, dead_letter in page), page[-1][0] if len(found) > len(page) else None
        )

    async def get_dead_letter(self, participant: str, sequence: int) -> DeadLetter | None:
        """See `CorrelatorQueries.get_dead_letter`."""
        found = self._dead_letters.get((participant, sequence))
        if found is None or found.payload is not None:
            return found
        return replace(found, payload=self._payload(found.key, sequence, found.event_type))

    async def definitions(self) -> tuple[StoredDefinition, ...]:
        """See `CorrelatorQueries.definitions`."""
        return tuple(sorted(self._definitions.values(), key=lambda stored: (stored.name, -stored.version)))

    def _open_dead_letters(self, filter: Filter | None) -> list[tuple[int, DeadLetter]]:  # noqa: A002
        """Those that match, with their row numbers, the one recorded first first."""
        return [
            (row, dead_letter)
            for row, dead_letter in enumerate(self._dead_letters.values(), start=1)
            if dead_letter.state is DeadLetterState.OPEN and _dead_letter_matches(dead_letter, filter)
        ]

    def _refuse_stale(self, change: SagaChange) -> None:
        after = change.after
        stored = self._records.get((after.key, after.definition))
        revision = stored.recorded.saga.revision if stored else None
        expected = change.before.revision if change.before else None
        if revision != expected:
            raise StoreError(
                f"the saga {after.definition} {after.key} is stored with revision {revision}, not {expected}"
            )

    def _record(self, change: SagaChange, payloads: Mapping[int, bytes]) -> None:
        identity = (change.after.key, change.after.definition)
        stored = self._records.get(identity)
        difference = history_change(change.before, change.after)
        kept = dict(stored.recorded.payloads) if stored else {}
        for sequence in difference.removed:
            kept.pop(sequence, None)
        for entry in difference.added:
            if entry.fact.sequence in payloads:
                kept[entry.fact.sequence] = payloads[entry.fact.sequence]
        if stored is None:
            self._rows += 1
        row = stored.row if stored else self._rows
        self._records[identity] = _Record(row, RecordedSaga(change.after, kept), next_deadline(change.after))

    def _payload(self, key: str, sequence: int, type_: str) -> bytes | None:
        """What the sagas under a key keep of one event of a type."""
        return next(
            (
                record.recorded.payloads[sequence]
                for (saga_key, _), record in self._records.items()
                if saga_key == key and sequence in record.recorded.payloads
                for entry in record.recorded.saga.history
                if entry.fact.sequence == sequence and entry.fact.type == type_
            ),
            None,
        )

    def _enqueue(self, publication: Publication) -> OutboxRow:
        self._published += 1
        self._outbox[self._published] = publication
        return OutboxRow(self._published, publication)


_NEVER = datetime.max.replace(tzinfo=UTC)

_ORDER_TIMES: Mapping[SagaOrder, Callable[[Saga], datetime]] = {
    SagaOrder.UPDATE_TIME: lambda saga: saga.update_time,
    SagaOrder.START_TIME: lambda saga: saga.start_time or _NEVER,
    SagaOrder.DEADLINE: lambda saga: saga.deadline or _NEVER,
}

_SAGA_VALUES: Mapping[str, Callable[[Saga], Value | None]] = {
    "saga_id": lambda saga: saga.key,
    "definition": lambda saga: saga.definition,
    "version": lambda saga: saga.version,
    "status": lambda saga: saga.status,
    "health": lambda saga: saga.health,
    "cause": lambda saga: saga.cause,
    "start_time": lambda saga: saga.start_time,
    "update_time": lambda saga: saga.update_time,
    "end_time": lambda saga: saga.end_time,
    "deadline": lambda saga: saga.deadline,
}

_DEAD_LETTER_VALUES: Mapping[str, Callable[[DeadLetter], Value | None]] = {
    "participant": lambda dead_letter: dead_letter.participant,
    "definition": lambda dead_letter: dead_letter.definition or None,
    "step": lambda dead_letter: dead_letter.step or None,
    "event_type": lambda dead_letter: dead_letter.event_type,
    "detail": lambda dead_letter: dead_letter.detail,
    "failure": lambda dead_letter: dead_letter.failure,
    "reason": lambda dead_letter: dead_letter.reason,
    "state": lambda dead_letter: dead_letter.state,
    "saga_id": lambda dead_letter: dead_letter.key or None,
    "sequence": lambda dead_letter: dead_letter.sequence,
    "stream_time": lambda dead_letter: dead_letter.stream_time,
}


def _group(query: DeadLetterGroupQuery, rows: Sequence[tuple[int, DeadLetter]]) -> DeadLetterGroup:
    """The group of the dead letters in `rows`, which have row numbers."""
    first_row, any_one = rows[0]
    times = [dead_letter.stream_time for _, dead_letter in rows]
    return DeadLetterGroup(
        values={field: _DEAD_LETTER_VALUES[field](any_one) for field in dict.fromkeys((*query.fields, *query.keys))},
        count=len(rows),
        open=sum(dead_letter.state is DeadLetterState.OPEN for _, dead_letter in rows),
        first_time=min(times),
        last_time=max(times),
        row=first_row,
    )


def _is_listed(saga: Saga, filter: Filter | None) -> bool:  # noqa: A002 - the API's word
    return saga.is_started and (filter is None or matches(filter, lambda field: _SAGA_VALUES[field](saga)))


def _dead_letter_matches(dead_letter: DeadLetter, filter: Filter | None) -> bool:  # noqa: A002 - the API's word
    return filter is None or matches(filter, lambda field: _DEAD_LETTER_VALUES[field](dead_letter))


def _place(saga: Saga, order: SagaOrder) -> int:
    """A saga's place in an order, in microseconds since 1970 UTC."""
    return microseconds_of(_ORDER_TIMES[order](saga))
