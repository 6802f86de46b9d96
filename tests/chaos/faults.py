"""What is done to a running stack: processes killed, suspended and rivalled, connections struck, disks filled.

Each kind has a rhythm of its own; all of them stop at the end of the storm, and everything is put right then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
import nats.js.errors
import psutil

from farandole.stack.stack_file import POSTGRES
from tests.chaos.checker.choreographies import CHOREOGRAPHIES, SERVICES
from tests.chaos.checker.evidence import LEADER_KILL, Strike
from tests.chaos.checker.stream import EVENTS, leader
from tests.chaos.disks import Disk
from tests.chaos.proxy import Direction, Proxy
from tests.chaos.stack import Stack, problem_at

_POLL_SECONDS = 0.05
_WAIT_FOR_PROCESS_SECONDS = 8.0
_ELECTION_SECONDS = 25.0
_CUT, _DELAY, _HALF_OPEN = "connection cut", "connection delayed", "connection half-open"
_RIVAL, _SESSION = "rival process", "database session ended"
_HALVES: Sequence[frozenset[Direction]] = (
    frozenset(Direction),
    frozenset({Direction.TO_BROKER}),
    frozenset({Direction.FROM_BROKER}),
)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often each kind of fault comes, on average, in seconds."""

    kill: float
    suspend: float
    connection: float
    disk: float
    rival: float
    long_stops: int
    """How often in all a participant is suspended for longer than a saga may take."""
    broker_disk: int
    """How often in all the broker's disk is filled."""
    long_stop_seconds: float
    leader: float
    """How often the leader of a cluster is killed."""
    session: float
    """How often a session of PostgreSQL is ended from outside."""


@dataclass
class Done:
    """What was brought about, and what was seen of it there and then."""

    brought_about: Counter[str] = field(default_factory=Counter)
    observed: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    """What was done, one line each, with the seconds since the storm began."""


