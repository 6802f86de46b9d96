"""The event loop of virtual time: waiting costs nothing, order is fixed, and a program that hangs is told."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from farandole.testing.simulation.loop import NoProgressError, NothingLeftToHappenError, VirtualTimeLoop


def run(program: Callable[[VirtualTimeLoop], Coroutine[Any, Any, object]]) -> object:
    """What a program returns, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return runner.run(program(loop))


def test_a_day_of_waiting_costs_no_time() -> None:
    async def program(loop: VirtualTimeLoop) -> float:
        await asyncio.sleep(86_400)
        return loop.time()

    began = time.monotonic()
    assert run(program) == 86_400
    assert time.monotonic() - began < 5


def test_what_is_due_comes_in_the_order_of_its_time_and_then_in_that_of_asking() -> None:
    async def program(loop: VirtualTimeLoop) -> list[tuple[float, str]]:
        came: list[tuple[float, str]] = []

        def note(name: str) -> None:
            came.append((loop.time(), name))

        loop.call_later(2, note, "later")
        loop.schedule(1, note, "first")
        loop.call_at(1, note, "second")
        loop.schedule(1, note, "third")
        loop.call_later(1, note, "cancelled").cancel()
        loop.call_soon(note, "now")
        await asyncio.sleep(3)
        return came

    assert run(program) == [(0, "now"), (1, "first"), (1, "second"), (1, "third"), (2, "later")]


def test_time_goes_on_only_where_nothing_is_left_to_do() -> None:
    async def program(loop: VirtualTimeLoop) -> list[float]:
        times = []
        for _ in range(100):
            await asyncio.sleep(0)
            times.append(loop.time())
        return times

    assert run(program) == [0.0] * 100


def test_timers_that_are_cancelled_by_the_thousand_do_not_pile_up() -> None:
    async def program(loop: VirtualTimeLoop) -> int:
        for _ in range(5_000):
            async with asyncio.timeout(1_000):
                await asyncio.sleep(0.001)
        return len(loop._timers)

    left = run(program)
    assert isinstance(left, int)
    assert left < 1_000


def test_timeouts_and_waits_work_as_ever() -> None:
    async def program(loop: VirtualTimeLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 5)
        async with asyncio.TaskGroup() as tasks:
            for seconds in range(5):
                tasks.create_task(asyncio.sleep(seconds))
        return loop.time()

    assert run(program) == 14


def test_a_program_that_waits_for_what_cannot_come_ends_with_an_error() -> None:
    async def program(loop: VirtualTimeLoop) -> None:
        await asyncio.sleep(3)
        await loop.create_future()

    with pytest.raises(NothingLeftToHappenError, match=r"at 3\.000000 s"):
        run(program)


def test_a_program_that_asks_for_ever_without_waiting_ends_with_an_error() -> None:
    async def program(_loop: VirtualTimeLoop) -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(NoProgressError):
        run(program)


def test_timers_for_the_moment_that_is_are_no_progress_either() -> None:
    async def program(loop: VirtualTimeLoop) -> None:
        def again() -> None:
            loop.schedule(loop.time(), again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(NoProgressError):
        run(program)


def test_what_a_callback_raises_ends_the_run() -> None:
    async def by_asyncio(loop: VirtualTimeLoop) -> None:
        loop.call_later(1, [].pop)
        await asyncio.sleep(2)

    async def plain(loop: VirtualTimeLoop) -> None:
        loop.schedule(1, [].pop)
        await asyncio.sleep(2)

    for program in (by_asyncio, plain):
        with pytest.raises(IndexError):
            run(program)


def test_there_are_no_other_threads() -> None:
    async def program(loop: VirtualTimeLoop) -> None:
        await loop.run_in_executor(None, time.time)

    with pytest.raises(RuntimeError, match="one thread"):
        run(program)
