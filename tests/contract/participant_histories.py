"""Playing the histories of docs/vectors/participants.json to the real code of a participant.

A history is a list of moves. In each, something comes (an event, stored time-outs that are heard first, or the time of
the next try), handlers run, barriers move, and something goes out. What the handlers return is a script.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from google.protobuf import json_format
from google.protobuf.message import Message

from choreography.v1 import participant_pb2
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneProvisioned
from farandole import Participant, Reject, Retries, Transaction, step
from farandole.database import Database
from farandole.envelope import Publication, StoredMessage
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.status import queued_event
from farandole.participant.tables import ParticipantTables
from farandole.registry import Registry
from farandole.saga import Disposition
from inventory.v1.inventory_events_pb2 import ItemsReserved
from orders.v1.order_events_pb2 import OrderCompleted
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped, ShippingFailed
from tests.contract.vectors import STREAM_TIME

RETRIES = Retries(tries=2, first=timedelta(seconds=1), longest=timedelta(seconds=1))
"""Of every participant of the histories."""

metadata = sa.MetaData()
work = sa.Table(
    "work",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
)


class Script:
    """What the handlers do in one move."""

    def __init__(self) -> None:
        self.registry = Registry()
        self._scripted: Mapping[tuple[str, str], Mapping[str, Any]] = {}
        self._called: set[tuple[str, str]] = set()

    def begin(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Takes the runs of the next move."""
        self._scripted = {(run["step"], run["run"]): run for run in runs}
        self._called = set()

    def play(self, step_name: str, run: str, tx: Transaction) -> Any:
        """Does what the script has for a handler."""
        self._called.add((step_name, run))
        scripted = self._scripted.get((step_name, run), {})
        tx.execute(work.insert(), {"step": step_name, "run": run})
        if "rejects" in scripted:
            raise Reject(scripted["rejects"])
        if "fails" in scripted:
            raise RuntimeError(scripted["fails"])
        return tuple(_message(self.registry, event) for event in scripted.get("returns", ()))

    def check(self) -> None:
        """Raises where another handler ran than the script has, or one did not. A failing one may run several times."""
        assert self._called == set(self._scripted)


def _message(registry: Registry, event: Mapping[str, Any]) -> Message:
    event_type = registry.get(event["type"])
    assert event_type is not None, event["type"]
    return json_format.ParseDict(event["protojson"], event_type.message_class())


def participants(script: Script) -> dict[str, Participant]:
    """The participants of the histories, by name. Their contracts stand in the vectors too."""

    def charge(_event: ItemsReserved, tx: Transaction) -> tuple[PaymentProcessed | PaymentFailed, ...]:
        return script.play("take-payment", "forward", tx)  # type: ignore[no-any-return]

    def refund(_event: ShippingFailed | SagaTimedOut, tx: Transaction) -> tuple[PaymentRefunded, ...]:
        return script.play("take-payment", "undo", tx)  # type: ignore[no-any-return]

    def deliver(_event: DroneProvisioned, tx: Transaction) -> tuple[PackageDelivered | DeliveryFailed, ...]:
        return script.play("deliver-package", "forward", tx)  # type: ignore[no-any-return]

    def call_off(_event: SagaTimedOut, tx: Transaction) -> tuple[DeliveryFailed, ...]:
        return script.play("deliver-package", "undo", tx)  # type: ignore[no-any-return]

    def hand_over(_event: PackageDelivered, tx: Transaction) -> None:
        script.play("deliver-package", "act", tx)

    def complete(_event: OrderShipped, tx: Transaction) -> tuple[OrderCompleted, ...]:
        return script.play("complete-order", "forward", tx)  # type: ignore[no-any-return]

    def book(_event: ItemsReserved, tx: Transaction) -> None:
        script.play("book-revenue", "forward", tx)

    def declare(_event: ItemsReserved, tx: Transaction) -> None:
        script.play("declare-tax", "forward", tx)

    def withdraw(_event: SagaTimedOut, tx: Transaction) -> None:
        script.play("declare-tax", "undo", tx)

    made = (
        Participant("payments", step("take-payment", charge, undo=refund, saga="order-fulfilment"),
                    metadata=metadata, retries=RETRIES),
        Participant("delivery", step("deliver-package", deliver, undo=call_off, irrevocable=hand_over,
                                     saga="drone-delivery"), metadata=metadata, retries=RETRIES),
        Participant("orders", step("complete-order", complete, saga="order-fulfilment"),
                    metadata=metadata, retries=RETRIES),
        Participant("ledger", step("book-revenue", book, saga="order-fulfilment"),
                    step("declare-tax", declare, undo=withdraw, saga="tax-return"), metadata=metadata, retries=RETRIES),
    )  # fmt: skip
    return {participant.name: participant for participant in made}


