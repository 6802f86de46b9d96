"""Telling an observer: in order and one at a time, without ever waiting for it, and with a count of what it misses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from farandole.correlator import observer_runner, plugin_guard
from farandole.correlator.observer_runner import ObserverRunner
from farandole.correlator.observers import Observer, Transition
from farandole.errors import ConfigurationError, Fault
from farandole.plugins import Kind, Plugin
from farandole.testing import ObserverConformance
from farandole.testing.observer_conformance import life_of

PLUGIN = Plugin(Kind.OBSERVER, "audit", "audit-package", "1.0", EntryPoint("audit", "audit:Audit", Kind.OBSERVER.value))
LIFE = list(life_of("a"))


class Listening:
    """An observer that remembers, and does before what a test wants."""

    def __init__(self, before: Callable[[Transition], None] = lambda _transition: None) -> None:
        self.seen: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self.closed = threading.Event()
        self._before = before
        self._under_way = threading.Lock()

    def observe(self, transition: Transition) -> None:
        assert self._under_way.acquire(blocking=False), "one at a time"
        try:
            self.threads.add(threading.current_thread().name)
            self._before(transition)
            self.seen.append((transition.after.key, transition.after.revision))
        finally:
            self._under_way.release()

    def close(self) -> None:
        self.closed.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a thread of somebody else's does not tell
            await asyncio.sleep(0.005)


async def test_an_observer_is_told_in_order_in_a_thread_of_its_own_and_closed_at_the_end() -> None:
    observer = Listening()
    runner = ObserverRunner(PLUGIN, lambda: observer)
    await runner.begin()
    for key in ("a", "b"):
        runner.tell(list(life_of(key)))
    await runner.stop()
    assert observer.seen == [(key, revision) for key in ("a", "b") for revision in range(1, len(LIFE) + 1)]
    assert observer.threads == {"observer-audit"}
    assert observer.closed.is_set()
    standing = runner.standing
    assert (standing.done, standing.failed, standing.missed, standing.waiting) == (2 * len(LIFE), 0, 0, 0)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("enough"), KeyboardInterrupt(), ConfigurationError([])])
async def test_what_an_observer_raises_is_counted_and_the_next_follows(error: BaseException) -> None:
    def fail(transition: Transition) -> None:
        if transition.after.revision == 2:
            raise error

    observer = Listening(fail)
    runner = ObserverRunner(PLUGIN, lambda: observer)
    await runner.begin()
    runner.tell(LIFE[:2])
    await until(lambda: runner.standing.failed == 1)
    assert type(error).__name__ in runner.standing.problem
    runner.tell(LIFE[2:])
    await until(lambda: runner.standing.done == len(LIFE) - 1)
    assert runner.standing.problem == ""
    await runner.stop()
    assert [revision for _, revision in observer.seen] == [1, 3, 4, 5, 6]


async def test_while_an_observer_hangs_nobody_waits_and_what_there_is_no_room_for_is_missed() -> None:
    go_on = threading.Event()
    now = [0.0]
    observer = Listening(lambda _transition: assert_soon(go_on))
    runner = ObserverRunner(PLUGIN, lambda: observer, queue_length=3, slow_seconds=0.05, monotonic=lambda: now[0])
    await runner.begin()
    runner.tell(LIFE[:1])
    await until(lambda: runner.standing.waiting == 1 and not runner._queue.qsize())
    now[0] = 7.0
    runner.tell(LIFE[1:])
    assert runner.standing.problem == "has been at one transition for 7 s"
    assert (runner.standing.waiting, runner.standing.missed) == (4, 2)
    go_on.set()
    await until(lambda: runner.standing.done == 4)
    runner.tell(LIFE[5:])
    await runner.stop()
    assert [revision for _, revision in observer.seen] == [1, 2, 3, 4, 6]
    assert LIFE[5].before is not None
    assert LIFE[5].before.revision == 5, "so it can tell that it has missed one"
    assert runner.standing.problem == ""


async def test_an_observer_that_hangs_at_the_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_runner, "CLOSE_SECONDS", 0.05)
    go_on = threading.Event()
    observer = Listening(lambda _transition: assert_soon(go_on))
    runner = ObserverRunner(PLUGIN, lambda: observer)
    await runner.begin()
    runner.tell(LIFE)
    await runner.stop()
    assert not observer.closed.is_set()
    go_on.set()


async def test_a_close_that_hangs_or_raises_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_guard, "CLOSE_SECONDS", 0.05)
    go_on = threading.Event()

    class Hanging(Listening):
        def close(self) -> None:
            assert_soon(go_on)

    class Raising(Listening):
        def close(self) -> None:
            raise SystemExit("enough")

    for observer in (Hanging(), Raising()):
        runner = ObserverRunner(PLUGIN, lambda made=observer: made)  # type: ignore[misc]
        await runner.begin()
        await runner.stop()
    go_on.set()


async def test_a_factory_that_fails_is_called_again_and_a_setting_that_is_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observer = Listening()
    calls: list[None] = []

    def make() -> Observer:
        calls.append(None)
        if len(calls) < 3:
            raise ConnectionError("nobody there")
        return observer

    runner = ObserverRunner(PLUGIN, make)
    monkeypatch.setattr(runner._making, "_again_seconds", 0.01)
    await runner.begin()
    assert runner.standing.problem == "can't begin: ConnectionError: nobody there"
    runner.tell(LIFE)
    await until(lambda: runner.standing.done == len(LIFE))
    assert runner.standing.problem == ""
    await runner.stop()

    def refuse() -> Observer:
        raise ConfigurationError([Fault("AUDIT_FILE", "must be set")])

    with pytest.raises(ConfigurationError, match="AUDIT_FILE: must be set"):
        await ObserverRunner(PLUGIN, refuse).begin()


async def test_a_factory_that_hangs_holds_up_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_guard, "LOAD_SECONDS", 0.05)
    monkeypatch.setattr(observer_runner, "CLOSE_SECONDS", 0.05)
    go_on = threading.Event()
    observer = Listening()

    def make() -> Observer:
        assert_soon(go_on)
        return observer

    runner = ObserverRunner(PLUGIN, make)
    await runner.begin()
    assert "it hangs" in runner.standing.problem
    runner.tell(LIFE)
    go_on.set()
    await until(lambda: runner.standing.done == len(LIFE))
    await runner.stop()


def assert_soon(event: threading.Event) -> None:
    assert event.wait(20), "the test lets go of it"


class TestConformance(ObserverConformance):
    @pytest.fixture
    def observer(self) -> Observer:
        return Listening()
