"""The payments' tables, and what is asked of them. Cards and addresses are never stored."""

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

frozen_payments = sa.Table(
    "frozen_payments",
    metadata,
    sa.Column("payment_id", sa.Text, primary_key=True),
)
"""Payments that can't be given back: the bank has frozen the account."""

SELECT_PAYMENT = sa.select(payments).where(payments.c.order_id == sa.bindparam("order"))

INSERT_PAYMENT = sa.insert(payments)

INSERT_FROZEN = sa.insert(frozen_payments)

SELECT_FROZEN = sa.select(frozen_payments).where(frozen_payments.c.payment_id == sa.bindparam("payment"))

UPDATE_STATUS = (
    sa.update(payments)
    .where(payments.c.order_id == sa.bindparam("order"))
    .values(status=sa.bindparam("new_status"))
    .returning(payments.c.payment_id, payments.c.amount_cents)
)
