"""Running plug-ins so that what they do is their own trouble.

A plug-in's code runs in threads of its own, which nobody waits for for ever, and which don't keep the process from
ending. It may raise what it likes, hang, or be slow. What no guard keeps off: code that ends the process (`os._exit`),
crashes the interpreter, fills its memory, or computes without end, since all of a process share its interpreter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from farandole.errors import ConfigurationError, PluginError
from farandole.plugins import Plugin, described

T = TypeVar("T")

LOAD_SECONDS = 5.0
"""How long a start waits for a plug-in to be imported, and then for its factory."""
AGAIN_SECONDS = 30.0
"""After so long a factory that raised is called again."""
CLOSE_SECONDS = 2.0
"""How long an orderly stop waits for what a plug-in is at, and for its `close`."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a plug-in in use does, since this process began."""

    plugin: Plugin
    done: int = 0
    """Calls that returned."""
    failed: int = 0
    """Calls that raised, or took too long."""
    missed: int = 0
    """Of an observer: transitions that it was never told of. Of a deadline action: deadlines that it gave up on."""
    waiting: int = 0
    """What it has been handed and has not answered."""
    problem: str = ""
    """What is wrong now, for an operator to read; empty where nothing is."""


async def in_own_thread(function: Callable[[], T], *, name: str) -> T:
    """What `function` returns, called in a daemon thread.

    Raises `PluginError` where it raises, whatever that is; a `ConfigurationError`, which says what an operator has
    written wrong, goes through. To cancel this leaves the thread running: threads can't be ended.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except ConfigurationError as error:
            tell(partial(_fail, answer, error))
        except BaseException as error:  # noqa: BLE001 - somebody else's code, which may raise SystemExit too
            failure = PluginError(described(error))
            failure.__cause__ = error
            tell(partial(_fail, answer, failure))
        else:
            tell(partial(_succeed, answer, result))

    def tell(call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(call)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def _succeed(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


async def load(plugin: Plugin) -> Any:  # noqa: ANN401 - what the group's port says
    """A plug-in's factory. Raises `PluginError` where it can't be loaded, or not in time."""
    loading = in_own_thread(partial(_loaded, plugin), name=f"load-{plugin.name}")
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            loaded = await loading
    except TimeoutError:
        raise PluginError(f"{plugin} is not loaded after {LOAD_SECONDS:.0f} s: its module hangs") from None
    if isinstance(loaded, PluginError):
        raise loaded
    return loaded


def _loaded(plugin: Plugin) -> Any:  # noqa: ANN401 - a factory, or why there is none
    try:
        return plugin.load()
    except PluginError as error:
        return error


class Making(Generic[T]):
    """What a plug-in's factory makes: at the start, or later where it fails at first."""

    def __init__(self, plugin: Plugin, factory: Callable[[], T], *, again_seconds: float = AGAIN_SECONDS) -> None:
        self.plugin = plugin
        self.problem = ""
        """Why there is nothing yet; empty once there is."""
        self._factory = factory
        self._again_seconds = again_seconds
        self._made: asyncio.Task[T] | None = None

    async def begin(self) -> None:
        """Calls the factory, and waits for it a while. Raises `ConfigurationError` as it does; anything else is tried
        again behind this."""
        first = asyncio.ensure_future(self._make())
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await asyncio.shield(first)
        except TimeoutError:
            self._trouble(f"has not begun after {LOAD_SECONDS:.0f} s: it hangs")
        except PluginError as error:
            self._trouble(f"can't begin: {error}")
        self._made = asyncio.create_task(self._until_made(first), name=f"make-{self.plugin.name}")

    async def made(self) -> T:
        """Waits until it is made."""
        assert self._made is not None, "begin() comes first"
        return await asyncio.shield(self._made)

    async def stop(self) -> None:
        """Gives up making it."""
        if self._made is not None:
            self._made.cancel()
            await asyncio.gather(self._made, return_exceptions=True)

    async def _make(self) -> T:
        return await in_own_thread(self._factory, name=f"make-{self.plugin.name}")

    async def _until_made(self, first: asyncio.Future[T]) -> T:
        making = first
        while True:
            try:
                made = await making
            except (PluginError, ConfigurationError) as error:
                self._trouble(f"can't begin: {described(error) if isinstance(error, ConfigurationError) else error}")
                await asyncio.sleep(self._again_seconds)
                making = asyncio.ensure_future(self._make())
            else:
                self.problem = ""
                return made

    def _trouble(self, problem: str) -> None:
        if problem != self.problem:
            _log.error("a plug-in is in trouble", kind=self.plugin.kind.word, plugin=self.plugin.name, problem=problem)
        self.problem = problem


async def close(plugin: Plugin, made: Callable[[], None]) -> None:
    """Calls a plug-in's `close` and waits for it a while; what goes wrong is logged."""
    problem = ""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await in_own_thread(made, name=f"close-{plugin.name}")
    except TimeoutError:
        problem = f"has not closed within {CLOSE_SECONDS:.0f} s; the process ends without it"
    except (PluginError, ConfigurationError) as error:
        problem = f"can't close: {error}"
    if problem:
        _log.warning("a plug-in is in trouble", kind=plugin.kind.word, plugin=plugin.name, problem=problem)
