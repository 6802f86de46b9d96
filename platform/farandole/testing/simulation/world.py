"""What is there when a run has come to rest: the records, the events, the databases, and what handlers have done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from farandole.correlator.queries import RecordedSaga
from farandole.envelope import Event
from farandole.partitions import PARTITIONS, partition_key
from farandole.saga import Disposition, Saga
from farandole.testing.simulation.effects import Effect
from farandole.testing.simulation.scenario import Scenario

T = TypeVar("T")
M = TypeVar("M", bound=Message)

PLATFORM_KEYS = frozenset(map(partition_key, range(PARTITIONS)))
"""Under these the platform speaks to whole partitions: no saga has one."""

Reader = Callable[[str, Callable[[sa.Connection], Any]], Any]


@dataclass(frozen=True)
class World:
    """The end of a run, for whoever checks it."""

    scenario: Scenario
    records: Mapping[tuple[str, str], RecordedSaga]
    """The correlator's records by (definition, correlation key), with what it keeps of their events."""
    events: Sequence[Event]
    """What the stream `EVENTS` holds of sagas, in order."""
    effects: Sequence[Effect]
    """What handlers did in transactions that were committed: of each participant in order."""
    acknowledged: frozenset[str]
    """The correlation keys of the sagas of which the start was acknowledged: by the broker, or by a participant."""
    committed_at: Mapping[Effect, datetime]
    """When an effect was committed first, by the broker's clock."""
    begun_at: Mapping[Effect, datetime]
    """When the process was started that did."""
    raised: Set[tuple[str, str]]
    """The participants of which a handler has raised, each with the key of the saga for which it did."""
    reader: Reader
    left_over: Callable[[str], Mapping[str, int]]
    """How many rows wait in each table of a participant in which something waits."""
    inbox: Callable[[str], Mapping[str, Disposition]]
    """What became of the events that a participant has dealt with, by their identities (see `ids.message_id`)."""

    @property
    def sagas(self) -> Mapping[tuple[str, str], Saga]:
        """The sagas that have started, by (definition, correlation key)."""
        return {identity: record.saga for identity, record in self.records.items() if record.saga.is_started}

    def read(self, participant: str, work: Callable[[sa.Connection], T]) -> T:
        """What `work` finds in a participant's database."""
        found: T = self.reader(participant, work)
        return found

    def bodies(self, message_class: type[M]) -> list[M]:
        """The stored events of a class, in stream order; the same event as often as it was stored."""
        return [event.body for event in self.events if isinstance(event.body, message_class)]
