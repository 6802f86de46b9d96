"""Comparing two sets of records, and saying how they differ in words for people. Pure.

How a *record* stands is one thing: it follows from the stream. How its events were *read* is another: what an event
said, and the digest of that, depend on the descriptor set with which it was read, and newer ones may read more.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import TypeAlias, TypeVar

from farandole.correlator.contents import Item, PartitionPosition
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.envelope import Publication
from farandole.lifecycle import CORRELATOR
from farandole.saga import HistoryEntry, Saga, StepRecord

MOST_DETAILED = 1000
"""So many differing records are told in detail; all are counted."""

NOTHING = "-"
"""What stands for a record, a step or an event that is not there."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same."""

    what: str
    """`status`, `step ship-order: deadline`, `event 37: disposition`."""
    live: str
    replayed: str
    is_reading: bool = False
    """Whether only what was read of an event differs, and nothing that follows from it."""


@dataclass(frozen=True, slots=True)
class Differing:
    """A saga, a dead letter or a definition that is not the same."""

    name: str
    """`order-fulfilment ord-1`, `dead letter payments-37`, `definition order-fulfilment v1`."""
    differences: tuple[Difference, ...]

    @property
    def is_reading(self) -> bool:
        """Whether only what was read of events differs."""
        return all(difference.is_reading for difference in self.differences)


@dataclass(slots=True)
class Comparison:
    """What came of comparing two sets of records."""

    sagas: int = 0
    """Sagas, with those of which the initiating event has not come."""
    events: int = 0
    """Entries of their histories."""
    dead_letters: int = 0
    differing_records: int = 0
    """How many differ in how they stand."""
    differing_readings: int = 0
    """How many differ in nothing but what was read of their events."""
    detailed: list[Differing] = field(default_factory=list)

    @property
    def are_identical(self) -> bool:
        """Whether nothing differs at all."""
        return not self.differing_records and not self.differing_readings

    def add(self, differing: Differing) -> None:
        """Counts one that differs."""
        if differing.is_reading:
            self.differing_readings += 1
        else:
            self.differing_records += 1
        if len(self.detailed) < MOST_DETAILED:
            self.detailed.append(differing)


@dataclass(slots=True)
class Unchanged:
    """What came of comparing live records with how they stood at an earlier place."""

    comparison: Comparison = field(default_factory=Comparison)
    """Of the sagas that have not changed since."""
    changed: int = 0
    """Sagas of which one side has events that the other one has not got to."""


def compare(live: Iterable[Item], replayed: Iterable[Item]) -> Comparison:
    """Compares what two stores hold, as they export it: sagas, dead letters, and definitions that both have.

    Positions and outboxes are not compared: they tell when something was done, and not what came of the stream.
    Memory grows with the number of dead letters, and not with that of sagas.
    """
    comparison = Comparison()
    ours, theirs = _Kinds(live), _Kinds(replayed)
    definitions = {(one.name, one.version): one.digest for one in theirs.of(StoredDefinition)}
    for mine in ours.of(StoredDefinition):
        digest = definitions.get((mine.name, mine.version), mine.digest)
        if digest != mine.digest:
            difference = Difference("content", mine.digest[:12], digest[:12])
            comparison.add(Differing(f"definition {mine.name} v{mine.version}", (difference,)))
    for first, second in _side_by_side(ours.of(RecordedSaga), theirs.of(RecordedSaga)):
        _add_saga(comparison, first, second)
    letters = {one.id: one for one in theirs.of(DeadLetter)}
    for letter in ours.of(DeadLetter):
        comparison.dead_letters += 1
        if found := _dead_letter_differences(letter, letters.pop(letter.id, None)):
            comparison.add(Differing(f"dead letter {letter.id}", found))
    for letter in letters.values():
        comparison.add(Differing(f"dead letter {letter.id}", _dead_letter_differences(None, letter)))
    return comparison


