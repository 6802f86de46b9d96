"""Reading what `EVENTS` holds of one type, without a consumer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import nats.errors
from nats.aio.msg import Msg

from farandole.broker.connection import Broker
from farandole.broker.headers import DESCRIPTION, STATUS
from farandole.broker.streams import EVENTS
from farandole.envelope import StoredMessage
from farandole.errors import BrokerUnavailableError

_PAGE = 500
_ANSWER_SECONDS = 5.0
_SEQUENCE = "Nats-Sequence"
_OWN_HEADERS = (
    "Nats-Stream",
    "Nats-Subject",
    _SEQUENCE,
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
)


async def stored_events(
    broker: Broker, event_type: str, *, after: int, until: int
) -> AsyncIterator[Sequence[StoredMessage]]:
    """The events of a type that stand behind `after`, up to and with `until`, in stream order, page by page.

    Raises `BrokerUnavailableError` where the broker does not answer in time. It may be a little behind: a replica of
    the stream answers too. Source: JetStream's batched direct get (ADR-31).
    """
    while after < until:
        page = await _page(broker, event_type, after)
        wanted = [message for message in page if message.sequence <= until]
        if wanted:
            yield wanted
        if len(page) < _PAGE or len(wanted) < len(page):
            return
        after = page[-1].sequence


async def _page(broker: Broker, event_type: str, after: int) -> list[StoredMessage]:
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = broker.client.new_inbox()

    async def on_answer(message: Msg) -> None:
        answers.put_nowait(message)

    request = {"seq": after + 1, "batch": _PAGE, "next_by_subj": f"events.*.{event_type}"}
    page: list[StoredMessage] = []
    try:
        subscription = await broker.client.subscribe(inbox, cb=on_answer, pending_msgs_limit=-1, pending_bytes_limit=-1)
        try:
            await broker.client.publish(f"$JS.API.DIRECT.GET.{EVENTS}", json.dumps(request).encode(), reply=inbox)
            async with asyncio.timeout(_ANSWER_SECONDS):
                while not _is_end(message := await answers.get()):
                    page.append(_stored(message))
        finally:
            await subscription.unsubscribe()
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise BrokerUnavailableError(
            f"the stored {event_type} can't be read: {str(error) or type(error).__name__}"
        ) from None
    return page


def _is_end(message: Msg) -> bool:
    """Whether the page ends here: with a status instead of a stored message, of which 404 says that there is none."""
    headers = message.headers or {}
    if _SEQUENCE in headers:
        return False
    if (status := headers.get(STATUS)) not in {"204", "404"}:
        raise BrokerUnavailableError(f"reading stored events was refused: {status} {headers.get(DESCRIPTION, '')}")
    return True


def _stored(message: Msg) -> StoredMessage:
    headers = dict(message.headers or {})
    subject, sequence, time = headers["Nats-Subject"], headers[_SEQUENCE], headers["Nats-Time-Stamp"]
    for name in _OWN_HEADERS:
        headers.pop(name, None)
    return StoredMessage(subject, headers, message.data, int(sequence), _time(time))


def _time(text: str) -> datetime:
    """An RFC 3339 time with up to nine digits, cut to the microsecond."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}").replace(tzinfo=UTC)
