"""One connection to NATS that never gives up, and says at every moment whether it stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from farandole.broker.headers import parse_headers
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.settings import Settings

_REQUEST_TIMEOUT_SECONDS = 2.0
_RECONNECT_WAIT_SECONDS = 0.25
_PING_INTERVAL_SECONDS = 1
_MAX_OUTSTANDING_PINGS = 2
"""A half-open connection is noticed within three pings, so that health can say no within five seconds."""

_log = structlog.get_logger(__name__)


class _Client(Client):
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


class Broker:
    """A connection to the broker. `start` returns at once; the connection is made, and made again, behind it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = _Client()
        self._connecting: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[bool], None]] = []
        self._closing = False
        self._last_error = ""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with `BrokerError` where the client gave up for good: the process can only end and be started anew."""

    @property
    def client(self) -> Client:
        """The nats-py client. Publishing while it is not connected raises at once; nothing is buffered."""
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
        settings = self._settings
        password = settings.nats_password.get_secret_value() if settings.nats_password else None
        await self._client.connect(
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
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_connected,
            closed_cb=self._on_closed,
        )
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
        raise BrokerUnavailableError(f"nobody answers {subject}: JetStream is off, or no stream captures it")
    answer: dict[str, Any] = json.loads(data)
    if error := answer.get("error"):
        message = f"{subject}: {error.get('description', 'refused')}"
        kind = BrokerUnavailableError if error.get("code") == _SERVICE_UNAVAILABLE else BrokerError
        raise kind(message, code=error.get("err_code", 0))
    return answer


_SERVICE_UNAVAILABLE = 503
