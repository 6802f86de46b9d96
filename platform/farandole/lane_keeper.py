"""Working on the lanes of a service that are this replica's: one worker for each, started and stopped as leases come
and go.

A lane that is another replica's share is given back once its worker has stopped, and the others are nudged, so that
they need not wait for their next renewal. Where a lease is lost, as by a process that was suspended, the worker is
stopped and the replica waits for its turn again: nobody has to restart it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from farandole.broker.connection import Broker
from farandole.broker.nudges import Nudges
from farandole.cancelling import cancel, to_the_end
from farandole.errors import FencedError, LanesDifferError, ReaderReplacedError, StoreError, StoreUnavailableError
from farandole.lanes import Lanes
from farandole.leases import RENEWAL_SECONDS, Leases, Replica, Tenure

CHECKS = ("events", "outbox", "dependencies")
"""What workers report on, see `Worker`."""

_NOT_BEGUN = "has not begun to read"
_UNABLE_SECONDS = 2.0
"""A replica that has been without a broker for so long lets others have its lanes, where they are better off."""
_LEAVING_SECONDS = 2.0
"""A store that does not answer for so long is left as it is: the lease runs out."""

_log = structlog.get_logger(__name__)

Report = Callable[[str, str | None], None]
"""Takes what health should know: a check, and what is wrong with it, or None."""


class Work(Protocol):
    """What goes on until it is cancelled: the work on one lane, as a `Worker` does it, or that of a whole process."""

    async def run(self) -> None:
        """Raises `FencedError` where another process has taken over, see `Worker.run`."""
        ...


WorkOf = Callable[[int, Report], Work]
"""Makes what works on a lane, each time anew: it claims the lane's partitions as somebody who has never had them."""


@dataclass(slots=True, eq=False)
class _Working:
    """The work on one lane."""

    task: asyncio.Task[None]
    ending: asyncio.Task[None] | None = None
    """Stops the worker, and gives the lane back where others wait for it."""


@dataclass(slots=True)
class _Health:
    """What the lanes say of themselves, as one."""

    report: Report
    lanes: Lanes
    own: str | None = _NOT_BEGUN
    """What keeps the replica from working on anything."""
    problems: dict[int, dict[str, str]] = field(default_factory=dict)
    """By lane that is worked on or blocked, and check."""

    def set(self, lane: int, check: str, problem: str | None) -> None:
        """Takes what the worker of a lane says."""
        of_lane = self.problems.setdefault(lane, {})
        if problem is None:
            of_lane.pop(check, None)
        else:
            of_lane[check] = problem
        self.tell(check)

    def forget(self, lane: int) -> None:
        """Nothing is done on a lane any more."""
        if self.problems.pop(lane, None):
            self.tell(*CHECKS)

    def tell(self, *checks: str) -> None:
        """Reports on these checks."""
        for check in checks:
            told = [self._named(lane, of[check]) for lane, of in sorted(self.problems.items()) if check in of]
            if check == "events" and self.own is not None:
                told.insert(0, self.own)
            self.report(check, "; ".join(told) or None)

    def _named(self, lane: int, problem: str) -> str:
        return problem if self.lanes.count == 1 else f"lane {lane}: {problem}"


