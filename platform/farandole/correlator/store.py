"""The correlator's store: records, history, dead letters, outbox and stream position, committed together.

The port, its values, and the rules that every implementation keeps. `farandole.testing.CorrelatorStoreConformance`
checks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from farandole.correlator.contents import Item, Take
from farandole.correlator.dead_letters import ClosedDeadLetter, DeadLetter, DeadLetterState
from farandole.correlator.queries import CorrelatorQueries, DueSaga, StoredDefinition
from farandole.definition import Definition
from farandole.envelope import Publication
from farandole.errors import DefinitionError, Fault, FencedError, StreamIncarnationError
from farandole.leases import Leases
from farandole.lifecycle import CORRELATOR
from farandole.outbox import OutboxRow
from farandole.partitions import PARTITIONS
from farandole.saga import HistoryEntry, Saga

ALL_PARTITIONS = frozenset(range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to commit for some partitions, and how far they have been folded. Only a store makes one."""

    incarnation: str
    """The stream that the position points into; see `StreamState.incarnation`."""
    epoch: int
    position: int
    """Stream sequence up to which all of the partitions have been folded; 0 before the first event. Reading goes on
    after it."""
    partitions: frozenset[int] = ALL_PARTITIONS
    time: datetime | None = None
    """When the stream stored the event at the position, where that is known."""
    taken_in: Mapping[int, int] = field(default_factory=dict)
    """By partition that is further than the position: the sequence up to which it has been folded. What is read again
    up to there is passed over."""

    def position_of(self, partition: int) -> int:
        """The sequence up to which one of the partitions has been folded."""
        return self.taken_in.get(partition, self.position)


@dataclass(frozen=True, slots=True)
class SagaChange:
    """One saga's record before and after a batch."""

    before: Saga | None
    """As `load` gave it; None for a record that did not exist."""
    after: Saga


@dataclass(frozen=True, slots=True)
class NewDeadLetter:
    """A dead letter, and what is to be told of it: the copy for the stream `DEADLETTERS`, and an event."""

    dead_letter: DeadLetter
    publications: Sequence[Publication] = ()
    """Empty where a participant gave up: it has told of it itself."""


@dataclass(frozen=True, slots=True)
class FoldedBatch:
    """What came of a batch of events, to be committed as one."""

    position: int
    """Stream sequence of the batch's last event; that of the claim where the batch only cleans up. A partition that is
    further stays where it is."""
    changes: Sequence[SagaChange] = ()
    """At most one for each (definition, key)."""
    payloads: Mapping[int, bytes] = field(default_factory=dict)
    """By stream sequence: the redacted, serialized message of each event that is new in a history."""
    publications: Sequence[Publication] = ()
    """Lifecycle events to publish, in order."""
    dead_letters: Sequence[NewDeadLetter] = ()
    """Those that were recorded."""
    closed_dead_letters: Sequence[ClosedDeadLetter] = ()
    acknowledged: Collection[int] = ()
    """Ids of outbox rows that the broker has acknowledged."""
    time: datetime | None = None
    """When the stream stored the event at the position; None, which keeps what is known, where it only cleans up."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit made."""

    claim: Claim
    """For the next commit."""
    publications: tuple[OutboxRow, ...]
    """The rows to publish: those of `FoldedBatch.publications`, then those of the dead letters that are new or open
    again."""


