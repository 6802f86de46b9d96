"""A small run's evidence, written by hand, in which everything holds; tests spoil one thing of it each.

The tables are the real ones, so that the checker's statements and triggers are tried on what they meet.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.ids import content_id
from farandole.participant.tables import ParticipantTables
from tests.chaos.checker.choreographies import (
    CHOREOGRAPHIES,
    DRONE_DELIVERY,
    FLEET,
    OPENING_ITEMS,
    OPENING_STOCK,
    ORDER_FULFILMENT,
    PARTICIPANTS,
    Choreography,
)
from tests.chaos.checker.evidence import GARBAGE, LEDGER, REBUILT, RUN, STREAM, database_file
from tests.chaos.databases import SqliteDatabases

Body = dict[str, Any]

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEADLINE_SECONDS = 15
BOUND_SECONDS = 30
COMPLETED, COMPENSATED = 2, 4
TIMED_OUT = "choreography.v1.SagaTimedOut"
_LIFECYCLE: Mapping[int, str] = {COMPLETED: "SagaCompleted", COMPENSATED: "SagaCompensated"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class EndState:
    """Where the evidence stands, and the tools to spoil it."""

    directory: Path

    @property
    def databases(self) -> Path:
        """Where each service has its database."""
        return self.directory / "databases"

    @contextmanager
    def writing(self, service: str) -> Iterator[sqlite3.Connection]:
        """A transaction on a service's database; nothing here has to survive a crash."""
        with closing(sqlite3.connect(database_file(self.databases, service))) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            yield connection

    def execute(self, service: str, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Changes a service's database; that must hit something."""
        with self.writing(service) as connection:
            assert connection.execute(statement, parameters).rowcount > 0, f"{statement} hits nothing"

    def insert(self, service: str, table: str, **values: Any) -> None:
        """Adds a row; whatever else it must have is empty or zero."""
        with self.writing(service) as connection:
            for _, name, kind, not_null, _, key in connection.execute(f"PRAGMA table_info({table})").fetchall():
                numbers_itself = key and kind == "INTEGER"
                if not_null and not numbers_itself and name not in values:
                    values[name] = "" if kind == "TEXT" else b"" if kind == "BLOB" else 0
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))

    def change_run(self, **values: Any) -> None:
        """Changes what `run.json` says."""
        path = self.directory / RUN
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def change_lines(self, name: str, change: Callable[[list[Body]], list[Body]]) -> None:
        """Changes the lines of a file."""
        path = self.directory / name
        lines = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def events(self) -> list[Body]:
        """The stream's lines."""
        return [json.loads(line) for line in (self.directory / STREAM).read_text().splitlines()]

    def sequence_of(self, key: str, event_type: str) -> int:
        """Where the first event of a type and key stands."""
        for line in self.events():
            if line["subject"].endswith(f".{event_type}") and key in base64.b64decode(line["data"]).decode():
                sequence: int = line["sequence"]
                return sequence
        raise AssertionError(f"no {event_type} of {key}")

    def copy_to(self, directory: Path) -> EndState:
        """A copy, to be spoilt."""
        shutil.copytree(self.directory, directory)
        return EndState(directory)


def write_end_state(directory: Path) -> EndState:
    """The evidence of a run of six sagas: two completed, four compensated, one of them by its time-out."""
    state = EndState(directory)
    _make_databases(state)
    writer = _Writer(state)
    _completed_order(writer, "ord-1")
    _declined_order(writer, "ord-2")
    _late_order(writer, "ord-3")
    _completed_parcel(writer, "par-1")
    _undeliverable_parcel(writer, "par-2")
    _late_parcel(writer, "par-3")
    writer.garbage("ord-2", "payments.v1.PaymentProcessed")
    writer.finish()
    return state


def _make_databases(state: EndState) -> None:
    for name in PARTICIPANTS:
        path = database_file(state.databases, name)
        path.parent.mkdir(parents=True)
        engine = sa.create_engine(f"sqlite:///{path}")
        for metadata in (ParticipantTables().metadata, importlib.import_module(f"services.{name}.store").metadata):
            metadata.create_all(engine)
        engine.dispose()
    SqliteDatabases(state.databases).count_effects()
    for name in ("correlator", REBUILT):
        database_file(state.databases, name).parent.mkdir(parents=True)
        asyncio.run(_make_store(f"sqlite:///{database_file(state.databases, name)}"))