class LaneKeeper:
    """Holds leases, and runs a worker for each lane held."""

    def __init__(
        self,
        service: str,
        *,
        lanes: Lanes,
        replica: Replica,
        leases: Leases,
        broker: Broker,
        work_of: WorkOf,
        report: Report,
    ) -> None:
        """`report` takes what the workers of all lanes say, as one: with several lanes each problem says which."""
        self._service = service
        self._lanes = lanes
        self._replica = replica
        self._leases = leases
        self._broker = broker
        self._work_of = work_of
        self._health = _Health(report, lanes)
        self._nudges = Nudges(broker, f"participants.{service}.lanes")
        self._work: dict[int, _Working] = {}
        """By lane that is held, or was until its worker has stopped."""
        self._blocked: set[int] = set()
        """Lanes that are not worked on though they are held: somebody has to see to it."""
        self._displaced: str | None = None
        """Who has this process's place, and the remedy; None where nobody has."""
        self._has_turn = asyncio.Event()
        self._tenure = Tenure()
        self._is_failing = False
        """Whether the last renewal has failed."""
        self._joined = asyncio.Event()
        self._wake = asyncio.Event()
        self._cut_off_at: float | None = None
        """Since when there has been no connection to the broker: for ever, before the first."""

    @property
    def lanes(self) -> frozenset[int]:
        """The lanes that this replica works on."""
        return frozenset(lane for lane, work in self._work.items() if work.ending is None)

    @property
    def replica(self) -> str:
        """The name of this one."""
        return self._replica.name

    async def joined(self) -> None:
        """Waits until the replica is one of those that share the work: all have the same number of lanes then."""
        await self._joined.wait()

    def check_turn(self) -> None:
        """Raises `FencedError` where another process has this one's place: as a later one of the same name, or one
        that reads its consumers with another database. It is the one to answer for the service."""
        if self._displaced is not None:
            raise FencedError(self._displaced)

    async def in_turn(self) -> None:
        """Waits while `check_turn` would raise."""
        while self._displaced is not None:
            self._has_turn.clear()
            await self._has_turn.wait()

    @property
    def replicas(self) -> tuple[str, ...]:
        """The names of all replicas that lived at the last renewal."""
        return self._tenure.replicas

    async def run(self) -> None:
        """Works until it is cancelled; then gives every lane back. Raises what ended a worker, other than the loss of
        its lane."""
        self._health.tell(*CHECKS)
        self._cut_off_at = None if self._broker.is_connected else -math.inf
        stop_watching = self._broker.on_change(self._on_connection)
        listening = asyncio.create_task(self._nudges.listen(self._on_nudge), name=f"{self._service}-lanes-nudges")
        try:
            while True:
                self._wake.clear()
                await self._renew()
                try:
                    async with asyncio.timeout(RENEWAL_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            stop_watching()
            await to_the_end(self._leave(listening), name=f"{self._service}-lanes-leave")

    async def _renew(self) -> None:
        """Renews, and has the workers follow what came of it."""
        is_new = not self._joined.is_set()
        # who was displaced by a later process of the same name does not displace that one in turn
        renew = self._leases.join if is_new else self._leases.renew
        try:
            self._tenure = await renew(self._replica, self._lanes.count, is_able=self._is_able())
        except StoreUnavailableError as error:
            self._note_failure(error)
            return  # the lanes may still be its own; where they are not, the store lets it commit nothing
        except FencedError as error:
            self._tenure, self._displaced = Tenure(), str(error)
            self._take_on(problem=str(error))
        except LanesDifferError as error:
            self._tenure = Tenure()
            self._take_on(problem=str(error))
        else:
            self._joined.set()
            if not self._blocked:
                self._displaced = None
                self._has_turn.set()
            self._take_on(problem=None)
            if is_new:
                await self._nudges.send()  # who has more than a fair share now
        self._is_failing = False
        if unworked := self._tenure.due - self._work.keys():
            await self._give_back(unworked)  # as of an earlier process of the same name

    def _note_failure(self, error: StoreUnavailableError) -> None:
        if not self._is_failing:
            _log.warning("the leases are not renewed", error=str(error))
        self._is_failing = True
        if not self._work:
            self._health.own = str(error)
            self._health.tell("events")

    def _take_on(self, *, problem: str | None) -> None:
        """Has workers and health follow a renewal; `problem` is what keeps this replica from working on anything."""
        if problem is not None and problem != self._health.own:
            _log.error("fenced" if self._displaced else "works on no lane", problem=problem)
        self._health.own = problem
        self._follow()  # before it is told: a lane that has not begun is a problem too
        self._health.tell("events")

    def _follow(self) -> None:
        """Stops and starts workers so that there is one for each lane held that nobody else waits for."""
        held, due = self._tenure.lanes, self._tenure.due
        for lane, work in list(self._work.items()):
            if work.ending is not None:
                if work.ending.done():
                    work.ending.result()
                    del self._work[lane]
            elif work.task.done():
                self._ended(lane, work)
            elif lane not in held or lane in due:
                work.ending = self._begin(self._stop(lane, work), f"{self._service}-{lane}-stop")
        for lane in self._blocked - held:
            self._blocked.discard(lane)
            self._health.forget(lane)
        for lane in sorted(held - due - self._work.keys() - self._blocked):
            self._start(lane)

    def _start(self, lane: int) -> None:
        durable = self._lanes.durable(self._service, lane)
        _log.info("works on a lane", lane=lane, consumer=durable, replica=self._replica.name)
        self._health.set(lane, "events", _NOT_BEGUN)
        work = self._work_of(lane, lambda check, problem: self._health.set(lane, check, problem))
        self._work[lane] = _Working(self._begin(work.run(), f"work-{durable}"))

    def _begin(self, what: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Does something in a task of its own, the end of which is looked at at once."""
        task = asyncio.create_task(what, name=name)
        task.add_done_callback(lambda _task: self._wake.set())
        return task

    def _ended(self, lane: int, work: _Working) -> None:
        """A worker has ended by itself: raises what ended it, unless somebody else has worked on its lane.

        Where the lease is gone, the lane is another's. Where it is not, somebody has claimed it who had lost it, as a
        process may that was suspended: it is claimed anew. It is not where another process reads the consumer with
        another database: each would make the other skip events.
        """
        del self._work[lane]
        self._health.forget(lane)
        try:
            work.task.result()
        except ReaderReplacedError as error:
            if lane in self._tenure.lanes:
                _log.error("a lane is not worked on", lane=lane, problem=str(error))
                self._blocked.add(lane)
                self._displaced = f"{error}; stop one of the two, then restart the one that stays"
                self._health.set(lane, "events", self._displaced)
        except FencedError as error:
            _log.warning("displaced", lane=lane, problem=str(error))

    async def _stop(self, lane: int, work: _Working) -> None:
        """Stops a worker, and gives its lane back where it is still held. Raises what else ended it meanwhile."""
        await cancel([work.task])
        self._health.forget(lane)
        _log.info("works on a lane no more", lane=lane, replica=self._replica.name)
        await self._give_back([lane])
        with suppress(asyncio.CancelledError, FencedError):
            work.task.result()

    async def _give_back(self, lanes: Collection[int]) -> None:
        """Lets others have lanes, as far as they are still held."""
        try:
            await self._leases.give_back(self._replica, lanes)
        except StoreError as error:
            _log.info("lanes were not given back", lanes=sorted(lanes), error=str(error))
        else:
            await self._nudges.send()

    async def _leave(self, listening: asyncio.Task[None]) -> None:
        """Stops every worker, and lets go of everything."""
        endings = [work.ending for work in self._work.values() if work.ending is not None]
        await cancel([listening, *endings, *(work.task for work in self._work.values())])
        try:
            async with asyncio.timeout(_LEAVING_SECONDS):
                await self._leases.leave(self._replica)
        except (StoreError, TimeoutError) as error:
            _log.info("the lanes were not given back: their leases run out", error=str(error))
        else:
            await self._nudges.send()

    def _is_able(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._cut_off_at is None or now - self._cut_off_at < _UNABLE_SECONDS

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._cut_off_at = None
            self._wake.set()
        elif self._cut_off_at is None:
            self._cut_off_at = asyncio.get_running_loop().time()

    def _on_nudge(self, _body: bytes) -> None:
        self._wake.set()
