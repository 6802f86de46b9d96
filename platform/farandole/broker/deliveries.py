"""Taking events from a durable consumer one by one, in no order: each is acknowledged for itself, or comes again.

For work in which events do not wait for each other, as `farandole.correlator.deadline_action_runner` does it. The
broker keeps the account: what was not acknowledged comes again, to whichever process asks, and it says how often an
event was delivered. Whoever has to keep the order of a saga reads by `farandole.broker.subscription` instead.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.msg import Msg

from farandole.broker.connection import Broker, NatsSubscription
from farandole.broker.headers import STATUS
from farandole.broker.streams import EVENTS
from farandole.envelope import StoredMessage
from farandole.errors import BrokerUnavailableError
from farandole.times import time_of

ACK_WAIT_SECONDS = 60.0
"""What was delivered and not answered for so long comes again."""
_PULL_SECONDS = 5.0
_LOST_SECONDS = 2.0
"""A pull that says nothing for so long after its end is lost: the server restarted or its leader changed."""
_MOST_UNACKNOWLEDGED = 10_000
_NANOSECONDS = 1_000_000_000
_ACK_PREFIX = "$JS.ACK."
_ACK_V1_TOKENS = 9

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event that is to be answered: `Deliveries.done` or `Deliveries.again`."""

    message: StoredMessage
    count: int
    """How often it has been delivered, this time included: to any process, and whatever became of it."""
    reply: str


class Deliveries:
    """A durable consumer of `EVENTS` that any number of processes share. It begins with what is stored after it is
    made, and keeps its place while nobody takes anything."""

    def __init__(self, broker: Broker, durable: str, filters: Sequence[str], *, description: str) -> None:
        self._broker = broker
        self._durable = durable
        self._filters = sorted(filters)
        self._description = description
        self._ready: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._is_made = False
        self._inbox = ""
        self._subscription: NatsSubscription | None = None
        self._pulls = 0
        self._outstanding = 0
        """How many of the last pull are still to come."""
        self._pulled_at = 0.0
        self._forget: Callable[[], None] = lambda: None

    async def make(self) -> None:
        """Makes the consumer, or makes sure of it once a connection. Comes before each `take`.

        Raises `BrokerUnavailableError` where the broker does not answer, and `BrokerError` where it refuses; what to do
        then is to wait, and call it again.
        """
        try:
            await self._begin()
        except (nats.errors.Error, OSError) as error:
            raise BrokerUnavailableError(f"can't make {self._durable}: {str(error) or type(error).__name__}") from None

    async def take(self, limit: int) -> list[Delivery]:
        """Waits for events, for some seconds at most; returns what is there, at most `limit`.

        Raises `BrokerUnavailableError`.
        """
        if not self._ready:
            try:
                await self._pull(limit)
            except (nats.errors.Error, OSError) as error:
                self._outstanding = 0
                raise BrokerUnavailableError(
                    f"can't take from {self._durable}: {str(error) or type(error).__name__}"
                ) from None
            await self._wait()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def done(self, delivery: Delivery) -> None:
        """Says that an event is done with. Where the broker does not hear it, the event comes again."""
        await self._answer(delivery, b"+ACK")

    async def again(self, delivery: Delivery, seconds: float = 0.0) -> None:
        """Has an event come again after so long; where the broker does not hear of it, after `ACK_WAIT_SECONDS`."""
        delay = json.dumps({"delay": int(seconds * _NANOSECONDS)}).encode()
        await self._answer(delivery, b"-NAK " + delay if seconds > 0 else b"-NAK")

    async def stop(self) -> None:
        """Takes nothing more, and gives back what was not taken. What was taken can be answered still."""
        self._forget()
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except (nats.errors.Error, OSError) as error:
                _log.debug("already unsubscribed", error=str(error))
        while self._ready:
            await self.again(self._ready.popleft())

    async def _begin(self) -> None:
        if self._subscription is None:
            self._inbox = self._broker.client.new_inbox()
            self._subscription = await self._broker.client.subscribe(
                f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
            self._forget = self._broker.on_change(self._on_change)
        if self._is_made:
            return
        await self._broker.request(
            f"$JS.API.CONSUMER.CREATE.{EVENTS}.{self._durable}",
            {
                "stream_name": EVENTS,
                "action": "",
                "config": {
                    "name": self._durable,
                    "durable_name": self._durable,
                    "description": self._description,
                    "deliver_policy": "new",
                    "ack_policy": "explicit",
                    "ack_wait": int(ACK_WAIT_SECONDS * _NANOSECONDS),
                    "max_deliver": -1,
                    "max_ack_pending": _MOST_UNACKNOWLEDGED,
                    "max_waiting": 512,
                    "replay_policy": "instant",
                    "filter_subjects": self._filters,
                },
            },
        )
        self._is_made = True

    async def _pull(self, limit: int) -> None:
        if self._outstanding > 0:
            return
        self._pulls += 1
        self._outstanding = limit
        self._pulled_at = asyncio.get_running_loop().time()
        await self._broker.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{self._durable}",
            json.dumps({"batch": limit, "expires": int(_PULL_SECONDS * _NANOSECONDS)}).encode(),
            reply=f"{self._inbox}.{self._pulls}",
        )

    async def _wait(self) -> None:
        """Waits until something has arrived, or the pull has ended."""
        until = self._pulled_at + _PULL_SECONDS + _LOST_SECONDS
        try:
            async with asyncio.timeout_at(until):
                await self._arrived.wait()
        except TimeoutError:
            self._outstanding = 0
            self._is_made = False
        self._arrived.clear()

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith(_ACK_PREFIX):
            self._ready.append(_delivery(message))
            self._outstanding -= 1
        elif message.subject == f"{self._inbox}.{self._pulls}":
            status = (message.headers or {}).get(STATUS, "")
            if status == "100":
                return
            if status not in ("404", "408"):
                _log.info("pull ended", consumer=self._durable, status=status)
                self._is_made = False
                await asyncio.sleep(_PAUSE_SECONDS)  # whoever is refused at once must not ask without end
            self._outstanding = 0
        self._arrived.set()

    def _on_change(self, _connected: bool) -> None:
        self._outstanding = 0
        self._is_made = False
        self._arrived.set()

    async def _answer(self, delivery: Delivery, answer: bytes) -> None:
        try:
            await self._broker.client.publish(delivery.reply, answer)
        except (nats.errors.Error, OSError) as error:
            _log.debug("answer not sent", consumer=self._durable, error=str(error))


_PAUSE_SECONDS = 0.25


def _delivery(message: Msg) -> Delivery:
    """What is in a reply subject stands in `farandole.broker.subscription`; before the sequences the deliveries."""
    tokens = message.reply.split(".")
    at = 4 if len(tokens) == _ACK_V1_TOKENS else 6
    count, sequence, _, nanoseconds = (int(token) for token in tokens[at : at + 4])
    time = time_of(nanoseconds // 1000)
    return Delivery(
        StoredMessage(message.subject, message.headers or {}, message.data, sequence, time), count, message.reply
    )
