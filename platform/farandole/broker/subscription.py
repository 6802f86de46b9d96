"""Consuming `EVENTS` in stream order through a durable consumer, from a position that the reader keeps itself.

The consumer's own cursor is not trusted: after a start, a reconnection, a lost pull or a gap it is reset to what the
reader has (`$JS.API.CONSUMER.RESET`), which restores the order. Pulls overlap, so that the reader never waits for one.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg

from farandole.broker.codes import CONSUMER_NOT_FOUND
from farandole.broker.connection import Broker
from farandole.broker.delivery_order import DeliveryOrder
from farandole.broker.headers import STATUS
from farandole.broker.stored import check_stored
from farandole.broker.streams import EVENTS, check_position, events_state
from farandole.envelope import StoredMessage
from farandole.errors import BrokerError, BrokerUnavailableError, ReaderReplacedError
from farandole.times import time_of

_PULL_MESSAGES = 1000
_PULL_BYTES = 32 * 1024 * 1024
_PULL_SECONDS = 10.0
_HEARTBEAT_SECONDS = 1.0
_SILENCE_SECONDS = 2.5
"""A pull that sends no heartbeat for so long is lost: the server restarted or its leader changed."""
_RETRY_SECONDS = (0.1, 0.25, 0.5, 1.0)
_NANOSECONDS = 1_000_000_000
_ACK_PREFIX = "$JS.ACK."
_LAST_DELIVERED = "Nats-Last-Consumer"
"""In a heartbeat: the number of the consumer's last delivery, to whomever it was."""
_READER = "farandole.reader"
_READERS_EPOCH = "farandole.epoch"
_SUCCESSION_SECONDS = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in stream order."""

    messages: Sequence[StoredMessage]
    generation: int
    reply: str

    @property
    def last_sequence(self) -> int:
        """The sequence of the last message."""
        return self.messages[-1].sequence


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What the reply subject of a delivered message says of it."""

    stream_sequence: int
    consumer_sequence: int
    time: datetime

    @classmethod
    def of(cls, reply: str) -> _Delivery:
        tokens = reply.split(".")
        at = 5 if len(tokens) == _ACK_V1_TOKENS else 7
        return cls(
            int(tokens[at]),
            int(tokens[at + 1]),
            time_of(int(tokens[at + 2]) // 1000),
        )


_ACK_V1_TOKENS = 9
"""`$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`; v2 has two more in front."""


class Subscription:
    """One reader's view of the stream: every message that its filters match after a position, once, in order."""

    def __init__(self, broker: Broker, durable: str, filters: Sequence[str], *, description: str = "") -> None:
        self._broker = broker
        self._durable = durable
        self._filters = sorted(filters)
        self._description = description
        self._ready: deque[tuple[StoredMessage, int, str]] = deque()
        """Messages with the generation of the consumer that delivered them, and where to acknowledge them."""
        self._ready_bytes = 0
        self._reader = uuid.uuid4().hex
        """Marks the consumer as read by this subscription and no other."""
        self._epoch = 0
        self._has_taken_over = False
        self._has_strange_pulls = False
        """Whether pulls may wait at the broker that are not of this reader, or of a connection that has ended."""
        self._missing_since: float | None = None
        self._acknowledged = 0
        """Up to where whoever read before had acknowledged; 0 once it is clear that the position is not behind that."""
        self._arrived = asyncio.Event()
        self._restored = asyncio.Event()
        self._wake = asyncio.Event()
        self._incarnation = ""
        self._time: datetime | None = None
        """When the stream stored the last message taken in, where that is known."""
        self._order = DeliveryOrder(after=0)
        self._generation = 0
        """How often the consumer has been reset: an acknowledgement from before a reset would confuse it."""
        self._outstanding = 0
        self._heard = 0.0
        self._failures = 0
        """How often in a row the consumer was set, or failed to be, and nothing came of it."""
        self._inbox = ""
        self._pumping: asyncio.Task[None] | None = None
        self._problem: str | None = "has not begun to read"
        self._problem_changed = asyncio.Event()
        self._stopped = False
        self._inbox_subscription: Any = None
        self._forget: Callable[[], None] = lambda: None

    @property
    def problem(self) -> str | None:
        """Why nothing is read, and the remedy; None where the subscription stands."""
        return self._problem

    @property
    def last(self) -> int:
        """The sequence of the last message taken in, or of the position that it began behind."""
        return self._order.last

    async def in_order(self) -> None:
        """Waits while it is not certain that the stream is the one that this reads, as after a lost connection."""
        while self._order.is_lost:
            self._restored.clear()
            await self._restored.wait()

    def doubt(self) -> None:
        """Has the consumer set anew, which looks first whether the stream is the one that this reads."""
        self._order.lose()
        self._wake.set()

    async def problem_changed(self) -> None:
        """Waits until `problem` is another one."""
        self._problem_changed.clear()
        await self._problem_changed.wait()

    def _set_problem(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            self._problem_changed.set()

    async def start(self, *, after: int, incarnation: str, time: datetime | None = None, epoch: int = 0) -> None:
        """Begins to read behind the position `after` of the stream made at `incarnation`, which has stored what stands
        there at that `time`. Of two readers that take the consumer from each other the one with the higher `epoch` goes
        on, that of who owns the store; of two with the same, who was last.

        Returns at once; where the stream is missing, is another one or is not as needed, `problem` says so until the
        reason has gone.
        """
        self._order = DeliveryOrder(after=after)
        self._incarnation = incarnation
        self._time = time
        self._epoch = epoch
        self._forget = self._broker.on_change(self._on_change)
        self._pumping = asyncio.create_task(self._pump(), name=f"subscription-{self._durable}")
        self._pumping.add_done_callback(lambda _task: self._arrived.set())

    async def next_batch(self, limit: int) -> Batch:
        """Waits for messages; returns what is there, at most `limit`, in stream order.

        Raises `ReaderReplacedError` where another process has taken over the consumer.
        """
        while not self._ready:
            if self._pumping is not None and self._pumping.done():
                self._pumping.result()
                raise self._replaced()
            self._arrived.clear()
            await self._arrived.wait()
        messages: list[StoredMessage] = []
        generation, reply = 0, ""
        while self._ready and len(messages) < limit:
            message, generation, reply = self._ready.popleft()
            self._ready_bytes -= len(message.data)
            messages.append(message)
        self._wake.set()
        return Batch(messages, generation, reply)

    async def acknowledge(self, batch: Batch) -> None:
        """Tells the broker that everything up to the batch's end is done. Only its own view depends on that."""
        if batch.generation == self._generation:
            try:
                await self._broker.client.publish(batch.reply, b"+ACK")
            except (nats.errors.Error, OSError) as error:
                _log.debug("acknowledgement not sent", error=str(error))

    async def stop(self) -> None:
        """Stops reading."""
        self._stopped = True  # a cancellation alone can be swallowed by `wait_for`, on which nats-py builds
        if self._pumping is not None:
            self._pumping.cancel()
            await asyncio.gather(self._pumping, return_exceptions=True)
        self._forget()
        await self._close_inbox()

    def _on_change(self, connected: bool) -> None:
        self._order.lose()
        if connected:
            self._wake.set()
        else:
            self._has_strange_pulls = True
            self._set_problem("the broker is not reachable")

    async def _on_message(self, generation: int, message: Msg) -> None:
        if generation != self._generation:
            return
        self._heard = asyncio.get_running_loop().time()
        if not message.reply.startswith(_ACK_PREFIX):
            self._on_status(message.headers or {})
            return
        self._failures = 0
        self._outstanding -= 1
        if self._outstanding <= _PULL_MESSAGES // 2:
            self._wake.set()
        delivery = _Delivery.of(message.reply)
        if not self._order.admits(delivery.stream_sequence, delivery.consumer_sequence):
            if self._order.is_lost:
                self._has_strange_pulls = True
                self._wake.set()
            return
        self._time = delivery.time
        if self._acknowledged:
            self._compare_with_acknowledged(delivery.stream_sequence)
        self._ready_bytes += len(message.data)
        self._ready.append(
            (
                StoredMessage(
                    message.subject, message.headers or {}, message.data, delivery.stream_sequence, delivery.time
                ),
                self._generation,
                message.reply,
            )
        )
        self._arrived.set()

    def _compare_with_acknowledged(self, first: int) -> None:
        """Tells where events come again that were acknowledged: then the store is not the one that they went into."""
        if first <= self._acknowledged:
            _log.warning(
                "the store is older than what it had acknowledged: it was restored from a backup, or is another one; "
                "what came since is taken in again",
                consumer=self._durable,
                first=first,
                last=self._acknowledged,
            )
        self._acknowledged = 0

    def _on_status(self, headers: dict[str, str]) -> None:
        match headers.get(STATUS):
            case "100":
                self._failures = 0
                last = headers.get(_LAST_DELIVERED, "")
                if last.isdecimal():
                    self._order.hear_of(int(last))
                if not self._order.is_lost:
                    return
                self._has_strange_pulls = True
            case "404" | "408":
                self._outstanding -= int(headers.get("Nats-Pending-Messages", self._outstanding))
            case "409" if "MaxBytes" in headers.get("Description", "") or "Batch Completed" in headers.get(
                "Description", ""
            ):
                self._outstanding -= int(headers.get("Nats-Pending-Messages", self._outstanding))
            case status:
                _log.info("pull ended", status=status, description=headers.get("Description", ""))
                self._order.lose()
        self._wake.set()

    async def _pump(self) -> None:
        while not self._stopped:
            try:
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                is_silent = asyncio.get_running_loop().time() - self._heard > _SILENCE_SECONDS
                if is_silent and self._outstanding > 0 and not self._order.is_lost:
                    _log.info("pull lost", consumer=self._durable)
                    self._order.lose()
            self._wake.clear()
            try:
                if self._order.is_lost:
                    await self._pause()
                    await self._restore_order()
                await self._pull()
            except ReaderReplacedError as error:
                self._set_problem(str(error))
                return
            except (BrokerError, nats.errors.Error, OSError) as error:
                self._order.lose()
                problem = str(error) or type(error).__name__
                if problem != self.problem:
                    _log.warning("can't read the stream", problem=problem)
                self._set_problem(problem)
                self._wake.set()

    async def _pause(self) -> None:
        """Waits before the consumer is set once more, the longer the more often that has come to nothing: a broker
        without a leader refuses at once whatever it is asked."""
        if self._failures:
            await asyncio.sleep(_RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS)) - 1])
        self._failures += 1

    async def _restore_order(self) -> None:
        """Sets the consumer behind the last message taken in."""
        if not self._broker.is_connected:
            raise BrokerUnavailableError(self._broker.problem or "the broker is not reachable")
        state = await events_state(self._broker)
        check_position(state, incarnation=self._incarnation, position=self._order.last)
        await check_stored(self._broker, self._order.last, self._time)
        await self._ensure_consumer()
        await self._close_inbox()
        await self._broker.request(f"$JS.API.CONSUMER.RESET.{EVENTS}.{self._durable}", {"seq": self._order.last + 1})
        self._outstanding = 0
        self._set_problem(None)
        await self._open_inbox()
        self._order.reset()
        self._restored.set()

    async def _open_inbox(self) -> None:
        """A new inbox for each generation: what was sent before a reset can't be taken for what comes after it."""
        self._generation += 1
        self._inbox = self._broker.client.new_inbox()
        self._inbox_subscription = await self._broker.client.subscribe(
            self._inbox,
            cb=partial(self._on_message, self._generation),
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )

    async def _close_inbox(self) -> None:
        """Ends the pulls that still wait at the broker, too: it drops those whose inbox nobody reads."""
        self._generation += 1
        subscription, self._inbox_subscription = self._inbox_subscription, None
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _ensure_consumer(self) -> None:
        """Makes the durable consumer. One that another reader had is made anew: that ends the pulls of the other, which
        would go on to take messages, as a suspended process does until it notices. So is one of which something was
        delivered that has not come here, or whose reader has lost its connection: the broker may believe for minutes
        that it stands. What such pulls take comes again only after `ack_wait`.

        Raises `ReaderReplacedError` where another reader is to go on: two would reset it in turn, each behind a
        position of its own. A process that was suspended on its way here takes the consumer from its successor when it
        goes on; the successor, whose epoch is the higher one, takes it back.
        """
        wanted = {
            "name": self._durable,
            "durable_name": self._durable,
            "description": self._description,
            "deliver_policy": "all",
            "ack_policy": "all",
            "ack_wait": 60 * _NANOSECONDS,
            "max_deliver": -1,
            "max_ack_pending": -1,
            "max_waiting": 512,
            "replay_policy": "instant",
            "num_replicas": 0,  # as many as the stream has
            "filter_subjects": self._filters,
            "metadata": {_READER: self._reader, _READERS_EPOCH: str(self._epoch)},
        }
        try:
            info = await self._broker.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.{self._durable}")
        except BrokerError as error:
            if error.code != CONSUMER_NOT_FOUND:
                raise
            self._wait_for_a_successor()
        else:
            if (info["config"].get("metadata") or {}).get(_READER) == self._reader:
                self._has_taken_over = True
                if not self._has_strange_pulls:
                    return
            elif self._has_taken_over:
                if _epoch_of(info["config"]) >= self._epoch:
                    raise self._replaced()
            elif sorted(info["config"].get("filter_subjects") or ()) == self._filters:
                # an event is acknowledged once it is committed and what it called for is published; where others are
                # taken now, as with another number of lanes, that says nothing of these
                self._acknowledged = info["ack_floor"]["stream_seq"]
            await self._broker.request(f"$JS.API.CONSUMER.DELETE.{EVENTS}.{self._durable}")
        await self._broker.request(
            f"$JS.API.CONSUMER.CREATE.{EVENTS}.{self._durable}",
            {"stream_name": EVENTS, "config": wanted, "action": ""},
        )
        self._has_taken_over = True
        self._has_strange_pulls = False
        self._missing_since = None

    def _replaced(self) -> ReaderReplacedError:
        return ReaderReplacedError(f"another process has taken over the consumer {self._durable}")

    def _wait_for_a_successor(self) -> None:
        """Raises while a consumer that this one had is missing for a moment only: who takes over makes it anew."""
        now = asyncio.get_running_loop().time()
        if self._missing_since is None:
            self._missing_since = now
        if self._has_taken_over and now - self._missing_since < _SUCCESSION_SECONDS:
            raise BrokerUnavailableError(f"the consumer {self._durable} was deleted; it is made again in a moment")

    async def _pull(self) -> None:
        """Asks for more where less than half of what was asked for is still to come and the reader keeps up."""
        if self._outstanding > _PULL_MESSAGES // 2 or self._ready_bytes > _PULL_BYTES:
            return
        wanted = _PULL_MESSAGES - max(self._outstanding, 0) - len(self._ready)
        if wanted <= 0:
            return
        request = {
            "batch": wanted,
            "max_bytes": _PULL_BYTES,
            "expires": int(_PULL_SECONDS * _NANOSECONDS),
            "idle_heartbeat": int(_HEARTBEAT_SECONDS * _NANOSECONDS),
        }
        self._outstanding = max(self._outstanding, 0) + wanted
        self._heard = asyncio.get_running_loop().time()
        await self._broker.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{self._durable}", json.dumps(request).encode(), reply=self._inbox
        )


def _epoch_of(config: Mapping[str, Any]) -> int:
    """The epoch of a consumer's reader; 0 where it has told none."""
    text = str((config.get("metadata") or {}).get(_READERS_EPOCH, ""))
    return int(text) if text.isdecimal() else 0
