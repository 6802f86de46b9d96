"""Why a delivery is given up on."""

from __future__ import annotations

import enum


class Reason(enum.IntEnum):
    """Why a delivery is given up on (`choreography.v1.DeadLetterReason`).

    The last three are a participant's; for all others no one can read the message.
    """

    TOO_LARGE = 1
    TOO_COMPLEX = 2
    UNKNOWN_TYPE = 3
    TYPE_MISMATCH = 4
    INVALID_HEADER = 5
    UNSUPPORTED_CONTENT_TYPE = 6
    UNDECODABLE = 7
    RULE_VIOLATION = 8
    INVALID_KEY = 9
    WRONG_PARTITION = 10
    REJECTED = 11
    RETRIES_EXHAUSTED = 12
    CRASHED = 13
