"""The rules of payments: which cards can be charged."""

from __future__ import annotations

import enum

DECLINED_CARD = "card-declined"


class PaymentStatus(enum.StrEnum):
    """Where a payment stands (`payments.v1.PaymentStatus`)."""

    PROCESSED = "PROCESSED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"


def refusal(card: str) -> str | None:
    """Why a card can't be charged, or None where it can."""
    return "the card was declined" if card == DECLINED_CARD else None
