"""What every process of Farandole has in common: starting, honest health, and an orderly stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from farandole import logs
from farandole.broker.connection import Broker
from farandole.cancelling import cancel
from farandole.errors import FarandoleError, FencedError, StoreError, StoreUnavailableError
from farandole.lane_keeper import Work
from farandole.rpc import HealthMonitor
from farandole.settings import Settings

T = TypeVar("T")
S = TypeVar("S", bound=Settings)

CHECKS = ("broker", "store", "events", "outbox", "dependencies")
"""What health is made of: the connection, the database, reading the stream in order, publishing into it, and what
handlers depend on."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STORE_CHECK_SECONDS = 1.0
_TRANSACTION_SECONDS = 3.0
"""A transaction that takes longer holds up everything behind it."""
_CLOSE_SECONDS = 5.0

_log = structlog.get_logger(__name__)


def run_process(settings: Callable[[], S], main: Callable[[S], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` until it ends or the process is told to stop. What is wrong is said in a line, not a traceback."""
    try:
        loaded = settings()
        logs.configure(loaded.service, loaded.log_level, loaded.log_format)
        asyncio.run(main(loaded))
    except asyncio.CancelledError:
        _log.info("stopped before it had begun")  # see `when_available`
    except FarandoleError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


async def when_available(work: Callable[[], Awaitable[T]], monitor: HealthMonitor) -> T:
    """The result of `work` on the store, tried until that can be used; health says meanwhile what keeps it.

    Another process may hold the store's lock: one that was suspended does until it goes on or is killed. Any other
    `StoreError` is raised. SIGTERM or SIGINT cancels the task that waits.
    """
    waiting = asyncio.current_task()
    assert waiting is not None, "a coroutine runs in a task"
    loop = asyncio.get_running_loop()
    for signal_number in _STOP_SIGNALS:
        loop.add_signal_handler(signal_number, waiting.cancel)
    try:
        while True:
            try:
                return await work()
            except StoreUnavailableError as error:
                monitor.set("store", str(error))
                await asyncio.sleep(_STORE_CHECK_SECONDS)
    finally:
        for signal_number in _STOP_SIGNALS:
            loop.remove_signal_handler(signal_number)


async def work_until_stopped(
    *,
    broker: Broker,
    work: Work,
    monitor: HealthMonitor,
    check_store: Callable[[], Awaitable[None]],
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> None:
    """Connects and works until SIGTERM or SIGINT. Where another process takes over, stays to say so.

    What runs `beside` the work ends with it, so that a process that was displaced answers for nobody; it may end
    before. Raises what ended the work otherwise: the process is to be started anew.
    """
    gc.freeze()  # modules and what they hold stay to the end: looking through them for garbage costs, the more the more
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in _STOP_SIGNALS:
        loop.add_signal_handler(signal_number, stop.set)
    broker.on_change(lambda _connected: monitor.set("broker", broker.problem))
    broker.start()
    stopped = asyncio.create_task(stop.wait(), name="stop")
    working = asyncio.create_task(work.run(), name="work")
    companions = [asyncio.create_task(run(), name="beside-the-work") for run in beside]
    checking = asyncio.create_task(_check_store(monitor, check_store), name="check-store")
    watched: set[asyncio.Future[Any]] = {stopped, working, checking, broker.closed, *companions}
    try:
        while not stopped.done():
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            watched -= done
            for ended in done - {stopped}:
                if not isinstance(ended.exception(), FencedError):
                    ended.result()
                    continue
                _log.error("fenced", problem=str(ended.exception()))
                watched.difference_update(companions)
                await cancel(companions)
        _log.info("stopping")
    finally:
        await cancel([stopped, working, checking, *companions])
        await broker.close()


async def close_or_exit(close: Awaitable[None]) -> None:
    """Closes a database; where a transaction never ends, ends the process: what it has not committed is tried again."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await close
    except TimeoutError:
        _log.error("a transaction does not end; the process ends without it")
        logging.shutdown()
        os._exit(1)


async def _check_store(monitor: HealthMonitor, check_store: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            async with asyncio.timeout(_TRANSACTION_SECONDS):
                await check_store()
        except TimeoutError:
            monitor.set("store", f"a transaction has been running for more than {_TRANSACTION_SECONDS:.0f} s")
        except StoreError as error:
            monitor.set("store", str(error))
        else:
            monitor.set("store", None)
        await asyncio.sleep(_STORE_CHECK_SECONDS)
