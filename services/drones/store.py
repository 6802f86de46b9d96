"""The drones' tables, and what is asked of them. Addresses are never stored."""

from __future__ import annotations

import sqlalchemy as sa

from services.drones.domain import FLEET_SIZE, DroneStatus

metadata = sa.MetaData()

fleet = sa.Table(
    "fleet",
    metadata,
    sa.Column("available", sa.BigInteger, sa.CheckConstraint("available >= 0"), nullable=False),
    sa.Column("provisioned", sa.BigInteger, sa.CheckConstraint("provisioned >= 0"), nullable=False),
)
"""One row."""

drones = sa.Table(
    "drones",
    metadata,
    sa.Column("parcel_id", sa.Text, primary_key=True),
    sa.Column("drone_id", sa.Text, nullable=False),  # empty where none could carry the parcel
    sa.Column("status", sa.Text, nullable=False),
)

SELECT_FLEET = sa.select(fleet)

# Locked, so that two packages can't both have the last one (PostgreSQL; SQLite has one writer anyway).
SELECT_AVAILABLE = sa.select(fleet.c.available).with_for_update()

PROVISION = sa.update(fleet).values(available=fleet.c.available - 1, provisioned=fleet.c.provisioned + 1)

RELEASE = sa.update(fleet).values(available=fleet.c.available + 1, provisioned=fleet.c.provisioned - 1)

SELECT_DRONE = sa.select(drones).where(drones.c.parcel_id == sa.bindparam("parcel"))

INSERT_DRONE = sa.insert(drones)

MARK_RELEASED = (
    sa.update(drones)
    .where(drones.c.parcel_id == sa.bindparam("parcel"))
    .values(status=DroneStatus.RELEASED)
    .returning(drones.c.drone_id)
)


def seed(connection: sa.Connection) -> None:
    """Makes the fleet, where there is none yet."""
    if connection.execute(SELECT_FLEET).first() is None:
        connection.execute(sa.insert(fleet), {"available": FLEET_SIZE, "provisioned": 0})
