"""Many runs of one scenario: until one fails, or all have gone well."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from farandole.testing.simulation.faults import Fault
from farandole.testing.simulation.run import Result, run_seed
from farandole.testing.simulation.scenario import ScenarioOf

_CERTAIN = 20.0
"""A kind of fault that is meant to strike so often, and never does, does not strike: by chance that happens once in
half a thousand million times."""
_COLLECT_EVERY = 20
"""Garbage is collected between runs, after so many of them: what a run leaves is small."""


class SimulationFailedError(AssertionError):
    """A run broke an invariant. The text has the seed, what is wrong, and the run as a table."""


@dataclass
class Summary:
    """What came of many runs."""

    runs: int = 0
    sagas: Counter[str] = field(default_factory=Counter)
    """How many ended in which way."""
    strikes: Counter[Fault] = field(default_factory=Counter)
    """How often each kind of fault did something."""
    drawn: Counter[Fault] = field(default_factory=Counter)
    """How often each was meant to."""
    events: int = 0
    seconds: float = 0.0
    """Virtual ones."""

    def add(self, result: Result) -> None:
        """Takes in one run."""
        self.runs += 1
        self.sagas.update(result.sagas)
        self.strikes.update(result.strikes)
        self.drawn.update(result.drawn)
        self.events += result.events
        self.seconds += result.seconds

    @property
    def never_struck(self) -> list[Fault]:
        """The kinds of faults that were meant to strike, and never did: the runs prove nothing about them."""
        return [fault for fault in Fault if self.drawn[fault] >= _CERTAIN and not self.strikes[fault]]


def simulate(scenario_of: ScenarioOf, seeds: Iterable[int]) -> Summary:
    """Runs a scenario for each seed, for tests. Raises `SimulationFailedError` for the first seed that fails, with
    the run as a table, and where a kind of fault was meant to strike and never did.
    """
    summary = Summary()
    for result in run_seeds(scenario_of, seeds):
        if result.violations:
            raise SimulationFailedError(failure_text(scenario_of, result))
        summary.add(result)
    if never := summary.never_struck:
        raise SimulationFailedError(f"never struck: {', '.join(fault.name for fault in never)}")
    return summary


def run_seeds(scenario_of: ScenarioOf, seeds: Iterable[int]) -> Iterator[Result]:
    """The result of each run, in the order of the seeds."""
    with _rare_collections():
        for number, seed in enumerate(seeds, start=1):
            yield run_seed(scenario_of, seed)
            if number % _COLLECT_EVERY == 0:
                gc.collect()


def failure_text(scenario_of: ScenarioOf, failed: Result) -> str:
    """What is wrong with a run, and the run itself, which is run again for that."""
    again = run_seed(scenario_of, failed.seed, traced=True)
    lines = [
        f"seed {failed.seed} fails:",
        *(f"  {violation}" for violation in failed.violations),
        "",
        again.trace.table(),
    ]
    if again.violations != failed.violations:
        lines += [
            "",
            "run again, it went another way: something in it does not follow from the seed",
            *again.violations,
        ]
    return "\n".join(lines)


def strikes_text(summary: Summary) -> str:
    """How often each kind of fault struck, as a table."""
    rows: Mapping[Fault, int] = summary.strikes
    return "\n".join(f"{rows.get(fault, 0):>9}  {fault.value}" for fault in Fault if summary.drawn[fault])


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Without collections in the middle of a run: each would look through all that was ever imported."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