class CorrelatorStore(CorrelatorQueries, Protocol):
    """Where a correlator keeps what it knows, or all replicas of one.

    One owner at a time writes a partition. `claim` makes its caller the owner; whoever claimed before can't commit
    any more. `load`, fold, `commit`, one after the other: the store never merges.

    Every method raises `StoreUnavailableError` where the store can't be used now. After that from `commit` it is not
    known whether it took place: claim again, which tells the position. Cancelling a task that waits for a write does
    not take the write back.
    """

    @property
    def leases(self) -> Leases:
        """Where the correlators on this store share out their lanes."""
        ...

    async def open(self, *, to_read: bool = False) -> None:
        """Makes the tables that do not exist yet. Comes before everything else; again does nothing.

        `to_read` is for who looks at a store beside the correlator that works on it, as `farandole replay` and `prune`:
        nothing is made or changed. Raises `StoreError` where what is there is of another version than it reads.
        """
        ...

    async def close(self) -> None:
        """Waits for what runs and lets go of everything; the store is not used after it."""
        ...

    async def check(self) -> None:
        """Raises `StoreUnavailableError` where the store can't be written."""
        ...

    async def claim(
        self, incarnation: str, partitions: Iterable[int] = ALL_PARTITIONS, *, held: Claim | None = None
    ) -> Claim:
        """Takes partitions over, in one transaction: raises their epoch above every epoch that any of them had.

        Each keeps its own position. The claim's is the lowest of them, 0 where one is new, and `Claim.taken_in` tells
        which are further: their events between are read again, and are not to be folded again. Raises
        `StreamIncarnationError`, and changes nothing, where a stored position belongs to another incarnation of the
        stream.

        `held` is the caller's own last claim: raises `FencedError`, and changes nothing, where another owner has
        claimed any of its partitions since. Who has never claimed takes over from anyone.
        """
        ...

    async def load(self, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
        """Every record under each key, with complete history, by definition; also of sagas that have not started.

        Each key asked for is in the answer.
        """
        ...

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        """Writes a batch in one transaction: all of it or nothing.

        - Fencing: the stored epoch and position of every partition of the claim must be those of the claim. Raises
          `FencedError` otherwise. Each partition goes to the batch's position, unless it is further.
          `Committed.claim` replaces the claim.
        - Records: `after` replaces `before`. Raises `StoreError` where `before` is not what is stored (its revision
          tells), or where it is None and there is a record. History entries are compared: only those that are new,
          changed or gone are written, and a changed one keeps its payload. The version may change too.
        - Dead letters, named by (participant, sequence): what the batch records and closes is taken in the order of
          `state_sequence`, and passed over where the stored one's is as high already, so that reading events again
          changes nothing. Recording one that is open leaves it as it is and does not publish it again; one that is
          closed opens again, as it is recorded now, and keeps its place in lists; but not one of a participant
          without a saga that has been tried no more often than before. Closing one that is closed, or that is not
          there, does nothing.
        - Outbox: rows get rising ids; acknowledged ones go, and unknown ids are passed over.

        Raises `ValueError` where the batch's position is before that of the claim.
        """
        ...

    async def waiting_publications(self, partitions: Collection[int] = ALL_PARTITIONS) -> tuple[OutboxRow, ...]:
        """Every outbox row of some partitions that has not been acknowledged, in the order in which they were written.

        A row belongs to the partition of its key; that of a dead letter to the partition of the event.
        """
        ...

    async def remove_publications(self, ids: Collection[int]) -> None:
        """Removes outbox rows that the broker has acknowledged; passes over unknown ids."""
        ...

    async def activate(self, definitions: Collection[Definition], *, replica: str) -> bool:
        """Makes these the definitions under which new sagas start, in one transaction; all others become inactive.
        Returns whether they are.

        `replica` is the process that starts with them. Where it started with the same before and has not left since
        (`leave`), it only comes back, as after a crash: nothing is changed, since another replica may have been started
        with newer ones meanwhile. Of a replica that does not live, by `leases`, that is forgotten once the definitions
        have changed twice since: one under a new name each time would else never be.

        A (name, version) that is stored with another digest is replaced where no record keeps it, and no other replica
        lives that may start a saga under it. Otherwise raises `DefinitionError` that lists every such definition, and
        changes nothing.
        """
        ...

    async def leave(self, replica: str) -> None:
        """Forgets which definitions a replica started with: it ends in order, and starts anew next time."""
        ...

    async def remember(self, definitions: Collection[Definition]) -> None:
        """Stores the versions that are missing, inactive, in one transaction. One that is there stays as it is."""
        ...

    async def due(self, until: datetime, limit: int, partition: int) -> tuple[DueSaga, ...]:
        """Sagas of a partition whose next deadline (see `farandole.deadlines`) is by `until`, the earliest first."""
        ...

    async def next_deadlines(self, partitions: Collection[int] = ALL_PARTITIONS) -> Mapping[int, datetime]:
        """The earliest next deadline of each of some partitions, of those that have any. Cheap, however many sagas
        there are."""
        ...

    async def positions(self) -> Mapping[int, int]:
        """How far each partition has been folded; empty for a store that nobody has claimed yet."""
        ...

    async def export(self, take: Take) -> None:
        """Gives all that the store holds to `take`, from one consistent view; other commits go on meanwhile.

        In this order: positions, by partition; definitions; sagas, by key and definition as bytes compare; dead
        letters, in the order in which they were recorded; what waits in the outbox, in order. `take` may run in
        another thread, and never twice at once. Memory does not grow with the number of sagas.

        `farandole replay` and `prune` call it in a process of their own, beside the correlator that writes. Raises
        `StoreError` that says so where a store can't be read in that way.
        """
        ...

    async def restore(self, contents: Callable[[], Iterable[Item]]) -> bool:
        """Fills a store that has no position yet, in one transaction; returns whether it did.

        A store with a position is left as it is. `contents` gives what `export` gave, in that order, and may be called
        again. Which definitions are active is the store's own. Raises `DefinitionError`, with nothing written, where a
        saga keeps a version of which the store has another content; and what reading the contents raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class HistoryChange:
    """What to write so that one history becomes another."""

    added: tuple[HistoryEntry, ...]
    changed: tuple[HistoryEntry, ...]
    removed: tuple[int, ...]
    """Stream sequences."""


def history_change(before: Saga | None, after: Saga) -> HistoryChange:
    """The difference of two histories of one saga."""
    if before is None:
        return HistoryChange(after.history, (), ())
    old = {entry.fact.sequence: entry for entry in before.history}
    added: list[HistoryEntry] = []
    changed: list[HistoryEntry] = []
    for entry in after.history:
        was = old.pop(entry.fact.sequence, None)
        if was is None:
            added.append(entry)
        elif was is not entry and was != entry:
            changed.append(entry)
    return HistoryChange(tuple(added), tuple(changed), tuple(old))


@dataclass(frozen=True, slots=True)
class DeadLetterChange:
    """What to write of a batch's dead letters."""

    added: tuple[DeadLetter, ...]
    changed: tuple[DeadLetter, ...]
    publications: tuple[Publication, ...]


def dead_letter_change(stored: Mapping[tuple[str, int], DeadLetter], batch: FoldedBatch) -> DeadLetterChange:
    """What a batch makes of dead letters, by the rules of `CorrelatorStore.commit`.

    `stored` has, by (participant, sequence), those of them that are there already.
    """
    if not batch.dead_letters and not batch.closed_dead_letters:
        return DeadLetterChange((), (), ())
    after = dict(stored)
    publications: list[Publication] = []
    steps: list[NewDeadLetter | ClosedDeadLetter] = [*batch.dead_letters, *batch.closed_dead_letters]
    for step in sorted(steps, key=_state_sequence):
        told = step.dead_letter if isinstance(step, NewDeadLetter) else step
        identity = (told.participant, told.sequence)
        known = after.get(identity)
        if known is not None and told.state_sequence <= known.state_sequence:
            continue
        is_open = known is not None and known.state is DeadLetterState.OPEN
        match step:
            case NewDeadLetter(dead_letter) if not is_open and not _is_old(dead_letter, known):
                after[identity] = dead_letter
                publications += step.publications
            case ClosedDeadLetter() if known is not None and is_open:
                if (known.definition, known.step) != (step.definition, step.step):
                    continue
                after[identity] = replace(
                    known,
                    state=step.state,
                    state_sequence=step.state_sequence,
                    close_time=step.time,
                    close_actor=step.actor,
                    close_reason=step.reason,
                )
    return DeadLetterChange(
        added=tuple(one for identity, one in after.items() if identity not in stored),
        changed=tuple(one for identity, one in after.items() if identity in stored and one is not stored[identity]),
        publications=tuple(publications),
    )


def _is_old(told: DeadLetter, known: DeadLetter | None) -> bool:
    """Whether what a participant tells is what it told before the dead letter was closed.

    Where the saga is known its history tells that; else the attempts do, which count on over redrives.
    """
    return known is not None and not known.key and known.participant != CORRELATOR and told.attempts <= known.attempts


def _state_sequence(step: NewDeadLetter | ClosedDeadLetter) -> int:
    return step.dead_letter.state_sequence if isinstance(step, NewDeadLetter) else step.state_sequence


def without_history(saga: Saga) -> Saga:
    """The record as lists show it."""
    return replace(saga, history=())


def refuse_other_incarnation(stored: str, current: str) -> StreamIncarnationError:
    """The error for a stream that is not the one into which the stored positions point."""
    return StreamIncarnationError(
        f"the stored positions belong to the stream EVENTS that was made at {stored}, and the broker has one that was "
        f"made at {current}: restore the stream from its backup; or start the correlator with an empty database, which "
        "folds the present stream from its beginning"
    )


def digest_of(definitions: Iterable[Definition | StoredDefinition]) -> str:
    """Tells two sets of definitions apart."""
    each = sorted(f"{definition.name} {definition.version} {definition.digest}" for definition in definitions)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def changed_definitions(definitions: Iterable[Definition], stored: Iterable[StoredDefinition]) -> list[tuple[str, int]]:
    """The names and versions under which another content is stored."""
    digests = {(old.name, old.version): old.digest for old in stored}
    names = [(new.name, new.version, new.digest) for new in definitions]
    return [(name, version) for name, version, digest in names if digests.get((name, version), digest) != digest]


def refuse_changed_definitions(
    changed: Sequence[tuple[str, int]], *, kept: Collection[tuple[str, int]], is_alone: bool
) -> None:
    """Raises `DefinitionError` where definitions must not have another content than what is stored.

    `changed` are those that have it, by name and version; `kept` those of them that records keep; `is_alone` tells that
    no other replica lives that could start sagas under them.
    """
    refused = [one for one in changed if one in kept or not is_alone]
    if refused:
        raise DefinitionError(
            [
                Fault(
                    f"saga definition {name} version {version}",
                    f"has another content than the version {version} that "
                    + ("sagas keep" if (name, version) in kept else "another replica of the correlator runs with")
                    + f"; raise the version to {version + 1}",
                )
                for name, version in refused
            ]
        )


def outdated_starts(started: Mapping[str, str], *, active: str, activated: str, living: Collection[str]) -> list[str]:
    """The replicas of which it need not be known any more with which definitions they started: they do not live, and
    that is earlier than the change from the `active` ones to those that are `activated`. All but names are digests."""
    if active == activated:
        return []
    return [replica for replica, of in started.items() if of not in (active, activated) and replica not in living]


def refuse_other_content(
    stored: Mapping[tuple[str, int], StoredDefinition], items: Iterable[Item], kept: Collection[tuple[str, int]]
) -> None:
    """Raises `DefinitionError` where the store has another content of a definition that is to be restored and kept."""
    changed = [
        (item.name, item.version)
        for item in items
        if isinstance(item, StoredDefinition)
        and (item.name, item.version) in kept
        and (old := stored.get((item.name, item.version))) is not None
        and old.digest != item.digest
    ]
    refuse_changed_definitions(changed, kept=changed, is_alone=True)


def refuse_outdated(held: Claim | None, epochs: Mapping[int, int]) -> None:
    """Raises `FencedError` where a partition's epoch, as stored, is not the one under which it is held."""
    if held is not None and any(epochs.get(partition) != held.epoch for partition in held.partitions):
        raise FencedError("another correlator has claimed these partitions")


def taken_in_beyond(lowest: int, positions: Mapping[int, int]) -> dict[int, int]:
    """`Claim.taken_in`, of the positions by partition."""
    return {partition: position for partition, position in positions.items() if position > lowest}


def claim_after(claim: Claim, batch: FoldedBatch) -> Claim:
    """The claim once a batch is committed."""
    time = claim.time if batch.position == claim.position else batch.time
    ahead = taken_in_beyond(batch.position, claim.taken_in)
    return replace(claim, position=batch.position, time=time, taken_in=ahead)


def refuse_step_back(claim: Claim, batch: FoldedBatch) -> None:
    """Raises `ValueError` where a batch ends before its claim."""
    if batch.position < claim.position:
        raise ValueError(f"the batch ends at {batch.position}, before the claim's position {claim.position}")
