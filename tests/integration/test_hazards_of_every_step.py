"""The three hazards of compensation, for every step of every sample service that can be undone, on its real tables.

An undoing runs once; an undoing that comes first voids the step; a step that comes after its undoing does no work.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import json_format
from google.protobuf.message import Message

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from choreography.v1.saga_pb2 import SAGA_CAUSE_DEADLINE
from farandole import Participant, Step
from farandole.database import Database
from farandole.envelope import StoredMessage, encode
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.tables import ParticipantTables
from farandole.partitions import partition_of
from farandole.service import create_tables
from services.delivery.service import delivery
from services.drones.service import drones
from services.inventory.service import inventory
from services.orders.service import orders
from services.packaging.service import packaging
from services.parcels.service import parcels
from services.payments.service import payments
from services.shipping.service import shipping

VECTORS = Path(__file__).parents[2] / "docs/vectors"
START = datetime(2026, 1, 1, tzinfo=UTC)
VOIDED = "choreography.v1.StepVoided"

Rows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Hazard:
    """One way in which one step is undone."""

    participant: Participant
    step: Step
    undone_by: type[Message]

    def __str__(self) -> str:
        return f"{self.step.name} undone by {self.undone_by.DESCRIPTOR.name}"


HAZARDS = [
    Hazard(participant, step, undone_by)
    for participant in (orders, inventory, payments, shipping, parcels, packaging, drones, delivery)
    for step in participant.steps
    for undone_by in step.undo_signature.consumes
]


def test_every_step_before_the_commit_event_is_tried() -> None:
    assert {hazard.step.name for hazard in HAZARDS} == {
        *("place-order", "reserve-items", "take-payment", "ship-order"),
        *("order-parcel", "prepare-package", "provision-drone", "deliver-package"),
    }
    assert {hazard.step.name for hazard in HAZARDS if hazard.undone_by is SagaTimedOut} == {
        hazard.step.name for hazard in HAZARDS
    }


@dataclass
class Service:
    """A sample service's step over its own tables, fed with stored messages."""

    hazard: Hazard
    database: Database
    handler: ParticipantBatchHandler
    sequence: int = 0
    published: list[str] = field(default_factory=list)

    async def take(self, *messages: StoredMessage) -> None:
        """Handles one batch."""
        handled = await self.handler.handle(messages, ())
        assert await self.rows_of(ParticipantTables().metadata, "farandole_queue") == [], "no handler raised"
        self.published += [row.publication.headers["ce-type"] for row in handled.rows]

    def forward(self, **changes: Any) -> StoredMessage:
        """An event that triggers the step."""
        [trigger] = self.hazard.step.forward_signature.consumes
        return self.message(body_of(trigger, **changes))

    def undo(self) -> StoredMessage:
        """An event that undoes it."""
        step, undone_by = self.hazard.step, self.hazard.undone_by
        if undone_by is not SagaTimedOut:
            return self.message(body_of(undone_by))
        key = "par-7" if step.saga == "drone-delivery" else "ord-42"
        time_out = SagaTimedOut(saga_id=key, definition=step.saga, version=1, cause=SAGA_CAUSE_DEADLINE)
        time_out.steps.append(step.name)
        time_out.deadline.FromDatetime(START)
        return self.message(time_out)

    def message(self, body: Message) -> StoredMessage:
        """The next stored message, under an id of its own."""
        self.sequence += 1
        event_type = self.hazard.participant.registry.types[body.DESCRIPTOR.full_name]
        made = encode(event_type, body, source="someone", event_id=f"event-{self.sequence}", time=START)
        subject = f"events.{partition_of(made.key)}.{event_type.name}"
        return StoredMessage(subject, made.headers, made.data, self.sequence, START)

    async def state(self) -> Rows:
        """All that the service itself has written."""
        tables = self.hazard.participant.metadata
        return {table.name: await self.rows_of(tables, table.name) for table in tables.sorted_tables}

    async def rows_of(self, metadata: sa.MetaData, name: str) -> list[tuple[Any, ...]]:
        query = sa.select(metadata.tables[name])
        found = await self.database.read(lambda connection: [tuple(row) for row in connection.execute(query)])
        return sorted(found, key=repr)


def body_of(event_class: type[Message], **changes: Any) -> Message:
    """The golden vector's event of a type."""
    vector = json.loads((VECTORS / f"{event_class.DESCRIPTOR.full_name}.json").read_text())
    return json_format.ParseDict(vector["protojson"] | changes, event_class())


@asynccontextmanager
async def serving(hazard: Hazard, url: str) -> AsyncIterator[Service]:
    """The service with empty tables, seeded as at its start."""
    database, tables = Database(url), ParticipantTables()
    await create_tables(hazard.participant, database)
    handler = ParticipantBatchHandler(hazard.participant, database, tables, clock=lambda: START)
    await handler.claim("stream-1")
    try:
        yield Service(hazard, database, handler)
    finally:
        await database.close()


def batches(together: bool, *messages: StoredMessage) -> Sequence[Sequence[StoredMessage]]:
    """The messages in one transaction, or in one each."""
    return [messages] if together else [[message] for message in messages]


each_hazard = pytest.mark.parametrize("hazard", HAZARDS, ids=str)
each_batching = pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])


@each_hazard
@each_batching
async def test_an_undoing_runs_once(hazard: Hazard, together: bool, database_url: str) -> None:
    """However often it is triggered, and also where the step is triggered again."""
    async with serving(hazard, database_url) as service:
        await service.take(service.forward())
        successes = list(service.published)
        assert len(successes) == len(hazard.step.forward_signature.produces[:1])
        await service.take(service.undo())
        completion = service.published[-1]
        assert service.published == [*successes, completion]
        assert completion in {c.DESCRIPTOR.full_name for c in hazard.step.undo_signature.produces}
        undone = await service.state()
        for batch in batches(together, service.undo(), service.forward(), service.undo()):
            await service.take(*batch)
        assert service.published == [*successes, completion]
        assert await service.state() == undone


@each_hazard
@each_batching
async def test_a_step_that_comes_after_its_undoing_does_no_work(
    hazard: Hazard, together: bool, database_url: str
) -> None:
    async with serving(hazard, database_url) as service:
        untouched = await service.state()
        for batch in batches(together, service.undo(), service.forward(), service.undo(), service.forward()):
            await service.take(*batch)
        assert len(service.published) == 1
        if hazard.step.irrevocable is None:
            assert service.published == [VOIDED]
            assert await service.state() == untouched
        else:  # it answers that it will not act
            assert service.published == ["delivery.v1.DeliveryFailed"]


@each_hazard
@each_batching
async def test_a_step_runs_once(hazard: Hazard, together: bool, database_url: str) -> None:
    """Also where it is triggered again with the same body, or with another one."""
    async with serving(hazard, database_url) as service:
        await service.take(service.forward())
        done = await service.state()
        [trigger] = hazard.step.forward_signature.consumes
        other = {"address": "another one"} if "address" in trigger.DESCRIPTOR.fields_by_name else {}
        for batch in batches(together, service.forward(), service.forward(**other)):
            await service.take(*batch)
        assert len(service.published) == len(hazard.step.forward_signature.produces[:1])
        assert await service.state() == done
