"""The correlator without what keeps plug-ins away from its own work: what the guard is there for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from farandole.correlator import deadline_action_runner, observer_runner, plugin_guard
from farandole.correlator.main import main
from farandole.correlator.observer_runner import ObserverRunner
from farandole.correlator.observers import Transition

T = TypeVar("T")


async def in_the_loop(function: Callable[[], T], *, name: str) -> T:
    """What `in_own_thread` does, without the thread."""
    return function()


def tell(runner: ObserverRunner, transitions: Sequence[Transition]) -> None:
    """What `ObserverRunner.tell` does, without the queue."""
    made: asyncio.Task[ObserverRunner] | None = runner._making._made  # type: ignore[assignment]
    assert made is not None
    for transition in transitions:
        made.result().observe(transition)  # type: ignore[attr-defined]


async def work(_runner: ObserverRunner) -> None:
    """Nothing is queued."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    for module in (plugin_guard, observer_runner, deadline_action_runner):
        module.in_own_thread = in_the_loop  # type: ignore[attr-defined]
    ObserverRunner.tell = tell  # type: ignore[assignment, method-assign]
    ObserverRunner._observe = work  # type: ignore[assignment, method-assign]
    main()
