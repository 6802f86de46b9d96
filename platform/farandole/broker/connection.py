"""One connection to NATS that never gives up, and says at every moment whether it stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from farandole.broker.codes import DUPLICATE_IN_PROCESS, NO_SUITABLE_PEERS
from farandole.broker.headers import parse_headers
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.settings import Settings

_REQUEST_TIMEOUT_SECONDS = 2.0
_RECONNECT_WAIT_SECONDS = 0.25
_PING_INTERVAL_SECONDS = 1
_MAX_OUTSTANDING_PINGS = 2
"""A half-open connection is noticed within three pings, so that health can say no within five seconds."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionListener:
    """What is called as a connection changes, in the order in which it does."""

    on_error: Callable[[Exception], Awaitable[None]]
    """With each failed attempt to connect, and with what the server complains of."""
    on_disconnected: Callable[[], Awaitable[None]]
    on_reconnected: Callable[[], Awaitable[None]]
    """After each connection but the first, with which `connect_for_ever` returns."""
    on_closed: Callable[[], Awaitable[None]]
    """Where the client gave up for good, or was closed."""


class NatsSubscription(Protocol):
    """What ends a subscription."""

    async def unsubscribe(self) -> None:
        """Ends it; what has not reached its callback never does. Raises `nats.errors.Error` where it had ended."""
        ...


