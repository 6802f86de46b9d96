"""A NATS client of a simulated server: what Farandole sees of nats-py, without a socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.msg import Msg

from farandole.broker.connection import ConnectionListener
from farandole.settings import Settings
from farandole.testing.simulation.jetstream import MAX_PAYLOAD, NO_RESPONDERS
from farandole.testing.simulation.network import Connection

if TYPE_CHECKING:
    from farandole.testing.simulation.broker import SimulatedBroker

_RECONNECT_SECONDS = 0.25
_ANSWERS = 0
"""The number of the subscription on which a client waits for the answers to its requests."""

Gate = Callable[[str], Awaitable[None]]
"""Awaited with the name of a point between the process and the broker."""


async def _open_gate(_point: str) -> None:
    """Lets everything pass."""


class _Subscription:
    """A subscription as the client has it: a queue, and a task that empties it."""

    def __init__(self, client: SimulatedClient, number: int, subject: str, queue: str, limits: tuple[int, int]) -> None:
        self._client = client
        self.number = number
        self.subject = subject
        self.queue = queue
        self._most, self._most_bytes = limits
        self._waiting: deque[Msg] = deque()
        self._bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def put(self, message: Msg) -> None:
        """Takes a message that has come; it is dropped where too many wait."""
        size = len(message.data)
        if 0 < self._most <= len(self._waiting) or 0 < self._most_bytes <= self._bytes + size:
            return
        self._waiting.append(message)
        self._bytes += size
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    async def run(self, callback: Callable[[Msg], Awaitable[None]], gate: Gate) -> None:
        """Calls back with each message, one after the other."""
        waiting = self._waiting
        loop = asyncio.get_running_loop()
        while True:
            while not waiting:
                self._arrival = loop.create_future()
                await self._arrival
            message = waiting.popleft()
            self._bytes -= len(message.data)
            await gate("message")
            try:
                await callback(message)
            except Exception as error:  # noqa: BLE001 - as nats-py does, which tells of it and goes on
                await self._client.tell_error(error)
            await gate("message taken")

    async def unsubscribe(self) -> None:
        """See `farandole.broker.connection.NatsSubscription`."""
        await self._client.unsubscribe(self)


class SimulatedClient:
    """See `farandole.broker.connection.NatsClient`, and `SimulatedBroker.client`, which makes one."""

    def __init__(self, broker: SimulatedBroker, name: str, number: int, gate: Gate | None) -> None:
        self._broker = broker
        self._loop = broker.loop
        self._gate = gate or _open_gate
        self.name = name
        self._inbox_prefix = f"_INBOX_{name}.{number}"
        self._inboxes = 0
        self._connection: Connection | None = None
        self._is_closed = False
        self._listener: ConnectionListener | None = None
        self._first: asyncio.Future[None] | None = None
        self._subscriptions: dict[int, _Subscription] = {}
        self._numbers = 0
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._answers_prefix = ""
        self._tasks: dict[asyncio.Task[None], None] = {}
        """In the order in which they began."""
        self._context = copy_context()
        """The process's; what the server calls back runs in whatever context the server does."""

    @property
    def is_connected(self) -> bool:
        """See `NatsClient.is_connected`."""
        return self._connection is not None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or its process ended."""
        return self._is_closed

    @property
    def max_payload(self) -> int:
        """See `NatsClient.max_payload`."""
        return MAX_PAYLOAD

    async def connect_for_ever(self, settings: Settings, listener: ConnectionListener) -> None:  # noqa: ARG002
        """See `NatsClient.connect_for_ever`."""
        await self._gate("connect")
        self._listener = listener
        self._context = copy_context()
        self._first = self._loop.create_future()
        self._attempt()
        await self._first
        await self._gate("connected")

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """See `NatsClient.publish`."""
        await self._gate("publish")
        self._check_open()
        connection = self._connection
        if connection is None:
            raise nats.errors.OutboundBufferLimitError
        if len(payload) > MAX_PAYLOAD:
            raise nats.errors.MaxPayloadError
        kept = {name.strip(): value.strip() for name, value in headers.items()} if headers else None
        connection.up.send(self._broker.publish, connection, subject, reply, kept, payload)
        await self._gate("published")

    async def subscribe(
        self,
        subject: str,
        queue: str = "",
        cb: Callable[[Msg], Awaitable[None]] | None = None,
        *,
        pending_msgs_limit: int = 512 * 1024,
        pending_bytes_limit: int = 128 * 1024 * 1024,
    ) -> _Subscription:
        """See `NatsClient.subscribe`."""
        assert cb is not None, "only subscriptions that call back are simulated"
        await self._gate("subscribe")
        self._check_open()
        self._numbers += 1
        limits = (pending_msgs_limit, pending_bytes_limit)
        subscription = _Subscription(self, self._numbers, subject, queue, limits)
        self._subscriptions[subscription.number] = subscription
        subscription.task = self._begin(subscription.run(cb, self._gate))
        self._send_subscription(subscription.number, subject, queue)
        await self._gate("subscribed")
        return subscription

    async def unsubscribe(self, subscription: _Subscription) -> None:
        """Ends a subscription of this client."""
        await self._gate("unsubscribe")
        self._check_open()
        if self._subscriptions.pop(subscription.number, None) is None:
            raise nats.errors.BadSubscriptionError
        assert subscription.task is not None
        subscription.task.cancel()
        if self._connection is not None:
            self._connection.up.send(self._broker.unsubscribe, self._connection, subscription.number)
        await self._gate("unsubscribed")

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.5) -> Msg:  # noqa: ASYNC109
        """See `NatsClient.request`."""
        if not self._answers_prefix:
            self._answers_prefix = self.new_inbox()
            self._send_subscription(_ANSWERS, f"{self._answers_prefix}.*", "")
        self._inboxes += 1
        inbox = f"{self._answers_prefix}.{self._inboxes}"
        answer: asyncio.Future[Msg] = self._loop.create_future()
        self._answers[inbox] = answer
        timer: asyncio.TimerHandle | None = None
        try:
            await self.publish(subject, payload, reply=inbox)
            timer = self._loop.call_later(timeout, _time_out, answer)
            message = await answer
            await self._gate("answered")
        finally:
            del self._answers[inbox]
            if timer is not None:
                timer.cancel()
        if message.headers and message.headers.get("Status") == NO_RESPONDERS["Status"]:
            raise nats.errors.NoRespondersError
        return message

    def new_inbox(self) -> str:
        """See `NatsClient.new_inbox`."""
        self._inboxes += 1
        return f"{self._inbox_prefix}.{self._inboxes}"

    async def close(self) -> None:
        """See `NatsClient.close`."""
        await self._gate("close")
        if self._is_closed:
            return
        self._end()
        if self._listener is not None:
            await self._listener.on_disconnected()
            await self._listener.on_closed()

    # what the simulation does to it

    def kill(self) -> None:
        """Its process ends as by SIGKILL: what it has sent still arrives, and it does nothing any more."""
        self._end()

    def give_up(self) -> None:
        """The server has refused it: as nats-py does, it does not come back."""
        if not self._is_closed:
            self._begin(self.close())

    def lose(self, connection: Connection) -> None:
        """A connection of it has broken."""
        if connection is self._connection:
            self._connection = None
            self._begin(self._come_back())

    def receive(
        self,
        connection: Connection,
        number: int,
        subject: str,
        reply: str,
        headers: Mapping[str, str] | None,
        data: bytes,
    ) -> None:
        """A message has arrived."""
        if connection is not self._connection:
            return
        message = Msg(self, subject, reply, data, dict(headers) if headers else None)  # type: ignore[arg-type]  # its client
        if number == _ANSWERS:
            answer = self._answers.get(subject)
            if answer is not None and not answer.done():
                answer.set_result(message)
            return
        subscription = self._subscriptions.get(number)
        if subscription is not None:
            subscription.put(message)

    async def tell_error(self, error: Exception) -> None:
        """Tells the listener of something that went wrong."""
        if self._listener is not None:
            await self._listener.on_error(error)

    # connecting

    def _attempt(self) -> None:
        if self._is_closed:
            return
        connection = self._broker.accept(self)
        if connection is None:
            self._begin(self._tell_refusal())
            self._loop.call_later(_RECONNECT_SECONDS, self._attempt)
            return
        # CONNECT and PING go up, PONG comes down: then the server is known to be there
        connection.up.send(self._answer_ping, connection)
        self._loop.call_later(_RECONNECT_SECONDS * 4, self._give_up, connection)

    def _answer_ping(self, connection: Connection) -> None:
        connection.down.send(self._establish, connection)

    def _give_up(self, connection: Connection) -> None:
        """An attempt that was not answered is made again."""
        if self._connection is None and not self._is_closed:
            self._broker.leave(connection)
            self._attempt()

    def _establish(self, connection: Connection) -> None:
        if self._is_closed or self._connection is not None:
            self._broker.leave(connection)
            return
        self._connection = connection
        if self._answers_prefix:
            self._send_subscription(_ANSWERS, f"{self._answers_prefix}.*", "")
        for subscription in self._subscriptions.values():
            self._send_subscription(subscription.number, subscription.subject, subscription.queue)
        assert self._first is not None
        if self._first.done():
            self._begin(self._tell_reconnected(connection))
        else:
            self._first.set_result(None)

    async def _come_back(self) -> None:
        await self._gate("disconnected")
        if self._listener is not None:
            await self._listener.on_disconnected()
        self._attempt()

    async def _tell_reconnected(self, connection: Connection) -> None:
        await self._gate("reconnected")
        if self._listener is not None and connection is self._connection:
            await self._listener.on_reconnected()

    async def _tell_refusal(self) -> None:
        await self._gate("refused")
        await self.tell_error(ConnectionRefusedError("the simulated server is down"))

    def _send_subscription(self, number: int, subject: str, queue: str) -> None:
        if self._connection is not None:
            self._connection.up.send(self._broker.subscribe, self._connection, number, subject, queue)

    def _check_open(self) -> None:
        if self._is_closed:
            raise nats.errors.ConnectionClosedError

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work, context=self._context)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def _end(self) -> None:
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._broker.leave(connection)
        current = asyncio.current_task(self._loop)
        for task in list(self._tasks):
            if task is not current:
                task.cancel()
        self._subscriptions.clear()


def _time_out(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(nats.errors.TimeoutError())
