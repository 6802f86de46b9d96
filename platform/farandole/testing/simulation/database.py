"""The stores of simulated processes: real SQLite and the correlator's store in memory, which outlive their processes.

A transaction takes place at one moment, some time after its process has asked for it, one after the other. A process
that dies before that moment has not written; one that dies after it has, and may not know.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.store import Claim, Committed, CorrelatorStore
from farandole.database import Database, transact
from farandole.errors import StoreUnavailableError
from farandole.leases import Replica, Tenure
from farandole.memory_leases import MemoryLeases
from farandole.participant.participant import Participant
from farandole.participant.tables import ParticipantTables
from farandole.testing.simulation import effects
from farandole.testing.simulation.faults import Fault
from farandole.testing.simulation.process import Process

T = TypeVar("T")

_PAGE_BYTES = 512
"""Small, so that a full disk strikes soon."""
_NO_LIMIT = 1_000_000
_PRAGMAS = (f"page_size={_PAGE_BYTES}", "foreign_keys=ON", "temp_store=MEMORY", "secure_delete=ON")
_SECONDS = (0.0003, 0.003)
"""How long a transaction takes."""
_SLOW_SECONDS = (0.05, 1.5)

Struck = Callable[[Fault, str, str], None]
"""Told of each fault that did something: which, in whose process, and what it did."""


class Disk:
    """What a service's store is on, and what is wrong with it."""

    def __init__(self, random: Random, struck: Struck) -> None:
        self.troubles: set[Fault] = set()
        """What is wrong with every transaction now."""
        self.fates: deque[Fault] = deque()
        """What becomes of the next transactions, one each: `COMMIT_FAILS` or `COMMIT_UNKNOWN`."""
        self._random = random
        self._struck = struck
        self._free_at = 0.0

    def seconds(self, now: float, process: str) -> float:
        """In how many seconds from now a transaction takes place that is asked for now."""
        is_slow = Fault.DATABASE_SLOW in self.troubles
        if is_slow:
            self._struck(Fault.DATABASE_SLOW, process, "a transaction takes long")
        self._free_at = max(self._free_at, now) + self._random.uniform(*(_SLOW_SECONDS if is_slow else _SECONDS))
        return self._free_at - now

    def refuse(self, faults: Collection[Fault], process: str) -> None:
        """Raises `StoreUnavailableError` where one of these is wrong with it."""
        for fault in faults:
            if fault in self.troubles:
                self._struck(fault, process, "a transaction is refused")
                raise StoreUnavailableError(fault.value)

    def fate(self) -> Fault | None:
        """What becomes of the transaction that is about to commit; None where nothing keeps it from that."""
        return self.fates.popleft() if self.fates else None

    def end_with(self, fate: Fault, process: str) -> None:
        """Raises what the process is told by that fate."""
        self._struck(fate, process, "")
        raise StoreUnavailableError(fate.value)


class _InMemory(sqlite3.Connection):
    """A database in memory is gone with its connection, and what lies on a disk is not."""

    def close(self) -> None:
        """Keeps it."""


