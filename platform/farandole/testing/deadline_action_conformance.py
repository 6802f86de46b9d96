"""What every `DeadlineAction` must do. Subclass the suite and give it your action, over something that answers:

class TestMyAction(DeadlineActionConformance):
    @pytest.fixture
    def action(self, tmp_path):
        return MyAction(tmp_path / "acted")
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from farandole.correlator.deadline_actions import (
    SAGA_STALLED,
    SAGA_TIMED_OUT,
    STEP_OVERDUE,
    DeadlineAction,
    PassedDeadline,
)
from farandole.saga import Cause

_DUE = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
_AT_ONCE = 8


def overdue(key: str = "a", *, compensation: bool = False, sequence: int = 7) -> PassedDeadline:
    """A step, or its compensation, that is late."""
    return PassedDeadline(
        event_id=f"overdue-{key}-{sequence}",
        event_type=STEP_OVERDUE,
        saga_id=key,
        definition="order-fulfilment",
        version=1,
        cause=Cause.STEP_FAILURE if compensation else Cause.UNSPECIFIED,
        deadline=_DUE,
        sequence=sequence,
        stream_time=_DUE + timedelta(milliseconds=250),
        step="take-payment",
        participant="payments",
        compensation=compensation,
    )


def timed_out(key: str = "a", *, sequence: int = 8) -> PassedDeadline:
    """A saga that is undone since it did not commit in time."""
    return PassedDeadline(
        event_id=f"timed-out-{key}-{sequence}",
        event_type=SAGA_TIMED_OUT,
        saga_id=key,
        definition="order-fulfilment",
        version=2,
        cause=Cause.DEADLINE,
        deadline=_DUE,
        sequence=sequence,
        stream_time=_DUE + timedelta(seconds=1),
        steps_to_undo=("reserve-items", "take-payment"),
    )


def stalled(key: str = "a", *, sequence: int = 9) -> PassedDeadline:
    """A saga that has committed, or is being undone, and does not end."""
    return PassedDeadline(
        event_id=f"stalled-{key}-{sequence}",
        event_type=SAGA_STALLED,
        saga_id=key,
        definition="order-fulfilment",
        version=1,
        cause=Cause.UNSPECIFIED,
        deadline=_DUE,
        sequence=sequence,
        stream_time=_DUE + timedelta(hours=1),
    )


class DeadlineActionConformance:
    """The suite. The fixture `action` gives a new action whose work can be done; the suite closes it."""

    def test_acts_on_every_kind_of_deadline(self, action: DeadlineAction) -> None:
        for passed in (overdue(), overdue(compensation=True), timed_out(), stalled()):
            action.act(passed)
        action.close()

    def test_acts_on_the_same_deadline_again(self, action: DeadlineAction) -> None:
        """As after a crash between the act and its acknowledgement: at least once."""
        action.act(timed_out())
        action.act(timed_out())
        action.close()

    def test_acts_on_the_later_one_first(self, action: DeadlineAction) -> None:
        action.act(stalled(sequence=30))
        action.act(overdue(sequence=10))
        action.close()

    def test_acts_on_several_at_the_same_time(self, action: DeadlineAction) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            acts = [threads.submit(action.act, overdue(f"k{number}", sequence=number)) for number in range(1, 33)]
        assert [act.exception() for act in acts] == [None] * len(acts)
        action.close()

    def test_takes_keys_of_every_character_and_length(self, action: DeadlineAction) -> None:
        for key in ("-", "_", "A-z_0", "k" * 128):
            action.act(overdue(key))
        action.close()

    def test_closes_though_it_was_told_nothing(self, action: DeadlineAction) -> None:
        action.close()
