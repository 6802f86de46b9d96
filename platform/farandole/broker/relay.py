"""Publishing outbox rows: in order within a key (at most one unacknowledged), pipelined across keys."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from farandole.broker.codes import MESSAGE_TOO_LARGE
from farandole.broker.publisher import Acknowledgement, Publisher
from farandole.broker.streams import EVENTS
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.outbox import OutboxRow

_RETRY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_REFUSED_RETRY_SECONDS = (*_RETRY_SECONDS, 10.0, 20.0, 30.0)
"""What the broker refuses it refuses until somebody changes a limit: then the row follows within the last pause."""
_PATIENCE_SECONDS = 5.0
"""How long a row may go unanswered before that is a problem to be told."""
_EVENTS = "events."
_REMEDIES = {MESSAGE_TOO_LARGE: "raise the stream's max_msg_size"}
"""By the broker's code, where it does not go without saying."""

_log = structlog.get_logger(__name__)


class Reader(Protocol):
    """Who reads the stream that rows go into, and so knows whether it is still the one that they belong to."""

    @property
    def last(self) -> int:
        """The highest sequence that it has seen."""
        ...

    async def in_order(self) -> None:
        """Waits while it is not certain that the stream is the one that it reads."""
        ...

    def doubt(self) -> None:
        """The stream may be another one: whoever waits for `in_order` waits until that has been looked at."""
        ...


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that the broker does not take. It holds up the later rows of its key."""

    key: str
    subject: str
    error: str
    """What the broker said, and the remedy where there is one to name."""
    seconds: float
    """For how long it has been refused."""


@dataclass(frozen=True, slots=True)
class _Failing:
    """Why the first row of a key is not acknowledged."""

    since: float
    """In the event loop's time."""
    subject: str
    why: str
    refused: bool
    """Whether the broker said no, and not just nothing."""


@dataclass(slots=True)
class _Group:
    """Rows that were added together."""

    done: asyncio.Future[None]
    missing: int