class ParticipantDisk:
    """A participant's database as it is after its first start, over and over again: one for each run, one at a time.

    One engine serves all runs, since it knows the statements that it has compiled.
    """

    def __init__(self, participant: Participant) -> None:
        self.tables = ParticipantTables()
        self.raw = sqlite3.connect(":memory:", factory=_InMemory, check_same_thread=False)
        self.engine = sa.create_engine("sqlite://", creator=lambda: self.raw, poolclass=StaticPool)

        @event.listens_for(self.engine, "connect")
        def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection
            connection.isolation_level = None  # the driver opens no transactions of its own; `_begun` does
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        self.engine.dialect.do_begin = _begin_writing  # type: ignore[method-assign,assignment]  # cheaper than a listener

        def make(connection: sa.Connection) -> None:
            for metadata in (self.tables.metadata, participant.metadata, effects.metadata):
                metadata.create_all(connection)
            if participant.seed is not None:
                participant.seed(connection)

        transact(self.engine, make)
        self._first = self.raw.serialize()
        self._is_in_trouble = False
        """Whether it may be full or read-only."""

    def begin(self) -> None:
        """Makes it as it is after the first start."""
        self.raw.deserialize(self._first)
        if self._is_in_trouble:
            self.set_full(is_full=False)
            self.set_read_only(is_read_only=False)
            self._is_in_trouble = False

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` finds."""
        return transact(self.engine, work)

    def set_full(self, *, is_full: bool) -> None:
        """Whether it can't grow."""
        self._is_in_trouble = True
        most = self.raw.execute("PRAGMA page_count").fetchone()[0] if is_full else _NO_LIMIT
        self.raw.execute(f"PRAGMA max_page_count={most}")

    def set_read_only(self, *, is_read_only: bool) -> None:
        """Whether it can't be written."""
        self._is_in_trouble = True
        self.raw.execute(f"PRAGMA query_only={'ON' if is_read_only else 'OFF'}")


def _begin_writing(connection: Any) -> None:  # noqa: ANN401 - a DB-API connection
    connection.execute("BEGIN IMMEDIATE")


class ProcessDatabase(Database):
    """A participant's database as one process sees it."""

    def __init__(
        self,
        process: Process,
        disk: Disk,
        engine: sa.Engine,
        *,
        time: Callable[[], float],
        ended: Callable[[bool], None],
    ) -> None:
        """`ended(committed)` is called as each transaction ends, at the moment at which it does."""
        self._process = process
        self._disk = disk
        self._engine = engine
        self._time = time
        self._ended = ended

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """See `Database.write`."""
        await self._process.gate("before a transaction")
        seconds = self._disk.seconds(self._time(), self._process.name)
        result = await self._process.later(seconds, partial(self._transact, work))
        await self._process.gate("after a transaction")
        return result

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """See `Database.read`."""
        await self._process.gate("before reading the database")
        result = await self._process.later(_SECONDS[0], partial(transact, self._engine, work))
        await self._process.gate("after reading the database")
        return result

    async def close(self) -> None:
        """Nothing to let go of."""

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        disk, name = self._disk, self._process.name
        disk.refuse((Fault.DATABASE_LOCKED,), name)
        fate: Fault | None = None
        committed = False

        def until_commit(connection: sa.Connection) -> T:
            nonlocal fate
            result = work(connection)
            fate = disk.fate()
            if fate is Fault.COMMIT_FAILS:
                disk.end_with(fate, name)
            return result

        try:
            result = transact(self._engine, until_commit)
            committed = True
        except StoreUnavailableError:
            for fault in (Fault.DATABASE_FULL, Fault.DATABASE_READ_ONLY):
                if fault in disk.troubles and fate is None:
                    disk.refuse((fault,), name)
            raise
        finally:
            self._ended(committed)
        if fate is not None:
            disk.end_with(fate, name)
        return result


class ProcessLeases:
    """The leases of a service as one process sees them: see `farandole.leases.Leases`."""

    def __init__(self, process: Process, disk: Disk, leases: MemoryLeases) -> None:
        self._process = process
        self._disk = disk
        self._leases = leases

    async def join(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.join`."""
        return await self._ask("join", self._leases.join(replica, lanes, is_able=is_able))

    async def renew(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.renew`."""
        return await self._ask("renew", self._leases.renew(replica, lanes, is_able=is_able))

    async def give_back(self, replica: Replica, lanes: Collection[int]) -> None:
        """See `Leases.give_back`."""
        await self._ask("give back", self._leases.give_back(replica, lanes))

    async def leave(self, replica: Replica) -> None:
        """See `Leases.leave`."""
        await self._ask("leave", self._leases.leave(replica))

    async def _ask(self, what: str, call: Coroutine[Any, Any, T]) -> T:
        """Asks at a moment of the process's time; a transaction of its handlers that takes long holds nothing up."""

        def transact() -> T:
            self._disk.refuse(_TROUBLES, self._process.name)
            return at_once(call)

        try:
            await self._process.gate(f"before the leases: {what}")
            result = await self._process.later(_SECONDS[0], transact)
            await self._process.gate(f"after the leases: {what}")
        finally:
            call.close()
        return result


_WRITES = frozenset({"open", "claim", "commit", "remove_publications", "activate", "remember"})
_TROUBLES = (Fault.DATABASE_LOCKED, Fault.DATABASE_FULL, Fault.DATABASE_READ_ONLY)


class _ProcessStore:
    """The correlator's store as one process sees it: every method of the store, with the process's gates around it."""

    def __init__(
        self,
        process: Process,
        disk: Disk,
        store: MemoryCorrelatorStore,
        time: Callable[[], float],
        written: Callable[[str, Claim], None],
    ) -> None:
        self._process = process
        self._disk = disk
        self._store = store
        self._time = time
        self._written = written

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._store, name)

        def ask(*given: Any, **named: Any) -> Coroutine[Any, Any, Any]:  # noqa: ANN401 - as the method has it
            return self._ask(name, partial(method, *given, **named))

        return ask

    async def _ask(self, name: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Asks the store at a moment of the process's time."""
        await self._process.gate(f"before {name}")
        if name in _WRITES:
            result = await self._process.later(
                self._disk.seconds(self._time(), self._process.name), partial(self._transact, call)
            )
        else:
            result = await self._process.later(_SECONDS[0], lambda: at_once(call()))
        await self._process.gate(f"after {name}")
        return result

    def _transact(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._disk.refuse(_TROUBLES, self._process.name)
        fate = self._disk.fate()
        if fate is Fault.COMMIT_FAILS:
            self._disk.end_with(fate, self._process.name)
        result = at_once(call())
        match result:
            case Claim():
                self._written("claim", result)
            case Committed():
                self._written("commit", result.claim)
        if fate is not None:
            self._disk.end_with(fate, self._process.name)
        return result


def process_store(
    process: Process,
    disk: Disk,
    store: MemoryCorrelatorStore,
    time: Callable[[], float],
    written: Callable[[str, Claim], None],
) -> CorrelatorStore:
    """The correlator's store as one process sees it. `written` is called with `claim` or `commit` at the moment at
    which that is done, and with what the process holds then."""
    return cast("CorrelatorStore", _ProcessStore(process, disk, store, time, written))


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as all methods of `MemoryCorrelatorStore` are."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    coroutine.close()
    raise AssertionError("it waits for something")
