"""The packaging service's tables, and what is asked of them. Addresses are never stored: a package has its label."""

from __future__ import annotations

import sqlalchemy as sa

from services.packaging.domain import OPENING_STOCK

metadata = sa.MetaData()

stock = sa.Table(
    "stock",
    metadata,
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("available", sa.BigInteger, sa.CheckConstraint("available >= 0"), nullable=False),
    sa.Column("packed", sa.BigInteger, sa.CheckConstraint("packed >= 0"), nullable=False),
)

packages = sa.Table(
    "packages",
    metadata,
    sa.Column("package_id", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, sa.ForeignKey(stock.c.item), nullable=False),
)
"""What is packed; unpacking removes the package."""

SELECT_STOCK = sa.select(stock).where(stock.c.item == sa.bindparam("item"))

# Locked, so that two parcels can't both have the last one (PostgreSQL; SQLite has one writer anyway).
SELECT_AVAILABLE = sa.select(stock.c.available).where(stock.c.item == sa.bindparam("item")).with_for_update()

INSERT_PACKAGE = sa.insert(packages)

DELETE_PACKAGE = sa.delete(packages).where(packages.c.package_id == sa.bindparam("package")).returning(packages.c.item)

PACK = (
    sa.update(stock)
    .where(stock.c.item == sa.bindparam("packed_item"))
    .values(available=stock.c.available - 1, packed=stock.c.packed + 1)
)

UNPACK = (
    sa.update(stock)
    .where(stock.c.item == sa.bindparam("packed_item"))
    .values(available=stock.c.available + 1, packed=stock.c.packed - 1)
)


def seed(connection: sa.Connection) -> None:
    """Adds the items of the catalogue that are not in stock yet; leaves the others as they are."""
    known = set(connection.execute(sa.select(stock.c.item)).scalars())
    missing = [
        {"item": item, "available": available, "packed": 0}
        for item, available in OPENING_STOCK.items()
        if item not in known
    ]
    if missing:
        connection.execute(sa.insert(stock), missing)