def compare_unchanged(
    live: Iterable[Item], replayed: Iterable[Item], *, is_of_both: Callable[[Saga], bool]
) -> Unchanged:
    """Compares two stores of which one is as of an earlier place: the sagas that have not changed in between.

    `is_of_both` says of a record whether both stores have got as far as its last event. Where one has a record that the
    other can't have yet, the saga has changed, and nothing of it is compared.
    """
    unchanged = Unchanged()
    for first, second in _side_by_side(_Kinds(live).of(RecordedSaga), _Kinds(replayed).of(RecordedSaga)):
        if all(one is None or is_of_both(one.saga) for one in (first, second)):
            _add_saga(unchanged.comparison, first, second)
        else:
            unchanged.changed += 1
    return unchanged


def _add_saga(comparison: Comparison, first: RecordedSaga | None, second: RecordedSaga | None) -> None:
    saga = (first or second).saga  # type: ignore[union-attr]  # one of the two is there
    comparison.sagas += 1
    comparison.events += len(saga.history)
    if found := saga_differences(first, second):
        comparison.add(Differing(f"{saga.definition} {saga.key}", found))


def saga_differences(live: RecordedSaga | None, replayed: RecordedSaga | None) -> tuple[Difference, ...]:
    """How two records of one saga differ; None stands for one that is not there."""
    if live == replayed:
        return ()
    if live is None or replayed is None:
        return (Difference("saga", _standing(live), _standing(replayed)),)
    found = [*record_differences(live.saga, replayed.saga), *_reading_differences(live, replayed)]
    return tuple(found)


def record_differences(live: Saga, replayed: Saga) -> Iterator[Difference]:
    """How two records differ in how they stand."""
    for name in _RECORD_FIELDS:
        yield from _difference(name, getattr(live, name), getattr(replayed, name))
    yield from _step_differences(live, replayed)
    yield from _history_differences(live, replayed)


def standing(saga: Saga) -> str:
    """A record in a few words: `RUNNING, 3 events`."""
    return f"{saga.status.name if saga.is_started else 'not started'}, {saga.revision} events"


def _standing(recorded: RecordedSaga | None) -> str:
    return NOTHING if recorded is None else standing(recorded.saga)


_RECORD_FIELDS = tuple(one.name for one in fields(Saga) if one.name not in {"definition", "key", "steps", "history"})
_FACT_FIELDS = ("stream_time", "type", "source", "id", "time", "causation_id", "reason", "lifecycle")
_READ_OF_DEAD_LETTERS = frozenset({"detail", "payload", "body_prefix"})
"""Of the correlator's own dead letters: what depends on the descriptor set."""

_Entries: TypeAlias = dict[int, HistoryEntry]


def _step_differences(live: Saga, replayed: Saga) -> Iterator[Difference]:
    theirs = {step.name: step for step in replayed.steps}
    for step in live.steps:
        other = theirs.pop(step.name, None)
        if other is None:
            yield Difference(f"step {step.name}", step.status.name, NOTHING)
            continue
        for name in ("status", "deadline", "start_time", "end_time"):
            yield from _difference(f"step {step.name}: {name}", getattr(step, name), getattr(other, name))
    yield from (Difference(f"step {name}", NOTHING, other.status.name) for name, other in theirs.items())
    if [step.name for step in live.steps] != [step.name for step in replayed.steps] and _same_steps(live, replayed):
        yield Difference("order of steps", _names(live.steps), _names(replayed.steps))


def _same_steps(live: Saga, replayed: Saga) -> bool:
    return {step.name for step in live.steps} == {step.name for step in replayed.steps}


def _names(steps: Iterable[StepRecord]) -> str:
    return ", ".join(step.name for step in steps)


def _history_differences(live: Saga, replayed: Saga) -> Iterator[Difference]:
    ours, theirs = _entries(live), _entries(replayed)
    for sequence in sorted(ours.keys() | theirs.keys()):
        first, second = ours.get(sequence), theirs.get(sequence)
        if first is None or second is None:
            yield Difference(f"event {sequence}", _told(first), _told(second))
            continue
        yield from _difference(f"event {sequence}: disposition", first.disposition, second.disposition)
        yield from _difference(f"event {sequence}: why", first.reason, second.reason)
        for name in _FACT_FIELDS:
            yield from _difference(f"event {sequence}: {name}", getattr(first.fact, name), getattr(second.fact, name))