class Faults:
    """Everything that goes wrong during one storm."""

    def __init__(self, stack: Stack, proxy: Proxy, rhythm: Rhythm, *, seed: int, disk_problem: str) -> None:
        self.done = Done()
        self._stack = stack
        self._proxy = proxy
        self._rhythm = rhythm
        self._random = random.Random(seed)
        self._disk_problem = disk_problem
        self._began = time.monotonic()
        self._for_long = self._of_each_saga_in_turn()
        self._suspended: set[int] = set()
        self._full: set[Disk] = set()
        shape = stack.shape
        self._has_rivals = shape.replicas == 1 and shape.database == "sqlite"
        """Whether a second process of a service is a fault: replicas are meant to be several."""
        self._has_leader = shape.nats == "cluster"
        self._has_sessions = shape.database == "postgres"
        self._held: set[str] = set()
        """Processes that something lasting is being done to: no other fault takes them."""

    async def rage(self, seconds: float) -> None:
        """Brings faults about for a time; then everything is put right."""
        self._began = time.monotonic()
        # the servers of a cluster are killed as they lead
        killed = [name for name in self._stack.processes if not (self._has_leader and name in self._stack.brokers)]
        works = [
            self._again_and_again(self._rhythm.kill, self._rounds(killed), self._kill),
            self._again_and_again(self._rhythm.suspend, self._rounds(self._stack.processes), self._suspend),
            self._again_and_again(self._rhythm.connection, self._rounds(tuple(self._proxy.links)), self._strike_link),
            self._spread(seconds, self._rhythm.long_stops, self._stop_long),
        ]
        if self._has_rivals:
            works.append(self._again_and_again(self._rhythm.rival, self._rounds(SERVICES), self._rival))
        if self._has_leader:
            works.append(self._again_and_again(self._rhythm.leader, itertools.repeat(EVENTS), self._kill_leader))
        if self._has_sessions:
            works.append(self._again_and_again(self._rhythm.session, itertools.repeat(POSTGRES), self._end_session))
        if not self._disk_problem:
            brokers = self._rounds(self._stack.brokers)
            stores = [disk.name for disk in self._stack.disks if disk.name not in self._stack.brokers]
            works.append(self._again_and_again(self._rhythm.disk, self._rounds(stores), self._fill))
            works.append(self._spread(seconds, self._rhythm.broker_disk, lambda: self._fill(next(brokers))))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await self.heal()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def heal(self) -> None:
        """Puts everything right: nothing is suspended, full, slow or deaf any more."""
        for pid in tuple(self._suspended):
            self._resume(pid)
        for link in self._proxy.links.values():
            link.delay_seconds = 0.0
        for disk in tuple(self._full):
            await self._free(disk)
        for broker in self._stack.brokers:
            await self._start_anew_where_it_writes_no_more(broker)

    # Rhythm

    async def _again_and_again(
        self, pause: float, names: Iterator[str], fault: Callable[[str], Awaitable[None]]
    ) -> None:
        due = self._began
        for name in names:
            due += pause * self._random.uniform(0.6, 1.4)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await fault(name)

    async def _spread(self, seconds: float, times: int, fault: Callable[[], Awaitable[None]]) -> None:
        """So often, evenly over the storm, and not at its very end."""
        for number in range(times):
            due = self._began + seconds * (number + 0.5 + self._random.uniform(-0.2, 0.2)) / (times + 0.5)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await fault()

    def _rounds(self, names: Sequence[str]) -> Iterator[str]:
        """All of them in an order drawn anew each round, for ever: so each is struck as often as the others."""
        while True:
            yield from self._random.sample(names, len(names))

    def _of_each_saga_in_turn(self) -> Iterator[str]:
        """Participants of one saga and of the other by turns, so that both have late ones."""
        for choreography in itertools.cycle(CHOREOGRAPHIES.values()):
            yield self._random.choice(sorted(choreography.participants))

    def _note(self, kind: str, what: str) -> None:
        self.done.brought_about[kind] += 1
        self.done.log.append(f"{time.monotonic() - self._began:7.2f} {kind}: {what}")

    # Processes

    async def _kill(self, name: str) -> None:
        if await self._running(name) is not None:
            self._kill_now(name)

    def _kill_now(self, name: str) -> None:
        if self._stack.send(name, signal.SIGKILL) is not None:
            self._note("SIGKILL", name)

    async def _suspend(self, name: str) -> None:
        if await self._running(name) is not None:
            await self._hold(name, self._random.choice((0.2, 0.5, 1.0, 2.0, 4.0, 7.0)))

    async def _stop_long(self) -> None:
        """All replicas of a participant at once: of one alone the others take the work over."""
        replicas = self._stack.processes_of(next(self._for_long))
        with contextlib.ExitStack() as held:
            for name in replicas:
                if await self._running(name) is not None:
                    held.enter_context(self._holding(name))
            await asyncio.gather(*(self._hold(name, self._rhythm.long_stop_seconds) for name in replicas))

    async def _hold(self, name: str, seconds: float) -> None:
        pid = self._stack.pid(name)
        if pid is None or self._stack.send(name, signal.SIGSTOP) != pid:
            return
        self._suspended.add(pid)
        self._note("SIGSTOP", f"{name} for {seconds:g} s")
        try:
            await asyncio.sleep(min(seconds, 0.1))
            self.done.observed["SIGSTOP"] += _state(pid) == "T"
            await asyncio.sleep(max(0.0, seconds - 0.1))
        finally:
            self._resume(pid)

    def _resume(self, pid: int) -> None:
        self._suspended.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def _kill_leader(self, stream: str) -> None:
        """Kills the server that leads the stream of events, and waits until it is seen that another one does."""

        async def led_by_another() -> bool:
            found = await self._leader()
            return bool(found) and found != killed

        killed = await self._leader()
        if not killed or killed in self._held or self._stack.send(killed, signal.SIGKILL) is None:
            return
        self._note(LEADER_KILL, f"{killed}, of {stream}")
        self.done.observed[LEADER_KILL] += await _until(led_by_another, _ELECTION_SECONDS)

    async def _leader(self) -> str:
        try:
            return await leader(self._stack.nats_url)
        except (nats.errors.Error, nats.js.errors.Error, OSError):
            return ""

    async def _end_session(self, database: str) -> None:
        """Ends one session of PostgreSQL in order, or kills its process, upon which the server starts anew."""
        pid = self._stack.pid(database)
        with contextlib.suppress(psutil.Error):
            sessions = [] if pid is None else [s for s in psutil.Process(pid).children() if _is_session(s)]
            if sessions:
                session = self._random.choice(sessions)
                number = self._random.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL))
                words = session.cmdline()[0]
                session.send_signal(number)
                self._note(_SESSION, f"{number.name} for {words}")

    async def _rival(self, name: str) -> None:
        """A second process takes a service over while the first is suspended; then the first goes on, and is killed."""
        if name in self._held:
            return
        with self._holding(name):
            pid = self._stack.pid(name)
            if pid is None or self._stack.send(name, signal.SIGSTOP) != pid:
                return
            self._suspended.add(pid)
            self._note(_RIVAL, name)
            try:
                with self._stack.second_process(name, self._proxy.url(name)) as second:
                    served = await _until(lambda: self._serves(second.address), 6.0)
                    self.done.observed[_RIVAL] += served
                    await asyncio.sleep(self._random.uniform(0.2, 2.0))
                    self._resume(pid)
                    await asyncio.sleep(self._random.uniform(0.5, 3.0))
            finally:
                self._resume(pid)
                # displaced for good: it says so, and waits to be started anew
                self._kill_now(name)

    @staticmethod
    async def _serves(address: str) -> bool:
        return not await problem_at(address)

    @contextlib.contextmanager
    def _holding(self, name: str) -> Iterator[None]:
        self._held.add(name)
        try:
            yield
        finally:
            self._held.discard(name)

    async def _running(self, name: str) -> int | None:
        """The process, once it runs and nothing lasting is done to it; None where that takes too long."""

        async def look() -> bool:
            return name not in self._held and self._stack.pid(name) is not None

        return self._stack.pid(name) if await _until(look, _WAIT_FOR_PROCESS_SECONDS) else None

    # Connections

    async def _strike_link(self, name: str) -> None:
        link = self._proxy.links[name]
        match self._random.choice((_CUT, _CUT, _DELAY, _HALF_OPEN)):
            case "connection cut":
                if link.cut():
                    self._note(_CUT, name)
            case "connection delayed":
                link.delay_seconds = self._random.choice((0.02, 0.1, 0.3, 0.8))
                seconds = self._random.uniform(1.0, 5.0)
                self._note(_DELAY, f"{name} by {link.delay_seconds:g} s, for {seconds:.1f} s")
                asyncio.get_running_loop().call_later(seconds, setattr, link, "delay_seconds", 0.0)
            case _:
                directions = self._random.choice(_HALVES)
                seconds = self._random.uniform(2.0, 12.0)
                if link.half_open(directions, seconds):
                    self._note(_HALF_OPEN, f"{name} {', '.join(sorted(directions))} for {seconds:.1f} s")

    # Disks

    async def _fill(self, name: str) -> None:
        disk = next(disk for disk in self._stack.disks if disk.name == name)
        kind = "broker's disk full" if name in self._stack.brokers else "store's disk full"
        if not await asyncio.to_thread(disk.fill):
            return
        self._full.add(disk)
        self._note(kind, name)
        try:
            await asyncio.sleep(self._random.uniform(1.5, 4.0))
        finally:
            await asyncio.shield(self._free(disk))

    async def _free(self, disk: Disk) -> None:
        self._full.discard(disk)
        await asyncio.to_thread(disk.free)
        if disk.name in self._stack.brokers:
            await self._start_anew_where_it_writes_no_more(disk.name)

    async def _start_anew_where_it_writes_no_more(self, broker: str) -> None:
        """A nats-server that could not write to a stream once does not, until it is started anew; in a cluster it has
        turned JetStream off."""
        problem = await self._stack.problem_of(broker)
        if "no space left" in problem or "JetStream not enabled" in problem:
            self._kill_now(broker)

    # What was seen

    def kills_seen(self) -> dict[str, int]:
        """How often the supervisor saw each process end by SIGKILL."""
        seen = dict.fromkeys(self._stack.processes, 0)
        for line in self._stack.log("supervisor").splitlines():
            if "service died" in line and "SIGKILL" in line:
                seen[json.loads(line)["process"]] += 1
        return seen

    def strikes(self) -> list[Strike]:
        """How often each kind of fault was brought about, and seen."""
        broker = "".join(self._stack.log(name) for name in self._stack.brokers)
        stores = "".join(self._stack.log(name) for name in self._stack.processes if name not in self._stack.brokers)
        seconds = "".join(path.read_text(errors="replace") for path in self._stack.logs.glob("second-*.log"))
        observed = self._proxy.observed
        count = self.done.brought_about
        strikes = [
            Strike("SIGKILL", count["SIGKILL"], sum(self.kills_seen().values()), "the supervisor's log"),
            Strike("SIGSTOP", count["SIGSTOP"], self.done.observed["SIGSTOP"], "the state of the process"),
            Strike(_CUT, count[_CUT], observed.cut, "connections reset by the proxy"),
            Strike(_DELAY, count[_DELAY], observed.delayed.total(), "chunks held back by the proxy"),
            Strike(_HALF_OPEN, count[_HALF_OPEN], observed.half_opened, "ways on which the proxy swallowed bytes"),
            Strike(
                "store's disk full",
                count["store's disk full"],
                sum(map(stores.count, ("database or disk is full", "disk I/O error", "No space left on device"))),
                "the logs of services and of PostgreSQL",
                problem=self._disk_problem,
            ),
            Strike(
                "broker's disk full",
                count["broker's disk full"],
                broker.count("no space left on device"),
                "the broker's log",
                problem=self._disk_problem,
            ),
        ]
        if self._has_rivals:
            displaced = sum(map(_tells_of_a_rival, (stores + seconds).splitlines()))
            strikes.append(Strike(_RIVAL, count[_RIVAL], displaced, "displaced processes' logs"))
        if self._has_leader:
            succeeded = self.done.observed[LEADER_KILL]
            strikes.append(Strike(LEADER_KILL, count[LEADER_KILL], succeeded, "the next leader's own word"))
        if self._has_sessions:
            ended = sum(map(stores.count, ("due to administrator command", "was terminated by signal 9")))
            strikes.append(Strike(_SESSION, count[_SESSION], ended, "PostgreSQL's log"))
        return strikes


def _tells_of_a_rival(line: str) -> bool:
    """Whether a process logs that another one has taken over what it worked on."""
    return '"message": "fenced"' in line or '"message": "displaced"' in line


def _is_session(process: psutil.Process) -> bool:
    """Whether a process of PostgreSQL serves a client: its title says who, and from where."""
    with contextlib.suppress(psutil.Error):
        return "127.0.0.1(" in process.cmdline()[0]
    return False


def _state(pid: int) -> str:
    """`T` for a process that is suspended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return ""


async def _until(look: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether it comes true within a time."""
    until = time.monotonic() + seconds
    while not await look():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


@asynccontextmanager
async def raging(faults: Faults, seconds: float) -> AsyncIterator[asyncio.Task[None]]:
    """The faults beside whatever is done meanwhile; at the end they are over, and everything is put right."""
    task = asyncio.create_task(faults.rage(seconds))
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