class OutboxRelay:
    """Publishes rows until the broker has acknowledged each, and tells which may be removed.

    A refused row is tried again with growing pauses and holds up the later rows of its key, never those of another:
    so a saga keeps its order, and goes on without a restart once the broker takes the row. Nothing goes into a stream
    that took the place of the one that the rows belong to: acknowledged there, it would be lost.
    """

    def __init__(self, publisher: Publisher, reader: Reader | None = None) -> None:
        """Without a `reader` any stream will do."""
        self._publisher = publisher
        self._reader = reader
        self._waiting: dict[str, deque[OutboxRow]] = {}
        """By key, in order; the first of each is under way once the relay runs."""
        self._acknowledged: dict[int, None] = {}
        self._withdrawn: set[int] = set()
        self._groups: dict[int, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._running = False
        self._failing: dict[str, _Failing] = {}
        """By key: why its first row is not acknowledged."""
        self._broken: BaseException | None = None

    @property
    def depth(self) -> int:
        """How many rows wait for their acknowledgement."""
        return len(self._groups)

    @property
    def unpublished(self) -> list[OutboxRow]:
        """The rows that wait for their acknowledgement, in the order in which they were written."""
        return sorted((row for queue in self._waiting.values() for row in queue), key=lambda row: row.id)

    @property
    def refused(self) -> list[Refused]:
        """The rows that the broker refuses, the one refused for longest first."""
        now = asyncio.get_running_loop().time()
        refused = [
            Refused(key, failing.subject, failing.why, now - failing.since)
            for key, failing in self._failing.items()
            if failing.refused
        ]
        return sorted(refused, key=lambda one: -one.seconds)

    @property
    def problem(self) -> str | None:
        """What the broker refuses, and what has gone unanswered for seconds; None for nothing."""
        problems = []
        if refused := self.refused:
            first = refused[0]
            sagas = (
                f"events of {len(refused)} sagas, which wait" if len(refused) > 1 else "an event of a saga, which waits"
            )
            problems.append(f"the broker refuses {sagas}; saga {first.key}: {first.error}")
        unanswered = [(failing.since, failing.why) for failing in self._failing.values() if not failing.refused]
        if unanswered:
            since, why = min(unanswered)
            waited = asyncio.get_running_loop().time() - since
            if waited >= _PATIENCE_SECONDS:
                problems.append(f"{self.depth} events wait to be published, the first for {waited:.0f} s: {why}")
        return "; ".join(problems) or None

    def add(self, rows: Sequence[OutboxRow]) -> asyncio.Future[None]:
        """Takes rows over, in order; the result comes once the broker has acknowledged all of them.

        A row that it has already is passed over. One that was written before others of its key goes before those that
        are not under way yet.
        """
        rows = [row for row in rows if row.id not in self._groups and row.id not in self._acknowledged]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not rows:
            done.set_result(None)
        group = _Group(done, len(rows))
        for row in rows:
            self._groups[row.id] = group
            queue = self._waiting.get(row.publication.key)
            if queue is None:
                self._waiting[row.publication.key] = deque([row])
                if self._running:
                    self._begin(row.publication.key)
            else:
                self._put(queue, row)
        return done

    def run(self) -> None:
        """Begins to publish; until then rows only gather."""
        if not self._running:
            self._running = True
            for key in list(self._waiting):
                self._begin(key)

    def withdraw(self, key: str, message_id: str) -> None:
        """Drops the row of a key that has this message id: the stream is known to hold it."""
        for row in self._waiting.get(key, ()):
            if row.publication.headers.get("Nats-Msg-Id") == message_id:
                self._withdrawn.add(row.id)
        if not self._running:
            self._drop_withdrawn(key)

    def take_acknowledged(self) -> list[int]:
        """The ids of rows that may be removed from the outbox, each told once."""
        acknowledged, self._acknowledged = self._acknowledged, {}
        return list(acknowledged)

    async def changed(self) -> None:
        """Waits until a row has been acknowledged."""
        self._changed.clear()
        if not self._acknowledged and self._broken is None:
            await self._changed.wait()
        if self._broken is not None:
            raise self._broken

    async def stop(self) -> None:
        """Stops publishing; what is left stays in the outbox."""
        self._running = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _put(self, queue: deque[OutboxRow], row: OutboxRow) -> None:
        place, first = len(queue), 1 if self._running else 0
        while place > first and queue[place - 1].id > row.id:
            place -= 1
        queue.insert(place, row)

    def _begin(self, key: str) -> None:
        task = asyncio.create_task(self._publish_key(key), name=f"relay-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error
            self._changed.set()

    async def _publish_key(self, key: str) -> None:
        queue = self._waiting[key]
        while queue:
            row = queue[0]
            if row.id not in self._withdrawn:
                await self._publish_row(row)
            queue.popleft()
            self._finish(row.id)
        self._failing.pop(key, None)
        del self._waiting[key]

    async def _publish_row(self, row: OutboxRow) -> Acknowledgement | None:
        failures = 0
        while row.id not in self._withdrawn:
            reached = 0
            if self._reader is not None:
                await self._reader.in_order()
                reached = self._reader.last
            try:
                acknowledgement = await self._publisher.publish(row.publication)
                if _is_misplaced(row, acknowledgement, reached):
                    assert self._reader is not None, "without a reader no place is a wrong one"
                    self._reader.doubt()  # published there again, it would be a duplicate, and seem to be done with
                    raise _another_stream(row, acknowledgement, reached)
            except BrokerError as error:
                pauses = self._note_failure(row, error)
            else:
                self._note_success(row)
                return acknowledgement
            await asyncio.sleep(pauses[min(failures, len(pauses) - 1)])
            failures += 1
        return None

    def _note_failure(self, row: OutboxRow, error: BrokerError) -> tuple[float, ...]:
        """Remembers why a row was not acknowledged; returns the pauses between tries. A refusal is logged once."""
        key, subject = row.publication.key, row.publication.subject
        before = self._failing.get(key)
        now = asyncio.get_running_loop().time()
        if isinstance(error, BrokerUnavailableError):
            if before is None or not before.refused:
                self._failing[key] = _Failing(before.since if before else now, subject, str(error), refused=False)
            return _RETRY_SECONDS
        remedy = _REMEDIES.get(error.code)
        why = f"{error}; {remedy}" if remedy else str(error)
        again = before if before is not None and before.refused else None
        self._failing[key] = _Failing(again.since if again else now, subject, why, refused=True)
        if again is None or again.why != why:
            _log.error("refused by the broker", saga_id=key, subject=subject, error=why, code=error.code)
        return _REFUSED_RETRY_SECONDS

    def _note_success(self, row: OutboxRow) -> None:
        failing = self._failing.pop(row.publication.key, None)
        if failing is not None and failing.refused:
            _log.info("published after it was refused", saga_id=row.publication.key, subject=failing.subject)

    def _drop_withdrawn(self, key: str) -> None:
        queue = self._waiting.get(key, deque())
        kept = deque(row for row in queue if row.id not in self._withdrawn)
        for row in queue:
            if row.id in self._withdrawn:
                self._finish(row.id)
        if kept:
            self._waiting[key] = kept
        else:
            self._waiting.pop(key, None)

    def _finish(self, row_id: int) -> None:
        self._withdrawn.discard(row_id)
        self._acknowledged[row_id] = None
        self._changed.set()
        group = self._groups.pop(row_id)
        group.missing -= 1
        if group.missing == 0 and not group.done.done():
            group.done.set_result(None)


def _is_misplaced(row: OutboxRow, acknowledgement: Acknowledgement, reached: int) -> bool:
    """Whether a row was stored at a sequence that its stream had passed before."""
    is_event = row.publication.subject.startswith(_EVENTS)
    return is_event and not acknowledgement.is_duplicate and acknowledgement.sequence <= reached


def _another_stream(row: OutboxRow, acknowledgement: Acknowledgement, reached: int) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"{row.publication.subject} was stored at {acknowledgement.sequence}, though the stream {EVENTS} had "
        f"reached {reached}: another stream has its place"
    )
