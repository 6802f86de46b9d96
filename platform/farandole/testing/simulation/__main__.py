"""`python -m farandole.testing.simulation MODULE:FUNCTION`: runs a scenario for many seeds, in several processes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from farandole.testing.simulation.campaign import Summary, failure_text, strikes_text
from farandole.testing.simulation.parallel import results_in_parallel, scenario_named
from farandole.testing.simulation.run import run_seed
from farandole.testing.simulation.scenario import ScenarioOf

_TELL_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says; the exit code is 1 where a run fails, or a kind of fault never struck."""
    given = _parser().parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))
    scenario_of = scenario_named(given.scenario)
    if given.seed is not None:
        return _replay(given.scenario, scenario_of, given.seed)
    return _run(given.scenario, scenario_of, range(given.first, given.first + given.seeds), given.processes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m farandole.testing.simulation",
        description="Runs a choreography's real handlers in virtual time, under faults that follow from a seed.",
    )
    parser.add_argument(
        "scenario", help="MODULE:FUNCTION that makes the scenario of a run, such as services.simulation:scenario"
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="run this one alone, and print what happens")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="how many at a time (default: all cores)"
    )
    return parser


def _replay(name: str, scenario_of: ScenarioOf, seed: int) -> int:
    result = run_seed(scenario_of, seed, traced=True)
    _say(result.trace.table())
    _say("")
    if result.violations:
        _say(f"seed {seed} of {name} fails:")
        for violation in result.violations:
            _say(f"  {violation}")
        return 1
    ended = ", ".join(f"{count} {status}" for status, count in sorted(result.sagas.items()))
    _say(f"seed {seed} of {name}: all is well; {ended}")
    return 0


def _run(name: str, scenario_of: ScenarioOf, seeds: range, processes: int) -> int:
    _say(f"{name}: seeds {seeds.start} to {seeds.stop - 1}, {processes} at a time")
    began = told = time.monotonic()
    summary = Summary()
    for result in results_in_parallel(name, seeds, processes):
        if result.violations:
            _say(failure_text(scenario_of, result))
            _say("")
            _say(f"seed {result.seed} fails, after {summary.runs} that did not. The same run again:")
            _say(f"  {Path(sys.executable).name} -m farandole.testing.simulation {name} --seed {result.seed}")
            return 1
        summary.add(result)
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            _say(f"{summary.runs} of {len(seeds)} in {told - began:.0f} s")
    return _tell(summary, time.monotonic() - began)


def _tell(summary: Summary, seconds: float) -> int:
    sagas = ", ".join(f"{count} {status}" for status, count in sorted(summary.sagas.items()))
    virtual = timedelta(seconds=round(summary.seconds))
    _say(f"{summary.runs} runs in {seconds:.1f} s, {virtual} of virtual time; {summary.events} events; sagas: {sagas}")
    _say("how often each kind of fault struck:")
    _say(strikes_text(summary))
    if never := summary.never_struck:
        _say(f"never struck, so nothing is known of it: {', '.join(fault.value for fault in never)}")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
