"""A simulated process: the tasks of one program, which can be killed or suspended wherever it touches the world.

Everything that a process does to the world, or hears of it, goes through its gates. A process that is suspended waits
at its gates; its timers go on, as a real one finds them passed when it goes on. A process that is dead does nothing any
more: its transactions do not begin, its messages are not sent, its tasks are cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from farandole.participant.barrier import Direction
from farandole.participant.step import Step
from farandole.participant.transaction import Transaction
from farandole.testing.simulation.effects import Effect

T = TypeVar("T")

CURRENT: ContextVar[Process | None] = ContextVar("simulated process", default=None)
"""The process in which a task runs; None outside all of them."""


class Witness(Protocol):
    """Whoever follows what the handlers of a process do."""

    def handler_begins(self, participant: str, step: Step, direction: Direction, tx: Transaction) -> None:
        """A handler is about to run. What this raises, the handler raises."""
        ...

    def handler_ends(self, effect: Effect) -> None:
        """A handler has run; its transaction may still be rolled back."""
        ...

    def handler_raises(self, participant: str, key: str) -> None:
        """A handler has raised."""
        ...


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in each run with the same seed: sets of tasks are gone through in it."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Tasks:
    """The tasks of one run: a task factory for its event loop."""

    def __init__(self) -> None:
        self._made: list[_Task] = []

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], context: Context | None = None
    ) -> asyncio.Task[T]:
        """Makes a task, and adds it to the process to which whoever makes it belongs."""
        task = _Task.__new__(_Task)
        task.number = len(self._made)
        task.__init__(coroutine, loop=loop, context=context)  # type: ignore[misc]  # which asks for the hash already
        self._made.append(task)
        process = CURRENT.get() if context is None else context.get(CURRENT)
        if process is not None:
            process.add_task(task)
        return task

    @property
    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Those that are not done, in the order in which they were made."""
        return [task for task in self._made if not task.done()]


class Process:
    """One run of a program, from its start to its end. A service that is started again is another process."""

    def __init__(self, name: str, witness: Witness, wall_clock: Callable[[], datetime]) -> None:
        """`wall_clock` gives what the clock of its machine shows."""
        self.name = name
        self.witness = witness
        self.clock = wall_clock
        self.is_dead = False
        self.is_suspended = False
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        """In virtual seconds."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In the order in which they were made."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held: deque[Callable[[], object]] = deque()
        self._gates_left = 0
        self._strike_point = ""
        self._strike: Callable[[str], None] | None = None
        self.main: asyncio.Task[None] | None = None

    def start(self, program: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Begins to run; the task is done when the program has ended, one way or another."""
        self.main = self.spawn(program())
        return self.main

    def add_task(self, task: asyncio.Task[Any]) -> None:
        """Takes a task on that the program has made."""
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Has the process do something besides, as for a remote procedure call."""
        context = copy_context()
        context.run(CURRENT.set, self)
        return self._loop.create_task(work, context=context)

    async def gate(self, point: str) -> None:
        """Comes before and after everything that the process does to the world; `point` says what.

        Where the process is suspended, it waits here until it goes on; where it is killed here, it never does.
        """
        if self._strike is not None:
            self._come_to(point)
        while self.is_suspended and not self.is_dead:
            goes_on = self._loop.create_future()
            self._waiting.append(goes_on)
            await goes_on
        if self.is_dead:
            raise asyncio.CancelledError(f"{self.name} is dead")

    def strike_after(self, gates: int, strike: Callable[[str], None], *, point: str = "") -> None:
        """Calls `strike` with the point, once, as the process comes to a gate, so many gates from now. With a `point`
        only those gates count that are there."""
        self._gates_left = gates
        self._strike_point = point
        self._strike = strike

    def _come_to(self, point: str) -> None:
        if self._strike_point and point != self._strike_point:
            return
        self._gates_left -= 1
        if self._gates_left <= 0:
            strike, self._strike = self._strike, None
            assert strike is not None, "asked for by the caller"
            strike(point)

    def later(self, seconds: float, do: Callable[[], T]) -> asyncio.Future[T]:
        """Has something done in so many seconds, also where whoever waits for it is cancelled meanwhile: a thread of
        its own would do that. Not before the process goes on, where it is suspended, and never once it is dead.
        """
        result: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            if self.is_dead:
                return
            if self.is_suspended:
                self._held.append(partial(copy_context().run, run))  # it is the process's also when it goes on
                return
            try:
                value = do()
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                if not result.done():
                    result.set_exception(error)
            else:
                if not result.done():
                    result.set_result(value)

        self._loop.call_later(seconds, run)
        return result

    def suspend(self) -> None:
        """Stops it at its gates."""
        self.is_suspended = True

    def resume(self) -> None:
        """Has it go on."""
        self.is_suspended = False
        for do in self._held:
            self._loop.call_soon(do)
        self._held.clear()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    def kill(self) -> None:
        """Ends it at once: nothing that it is about to do is done."""
        self.is_dead = True
        self._held.clear()
        for task in list(self._tasks):
            task.cancel()
