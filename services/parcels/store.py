"""The parcels' tables, and what is asked of them. Addresses are never stored."""

from __future__ import annotations

import sqlalchemy as sa

from services.parcels.domain import ParcelStatus

metadata = sa.MetaData()

acceptances = sa.Table(
    "acceptances",
    metadata,
    sa.Column("parcel_id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)
"""What `OrderParcel` has accepted; its parcel is made when the event has come back from the stream."""

parcels = sa.Table(
    "parcels",
    metadata,
    sa.Column("parcel_id", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("weight_grams", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("delivery_id", sa.Text, nullable=False),  # empty before it was delivered
    sa.Column("cancel_reason", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)

SELECT_PARCEL = sa.select(parcels).where(parcels.c.parcel_id == sa.bindparam("parcel"))

INSERT_PARCEL = sa.insert(parcels)

COMPLETE = (
    sa.update(parcels)
    .where(parcels.c.parcel_id == sa.bindparam("parcel"), parcels.c.status == ParcelStatus.ORDERED)
    .values(status=ParcelStatus.COMPLETED, delivery_id=sa.bindparam("delivery"))
)

CANCEL = (
    sa.update(parcels)
    .where(parcels.c.parcel_id == sa.bindparam("parcel"))
    .values(status=ParcelStatus.CANCELLED, cancel_reason=sa.bindparam("reason"))
)

SELECT_DIGEST = sa.select(
    sa.func.coalesce(
        sa.select(parcels.c.digest).where(parcels.c.parcel_id == sa.bindparam("parcel")).scalar_subquery(),
        sa.select(acceptances.c.digest).where(acceptances.c.parcel_id == sa.bindparam("parcel")).scalar_subquery(),
    )
)
"""Of the parcel with an id: the one that the stream has given the id to, or else the one that was accepted for it."""

INSERT_ACCEPTANCE = sa.insert(acceptances)
