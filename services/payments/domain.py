"""The rules of payments: which cards can be charged."""

from __future__ import annotations

import enum

DECLINED_CARD = "card-declined"
FROZEN_CARD = "card-frozen"


class PaymentStatus(enum.StrEnum):
    """Where a payment stands (`payments.v1.PaymentStatus`)."""

    PROCESSED = "PROCESSED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"


def refusal(card: str) -> str | None:
    """Why a card can't be charged, or None where it can."""
    return "the card was declined" if card == DECLINED_CARD else None


def is_frozen(card: str) -> bool:
    """Whether the bank will have frozen the card's account by the time that it is to get money back."""
    return card == FROZEN_CARD
