"""What a run has left behind: the stream, the databases, what was acknowledged, and how often each fault struck.

A run's directory holds `run.json`, `ledger.jsonl`, `stream.jsonl`, and the databases. They are read with the standard
library and the generated message classes alone. Nothing is judged here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from choreography.v1 import (
    correlator_events_pb2,
    dead_letter_events_pb2,
    lifecycle_pb2,
    saga_pb2,
)
from delivery.v1 import delivery_events_pb2
from drones.v1 import drone_events_pb2
from inventory.v1 import inventory_events_pb2
from orders.v1 import order_events_pb2
from packaging_contracts.v1 import packaging_events_pb2
from parcels.v1 import parcel_events_pb2
from payments.v1 import payment_events_pb2
from shipping.v1 import shipping_events_pb2
from tests.chaos.checker.choreographies import PARTICIPANTS, Choreography, Start, choreography_of
from tests.chaos.checker.effects import REFERENCES, TABLE

RUN, LEDGER, STREAM = "run.json", "ledger.jsonl", "stream.jsonl"
REBUILT = "rebuilt"
"""The name of the database of the correlator that was given an empty store at the end."""
LEADER_KILL = "leader killed"
"""The kind of fault that the run must have had often enough, where it had a cluster."""
GARBAGE = b'{"chaos": '
"""A body that no one can read, published on purpose."""

_MODULES = (
    correlator_events_pb2,
    dead_letter_events_pb2,
    lifecycle_pb2,
    delivery_events_pb2,
    drone_events_pb2,
    inventory_events_pb2,
    order_events_pb2,
    packaging_events_pb2,
    parcel_events_pb2,
    payment_events_pb2,
    shipping_events_pb2,
)
MESSAGES: Mapping[str, type[Message]] = {
    descriptor.full_name: getattr(module, name)
    for module in _MODULES
    for name, descriptor in module.DESCRIPTOR.message_types_by_name.items()
}
_KEY_FIELDS = ("order_id", "parcel_id", "saga_id", "partition_key")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class EvidenceError(Exception):
    """Raised where a run's directory lacks something, or holds what can't be read."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One kind of fault: how often it was brought about, and how often it was seen to strike."""

    kind: str
    brought_about: int
    observed: int
    by: str
    """What it was observed by."""
    problem: str = ""
    """Why it could not be brought about here; empty where it could."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run was to be, and when it was what."""

    seed: int
    deadlines: Mapping[str, float]
    """Of each saga definition, in seconds."""
    bound_seconds: float
    """How long after its deadline, or the end of the faults, a saga may take to end."""
    healed: datetime
    """When the last fault ended."""
    wanted_sagas: int
    wanted_kills: int
    kills: Mapping[str, int]
    """How often each process was seen to end by SIGKILL."""
    strikes: Sequence[Strike]
    published_by_rebuild: Sequence[str]
    """The types of the events that came into the stream while the correlator rebuilt its records."""
    must_be_complete: bool
    """Whether every kind of fault must have been brought about; else what the machine does not allow may be missing."""
    wanted_leader_kills: int = 0
    """How often the leader of a cluster must have been killed, and another one seen to lead."""
    unsettled: str = ""
    """What still moved when the run had waited long enough; empty where all was quiet."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Something that was published and acknowledged, or accepted by a remote procedure call."""

    key: str
    type: str
    how: str
    """`publish`, `call`, or `garbage` for what no one can read."""
    body: Mapping[str, Any]
    """ProtoJSON."""
    sequence: int | None
    """Where the stream said that it stored it; None for a call."""
    duplicate: bool = False
    """Whether the stream said that it had it already, under the same message id."""

    @property
    def message(self) -> Message:
        """The body as a message."""
        return json_format.ParseDict(dict(self.body), MESSAGES[self.type]())


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event that can be read."""

    sequence: int
    time: datetime
    """When the stream stored it."""
    type: str
    key: str
    source: str
    id: str
    causation_id: str
    body: Message
    digest: str
    """SHA-256 of the body as it was sent."""

    @property
    def identity(self) -> str:
        """Source and id, joined as the wire contract says."""
        return f"{quote(self.source, safe='-._~')}/{quote(self.id, safe='-._~')}"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stored message that is no event."""

    sequence: int
    subject: str
    on_purpose: bool
    why: str


@dataclass(frozen=True, slots=True)
class Effect:
    """A change in a service's own tables."""

    number: int
    """Rises with time within a service."""
    step: str
    direction: str
    subject: str
    part: str


Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Books:
    """One participant's database."""

    inbox: Mapping[str, int]
    """Disposition by joined identity."""
    queued: Sequence[Row]
    outbox_depth: int
    effects: Sequence[Effect]
    tables: Mapping[str, Sequence[Row]]
    """The service's own tables."""


