"""Publishing into streams, pipelined: many publications under way, each with its own acknowledgement.

`js.publish` of nats-py costs a round trip each, and its `publish_async` never resolves where the server dies; this
one fails every publication that is not acknowledged in time or loses its connection. To publish it again is safe:
the same publication has the same message id.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.msg import Msg

from farandole.broker.connection import Broker, NatsSubscription, read_answer
from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.telemetry import NO_TELEMETRY, Telemetry

_ACKNOWLEDGE_SECONDS = 5.0
_SWEEP_SECONDS = 0.5
_UNDER_WAY = 1000
"""How many publications `publish` keeps under way: more would only wait in the broker, until they are given up."""


_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The stream's receipt."""

    sequence: int
    is_duplicate: bool
    """Whether the stream had stored the same message id before, within its window."""


@dataclass(slots=True)
class _UnderWay:
    receipt: asyncio.Future[Acknowledgement]
    subject: str
    until: float


class Publisher:
    """Publishes into streams. Start it before use; stop it after."""

    def __init__(self, broker: Broker, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self._broker = broker
        self._telemetry = telemetry
        self._under_way: dict[str, _UnderWay] = {}
        self._number = 0
        self._sweeping: asyncio.Task[None] | None = None
        self._inbox = ""
        self._answers: NatsSubscription | None = None
        self._stop_watching: Callable[[], None] = lambda: None
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(_UNDER_WAY)

    async def publish(self, publication: Publication, *, before: float = math.inf) -> Acknowledgement:
        """Publishes and waits for the receipt. What can't be sent `before` a time of the event loop is not sent.

        Raises `BrokerUnavailableError` where it is unknown whether the stream has it: publish it again.
        Raises `BrokerError` where the stream refused it.
        """
        async with self._slots:
            began = asyncio.get_running_loop().time()
            if began > before:
                raise BrokerUnavailableError(f"{publication.subject} was not sent in time")
            try:
                acknowledgement = await (await self.submit(publication))
            except BrokerError as error:
                self._telemetry.not_published(error)
                raise
            self._telemetry.published(publication, asyncio.get_running_loop().time() - began)
            return acknowledgement

    async def submit(self, publication: Publication) -> asyncio.Future[Acknowledgement]:
        """Sends, and returns the receipt to come. What is submitted first is sent first. Raises nothing itself."""
        if not self._inbox:
            await self._start()
        loop = asyncio.get_running_loop()
        if (size := _size(publication)) > self._broker.client.max_payload:
            return _refused(loop, publication.subject, size, self._broker.client.max_payload)
        self._number += 1
        number = str(self._number)
        receipt: asyncio.Future[Acknowledgement] = loop.create_future()
        self._under_way[number] = _UnderWay(receipt, publication.subject, loop.time() + _ACKNOWLEDGE_SECONDS)
        try:
            await self._broker.client.publish(
                publication.subject,
                publication.data,
                reply=f"{self._inbox}.{number}",
                headers=dict(publication.headers),
            )
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            self._fail(number, BrokerError(f"{publication.subject} can't be sent: {_text(error)}"))
        except (nats.errors.Error, OSError) as error:
            self._fail(number, BrokerUnavailableError(f"{publication.subject} was not sent: {_text(error)}"))
        return receipt

    async def _start(self) -> None:
        async with self._starting:
            if self._inbox:
                return
            await self._broker.connected()
            inbox = self._broker.client.new_inbox()
            self._answers = await self._broker.client.subscribe(
                f"{inbox}.*", cb=self._on_answer, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
            self._stop_watching = self._broker.on_change(self._on_change)
            self._sweeping = asyncio.create_task(self._sweep(), name="publisher-sweep")
            self._inbox = inbox

    async def stop(self) -> None:
        """Fails what is under way, and leaves nothing behind at the connection, which others use."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        self._stop_watching()
        if self._answers is not None:
            with suppress(nats.errors.Error, OSError):  # the connection has gone before
                await self._answers.unsubscribe()
        self._fail_all("the publisher was stopped")

    async def _on_answer(self, message: Msg) -> None:
        number = message.subject.rpartition(".")[2]
        under_way = self._under_way.get(number)
        if under_way is None:
            return
        try:
            answer = read_answer(message.data, under_way.subject)
            receipt = Acknowledgement(int(answer["seq"]), bool(answer.get("duplicate")))
        except BrokerError as error:
            self._fail(number, error)
        except (ValueError, TypeError, AttributeError, KeyError):
            # anyone who subscribes to the subject can answer too; the stream's own answer is still to come
            _log.warning("an answer that is no acknowledgement", subject=under_way.subject)
        else:
            del self._under_way[number]
            if not under_way.receipt.done():
                under_way.receipt.set_result(receipt)

    def _on_change(self, connected: bool) -> None:
        if not connected:
            self._fail_all("the connection was lost before the acknowledgement")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            for number in [n for n, under_way in self._under_way.items() if under_way.until < now]:
                subject = self._under_way[number].subject
                self._fail(
                    number,
                    BrokerUnavailableError(
                        f"{subject} was not acknowledged in time; the broker's log says why: its disk may be full, "
                        "which takes room on it and a restart of the broker"
                    ),
                )

    def _fail_all(self, why: str) -> None:
        for number in list(self._under_way):
            self._fail(number, BrokerUnavailableError(f"{self._under_way[number].subject}: {why}"))

    def _fail(self, number: str, error: BrokerError) -> None:
        under_way = self._under_way.pop(number, None)
        if under_way is not None and not under_way.receipt.done():
            under_way.receipt.set_exception(error)
            under_way.receipt.exception()  # who submits may have gone; the failure is not lost on anyone else


def _size(publication: Publication) -> int:
    """How many bytes of the broker's `max_payload` it takes: its data and its header block."""
    lines = sum(len(f"{name}: {value}\r\n".encode()) for name, value in publication.headers.items())
    return len(publication.data) + len("NATS/1.0\r\n\r\n") + lines


def _refused(loop: asyncio.AbstractEventLoop, subject: str, size: int, limit: int) -> asyncio.Future[Acknowledgement]:
    """The receipt of what is not even sent: the broker would cut the connection, which all that is published needs."""
    receipt: asyncio.Future[Acknowledgement] = loop.create_future()
    receipt.set_exception(
        BrokerError(f"{subject}: {size} bytes are more than the broker takes; raise its max_payload of {limit} bytes")
    )
    receipt.exception()
    return receipt


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
