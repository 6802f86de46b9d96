"""What can be asked of a correlator's records: the questions, the answers, and the port that answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from google.protobuf.message import DecodeError

from choreography.v1 import saga_definition_pb2
from farandole.correlator.dead_letters import DeadLetter, parse_dead_letter_id
from farandole.correlator.filters import Filter, Value
from farandole.definition import Definition
from farandole.errors import NotFoundError, StoreError
from farandole.saga import Health, Saga, Status


@dataclass(frozen=True, slots=True)
class RecordedSaga:
    """A saga with its whole history and what its events said."""

    saga: Saga
    payloads: Mapping[int, bytes] = field(default_factory=dict)
    """By stream sequence: the serialized Protobuf message of the history entry's type, already redacted. An entry
    that was recorded without one is absent."""


class SagaOrder(enum.Enum):
    """By what sagas are listed."""

    UPDATE_TIME = "update_time"
    START_TIME = "start_time"
    DEADLINE = "deadline"
    """Sagas without a deadline count as due last of all."""


@dataclass(frozen=True, slots=True)
class SagaCursor:
    """The place of the last saga of a page in an order."""

    value: int
    """Of the ordering field, in microseconds since 1970 UTC."""
    row: int
    """The number that the store gave the saga; it decides among equal values."""


@dataclass(frozen=True, slots=True)
class SagaQuery:
    """A page of started sagas."""

    filter: Filter | None = None
    order: SagaOrder = SagaOrder.UPDATE_TIME
    descending: bool = False
    limit: int = 50
    after: SagaCursor | None = None


@dataclass(frozen=True, slots=True)
class SagaPage:
    """Sagas without their histories."""

    sagas: tuple[Saga, ...]
    next: SagaCursor | None
    """Where the next page begins; None where there is none."""


@dataclass(frozen=True, slots=True)
class SagaCount:
    """How many started sagas stand alike."""

    definition: str
    status: Status
    health: Health
    count: int


@dataclass(frozen=True, slots=True)
class DeadLetterQuery:
    """A page of dead letters, newest first."""

    filter: Filter | None = None
    limit: int = 50
    before: int | None = None
    """Only those that the store recorded before the one of this number."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """Dead letters, the one recorded last first."""

    dead_letters: tuple[DeadLetter, ...]
    next: int | None
    """`before` of the next page, or `after` of `open_dead_letters`; None where there is none."""


class DeadLetterField(enum.IntEnum):
    """What dead letters can be grouped by (`choreography.v1.DeadLetterField`)."""

    PARTICIPANT = 1
    EVENT_TYPE = 2
    REASON = 3
    SAGA = 4
    STEP = 5
    FAILURE = 6

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a filter that the dead letters of a group have in common."""
        return _GROUPED_BY[self]


_GROUPED_BY: Mapping[DeadLetterField, tuple[str, ...]] = {
    DeadLetterField.PARTICIPANT: ("participant",),
    DeadLetterField.EVENT_TYPE: ("event_type",),
    DeadLetterField.REASON: ("reason",),
    DeadLetterField.SAGA: ("saga_id",),
    DeadLetterField.STEP: ("definition", "step"),
    DeadLetterField.FAILURE: ("participant", "definition", "step", "event_type", "reason", "detail"),
}


@dataclass(frozen=True, slots=True)
class GroupCursor:
    """The place of the last group of a page."""

    count: int
    row: int