@dataclass(frozen=True, slots=True)
class Record:
    """A saga as the correlator has recorded it."""

    definition: str
    key: str
    status: str
    """Without its prefix, such as `COMPLETED`."""
    start: datetime | None
    end: datetime | None
    history: Sequence[int]
    """The sequences of its events, in order."""


@dataclass(frozen=True, slots=True)
class Records:
    """A correlator's store."""

    sagas: Mapping[tuple[str, str], Record]
    """By definition and key."""
    outbox_depth: int
    tables: Mapping[str, Mapping[tuple[Any, ...], Row]]
    """Every row of what must be the same after a rebuild, by what identifies it, without row numbers."""


@dataclass(frozen=True)
class Saga:
    """One saga as the stream has it."""

    key: str
    choreography: Choreography
    events: Sequence[Event]
    """Every event under its key, in stream order."""
    start: Event
    """The first initiating event, which is the one that counts."""

    @property
    def order(self) -> Start:
        """What the initiating event says."""
        body = self.start.body
        assert isinstance(body, Start)
        return body

    @cached_property
    def timed_out(self) -> Sequence[Event]:
        """The time-outs of this saga."""
        return [event for event in self.events if event.type == "choreography.v1.SagaTimedOut"]

    def of_type(self, *types: str) -> list[Event]:
        """Its events of these types, in stream order."""
        return [event for event in self.events if event.type in types]

    @property
    def name(self) -> str:
        """Definition and key, for people."""
        return f"{self.choreography.name} {self.key}"


@dataclass(frozen=True)
class EndState:
    """All evidence of a run."""

    run: Run
    ledger: Sequence[Acknowledged]
    events: Sequence[Event]
    unreadable: Sequence[Unreadable]
    sequences: Sequence[int]
    """Of every stored message."""
    books: Mapping[str, Books]
    """By participant."""
    records: Records
    rebuilt: Records

    @cached_property
    def by_sequence(self) -> Mapping[int, Event]:
        """Every event by its place in the stream."""
        return {event.sequence: event for event in self.events}

    @cached_property
    def by_key(self) -> Mapping[str, Sequence[Event]]:
        """The events of each key, in stream order."""
        found: dict[str, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.key, []).append(event)
        return found

    @cached_property
    def sagas(self) -> Sequence[Saga]:
        """Every saga that the stream has begun."""
        return [
            Saga(key, choreography, events, event)
            for key, events in self.by_key.items()
            for event in _starts(events)
            if (choreography := choreography_of(event.type)) is not None
        ]

    @cached_property
    def effects(self) -> Mapping[tuple[str, str], Sequence[Effect]]:
        """The effects of each step by (step, saga's key); of whom no event tells, under the effect's own subject."""
        owners: dict[tuple[str, str], str] = {}
        for saga in self.sagas:
            for step in saga.choreography.steps:
                if reference := REFERENCES.get(step.name):
                    owners |= {(step.name, getattr(e.body, reference)): e.key for e in saga.of_type(step.success)}
        found: dict[tuple[str, str], list[Effect]] = {}
        for books in self.books.values():
            for effect in books.effects:
                key = owners.get((effect.step, effect.subject), effect.subject)
                found.setdefault((effect.step, key), []).append(effect)
        return found


def _starts(events: Iterable[Event]) -> Iterator[Event]:
    """The first initiating event of each definition."""
    seen: set[str] = set()
    for event in events:
        if choreography_of(event.type) is not None and event.type not in seen:
            seen.add(event.type)
            yield event


# Reading


def read_end_state(directory: Path, databases: Path) -> EndState:
    """The evidence of the run in a directory. Raises `EvidenceError`."""
    messages = list(_lines(directory / STREAM))
    events: list[Event] = []
    unreadable: list[Unreadable] = []
    for message in messages:
        read = _event(message)
        if isinstance(read, Event):
            events.append(read)
        else:
            unreadable.append(read)
    return EndState(
        run=read_run(directory),
        ledger=[Acknowledged(**line) for line in _lines(directory / LEDGER)],
        events=events,
        unreadable=unreadable,
        sequences=[message["sequence"] for message in messages],
        books={name: _books(database_file(databases, name)) for name in PARTICIPANTS},
        records=_records(database_file(databases, "correlator")),
        rebuilt=_records(database_file(databases, REBUILT)),
    )


