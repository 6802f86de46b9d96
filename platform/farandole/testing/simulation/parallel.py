"""Running seeds in several processes, since a run needs one core alone."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import cast

from farandole.testing.simulation.campaign import run_seeds
from farandole.testing.simulation.run import Result
from farandole.testing.simulation.scenario import ScenarioOf

_SEEDS_AT_A_TIME = 25


def scenario_named(name: str) -> ScenarioOf:
    """What `MODULE:FUNCTION` names."""
    module, _, function = name.partition(":")
    return cast("ScenarioOf", getattr(importlib.import_module(module), function))


def results_in_parallel(name: str, seeds: range, processes: int) -> Iterator[Result]:
    """The result of each run of the scenario of that name, as they come; without its trace."""
    if processes <= 1:
        yield from run_seeds(scenario_named(name), seeds)
        return
    parts = iter([seeds[at : at + _SEEDS_AT_A_TIME] for at in range(0, len(seeds), _SEEDS_AT_A_TIME)])
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(list(sys.path),))
    under_way: set[Future[list[Result]]] = {pool.submit(_part, name, part) for part in islice(parts, 2 * processes)}
    try:
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way |= {pool.submit(_part, name, part) for part in islice(parts, len(done))}
            for future in done:
                yield from future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(path: list[str]) -> None:
    sys.path[:] = path


def _part(name: str, seeds: Sequence[int]) -> list[Result]:
    """Runs in a process of its own: the results up to the first one that fails."""
    results: list[Result] = []
    for result in run_seeds(scenario_named(name), seeds):
        results.append(result)
        if result.violations:
            break
    return results
