"""The shipments' table, and what is asked of it. Addresses are never stored: a parcel has its label."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

shipments = sa.Table(
    "shipments",
    metadata,
    sa.Column("order_id", sa.Text, primary_key=True),
    sa.Column("tracking_number", sa.Text, nullable=False),  # empty where the order can't be delivered
    sa.Column("status", sa.Text, nullable=False),
)

SELECT_SHIPMENT = sa.select(shipments).where(shipments.c.order_id == sa.bindparam("order"))

INSERT_SHIPMENT = sa.insert(shipments)

UPDATE_STATUS = (
    sa.update(shipments)
    .where(shipments.c.order_id == sa.bindparam("order"))
    .values(status=sa.bindparam("new_status"))
    .returning(shipments.c.tracking_number)
)