class NatsClient(Protocol):
    """What Farandole needs of a NATS client. Core NATS alone: JetStream is spoken over it as requests and messages.

    Its vocabulary is nats-py's, the client of production: every call raises `nats.errors.Error` or `OSError` for
    trouble, and messages are `nats.aio.msg.Msg`. Messages are received at most once, in the order in which the server
    sent them over one connection; what is under way when a connection ends is lost, either way.
    """

    @property
    def is_connected(self) -> bool:
        """Whether a connection stands, as far as the client knows."""
        ...

    @property
    def max_payload(self) -> int:
        """How many bytes of headers and body the server takes in one message; it cuts off who sends more."""
        ...

    async def connect_for_ever(self, settings: Settings, listener: ConnectionListener) -> None:
        """Returns once the first connection stands; makes it again whenever it is lost, with all subscriptions."""
        ...

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hands a message to the connection, in the order of the calls, and waits for no answer.

        Raises while there is no connection: nothing is buffered. A message to a subject that nobody listens to brings a
        message with the header `Status: 503` to its `reply`.
        """
        ...

    async def subscribe(
        self,
        subject: str,
        queue: str = "",
        cb: Callable[[Msg], Awaitable[None]] | None = None,
        *,
        pending_msgs_limit: int = ...,
        pending_bytes_limit: int = ...,
    ) -> NatsSubscription:
        """Calls `cb` with each message on the subject, one after the other, until it is ended.

        Messages beyond the limits, of those that wait for their call, are dropped; -1 is no limit. Of all subscriptions
        of one `queue`, one gets each message. It outlives the connection, and may be made while there is none.
        """
        ...

    async def request(self, subject: str, payload: bytes = b"", timeout: float = ...) -> Msg:  # noqa: ASYNC109
        """Publishes, and returns the first answer. Raises `nats.errors.NoRespondersError` where nobody listens, and
        `nats.errors.TimeoutError` after `timeout` seconds.
        """
        ...

    def new_inbox(self) -> str:
        """A subject to wait for answers on, which no one else has."""
        ...

    async def close(self) -> None:
        """Closes the connection for good."""
        ...


class _NatsPy(Client):
    """nats-py, with headers and subjects read so that nothing is lost and nothing raises.

    nats-py replaces what is not UTF-8, skips lines that it can't read, and drops the connection at a status line or a
    subject that is not UTF-8: a hostile publisher could cut off every consumer of a stream, for as long as the message
    is in it.
    """

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return parse_headers(headers)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:  # noqa: ANN401 - nats-py's message, which a client may choose
        # The server takes any bytes but spaces as a subject. What is not UTF-8 becomes text such as `\xff`.
        readable = subject.decode(errors="backslashreplace").encode()
        return super()._build_message(sid, readable, reply, data, headers)

    async def connect_for_ever(self, settings: Settings, listener: ConnectionListener) -> None:
        """See `NatsClient.connect_for_ever`."""
        password = settings.nats_password.get_secret_value() if settings.nats_password else None
        await self.connect(
            servers=settings.nats_url.split(","),
            name=settings.service,
            user=settings.nats_user,
            password=password,
            inbox_prefix=f"_INBOX_{settings.service}".encode(),
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # any number of seconds serves
            ping_interval=_PING_INTERVAL_SECONDS,
            max_outstanding_pings=_MAX_OUTSTANDING_PINGS,
            pending_size=0,  # no buffer while disconnected: an event is sent when its publisher says so, or not at all
            error_cb=listener.on_error,
            disconnected_cb=listener.on_disconnected,
            reconnected_cb=listener.on_reconnected,
            closed_cb=listener.on_closed,
        )


class Broker:
    """A connection to the broker. `start` returns at once; the connection is made, and made again, behind it."""

    def __init__(self, settings: Settings, client: NatsClient | None = None) -> None:
        """`client` is nats-py's where none is given."""
        self._settings = settings
        self._client: NatsClient = client if client is not None else _NatsPy()
        self._connecting: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[bool], None]] = []
        self._closing = False
        self._last_error = ""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with `BrokerError` where the client gave up for good: the process can only end and be started anew."""

    @property
    def client(self) -> NatsClient:
        """The NATS client. Publishing while it is not connected raises at once; nothing is buffered."""
        return self._client

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""
        return bool(self._client.is_connected)

    @property
    def problem(self) -> str | None:
        """Why the broker can't be used, and the remedy; None where it can."""
        if self.is_connected:
            return None
        why = f" ({self._last_error})" if self._last_error else ""
        return f"the broker at {self._settings.nats_url} is not reachable{why}; start it, or set FARANDOLE_NATS_URL"

    def on_change(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Calls `listener(connected)` now and after each change; returns what ends that."""
        self._listeners.append(listener)
        listener(self.is_connected)
        return lambda: self._listeners.remove(listener)

    def start(self) -> None:
        """Begins to connect, for ever."""
        self._connecting = asyncio.create_task(self._connect(), name="broker-connect")

    async def connected(self) -> None:
        """Waits until the first connection stands."""
        assert self._connecting is not None, "start() comes first"
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        listener = ConnectionListener(self._on_error, self._on_disconnected, self._on_connected, self._on_closed)
        await self._client.connect_for_ever(self._settings, listener)
        await self._on_connected()

    async def _on_connected(self) -> None:
        _log.info("broker connected", url=self._settings.nats_url)
        self._last_error = ""
        self._tell(connected=True)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            _log.warning("broker disconnected", url=self._settings.nats_url)
        self._tell(connected=False)

    async def _on_closed(self) -> None:
        if not self._closing and not self.closed.done():
            self.closed.set_exception(BrokerError("the connection to the broker was closed for good"))

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self._last_error:
            _log.warning("broker error", error=text)
        self._last_error = text
        if not self.is_connected:
            self._tell(connected=False)

    def _tell(self, *, connected: bool) -> None:
        for listener in tuple(self._listeners):
            listener(connected)

    async def request(self, subject: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """Asks the JetStream API. Raises `BrokerUnavailableError` for no answer, `BrokerError` for a refusal."""
        data = json.dumps(payload).encode() if payload is not None else b""
        try:
            reply = await self._client.request(subject, data, timeout=_REQUEST_TIMEOUT_SECONDS)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(f"no answer to {subject}: {str(error) or type(error).__name__}") from error
        return read_answer(reply.data, subject)

    async def close(self) -> None:
        """Closes the connection."""
        self._closing = True
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._client.close()


def read_answer(data: bytes, subject: str) -> dict[str, Any]:
    """A JetStream answer. Raises `BrokerUnavailableError` where no stream answered, `BrokerError` for a refusal."""
    if not data:
        raise BrokerUnavailableError(
            f"nobody answers {subject}: its stream is electing a leader, JetStream is off, or no stream captures it; "
            "`farandole provision` makes the streams"
        )
    answer: dict[str, Any] = json.loads(data)
    if error := answer.get("error"):
        message = f"{subject}: {error.get('description', 'refused')}"
        passes = error.get("code") == _SERVICE_UNAVAILABLE or error.get("err_code") in _PASSING
        raise (BrokerUnavailableError if passes else BrokerError)(message, code=error.get("err_code", 0))
    return answer


_SERVICE_UNAVAILABLE = 503
_PASSING = frozenset({NO_SUITABLE_PEERS, DUPLICATE_IN_PROCESS})
"""Refusals of a cluster that pass."""
