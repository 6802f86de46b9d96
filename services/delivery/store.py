"""The deliveries' table, and what is asked of it. Addresses are never stored: the drone has the address."""

from __future__ import annotations

import sqlalchemy as sa

from services.delivery.domain import DeliveryStatus

metadata = sa.MetaData()

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("parcel_id", sa.Text, primary_key=True),
    sa.Column("delivery_id", sa.Text, nullable=False),  # empty where the package can't be delivered
    sa.Column("drone_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("delivery_time", sa.DateTime(timezone=True)),  # None before the package was handed over
)

SELECT_DELIVERY = sa.select(deliveries).where(deliveries.c.parcel_id == sa.bindparam("parcel"))

INSERT_DELIVERY = sa.insert(deliveries)

HAND_OVER = (
    sa.update(deliveries)
    .where(deliveries.c.parcel_id == sa.bindparam("parcel"))
    .values(status=DeliveryStatus.DELIVERED, delivery_time=sa.bindparam("time"))
)

CALL_OFF = (
    sa.update(deliveries)
    .where(deliveries.c.parcel_id == sa.bindparam("parcel"))
    .values(status=DeliveryStatus.CALLED_OFF)
)
