"""The barrier: what each event leads to, in each state of a step."""

from __future__ import annotations

import pytest

from farandole.participant.barrier import (
    Barrier,
    BarrierState,
    Move,
    after_confirm,
    after_forward,
    after_undo,
    confirm_move,
    forward_move,
    undo_move,
)
from farandole.saga import Disposition

DONE = after_forward(b"digest", failed=False, awaited_id="own")
STATES = {
    "NONE": None,
    "DONE": DONE,
    "FAILED": after_forward(b"digest", failed=True, awaited_id="own"),
    "UNDONE": after_undo(DONE),
    "VOID": after_undo(None),
    "CONFIRMED": after_confirm(DONE),
}


def test_every_state_is_in_the_tables() -> None:
    assert {name: barrier.state for name, barrier in STATES.items() if barrier} == {s: s for s in BarrierState}


@pytest.mark.parametrize(
    ("state", "move", "same", "other"),
    [
        ("NONE", Move.RUN, Disposition.APPLIED, Disposition.APPLIED),
        ("DONE", Move.NOTHING, Disposition.DUPLICATE, Disposition.UNEXPECTED),
        ("FAILED", Move.NOTHING, Disposition.DUPLICATE, Disposition.UNEXPECTED),
        ("UNDONE", Move.NOTHING, Disposition.DUPLICATE, Disposition.UNEXPECTED),
        ("VOID", Move.NOTHING, Disposition.LATE, Disposition.LATE),
        ("CONFIRMED", Move.NOTHING, Disposition.DUPLICATE, Disposition.UNEXPECTED),
    ],
)
def test_a_trigger(state: str, move: Move, same: Disposition, other: Disposition) -> None:
    assert forward_move(STATES[state], b"digest") == (move, same)
    assert forward_move(STATES[state], b"another") == (move, other)


@pytest.mark.parametrize(
    ("state", "plain", "without_handler", "irrevocable", "disposition"),
    [
        ("NONE", Move.VOID, Move.VOID, Move.RUN, Disposition.APPLIED),
        ("DONE", Move.RUN, Move.NOTHING, Move.RUN, Disposition.APPLIED),
        ("FAILED", Move.NOTHING, Move.NOTHING, Move.NOTHING, Disposition.DUPLICATE),
        ("UNDONE", Move.NOTHING, Move.NOTHING, Move.NOTHING, Disposition.DUPLICATE),
        ("VOID", Move.NOTHING, Move.NOTHING, Move.NOTHING, Disposition.DUPLICATE),
        ("CONFIRMED", Move.NOTHING, Move.NOTHING, Move.NOTHING, Disposition.LATE),
    ],
)
def test_an_undoing(
    state: str, plain: Move, without_handler: Move, irrevocable: Move, disposition: Disposition
) -> None:
    barrier = STATES[state]
    assert undo_move(barrier, has_handler=True, is_irrevocable=False) == (plain, disposition)
    assert undo_move(barrier, has_handler=True, is_irrevocable=True) == (irrevocable, disposition)
    assert undo_move(barrier, has_handler=False, is_irrevocable=False)[0] is without_handler


@pytest.mark.parametrize(
    ("state", "move", "disposition"),
    [
        ("NONE", Move.NOTHING, Disposition.UNEXPECTED),
        ("DONE", Move.RUN, Disposition.APPLIED),
        ("FAILED", Move.NOTHING, Disposition.UNEXPECTED),
        ("UNDONE", Move.NOTHING, Disposition.LATE),
        ("VOID", Move.NOTHING, Disposition.UNEXPECTED),
        ("CONFIRMED", Move.NOTHING, Disposition.DUPLICATE),
    ],
)
def test_its_own_success_read_back(state: str, move: Move, disposition: Disposition) -> None:
    assert confirm_move(STATES[state], "own") == (move, disposition)
    assert confirm_move(STATES[state], "another") == (Move.NOTHING, Disposition.UNEXPECTED)


def test_a_step_that_awaits_nothing_is_confirmed_by_nothing() -> None:
    assert confirm_move(Barrier(BarrierState.DONE, b"digest"), "own")[0] is Move.NOTHING
