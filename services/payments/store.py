"""The payments' table, and what is asked of it. Cards and addresses are never stored."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

payments = sa.Table(
    "payments",
    metadata,
    sa.Column("order_id", sa.Text, primary_key=True),
    sa.Column("payment_id", sa.Text, nullable=False),  # empty where the card was declined
    sa.Column("amount_cents", sa.BigInteger, sa.CheckConstraint("amount_cents >= 0"), nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
)

SELECT_PAYMENT = sa.select(payments).where(payments.c.order_id == sa.bindparam("order"))

INSERT_PAYMENT = sa.insert(payments)

UPDATE_STATUS = (
    sa.update(payments)
    .where(payments.c.order_id == sa.bindparam("order"))
    .values(status=sa.bindparam("new_status"))
    .returning(payments.c.payment_id, payments.c.amount_cents)
)
