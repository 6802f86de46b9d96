"""Under which saga definition an event is folded, told by the stream itself.

The correlator writes into every partition which version of which definition is active there from now on. Sagas start
under the version that is active at the place of their initiating event, and keep it. So records rebuilt from the
stream have the versions that they had, whatever the files say today.

The first activations of a partition, all that bear the time of the very first one, hold from its beginning: the stream
may be older than its first correlator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType

import structlog
from google.protobuf.message import Message

from choreography.v1 import correlator_events_pb2, saga_definition_pb2
from farandole.definition import Definition, validate
from farandole.envelope import Event, Publication, encode
from farandole.errors import DefinitionError, Fault, StoreError
from farandole.ids import derived_id, message_id
from farandole.lifecycle import CORRELATOR
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.registry import Registry
from farandole.saga import Disposition, Saga

ACTIVATED = correlator_events_pb2.DefinitionActivated.DESCRIPTOR.full_name
RETIRED = correlator_events_pb2.DefinitionRetired.DESCRIPTOR.full_name

PLATFORM_KEYS = frozenset(partition_key(partition) for partition in range(PARTITIONS))
"""The keys under which the platform speaks to partitions: no saga has one of them."""

_MOST_READ = 1000
"""So many versions of definitions are kept as they were read last."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Activation:
    """That a version of a definition became active in a partition, or that none of it is any more."""

    partition: int
    sequence: int
    """Its place in the stream; 0 where the stream has yet to store it."""
    time: datetime
    """When its correlator decided it: the same for all that one start activated."""
    name: str
    definition: Definition | None
    """None where the definition was retired."""
    key: str
    message_id: str


def activation_of(event: Event) -> Activation | None:
    """The activation that an event tells of; None for any other event, and for one that nobody should believe."""
    body = event.body
    match body:
        case correlator_events_pb2.DefinitionActivated():
            name, definition = body.definition.name, _definition_of(body.definition)
        case correlator_events_pb2.DefinitionRetired():
            name, definition = body.name, None
        case _:
            return None
    is_ours = event.source == CORRELATOR and event.key == partition_key(event.partition)
    if not is_ours or (definition is None and event.type == ACTIVATED):
        _log.warning("activation ignored", sequence=event.sequence, source=event.source, definition=name)
        return None
    return Activation(
        event.partition, event.sequence, event.time, name, definition, event.key, message_id(event.source, event.id)
    )


def _definition_of(message: saga_definition_pb2.SagaDefinition) -> Definition | None:
    """The definition in a message; None where no saga could be folded by it. That a type is gone meanwhile is no fault:
    sagas of long ago keep their definition."""
    return _read(message.SerializeToString(deterministic=True))


@lru_cache(maxsize=_MOST_READ)
def _read(serialized: bytes) -> Definition | None:
    """See `_definition_of`. A definition is told to each partition, and all of them again at each start; to check what
    makes it valid takes longer than anything else about it."""
    message = saga_definition_pb2.SagaDefinition.FromString(serialized)
    mentioned = {message.initiating_event, message.commit_event}
    for step in message.steps:
        mentioned.update(step.triggers, step.all_of, (step.success,), step.failures)
        mentioned.update(step.compensation.triggers, (step.compensation.completion,))
    return None if validate(message, mentioned) else Definition.of_message(message)


@dataclass(slots=True)
class Starting:
    """The definitions under which sagas start in one stretch of a partition."""

    after: int
    """The sequence behind which the stretch begins."""
    active: Mapping[str, Definition]
    """By name."""
    _mentioned: dict[str, tuple[Definition, ...]] = field(default_factory=dict)

    def that_mention(self, event_type: str) -> tuple[Definition, ...]:
        """Those in which an event type plays a part."""
        found = self._mentioned.get(event_type)
        if found is None:
            found = tuple(d for d in self.active.values() if event_type in d.event_types)
            self._mentioned[event_type] = found
        return found


