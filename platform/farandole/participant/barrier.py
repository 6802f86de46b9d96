"""The barrier: whether a step, or its undoing, may do work. One row a (definition, key, step). Pure.

    NONE ──step──▶ DONE ──undo──▶ UNDONE        NONE ──step failed──▶ FAILED
    NONE ──undo──▶ VOID                          (VOID, UNDONE, FAILED: nothing does work any more)

It answers the three hazards of compensation (Seata's TCC: empty rollback, hanging, idempotence; DTM's sub-transaction
barrier): an undoing runs once; an undoing that comes first voids the step; a step that comes after does no work.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from farandole.saga import Disposition


class BarrierState(enum.StrEnum):
    """What became of a step. A step without a row has neither run nor been voided."""

    DONE = "DONE"
    FAILED = "FAILED"
    UNDONE = "UNDONE"
    VOID = "VOID"


class Direction(enum.StrEnum):
    """Which way a step is carried out."""

    FORWARD = "forward"
    UNDO = "undo"


class Move(enum.Enum):
    """What an event leads to."""

    RUN = enum.auto()
    VOID = enum.auto()
    NOTHING = enum.auto()


@dataclass(frozen=True, slots=True)
class Barrier:
    """The barrier of one step of one saga."""

    state: BarrierState
    trigger_digest: bytes
    """The digest of the event that made the step run; empty for a voided one."""


def forward_move(barrier: Barrier | None, digest: bytes) -> tuple[Move, Disposition]:
    """What an event that triggers the step leads to, and its disposition."""
    if barrier is None:
        return Move.RUN, Disposition.APPLIED
    if barrier.state is BarrierState.VOID:
        return Move.NOTHING, Disposition.LATE
    same = barrier.trigger_digest == digest
    return Move.NOTHING, Disposition.DUPLICATE if same else Disposition.UNEXPECTED


def undo_move(barrier: Barrier | None) -> tuple[Move, Disposition]:
    """What an event that triggers the step's compensation leads to, and its disposition."""
    if barrier is None:
        return Move.VOID, Disposition.APPLIED
    if barrier.state is BarrierState.DONE:
        return Move.RUN, Disposition.APPLIED
    return Move.NOTHING, Disposition.DUPLICATE