def _reading_differences(live: RecordedSaga, replayed: RecordedSaga) -> Iterator[Difference]:
    theirs = _entries(replayed.saga)
    for entry in live.saga.history:
        sequence = entry.fact.sequence
        other = theirs.get(sequence)
        if other is None:
            continue
        payloads = (live.payloads.get(sequence), replayed.payloads.get(sequence))
        if (entry.fact.digest, payloads[0]) != (other.fact.digest, payloads[1]):
            first, second = (_said(entry, payloads[0]), _said(other, payloads[1]))
            yield Difference(f"event {sequence}: what it says", first, second, is_reading=True)


def _said(entry: HistoryEntry, payload: bytes | None) -> str:
    size = "not kept" if payload is None else f"{len(payload)} bytes"
    return f"{size}, digest {entry.fact.digest.hex()[:12]}"


def _dead_letter_differences(live: DeadLetter | None, replayed: DeadLetter | None) -> tuple[Difference, ...]:
    if live is None or replayed is None:
        return (Difference("dead letter", _decided(live), _decided(replayed)),)
    own = _READ_OF_DEAD_LETTERS if live.participant == CORRELATOR else frozenset[str]()
    return tuple(
        replace(difference, is_reading=one.name in own)
        for one in fields(DeadLetter)
        for difference in _difference(one.name, getattr(live, one.name), getattr(replayed, one.name))
    )


def _decided(letter: DeadLetter | None) -> str:
    return NOTHING if letter is None else f"{letter.state.name}, {letter.reason.name}"


def _entries(saga: Saga) -> _Entries:
    return {entry.fact.sequence: entry for entry in saga.history}


def _told(entry: HistoryEntry | None) -> str:
    return NOTHING if entry is None else f"{entry.fact.type}, {entry.disposition.name}"


def _difference(what: str, live: object, replayed: object) -> Iterator[Difference]:
    if live != replayed:
        yield Difference(what, _text(live), _text(replayed))


def _text(value: object) -> str:
    match value:
        case None | "":
            return NOTHING
        case enum.Enum():
            return value.name
        case datetime():
            return value.isoformat(sep=" ", timespec="microseconds")
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return str(value)


def _side_by_side(
    live: Iterator[RecordedSaga], replayed: Iterator[RecordedSaga]
) -> Iterator[tuple[RecordedSaga | None, RecordedSaga | None]]:
    """The records of the same saga together; both come by key and definition."""
    first, second = next(live, None), next(replayed, None)
    while first is not None or second is not None:
        ours, theirs = _place(first), _place(second)
        yield (first if ours <= theirs else None), (second if theirs <= ours else None)
        if ours <= theirs:
            first = next(live, None)
        if theirs <= ours:
            second = next(replayed, None)


def _place(recorded: RecordedSaga | None) -> tuple[bool, str, str]:
    """What comes first; the end comes last."""
    return (True, "", "") if recorded is None else (False, recorded.saga.key, recorded.saga.definition)


_ORDER: tuple[type[Item], ...] = (PartitionPosition, StoredDefinition, RecordedSaga, DeadLetter, Publication)
_Kind = TypeVar("_Kind", StoredDefinition, RecordedSaga, DeadLetter)


class _Kinds:
    """What a store exports, kind by kind: they come in a fixed order, and are asked for in that order."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    def of(self, kind: type[_Kind]) -> Iterator[_Kind]:
        """Those of a kind; what comes before them is passed over."""
        while self._next is not None and _ORDER.index(type(self._next)) <= _ORDER.index(kind):
            item, self._next = self._next, next(self._items, None)
            if isinstance(item, kind):
                yield item
