"""What handlers really did, counted by the databases themselves.

A trigger on each table of a sample service writes a row for every change that a step or its undoing makes, in the
transaction that makes it. So an effect that happens twice is seen, whatever the platform's own tables say, and so is
one whose transaction was rolled back: it leaves no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

TABLE = "chaos_effect"

DONE, REFUSED, UNDONE, ACTED = "done", "refused", "undone", "acted"
"""A step's work; a step that fails and notes it; its undoing; the act that can't be undone."""


@dataclass(frozen=True, slots=True)
class Watch:
    """One kind of change that counts as an effect."""

    table: str
    change: str
    """As in `CREATE TRIGGER … AFTER`: `INSERT`, `DELETE`, `UPDATE OF status`."""
    step: str
    direction: str
    subject: str
    """The column that says whose effect it is: the key, or an id that an event of the saga has."""
    status: str = ""
    """The new row's status, where only that counts."""
    part: str = ""
    """The column that tells apart the rows that one effect writes."""


WATCHES: Mapping[str, tuple[Watch, ...]] = {
    "orders": (
        Watch("orders", "INSERT", "place-order", DONE, "order_id"),
        Watch("orders", "UPDATE OF status", "place-order", UNDONE, "order_id", status="CANCELLED"),
        Watch("orders", "UPDATE OF status", "complete-order", DONE, "order_id", status="COMPLETED"),
    ),
    "inventory": (
        Watch("reserved_lines", "INSERT", "reserve-items", DONE, "reservation_id", part="sku"),
        Watch("reserved_lines", "DELETE", "reserve-items", UNDONE, "reservation_id", part="sku"),
    ),
    "payments": (
        Watch("payments", "INSERT", "take-payment", DONE, "order_id", status="PROCESSED"),
        Watch("payments", "INSERT", "take-payment", REFUSED, "order_id", status="DECLINED"),
        Watch("payments", "UPDATE OF status", "take-payment", UNDONE, "order_id", status="REFUNDED"),
    ),
    "shipping": (
        Watch("shipments", "INSERT", "ship-order", DONE, "order_id", status="SHIPPED"),
        Watch("shipments", "INSERT", "ship-order", REFUSED, "order_id", status="UNDELIVERABLE"),
        Watch("shipments", "UPDATE OF status", "ship-order", UNDONE, "order_id", status="CANCELLED"),
    ),
    "parcels": (
        Watch("parcels", "INSERT", "order-parcel", DONE, "parcel_id"),
        Watch("parcels", "UPDATE OF status", "order-parcel", UNDONE, "parcel_id", status="CANCELLED"),
        Watch("parcels", "UPDATE OF status", "complete-parcel", DONE, "parcel_id", status="COMPLETED"),
    ),
    "packaging": (
        Watch("packages", "INSERT", "prepare-package", DONE, "package_id"),
        Watch("packages", "DELETE", "prepare-package", UNDONE, "package_id"),
    ),
    "drones": (
        Watch("drones", "INSERT", "provision-drone", DONE, "parcel_id", status="PROVISIONED"),
        Watch("drones", "INSERT", "provision-drone", REFUSED, "parcel_id", status="UNAVAILABLE"),
        Watch("drones", "UPDATE OF status", "provision-drone", UNDONE, "parcel_id", status="RELEASED"),
    ),
    "delivery": (
        Watch("deliveries", "INSERT", "deliver-package", DONE, "parcel_id", status="PLANNED"),
        Watch("deliveries", "INSERT", "deliver-package", REFUSED, "parcel_id", status="UNDELIVERABLE"),
        Watch("deliveries", "UPDATE OF status", "deliver-package", UNDONE, "parcel_id", status="CALLED_OFF"),
        Watch("deliveries", "UPDATE OF status", "deliver-package", ACTED, "parcel_id", status="DELIVERED"),
    ),
}

NOTED_REFUSALS = frozenset(
    watch.step for watches in WATCHES.values() for watch in watches if watch.direction == REFUSED
)
"""Steps that note in their own tables that they failed; the others leave nothing."""

REFERENCES: Mapping[str, str] = {"reserve-items": "reservation_id", "prepare-package": "package_id"}
"""Steps whose effects are not under the saga's key: the field of their success event that says whose they are."""


def statements(service: str) -> Iterator[str]:
    """What makes the table and its triggers in a service's SQLite database. Doing it again is fine."""
    yield (
        f"CREATE TABLE IF NOT EXISTS {TABLE} (id INTEGER PRIMARY KEY AUTOINCREMENT, step TEXT NOT NULL, "
        "direction TEXT NOT NULL, subject TEXT NOT NULL, part TEXT NOT NULL)"
    )
    for watch in WATCHES[service]:
        row = "OLD" if watch.change == "DELETE" else "NEW"
        condition = f"WHEN NEW.status = '{watch.status}'" if watch.status else ""
        part = f"{row}.{watch.part}" if watch.part else "''"
        yield (
            f'CREATE TRIGGER IF NOT EXISTS "chaos {watch.step} {watch.direction}" '
            f"AFTER {watch.change} ON {watch.table} {condition} "
            f"BEGIN INSERT INTO {TABLE} (step, direction, subject, part) "
            f"VALUES ('{watch.step}', '{watch.direction}', {row}.{watch.subject}, {part}); END"
        )


def postgres_statements(service: str) -> Iterator[str]:
    """The same for PostgreSQL."""
    yield (
        f"CREATE TABLE IF NOT EXISTS {TABLE} (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, step TEXT NOT NULL, "
        "direction TEXT NOT NULL, subject TEXT NOT NULL, part TEXT NOT NULL)"
    )
    for number, watch in enumerate(WATCHES[service]):
        row = "OLD" if watch.change == "DELETE" else "NEW"
        condition = f"WHEN (NEW.status = '{watch.status}')" if watch.status else ""
        part = f"{row}.{watch.part}" if watch.part else "''"
        yield (
            f"CREATE OR REPLACE FUNCTION chaos_{number}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"INSERT INTO {TABLE} (step, direction, subject, part) "
            f"VALUES ('{watch.step}', '{watch.direction}', {row}.{watch.subject}, {part}); RETURN NULL; END $$"
        )
        yield (
            f'CREATE OR REPLACE TRIGGER "chaos {watch.step} {watch.direction}" AFTER {watch.change} ON {watch.table} '
            f"FOR EACH ROW {condition} EXECUTE FUNCTION chaos_{number}()"
        )
