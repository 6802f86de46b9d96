"""The simulation finds each safeguard that is missing: with one mechanism turned off, some seed fails, in the way in
which one would expect; with all of them on, the same seeds pass."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from farandole.testing.simulation import Fault, Result, ScenarioOf, run_seed
from services.simulation import DRONE_DELIVERY
from tests.simulation import mutants
from tests.simulation.busy_samples import FaultsOfEveryRun, busy
from tests.simulation.dispatching import dispatching, dispatching_with_a_fatal_order
from tests.simulation.mutants import Mutant

_LOST = (
    r"has not dealt with|there is no saga|has not ended|is missing in its history|rows are left in"
    r"|is not what a fold of the stream gives"
)
_DISPLACED = r"after .* had taken over|moved the position back"


@dataclass(frozen=True)
class Case:
    """A mutant, and where it is found out."""

    without: Mutant
    breaks: str
    """A pattern of what is found to be wrong."""
    scenario: ScenarioOf
    seeds: int = 60
    """Within so many of them one fails: several times as many as it takes."""

    def __str__(self) -> str:
        return self.without.__name__


CASES = [
    Case(
        mutants.no_inbox,
        r"no event is APPLIED in its inbox that makes it do so",
        busy({Fault.FORGET_DUPLICATES: 3, Fault.SAME_AGAIN: 6}),
    ),
    Case(
        mutants.no_barrier,
        r"ran (forward|undo) of .* \d+ times",
        dispatching(FaultsOfEveryRun(seconds=2.0, rates={Fault.SAME_AGAIN: 4})),
    ),
    Case(
        mutants.undoing_repeated,
        r"ran undo of .* \d+ times",
        busy({Fault.HELD_UNTIL_LATE: 3}, names=(DRONE_DELIVERY,)),
    ),
    Case(
        mutants.not_voided,
        r"has not undone|has not ended",
        busy({Fault.HELD_UNTIL_LATE: 3, Fault.HALF_OPEN: 3, Fault.KILL_AT_A_GATE: 3}),
    ),
    Case(
        mutants.voided_in_silence,
        r"has not ended; it is COMPENSATING",
        busy({Fault.KILL: 8, Fault.HELD_UNTIL_LATE: 2}),
        seeds=150,
    ),
    Case(
        mutants.hasty_act,
        r"has done what can't be undone",
        busy({Fault.HELD_UNTIL_LATE: 2, Fault.RACE: 2, Fault.HALF_OPEN: 3}, names=(DRONE_DELIVERY,)),
    ),
    Case(mutants.no_fence_of_participants, _DISPLACED, busy({Fault.TAKEOVER: 6})),
    Case(
        mutants.nobody_looks_for_rows_of_others,
        r"there is no saga|rows are left in farandole_outbox",
        busy({Fault.TAKEOVER: 6, Fault.OVERLAP: 6, Fault.CUT: 3}, by_command=1.0),
        seeds=80,
    ),
    Case(
        mutants.time_outs_not_heard_first,
        r"was started after the time-out, and began",
        busy({Fault.KILL: 8, Fault.HELD_UNTIL_LATE: 1}),
    ),
    Case(
        mutants.prerequisites_in_memory,
        r"is COMPENSATED, not COMPLETED",
        dispatching(
            FaultsOfEveryRun(
                seconds=2.0,
                rates={Fault.KILL: 4, Fault.KILL_AT_A_GATE: 4, Fault.DATABASE_LOCKED: 4, Fault.HALF_OPEN: 2},
            )
        ),
    ),
    Case(mutants.crashes_counted_afterwards, r"has ended \d+ processes", dispatching_with_a_fatal_order),
    Case(mutants.published_before_commit, r"was published before it was committed", busy({Fault.KILL: 1})),
    Case(mutants.no_outbox, _LOST, busy({Fault.BROKER_RESTART: 3, Fault.LEADER_CHANGE: 3, Fault.KILL: 8})),
    Case(
        mutants.later_events_do_not_wait,
        r"the (order|parcel) is .*, not",
        busy({Fault.HANDLER_RAISES: 6}),
    ),
    Case(mutants.publications_overtake, r"was committed after|has not ended", busy({Fault.DROP: 10})),
    Case(
        mutants.no_outbox_of_the_correlator,
        r"has not ended",
        dispatching(FaultsOfEveryRun(seconds=1.5, rates={Fault.KILL_AT_A_GATE: 6})),
        seeds=200,
    ),
    Case(mutants.time_outs_of_any_id, r"timed out \d+ times", busy({Fault.RACE: 4}), seeds=200),
    Case(mutants.no_fence_of_the_correlator, _DISPLACED, busy({Fault.TAKEOVER: 6})),
    Case(
        mutants.no_tick,
        r"timed out at \d+, [\d.]+ s before its deadline",
        busy({Fault.CLOCK_JUMP: 8, Fault.DATABASE_LOCKED: 4, Fault.KILL: 4}),
    ),
    Case(mutants.no_compare_and_set_of_time_outs, r"timed out at \d+, after its commit event", busy({Fault.RACE: 4})),
    Case(mutants.no_order_on_takeover, rf"{_DISPLACED}|{_LOST}", busy({Fault.KILL: 2})),
    Case(mutants.gaps_admitted, _LOST, busy({Fault.CUT: 3, Fault.DROP: 2})),
    Case(mutants.lost_connections_unnoticed, _LOST, busy({Fault.CUT: 4, Fault.HALF_OPEN: 2}), seeds=100),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_simulation_finds_what_is_missing(case: Case) -> None:
    failing = next((seed for seed in range(case.seeds) if _fails(case, seed)), None)
    assert failing is not None, f"{case} was not found out in {case.seeds} seeds"
    for seed in range(failing + 1):
        assert not run_seed(case.scenario, seed).violations


def _fails(case: Case, seed: int) -> bool:
    """Whether a seed fails as it should with the mutant."""
    with case.without():
        return _is_broken(run_seed(case.scenario, seed), case.breaks)


def _is_broken(result: Result, pattern: str) -> bool:
    return any(re.search(pattern, violation) for violation in result.violations)