@dataclass(frozen=True, slots=True)
class DeadLetterGroupQuery:
    """A page of groups of dead letters, the largest first; among equals the one that began first."""

    group_by: tuple[DeadLetterField, ...]
    """At least one, each once."""
    filter: Filter | None = None
    limit: int = 50
    after: GroupCursor | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the dead letters of a group have in common, each once."""
        return tuple(dict.fromkeys(field for by in self.group_by for field in by.fields))

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that tell groups apart: `failure` stands for all that it is made of."""
        if DeadLetterField.FAILURE not in self.group_by:
            return self.fields
        return ("failure", *(field for field in self.fields if field not in DeadLetterField.FAILURE.fields))


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters that have something in common."""

    values: Mapping[str, Value | None]
    """By the query's `fields` what they have in common, None where they lack it; with `failure` where they are grouped
    by that."""
    count: int
    open: int
    """How many of them are open."""
    first_time: datetime
    """When the stream stored the first of the events."""
    last_time: datetime
    row: int
    """The number that the store gave the first of them."""


@dataclass(frozen=True, slots=True)
class DeadLetterGroupPage:
    """Groups of dead letters."""

    groups: tuple[DeadLetterGroup, ...]
    next: GroupCursor | None
    """Where the next page begins; None where there is none."""


@dataclass(frozen=True, slots=True)
class OpenDeadLetters:
    """The open dead letters that matched a filter at one moment."""

    count: int
    last_row: int
    """The greatest of the numbers that the store gave them; 0 where there is none."""
    last_state_sequence: int
    """The greatest of their `state_sequence`s: what has changed since then has a greater one. 0 where there is none."""


@dataclass(frozen=True, slots=True)
class StoredDefinition:
    """One version of a saga definition as the store keeps it."""

    name: str
    version: int
    digest: str
    """Tells two contents apart."""
    message: bytes
    """The serialized `choreography.v1.SagaDefinition`."""
    is_active: bool = True
    """Whether new sagas start under it; a version that is no longer in the files stays for the sagas that keep it."""

    @classmethod
    def of(cls, definition: Definition) -> StoredDefinition:
        """An active definition as it is stored."""
        message = definition.to_message().SerializeToString(deterministic=True)
        return cls(definition.name, definition.version, definition.digest, message)

    def definition(self) -> Definition:
        """The definition itself. Raises `StoreError` where what is stored can't be read."""
        try:
            return Definition.of_message(saga_definition_pb2.SagaDefinition.FromString(self.message))
        except (DecodeError, ValueError) as error:
            raise StoreError(f"the stored saga definition {self.name} {self.version} can't be read: {error}") from None


@dataclass(frozen=True, slots=True)
class DueSaga:
    """A saga with a deadline that has passed and that nobody has acted on yet."""

    definition: str
    key: str
    deadline: datetime


class CorrelatorQueries(Protocol):
    """Answers from a consistent view of what was committed; never waits for a writer.

    Every method raises `StoreUnavailableError` where the store can't be read. Paging is by place, not by number: a
    saga whose ordering value does not change between two pages is neither skipped nor shown twice; one that changes
    (`update_time`) is met again at its new place where that is still to come.
    """

    async def get_sagas(self, key: str, definition: str | None = None) -> tuple[RecordedSaga, ...]:
        """Everything recorded under a key, by definition: started sagas, and what waits for an initiating event."""
        ...

    async def list_sagas(self, query: SagaQuery) -> SagaPage:
        """A page of started sagas."""
        ...

    async def summarize(self, filter: Filter | None = None) -> tuple[SagaCount, ...]:  # noqa: A002 - the API's word
        """How many started sagas there are by definition, status and health, in that order; no zeros."""
        ...

    async def list_dead_letters(self, query: DeadLetterQuery) -> DeadLetterPage:
        """A page of dead letters."""
        ...

    async def group_dead_letters(self, query: DeadLetterGroupQuery) -> DeadLetterGroupPage:
        """A page of groups of dead letters. A group that grows between two pages may be met twice, or not at all."""
        ...

    async def count_open_dead_letters(self, filter: Filter | None = None) -> OpenDeadLetters:  # noqa: A002
        """How many open dead letters match now, and which those are, for `open_dead_letters`."""
        ...

    async def open_dead_letters(
        self,
        counted: OpenDeadLetters,
        filter: Filter | None = None,  # noqa: A002 - the API's word
        *,
        after: int = 0,
        limit: int = 500,
    ) -> DeadLetterPage:
        """A page of those that were counted by the same filter, and have neither been closed nor changed since.

        Unlike lists, the one recorded first comes first. `after` is `next` of the page before.
        """
        ...

    async def get_dead_letter(self, participant: str, sequence: int) -> DeadLetter | None:
        """One dead letter; None where there is none.

        A participant's has as its payload what the history of a saga under its key keeps of the event.
        """
        ...

    async def definitions(self) -> tuple[StoredDefinition, ...]:
        """Every version of every definition, by name and falling version."""
        ...


async def find_dead_letter(queries: CorrelatorQueries, dead_letter_id: str) -> DeadLetter:
    """The dead letter with this id, `<participant>-<sequence>`. Raises `NotFoundError` where there is none."""
    identity = parse_dead_letter_id(dead_letter_id)
    found = None if identity is None else await queries.get_dead_letter(*identity)
    if found is None:
        raise NotFoundError(
            f"there is no dead letter {dead_letter_id!r}; an id is <participant>-<sequence>",
            reason="DEAD_LETTER_NOT_FOUND",
            metadata={"dead_letter_id": dead_letter_id},
        )
    return found
