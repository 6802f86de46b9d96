"""The inventory's tables, and what is asked of them."""

from __future__ import annotations

import sqlalchemy as sa

from services.inventory.domain import OPENING_STOCK

metadata = sa.MetaData()

stock = sa.Table(
    "stock",
    metadata,
    sa.Column("sku", sa.Text, primary_key=True),
    sa.Column("available", sa.BigInteger, sa.CheckConstraint("available >= 0"), nullable=False),
    sa.Column("reserved", sa.BigInteger, sa.CheckConstraint("reserved >= 0"), nullable=False),
)

reserved_lines = sa.Table(
    "reserved_lines",
    metadata,
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("sku", sa.Text, sa.ForeignKey(stock.c.sku), primary_key=True),
    sa.Column("quantity", sa.BigInteger, sa.CheckConstraint("quantity > 0"), nullable=False),
)
"""What is set aside; releasing a reservation removes its lines."""

SELECT_STOCK = sa.select(stock).where(stock.c.sku == sa.bindparam("sku"))

# Locked in one order, so that two orders of the same articles can't lock each other out (PostgreSQL; SQLite has one
# writer anyway).
SELECT_AVAILABLE = (
    sa.select(stock.c.sku, stock.c.available)
    .where(stock.c.sku.in_(sa.bindparam("skus", expanding=True)))
    .order_by(stock.c.sku)
    .with_for_update()
)

INSERT_LINES = sa.insert(reserved_lines)

DELETE_LINES = (
    sa.delete(reserved_lines)
    .where(reserved_lines.c.reservation_id == sa.bindparam("reservation"))
    .returning(reserved_lines.c.sku, reserved_lines.c.quantity)
)

# A negative quantity takes pieces back out of the reserved ones.
SET_ASIDE = (
    sa.update(stock)
    .where(stock.c.sku == sa.bindparam("article"))
    .values(
        available=stock.c.available - sa.bindparam("quantity"),
        reserved=stock.c.reserved + sa.bindparam("quantity"),
    )
)


def seed(connection: sa.Connection) -> None:
    """Adds the articles of the catalogue that are not in stock yet; leaves the others as they are."""
    known = set(connection.execute(sa.select(stock.c.sku)).scalars())
    missing = [
        {"sku": sku, "available": available, "reserved": 0}
        for sku, available in OPENING_STOCK.items()
        if sku not in known
    ]
    if missing:
        connection.execute(sa.insert(stock), missing)