class Stage:
    """A participant over a database of its own, to which moves are played."""

    def __init__(self, name: str, database: Path) -> None:
        self.script = Script()
        self.participant = participants(self.script)[name]
        self.script.registry = self.participant.registry
        self._database = Database(f"sqlite:///{database}")
        self._tables = ParticipantTables()
        self._now = STREAM_TIME
        self._handler = self._owner()

    def _owner(self) -> ParticipantBatchHandler:
        return ParticipantBatchHandler(self.participant, self._database, self._tables, clock=lambda: self._now)

    async def open(self) -> None:
        """Makes the tables and begins to read."""
        await self._database.create(self._tables.metadata, metadata, if_earlier="")
        await self._begin([])

    async def close(self) -> None:
        """Closes the database."""
        await self._database.close()

    async def play(self, move: Mapping[str, Any]) -> dict[str, Any]:
        """Plays a move; what came of it, in the form in which the vectors expect it."""
        self.script.begin(move["runs"])
        done, known = await self._done(), await self._dispositions()
        decided = {row.id for row in await self._handler.waiting()}
        if "takes" in move:
            await self._handler.handle([stored_event(event) for event in move["takes"]], ())
        elif "hears" in move:
            await self._begin([stored_event(event) for event in move["hears"]])
        else:
            assert move["tries_again"]
            self._now += RETRIES.longest
        while (due_in := self._handler.due_in()) is not None and due_in <= 0:
            await self._handler.due()
        self.script.check()
        dispositions = await self._dispositions()
        return {
            "runs": (await self._done())[len(done) :],
            "barriers": await self._barriers(),
            "dispositions": {
                identity: dispositions[identity] for identity in sorted(dispositions.keys() - known.keys())
            },
            "queue": await self._queue(),
            "publishes": [
                self._published(row.publication) for row in await self._handler.waiting() if row.id not in decided
            ],
        }

    async def _begin(self, stored: list[StoredMessage]) -> None:
        """A session: the store is claimed, and what is stored of the types to hear first is heard."""

        async def pages() -> AsyncIterator[Sequence[StoredMessage]]:
            if stored:
                yield stored

        self._handler = self._owner()
        await self._handler.claim("stream-1")
        await self._handler.hear(pages())

    async def _done(self) -> list[dict[str, str]]:
        """The runs whose work is committed."""
        query = sa.select(work.c.step, work.c.run).order_by(work.c.number)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [{"step": row.step, "run": row.run} for row in rows]

    async def _barriers(self) -> dict[str, str]:
        barrier = self._tables.metadata.tables["farandole_barrier"]
        query = sa.select(barrier).order_by(barrier.c.key, barrier.c.definition, barrier.c.step)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {f"{row.definition} {row.key} {row.step}": row.state for row in rows}

    async def _dispositions(self) -> dict[str, str]:
        inbox = self._tables.metadata.tables["farandole_inbox"]
        rows = await self._database.read(lambda connection: connection.execute(sa.select(inbox)).all())
        return {row.identity: Disposition(row.disposition).name for row in rows}

    async def _queue(self) -> list[dict[str, Any]]:
        queue = self._tables.metadata.tables["farandole_queue"]
        keys = await self._database.read(lambda connection: set(connection.execute(sa.select(queue.c.key)).scalars()))
        entries = await self._database.read(lambda connection: self._tables.queue.of(connection, keys, 100))
        heads = {entry.key: entry.message.sequence for entry in reversed(entries)}
        shown = [queued_event(entry, is_first=heads[entry.key] == entry.message.sequence) for entry in entries]
        return [
            {
                "sequence": event.sequence,
                "state": participant_pb2.QueuedEventState.Name(event.state).removeprefix("QUEUED_EVENT_STATE_"),
                "attempts": event.attempts,
            }
            for event in shown
        ]

    def _published(self, publication: Publication) -> dict[str, Any]:
        """A publication without its `ce-time`: that is the machine's."""
        headers = {name: value for name, value in publication.headers.items() if name != "ce-time"}
        shown: dict[str, Any] = {"subject": publication.subject, "headers": headers}
        if not publication.subject.startswith("events."):
            return shown | {"body": publication.data.decode()}
        event_type = self.participant.registry.get(publication.subject.split(".", 2)[2])
        assert event_type is not None
        return shown | {"protojson": json_format.MessageToDict(event_type.message_class.FromString(publication.data))}


def stored_event(event: Mapping[str, Any]) -> StoredMessage:
    """An event of a history as the stream holds it: as JSON, with an id and a source."""
    return StoredMessage(
        subject=event["stored_subject"],
        headers=event["headers"],
        data=str(event["body"]).encode(),
        sequence=event["sequence"],
        time=STREAM_TIME,
    )
