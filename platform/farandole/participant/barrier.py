"""The barrier: whether a step, its undoing or its irrevocable act may do work. One row a (definition, key, step). Pure.

    NONE ──step──▶ DONE ──undo──▶ UNDONE        NONE ──step failed──▶ FAILED
    NONE ──undo──▶ VOID    DONE ──its own success event read back──▶ CONFIRMED   (where a step has an irrevocable act)
    NONE ──end of the saga──▶ VOID   (where a step needs several events)
    (VOID, UNDONE, FAILED, CONFIRMED: nothing does work any more)

It answers the three hazards of compensation (Seata's TCC: empty rollback, hanging, idempotence; DTM's sub-transaction
barrier): an undoing runs once; an undoing that comes first voids the step; a step that comes after does no work.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from farandole.saga import Disposition

DIGEST_BYTES = 32
"""Of the SHA-256 of an event's body."""

BarrierKey = tuple[str, str, str]
"""(definition, correlation key, step)."""


class BarrierState(enum.StrEnum):
    """What became of a step. A step without a row has neither run nor been voided."""

    DONE = "DONE"
    FAILED = "FAILED"
    UNDONE = "UNDONE"
    VOID = "VOID"
    CONFIRMED = "CONFIRMED"


class Direction(enum.StrEnum):
    """Which part of a step is carried out. The values are parts of event ids, and so never change."""

    FORWARD = "forward"
    UNDO = "undo"
    CONFIRM = "confirm"
    END = "end"
    """None of them: its saga has ended, and what waits for other events of the step waits in vain."""


class Move(enum.Enum):
    """What an event leads to."""

    RUN = enum.auto()
    VOID = enum.auto()
    """The step is void without any work, and the participant says so."""
    CLOSE = enum.auto()
    """The step is void without any work; its saga has ended, and nobody waits to be told."""
    WAIT = enum.auto()
    """The event waits for the others that the step needs."""
    NOTHING = enum.auto()


@dataclass(frozen=True, slots=True)
class Barrier:
    """The barrier of one step of one saga."""

    state: BarrierState
    trigger_digest: bytes
    """The digest of the event that made the step run, or of all that it needed, one after the other; empty for a
    voided one."""
    awaited_id: str = ""
    """The id of the step's own success event that its irrevocable act waits for; empty where it has none."""


def forward_move(barrier: Barrier | None, digest: bytes) -> tuple[Move, Disposition]:
    """What an event that triggers the step leads to, and its disposition."""
    if barrier is None:
        return Move.RUN, Disposition.APPLIED
    if barrier.state is BarrierState.VOID:
        return Move.NOTHING, Disposition.LATE
    same = barrier.trigger_digest == digest
    return Move.NOTHING, Disposition.DUPLICATE if same else Disposition.UNEXPECTED


def gathering_move(
    barrier: Barrier | None, digest: bytes, *, place: int, waiting: Sequence[bytes | None]
) -> tuple[Move, Disposition]:
    """What one of several events that a step needs leads to, and its disposition.

    `place` is the event's among those that the step needs; `waiting` has for each of those the digest of what came
    early, and None for what has not come. The first of a type is the one that counts.
    """
    if barrier is not None:
        start = place * DIGEST_BYTES
        own = replace(barrier, trigger_digest=barrier.trigger_digest[start : start + DIGEST_BYTES])
        return forward_move(own, digest)
    came = waiting[place]
    if came is not None:
        return Move.NOTHING, Disposition.DUPLICATE if came == digest else Disposition.UNEXPECTED
    if any(other is None for index, other in enumerate(waiting) if index != place):
        return Move.WAIT, Disposition.EARLY
    return Move.RUN, Disposition.APPLIED


def end_move(barrier: Barrier | None) -> tuple[Move, Disposition]:
    """What the end of its saga leads to, for a step that needs several events."""
    return Move.CLOSE if barrier is None else Move.NOTHING, Disposition.APPLIED


def undo_move(barrier: Barrier | None, *, has_handler: bool, is_irrevocable: bool) -> tuple[Move, Disposition]:
    """What an event that triggers the step's compensation leads to, and its disposition.

    `has_handler` says whether there is anything to run for this event. An irrevocable step answers with its undoing
    also where it has not run: in both cases nothing irrevocable has happened, and there is nothing to tell apart.
    """
    if barrier is None:
        return Move.RUN if is_irrevocable and has_handler else Move.VOID, Disposition.APPLIED
    if barrier.state is BarrierState.DONE:
        return (Move.RUN, Disposition.APPLIED) if has_handler else (Move.NOTHING, Disposition.UNMATCHED)
    if barrier.state is BarrierState.CONFIRMED:
        return Move.NOTHING, Disposition.LATE
    return Move.NOTHING, Disposition.DUPLICATE


def confirm_move(barrier: Barrier | None, event_id: str) -> tuple[Move, Disposition]:
    """What one of the participant's own success events leads to once the stream has it, and its disposition."""
    if barrier is None or barrier.state is BarrierState.FAILED or barrier.awaited_id != event_id:
        return Move.NOTHING, Disposition.UNEXPECTED
    if barrier.state is BarrierState.DONE:
        return Move.RUN, Disposition.APPLIED
    return Move.NOTHING, Disposition.DUPLICATE if barrier.state is BarrierState.CONFIRMED else Disposition.LATE


def after_forward(digest: bytes, *, failed: bool, awaited_id: str = "") -> Barrier:
    """The barrier of a step that has run on what has this digest, or these one after the other; `failed` where it
    published a failure event."""
    return Barrier(BarrierState.FAILED, digest) if failed else Barrier(BarrierState.DONE, digest, awaited_id)


def after_undo(barrier: Barrier | None) -> Barrier:
    """The barrier of a step that was undone, or that its undoing or the end of its saga came before."""
    return Barrier(BarrierState.VOID, b"") if barrier is None else replace(barrier, state=BarrierState.UNDONE)


def after_confirm(barrier: Barrier) -> Barrier:
    """The barrier of a step whose irrevocable act was done."""
    return replace(barrier, state=BarrierState.CONFIRMED)
