"""The orders' tables, and what is asked of them. Cards and addresses are never stored."""

from __future__ import annotations

import sqlalchemy as sa

from services.orders.domain import OrderStatus

metadata = sa.MetaData()

placements = sa.Table(
    "placements",
    metadata,
    sa.Column("order_id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)
"""What `PlaceOrder` has accepted; its order is made when the event has come back from the stream."""

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.Text, primary_key=True),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("amount_cents", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("tracking_number", sa.Text, nullable=False),
    sa.Column("cancel_reason", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)

order_lines = sa.Table(
    "order_lines",
    metadata,
    sa.Column("order_id", sa.Text, sa.ForeignKey(orders.c.order_id), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("sku", sa.Text, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("unit_price_cents", sa.BigInteger, nullable=False),
)

SELECT_ORDER = sa.select(orders).where(orders.c.order_id == sa.bindparam("order"))

SELECT_LINES = (
    sa.select(order_lines).where(order_lines.c.order_id == sa.bindparam("order")).order_by(order_lines.c.position)
)

INSERT_ORDER = sa.insert(orders)

INSERT_LINES = sa.insert(order_lines)

COMPLETE = (
    sa.update(orders)
    .where(orders.c.order_id == sa.bindparam("order"), orders.c.status == OrderStatus.PLACED)
    .values(status=OrderStatus.COMPLETED, tracking_number=sa.bindparam("tracking"))
)

CANCEL = (
    sa.update(orders)
    .where(orders.c.order_id == sa.bindparam("order"))
    .values(status=OrderStatus.CANCELLED, cancel_reason=sa.bindparam("reason"))
)

SELECT_DIGEST = sa.select(
    sa.func.coalesce(
        sa.select(orders.c.digest).where(orders.c.order_id == sa.bindparam("order")).scalar_subquery(),
        sa.select(placements.c.digest).where(placements.c.order_id == sa.bindparam("order")).scalar_subquery(),
    )
)
"""Of the order with an id: the one that the stream has given the id to, or else the one that was accepted for it."""

INSERT_PLACEMENT = sa.insert(placements)