async def _make_store(url: str) -> None:
    store = SqlCorrelatorStore(Database(url))
    close: Callable[[], Awaitable[None]] = store.close
    await store.open()
    await close()


class _Writer:
    """Writes events with all that follows from them: inboxes, histories, the ledger."""

    def __init__(self, state: EndState) -> None:
        self._state = state
        self._stream: list[Body] = []
        self._ledger: list[Body] = []
        self._histories: dict[tuple[str, str], list[int]] = {}
        self._seconds = 0.0
        for sku, count in OPENING_STOCK.items():
            state.insert("inventory", "stock", sku=sku, available=count)
        for item, count in OPENING_ITEMS.items():
            state.insert("packaging", "stock", item=item, available=count)
        state.insert("drones", "fleet", available=FLEET)

    def start(self, choreography: Choreography, key: str, body: Body, *, times: int = 1) -> None:
        """An initiating event from outside, acknowledged, without any header."""
        for _ in range(times):
            sequence = self.event(choreography, key, choreography.start, body)
            line = {"key": key, "type": choreography.start, "how": "publish", "body": body, "sequence": sequence}
            self._ledger.append(line)

    def event(
        self, choreography: Choreography, key: str, event_type: str, body: Body, source: str = "", later: float = 0.01
    ) -> int:
        """An event, and every participant's and the correlator's note of it; returns its sequence."""
        self._seconds += later
        sequence = len(self._stream) + 1
        headers = {"ce-id": f"id-{sequence}", "ce-source": source} if source else {}
        data = json.dumps(body).encode()
        self._append(event_type, headers, data)
        identity = f"{source}/id-{sequence}" if source else _content_identity(event_type, key, data)
        for participant in choreography.participants:
            if event_type in choreography.consumed_by(participant):
                self._note(participant, identity, sequence)
        self._histories.setdefault((choreography.name, key), []).append(sequence)
        return sequence

    def _note(self, participant: str, identity: str, sequence: int) -> None:
        with self._state.writing(participant) as connection:
            connection.execute("INSERT OR IGNORE INTO farandole_inbox VALUES (?, ?, 1)", (identity, sequence))

    @property
    def last_sequence(self) -> int:
        """Of the last event."""
        return len(self._stream)

    def garbage(self, key: str, event_type: str) -> None:
        """Something that no one can read, and the correlator's word on it."""
        self._seconds += 0.01
        self._append(event_type, {}, GARBAGE)
        sequence = self.last_sequence
        line = {"key": key, "type": event_type, "how": "garbage", "body": {}, "sequence": sequence}
        self._ledger.append(line)
        for store in ("correlator", REBUILT):
            self._state.insert(store, "dead_letter", participant="correlator", sequence=sequence, state=1)
        told = {"partitionKey": "partition-0", "sequence": str(sequence), "eventType": event_type}
        headers = {"ce-id": "unreadable", "ce-source": "correlator"}
        self._append("choreography.v1.EventUnreadable", headers, json.dumps(told).encode())

    def _append(self, event_type: str, headers: Mapping[str, str], data: bytes) -> None:
        self._stream.append(
            {
                "sequence": len(self._stream) + 1,
                "subject": f"events.0.{event_type}",
                "time": self.now.isoformat(),
                "headers": headers,
                "data": base64.b64encode(data).decode(),
            }
        )

    def wait_for_time_out(self, choreography: Choreography, key: str) -> None:
        """The correlator's time-out, just behind the deadline."""
        body = {"sagaId": key, "definition": choreography.name, "version": 1, "cause": "SAGA_CAUSE_DEADLINE"}
        self.event(choreography, key, TIMED_OUT, body, "correlator", later=DEADLINE_SECONDS + 0.1)

    def voided(self, choreography: Choreography, key: str, step: str) -> None:
        """A participant's word that a step will do no work."""
        participant = next(found.participant for found in choreography.steps if found.name == step)
        body = {"sagaId": key, "definition": choreography.name, "step": step, "participant": participant}
        self.event(choreography, key, "choreography.v1.StepVoided", body, participant)

    def end(self, choreography: Choreography, key: str, status: int) -> None:
        """The saga's end, and its record in the store and in the rebuilt one."""
        body = {"sagaId": key, "definition": choreography.name, "version": 1}
        sequence = self.event(choreography, key, f"choreography.v1.{_LIFECYCLE[status]}", body, "correlator")
        history = self._histories[choreography.name, key]
        for store in ("correlator", REBUILT):
            self._state.insert(
                store,
                "saga",
                id=sequence if store == "correlator" else 1000 + sequence,
                key=key,
                definition=choreography.name,
                status=status,
                end_time=(self.now - _EPOCH) // timedelta(microseconds=1),
            )
            for place in history:
                row = sequence if store == "correlator" else 1000 + sequence
                self._state.insert(store, "saga_history", saga=row, sequence=place, disposition=1)

    @property
    def now(self) -> datetime:
        """The stream's time."""
        return BEGAN + timedelta(seconds=self._seconds)

    def insert(self, service: str, table: str, **values: Any) -> None:
        """What a handler writes."""
        self._state.insert(service, table, **values)

    def execute(self, service: str, statement: str) -> None:
        """What a handler changes."""
        self._state.execute(service, statement)

    def finish(self) -> None:
        """Writes the files."""
        for name, lines in ((STREAM, self._stream), (LEDGER, self._ledger)):
            (self._state.directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = {
            "seed": 1,
            "deadlines": dict.fromkeys(CHOREOGRAPHIES, DEADLINE_SECONDS),
            "bound_seconds": BOUND_SECONDS,
            "healed": self.now.isoformat(),
            "wanted_sagas": 6,
            "wanted_kills": 3,
            "kills": {"nats": 2, "payments": 1},
            "strikes": [
                {"kind": "connection cut", "brought_about": 2, "observed": 1, "by": "the proxy", "problem": ""}
            ],
            "published_by_rebuild": ["choreography.v1.PartitionTick"],
            "must_be_complete": True,
            "unsettled": "",
        }
        (self._state.directory / RUN).write_text(json.dumps(run))


def _content_identity(event_type: str, key: str, data: bytes) -> str:
    return f"anonymous/{content_id(event_type, key, data)}"


# Sagas


def _order(key: str, **changes: Any) -> Body:
    return {
        "orderId": key,
        "customerId": "ada",
        "currency": "EUR",
        "card": "card-1",
        "address": "1 Main Street",
        "lines": [{"sku": "widget", "quantity": 2, "unitPriceCents": "150"}],
    } | changes


def _placed(writer: _Writer, key: str) -> None:
    writer.insert("orders", "orders", order_id=key, status="PLACED")


def _reserved(writer: _Writer, key: str) -> None:
    writer.insert("inventory", "reserved_lines", reservation_id=f"res-{key}", sku="widget", quantity=2)
    writer.execute(
        "inventory", "UPDATE stock SET available = available - 2, reserved = reserved + 2 WHERE sku = 'widget'"
    )
    body = {"orderId": key, "reservationId": f"res-{key}", "amountCents": "300"}
    writer.event(ORDER_FULFILMENT, key, "inventory.v1.ItemsReserved", body, "inventory")


def _released(writer: _Writer, key: str) -> None:
    writer.execute("inventory", f"DELETE FROM reserved_lines WHERE reservation_id = 'res-{key}'")
    writer.execute(
        "inventory", "UPDATE stock SET available = available + 2, reserved = reserved - 2 WHERE sku = 'widget'"
    )
    body = {"orderId": key, "reservationId": f"res-{key}", "reason": "undone"}
    writer.event(ORDER_FULFILMENT, key, "inventory.v1.ItemsReleased", body, "inventory")


def _paid(writer: _Writer, key: str) -> None:
    writer.insert("payments", "payments", order_id=key, amount_cents=300, status="PROCESSED")
    body = {"orderId": key, "paymentId": f"pay-{key}", "amountCents": "300"}
    writer.event(ORDER_FULFILMENT, key, "payments.v1.PaymentProcessed", body, "payments")


def _cancelled(writer: _Writer, key: str) -> None:
    writer.execute("orders", f"UPDATE orders SET status = 'CANCELLED' WHERE order_id = '{key}'")
    writer.event(ORDER_FULFILMENT, key, "orders.v1.OrderCancelled", {"orderId": key, "reason": "undone"}, "orders")


def _completed_order(writer: _Writer, key: str) -> None:
    writer.start(ORDER_FULFILMENT, key, _order(key), times=2)
    _placed(writer, key)
    _reserved(writer, key)
    _paid(writer, key)
    writer.insert("shipping", "shipments", order_id=key, tracking_number="FD1", status="SHIPPED")
    shipped = {"orderId": key, "trackingNumber": "FD1"}
    writer.event(ORDER_FULFILMENT, key, "shipping.v1.OrderShipped", shipped, "shipping")
    writer.execute(
        "orders", f"UPDATE orders SET status = 'COMPLETED', tracking_number = 'FD1' WHERE order_id = '{key}'"
    )
    writer.event(ORDER_FULFILMENT, key, "orders.v1.OrderCompleted", shipped, "orders")
    writer.end(ORDER_FULFILMENT, key, COMPLETED)


def _declined_order(writer: _Writer, key: str) -> None:
    writer.start(ORDER_FULFILMENT, key, _order(key, card="card-declined"))
    _placed(writer, key)
    _reserved(writer, key)
    writer.insert("payments", "payments", order_id=key, amount_cents=300, status="DECLINED")
    declined = {"orderId": key, "reason": "the card was declined"}
    writer.event(ORDER_FULFILMENT, key, "payments.v1.PaymentFailed", declined, "payments")
    _released(writer, key)
    _cancelled(writer, key)
    writer.end(ORDER_FULFILMENT, key, COMPENSATED)


def _late_order(writer: _Writer, key: str) -> None:
    writer.start(ORDER_FULFILMENT, key, _order(key, address="illegible"))
    _placed(writer, key)
    _reserved(writer, key)
    _paid(writer, key)
    _given_up(writer, key)
    writer.wait_for_time_out(ORDER_FULFILMENT, key)
    writer.voided(ORDER_FULFILMENT, key, "ship-order")
    writer.voided(ORDER_FULFILMENT, key, "complete-order")
    writer.execute("payments", f"UPDATE payments SET status = 'REFUNDED' WHERE order_id = '{key}'")
    refunded = {"orderId": key, "paymentId": f"pay-{key}", "amountCents": "300", "reason": "late"}
    writer.event(ORDER_FULFILMENT, key, "payments.v1.PaymentRefunded", refunded, "payments")
    _released(writer, key)
    _cancelled(writer, key)
    writer.end(ORDER_FULFILMENT, key, COMPENSATED)


def _given_up(writer: _Writer, key: str) -> None:
    """Shipping can't read the address, not even when it tries again, and the time-out supersedes its dead letter."""
    sequence = writer.last_sequence
    dead = {"sagaId": key, "definition": ORDER_FULFILMENT.name, "step": "ship-order", "participant": "shipping"}
    for event_type, source in (
        ("DeadLetterRecorded", "shipping"),
        ("DeadLetterRedriven", "correlator"),
        ("DeadLetterRecorded", "shipping"),
        ("DeadLetterSuperseded", "shipping"),
    ):
        body = dead | {"sequence": str(sequence)}
        writer.event(ORDER_FULFILMENT, key, f"choreography.v1.{event_type}", body, source)
    writer.execute("shipping", f"DELETE FROM farandole_inbox WHERE sequence = {sequence}")
    for store in ("correlator", REBUILT):
        writer.insert(store, "dead_letter", participant="shipping", sequence=sequence, state=4)


def _parcel(key: str, **changes: Any) -> Body:
    return {"parcelId": key, "item": "book", "weightGrams": 500, "address": "1 Main Street"} | changes


def _packed(writer: _Writer, key: str) -> None:
    writer.insert("parcels", "parcels", parcel_id=key, item="book", status="ORDERED")
    writer.insert("packaging", "packages", package_id=f"pack-{key}", item="book")
    writer.execute("packaging", "UPDATE stock SET available = available - 1, packed = packed + 1 WHERE item = 'book'")
    body = {"parcelId": key, "packageId": f"pack-{key}", "weightGrams": 500}
    writer.event(DRONE_DELIVERY, key, "packaging.v1.PackagePrepared", body, "packaging")


def _provisioned(writer: _Writer, key: str) -> None:
    writer.insert("drones", "drones", parcel_id=key, drone_id=f"drone-{key}", status="PROVISIONED")
    writer.execute("drones", "UPDATE fleet SET available = available - 1, provisioned = provisioned + 1")
    body = {"parcelId": key, "droneId": f"drone-{key}", "packageId": f"pack-{key}"}
    writer.event(DRONE_DELIVERY, key, "drones.v1.DroneProvisioned", body, "drones")


def _parcel_undone(writer: _Writer, key: str) -> None:
    writer.execute("drones", f"UPDATE drones SET status = 'RELEASED' WHERE parcel_id = '{key}'")
    writer.execute("drones", "UPDATE fleet SET available = available + 1, provisioned = provisioned - 1")
    released = {"parcelId": key, "droneId": f"drone-{key}", "reason": "undone"}
    writer.event(DRONE_DELIVERY, key, "drones.v1.DroneReleased", released, "drones")
    writer.execute("packaging", f"DELETE FROM packages WHERE package_id = 'pack-{key}'")
    writer.execute("packaging", "UPDATE stock SET available = available + 1, packed = packed - 1 WHERE item = 'book'")
    unpacked = {"parcelId": key, "packageId": f"pack-{key}", "reason": "undone"}
    writer.event(DRONE_DELIVERY, key, "packaging.v1.PackageUnpacked", unpacked, "packaging")
    writer.execute("parcels", f"UPDATE parcels SET status = 'CANCELLED' WHERE parcel_id = '{key}'")
    cancelled = {"parcelId": key, "reason": "undone"}
    writer.event(DRONE_DELIVERY, key, "parcels.v1.ParcelOrderCancelled", cancelled, "parcels")
    writer.end(DRONE_DELIVERY, key, COMPENSATED)


def _planned(writer: _Writer, key: str) -> None:
    writer.insert("delivery", "deliveries", parcel_id=key, delivery_id=f"del-{key}", status="PLANNED")
    body = {"parcelId": key, "deliveryId": f"del-{key}", "droneId": f"drone-{key}"}
    writer.event(DRONE_DELIVERY, key, "delivery.v1.PackageDelivered", body, "delivery")


def _completed_parcel(writer: _Writer, key: str) -> None:
    writer.start(DRONE_DELIVERY, key, _parcel(key))
    _packed(writer, key)
    _provisioned(writer, key)
    _planned(writer, key)
    writer.execute("delivery", f"UPDATE deliveries SET status = 'DELIVERED' WHERE parcel_id = '{key}'")
    writer.execute("parcels", f"UPDATE parcels SET status = 'COMPLETED' WHERE parcel_id = '{key}'")
    completed = {"parcelId": key, "deliveryId": f"del-{key}"}
    writer.event(DRONE_DELIVERY, key, "parcels.v1.ParcelOrderCompleted", completed, "parcels")
    writer.end(DRONE_DELIVERY, key, COMPLETED)


def _undeliverable_parcel(writer: _Writer, key: str) -> None:
    writer.start(DRONE_DELIVERY, key, _parcel(key, address="nowhere"))
    _packed(writer, key)
    _provisioned(writer, key)
    writer.insert("delivery", "deliveries", parcel_id=key, status="UNDELIVERABLE")
    failed = {"parcelId": key, "reason": "the address is not found"}
    writer.event(DRONE_DELIVERY, key, "delivery.v1.DeliveryFailed", failed, "delivery")
    _parcel_undone(writer, key)


def _late_parcel(writer: _Writer, key: str) -> None:
    """Decided just too late: the success stands behind the time-out, and is called off."""
    writer.start(DRONE_DELIVERY, key, _parcel(key))
    _packed(writer, key)
    _provisioned(writer, key)
    writer.wait_for_time_out(DRONE_DELIVERY, key)
    _planned(writer, key)
    writer.execute("delivery", f"UPDATE deliveries SET status = 'CALLED_OFF' WHERE parcel_id = '{key}'")
    failed = {"parcelId": key, "reason": "the parcel took too long"}
    writer.event(DRONE_DELIVERY, key, "delivery.v1.DeliveryFailed", failed, "delivery")
    writer.voided(DRONE_DELIVERY, key, "complete-parcel")
    _parcel_undone(writer, key)
