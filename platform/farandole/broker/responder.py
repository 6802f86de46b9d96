"""Answering requests over NATS (core request-reply), one answerer of several a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import nats.errors
import structlog
from nats.aio.msg import Msg

from farandole.broker.connection import Broker
from farandole.errors import FencedError, QueryError

ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"
"""Headers of an answer that is a refusal, as NATS services have them (NATS ADR-32); its body is empty."""

_INBOX_PREFIX = "_INBOX"
"""Of the subjects where clients wait for answers. Nothing is sent to another one: a request could else have a process
publish into the streams with the process's own permissions."""
_MOST_WAITING = 1000
"""Requests beyond this many are dropped: whoever asked has gone by the time their turn would come."""
_RETRY_SECONDS = 0.5

_log = structlog.get_logger(__name__)

Answer = Callable[[bytes], Awaitable[bytes]]
"""The body of the answer to a request's body. Raises `QueryError` for a request that can't be answered, and
`FencedError` where this process may not answer any more."""


def status_subject(participant: str) -> str:
    """Where a participant answers who asks for its status (`choreography.v1.ParticipantService/GetStatus`)."""
    return f"participants.{participant}.status"


def replicas_subject(participant: str) -> str:
    """Where each replica of a participant answers for itself, and all of them do."""
    return f"participants.{participant}.replicas"


async def respond(broker: Broker, subject: str, *, queue: str = "", answer: Answer) -> None:
    """Answers the requests on a subject until it is cancelled, or until `answer` raises `FencedError`.

    Of all processes that respond in one `queue`, one gets each request; without one, each does. Over a reconnection it
    goes on by itself.
    """
    fenced = asyncio.Event()

    async def take(request: Msg) -> None:
        if fenced.is_set() or not request.reply.startswith(_INBOX_PREFIX):
            return
        headers: dict[str, str] | None = None
        try:
            body = await answer(request.data)
        except FencedError as error:
            _log.error("answers no requests any more", subject=subject, problem=str(error))
            fenced.set()
            return
        except QueryError as error:
            body, headers = b"", _refusal("400", str(error))
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request: nothing may pass it unread
            _log.error("a request could not be answered", subject=subject, exc_info=error)
            body, headers = b"", _refusal("500", "internal error; the service's log has more")
        try:
            await broker.client.publish(request.reply, body, headers=headers)
        except (nats.errors.Error, OSError) as error:
            _log.info("an answer was not sent", subject=subject, error=str(error))

    await broker.connected()
    while not fenced.is_set():
        try:
            subscription = await broker.client.subscribe(subject, queue, cb=take, pending_msgs_limit=_MOST_WAITING)
        except (nats.errors.Error, OSError) as error:
            _log.warning("can't take requests", subject=subject, error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        try:
            await fenced.wait()
        finally:
            with suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()


def _refusal(code: str, reason: str) -> dict[str, str]:
    return {ERROR_CODE_HEADER: code, ERROR_HEADER: " ".join(reason.split())}