def read_run(directory: Path) -> Run:
    """What `run.json` says. Raises `EvidenceError`."""
    try:
        written = json.loads((directory / RUN).read_text(encoding="utf-8"))
        return Run(
            **{
                **written,
                "healed": datetime.fromisoformat(written["healed"]),
                "strikes": [Strike(**strike) for strike in written["strikes"]],
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{directory / RUN} can't be read: {error!r}") from error


def database_file(databases: Path, service: str) -> Path:
    """A service's database: each is on a disk of its own."""
    return databases / service / f"{service}.db"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} can't be read: {error}") from error


def _event(message: Mapping[str, Any]) -> Event | Unreadable:
    """Reads a stored message by the wire contract."""
    subject: str = message["subject"]
    headers: dict[str, str] = {name.lower(): value for name, value in message["headers"].items()}
    data = base64.b64decode(message["data"])
    event_type = subject.split(".", 2)[2]
    is_garbage = data == GARBAGE
    kind = MESSAGES.get(event_type)
    if kind is None:
        return Unreadable(message["sequence"], subject, is_garbage, "unknown type")
    body = kind()
    try:
        if headers.get("ce-datacontenttype") == "application/protobuf":
            body.ParseFromString(data)
        else:
            json_format.Parse(data, body, ignore_unknown_fields=True)
    except (json_format.ParseError, DecodeError, UnicodeDecodeError) as error:
        return Unreadable(message["sequence"], subject, is_garbage, str(error))
    key = next(getattr(body, name) for name in _KEY_FIELDS if name in kind.DESCRIPTOR.fields_by_name)
    digest = hashlib.sha256(data).hexdigest()
    return Event(
        sequence=message["sequence"],
        time=datetime.fromisoformat(message["time"]),
        type=event_type,
        key=key,
        source=unquote(headers.get("ce-source", "")) or "anonymous",
        id=unquote(headers.get("ce-id", "")) or str(uuid.uuid5(_NAMESPACE, f"{event_type}\n{key}\n{digest}")),
        causation_id=unquote(headers.get("ce-causationid", "")),
        body=body,
        digest=digest,
    )


_PLATFORM = ("farandole_", "sqlite_", TABLE)


def _books(database: Path) -> Books:
    with _open(database) as connection:
        own = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            if not name.startswith(_PLATFORM)
        ]
        return Books(
            inbox=dict(_values(connection, "SELECT identity, disposition FROM farandole_inbox")),
            queued=_rows(connection, "SELECT * FROM farandole_queue ORDER BY sequence"),
            outbox_depth=_count(connection, "farandole_outbox"),
            effects=[
                Effect(*row)
                for row in _values(connection, f"SELECT id, step, direction, subject, part FROM {TABLE} ORDER BY id")
            ],
            tables={name: _rows(connection, f'SELECT * FROM "{name}"') for name in own},
        )


def _records(database: Path) -> Records:
    with _open(database) as connection:
        sagas = _rows(connection, "SELECT * FROM saga")
        named = {row["id"]: (row["definition"], row["key"]) for row in sagas}
        histories: dict[tuple[str, str], list[int]] = {name: [] for name in named.values()}
        history = _rows(connection, "SELECT * FROM saga_history ORDER BY sequence")
        for row in history:
            histories[named[row["saga"]]].append(row["sequence"])
        return Records(
            sagas={
                named[row["id"]]: Record(
                    definition=row["definition"],
                    key=row["key"],
                    status=saga_pb2.SagaStatus.Name(row["status"]).removeprefix("SAGA_STATUS_"),
                    start=_time(row["start_time"]),
                    end=_time(row["end_time"]),
                    history=histories[named[row["id"]]],
                )
                for row in sagas
            },
            outbox_depth=_count(connection, "farandole_outbox"),
            tables={
                "saga": {named[row["id"]]: _without(row, "id") for row in sagas},
                "saga_history": {(*named[row["saga"]], row["sequence"]): _without(row, "saga") for row in history},
                "dead_letter": {
                    (row["participant"], row["sequence"]): _without(row, "id")
                    for row in _rows(connection, "SELECT * FROM dead_letter")
                },
                "saga_definition": {
                    (row["name"], row["version"]): row for row in _rows(connection, "SELECT * FROM saga_definition")
                },
            },
        )


class _open(closing[sqlite3.Connection]):  # noqa: N801 - used as a function
    """A connection for reading, closed at the end."""

    def __init__(self, database: Path) -> None:
        if not database.is_file():
            raise EvidenceError(f"there is no database {database}")
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
        connection.row_factory = sqlite3.Row
        super().__init__(connection)


def _rows(connection: sqlite3.Connection, statement: str) -> list[Row]:
    return [dict(row) for row in connection.execute(statement)]


def _values(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    return (tuple(row) for row in connection.execute(statement))


def _count(connection: sqlite3.Connection, table: str) -> int:
    count: int = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
    return count


def _without(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