class _Timeline:
    """One partition's activations, and the stretches that they make."""

    def __init__(self, wanted: Mapping[str, Definition]) -> None:
        self._wanted = wanted
        self.stored: list[Activation] = []
        """In stream order."""
        self.pending: list[Activation] = []
        """What the stream has yet to store, in order."""
        self._stretches = self._cut()

    def tell(self, stored: Sequence[Activation], pending: Sequence[Activation]) -> None:
        """Begins anew with what the stream holds and what it has yet to store."""
        self.stored = sorted(stored, key=lambda activation: activation.sequence)
        known = {activation.message_id for activation in stored}
        self.pending = [activation for activation in pending if activation.message_id not in known]
        self._stretches = self._cut()

    def store(self, activation: Activation) -> None:
        """Takes in an activation that was read from the stream."""
        if not self.stored or self.stored[-1].sequence < activation.sequence:
            self.stored.append(activation)
        self.pending = [pending for pending in self.pending if pending.message_id != activation.message_id]
        self._stretches = self._cut()

    def at(self, sequence: int) -> Starting:
        """What is active for an event at that place."""
        stretches = self._stretches
        if stretches[-1].after < sequence:
            return stretches[-1]
        return stretches[max(bisect_left(stretches, sequence, key=lambda stretch: stretch.after) - 1, 0)]

    def latest(self) -> dict[str, Definition]:
        """What is active once all that is pending has been stored."""
        active = dict(self._stretches[-1].active) if self.stored else {}
        for activation in self.pending:
            _apply(active, activation)
        return active

    def ordinal(self, name: str) -> int:
        """How often a definition was activated or retired before."""
        return sum(activation.name == name for activation in (*self.stored, *self.pending))

    def has_other_content(self, definition: Definition) -> bool:
        """Whether the stream has last activated another content under that name and version."""
        same = (
            activation.definition.digest
            for activation in reversed(self.stored)
            if activation.definition is not None
            and (activation.name, activation.definition.version) == (definition.name, definition.version)
        )
        return next(same, definition.digest) != definition.digest

    def _cut(self) -> list[Starting]:
        told = [*self.stored, *self.pending]
        founding = dict(self._wanted) if not told else {}
        for activation in told:
            if activation.definition is not None and activation.time == told[0].time:
                founding.setdefault(activation.name, activation.definition)
        stretches = [Starting(0, founding)]
        for activation in self.stored:
            active = dict(stretches[-1].active)
            _apply(active, activation)
            stretches.append(Starting(activation.sequence, active))
        return stretches


def _apply(active: dict[str, Definition], activation: Activation) -> None:
    if activation.definition is None:
        active.pop(activation.name, None)
    else:
        active[activation.name] = activation.definition


class Definitions:
    """The definitions under which sagas start at each place of some partitions, and every version that a saga keeps."""

    def __init__(
        self,
        wanted: Sequence[Definition],
        stored: Sequence[Definition] = (),
        *,
        partitions: Iterable[int] = range(PARTITIONS),
    ) -> None:
        """`wanted` are the definitions that shall be active, of which the newest version of each name counts; `stored`
        what the store knows besides."""
        self._wanted = {d.name: d for d in sorted(wanted, key=lambda d: d.version)}
        self._known: dict[tuple[str, int], list[Definition]] = {}
        """By name and version: mostly one. Content that no saga had kept yet may have been replaced."""
        for definition in (*stored, *wanted):
            self._know(definition)
        self._timelines = {partition: _Timeline(MappingProxyType(self._wanted)) for partition in sorted(partitions)}

    def of(self, saga: Saga) -> Definition:
        """The definition that a record keeps. Raises `StoreError` where nobody has it."""
        known = self._known.get((saga.definition, saga.version))
        if known is None:
            raise StoreError(
                f"saga {saga.key!r} keeps version {saga.version} of the definition {saga.definition!r}, "
                "which neither the store nor the stream has"
            )
        if len(known) == 1:
            return known[0]
        timeline = self._timelines[partition_of(saga.key)]
        places = (timeline.at(sequence).active.get(saga.definition) for sequence in _places(saga))
        return next((found for found in places if found is not None and found.version == saga.version), known[0])

    def starting(self, partition: int, sequence: int) -> Starting:
        """The definitions under which sagas start at a place of the stream."""
        return self._timelines[partition].at(sequence)

    def hear(self, activations: Iterable[Activation], waiting: Iterable[Activation]) -> None:
        """Takes in all activations of the partitions that the stream holds, and those that wait to be stored, in
        order."""
        stored: dict[int, list[Activation]] = {partition: [] for partition in self._timelines}
        pending: dict[int, list[Activation]] = {partition: [] for partition in self._timelines}
        for activation in activations:
            stored[activation.partition].append(activation)
        for activation in waiting:
            pending[activation.partition].append(activation)
        for partition, timeline in self._timelines.items():
            timeline.tell(stored[partition], pending[partition])
            for activation in (*timeline.stored, *timeline.pending):
                if activation.definition is not None:
                    self._know(activation.definition)

    def read(self, activation: Activation) -> None:
        """Takes in an activation that was read at its place in the stream."""
        if activation.definition is not None:
            self._know(activation.definition)
        self._timelines[activation.partition].store(activation)

    def missing(self, registry: Registry, time: datetime) -> list[Publication]:
        """What to publish so that in every one of the partitions what is wanted is active, and nothing else."""
        publications: list[Publication] = []
        for partition, timeline in self._timelines.items():
            key, latest = partition_key(partition), timeline.latest()
            for name, definition in self._wanted.items():
                if name not in latest or latest[name].digest != definition.digest:
                    which = (name, str(definition.version), definition.digest, str(timeline.ordinal(name)))
                    activated = correlator_events_pb2.DefinitionActivated(
                        partition_key=key, definition=definition.to_message()
                    )
                    publications.append(_publication(registry, activated, which, time))
            for name in sorted(latest.keys() - self._wanted.keys()):
                retired = correlator_events_pb2.DefinitionRetired(partition_key=key, name=name)
                publications.append(_publication(registry, retired, (name, str(timeline.ordinal(name))), time))
        return publications

    def refuse_changed(self) -> None:
        """Raises `DefinitionError` where what is wanted has another content than the stream has under its name and
        version.

        For a store without records, which can't tell whether sagas keep what the stream has.
        """
        changed = [
            definition
            for definition in self._wanted.values()
            if any(timeline.has_other_content(definition) for timeline in self._timelines.values())
        ]
        if changed:
            raise DefinitionError(
                [
                    Fault(
                        f"saga definition {definition}",
                        f"has another content than the version {definition.version} that the stream holds, which sagas "
                        f"may keep; raise the version to {definition.version + 1}",
                    )
                    for definition in changed
                ]
            )

    @property
    def problem(self) -> str | None:
        """Which definitions are not active yet as is wanted, since the stream has yet to store it; None where all
        are."""
        pending = [activation for timeline in self._timelines.values() for activation in timeline.pending]
        if not pending:
            return None
        names = sorted({str(one.definition) if one.definition else f"the end of {one.name}" for one in pending})
        partitions = len({activation.partition for activation in pending})
        return f"the stream has yet to store in {partitions} of its partitions what is active: {', '.join(names)}"

    @property
    def versions(self) -> list[Definition]:
        """Every version that is known, once."""
        return [known[0] for known in self._known.values()]

    def _know(self, definition: Definition) -> None:
        known = self._known.setdefault((definition.name, definition.version), [])
        if all(definition.digest != other.digest for other in known):
            known.append(definition)


def _places(saga: Saga) -> Iterator[int]:
    """The sequences of a record's events, backwards from where its definition was settled: the initiating event; where
    that has not come, the last event."""
    is_behind = saga.is_started
    for entry in reversed(saga.history):
        if entry.fact.stream_time == saga.start_time and entry.disposition is Disposition.APPLIED:
            is_behind = False
        if not is_behind:
            yield entry.fact.sequence


def _publication(registry: Registry, message: Message, which: Sequence[str], time: datetime) -> Publication:
    event_type = registry.types[message.DESCRIPTOR.full_name]
    key = str(getattr(message, event_type.key_field))
    event_id = derived_id((CORRELATOR, event_type.name, key, *which))
    return encode(event_type, message, source=CORRELATOR, event_id=event_id, time=time)
