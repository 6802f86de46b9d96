"""Reading what `EVENTS` holds, all of it, or of one type or on one subject, without a consumer."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from farandole.broker.codes import NO_MESSAGE_FOUND
from farandole.broker.connection import Broker
from farandole.broker.headers import DESCRIPTION, STATUS, parse_headers
from farandole.broker.streams import EVENTS, INCARNATION_REMEDY
from farandole.envelope import StoredMessage
from farandole.errors import BrokerError, BrokerUnavailableError, StreamIncarnationError
from farandole.partitions import PARTITIONS

_PAGE = 500
_PAGE_BYTES = 8 * 1024 * 1024
_ANSWER_SECONDS = 5.0
_EVERYTHING = "events.>"
_SUBJECT, _SEQUENCE, _TIME, _PENDING = "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"
_OWN_HEADERS = frozenset({"Nats-Stream", _SUBJECT, _SEQUENCE, _TIME, _PENDING, "Nats-Last-Sequence"})
"""What the server adds to a stored message. It stands last, so a publisher's own of the same name does not count."""


async def stored_events(
    broker: Broker, event_type: str, *, after: int, until: int, partitions: Collection[int] = range(PARTITIONS)
) -> AsyncIterator[Sequence[StoredMessage]]:
    """The events of a type that stand behind `after`, up to and with `until`, page by page: in stream order; of some of
    the partitions, one partition after the other.

    All that the stream's leader had stored when the last page was read: any replica answers for a page, and may be
    behind, but the leader is asked whether that was the end (decision 0039). Raises `BrokerUnavailableError` where the
    broker does not answer in time. Source: JetStream's batched direct get (ADR-31).
    """
    places = ["*"] if len(partitions) == PARTITIONS else sorted(partitions)
    for place in places:
        async for page in _pages(broker, f"events.{place}.{event_type}", after=after, until=until):
            yield page


async def events_behind(broker: Broker, after: int, until: int) -> AsyncIterator[Sequence[StoredMessage]]:
    """Every event that stands behind `after`, up to and with `until`, in stream order, page by page. Otherwise like
    `stored_events`."""
    async for page in _pages(broker, _EVERYTHING, after=after, until=until):
        yield page


async def next_stored(broker: Broker, subject: str, after: int) -> int | None:
    """The sequence of the first event behind `after` on a subject, which may have wildcards; None where there is none.

    The stream's leader answers. Raises what `Broker.request` does.
    """
    following = await _following(broker, subject, after)
    return None if following is None else following.sequence


async def stored_on(broker: Broker, subject: str, after: int) -> list[StoredMessage]:
    """The events stored on one exact subject behind `after`, in stream order. Otherwise like `stored_events`."""
    return [message async for page in _pages(broker, subject, after=after) for message in page]


async def _pages(
    broker: Broker, subject: str, *, after: int, until: float = math.inf
) -> AsyncIterator[list[StoredMessage]]:
    while after < until:
        page, has_more = await _page(broker, subject, after)
        after = page[-1].sequence if page else after
        if not has_more and after < until and (following := await _following(broker, subject, after)) is not None:
            page.append(following)
            after, has_more = following.sequence, True
        if wanted := [message for message in page if message.sequence <= until]:
            yield wanted
        if not has_more:
            return


async def _following(broker: Broker, subject: str, after: int) -> StoredMessage | None:
    """The next event on a subject, as the stream's leader knows it, which alone answers this request."""
    return await _message(broker, {"seq": after + 1, "next_by_subj": subject})


async def stored_at(broker: Broker, sequence: int) -> StoredMessage | None:
    """The event stored at a sequence; None where the stream has none there. Otherwise like `last_stored_on`."""
    return await _message(broker, {"seq": sequence})


async def last_stored_on(broker: Broker, subject: str) -> int:
    """The sequence of the last event stored on one exact subject, `events.<partition>.<type>`; 0 where there is none.

    Raises `BrokerUnavailableError`, or `BrokerError` where the broker refuses.
    """
    message = await _message(broker, {"last_by_subj": subject})
    return message.sequence if message is not None else 0


async def check_stored(broker: Broker, sequence: int, time: datetime | None) -> None:
    """Raises `StreamIncarnationError` where the stream holds another event at a sequence than the one of that time.

    So it is where the broker's storage was replaced by an older copy, which has grown since. What is not known, or not
    stored any more, is passed over. Otherwise raises what `Broker.request` does.
    """
    if time is None:
        return
    stored = await stored_at(broker, sequence)
    if stored is not None and stored.time != time:
        raise StreamIncarnationError(
            f"the stream {EVENTS} holds another event at {sequence} than the one that the stored position belongs to: "
            f"{INCARNATION_REMEDY}"
        )


async def _message(broker: Broker, request: dict[str, Any]) -> StoredMessage | None:
    """What the stream's leader answers to a request for one message; None where there is none such."""
    try:
        answer = await broker.request(f"$JS.API.STREAM.MSG.GET.{EVENTS}", request)
    except BrokerError as error:
        if error.code == NO_MESSAGE_FOUND:
            return None
        raise
    told = answer["message"]
    headers = parse_headers(base64.b64decode(told.get("hdrs", "")))
    data = base64.b64decode(told.get("data", ""))
    return StoredMessage(told["subject"], headers or {}, data, told["seq"], _time(told["time"]))


async def _page(broker: Broker, subject: str, after: int) -> tuple[list[StoredMessage], bool]:
    """The next messages, and whether there are more behind them."""
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = broker.client.new_inbox()

    async def on_answer(message: Msg) -> None:
        answers.put_nowait(message)

    request = {
        "seq": after + 1,
        "batch": _PAGE,
        "max_bytes": _PAGE_BYTES,
        "next_by_subj": subject,
    }
    page: list[StoredMessage] = []
    try:
        subscription = await broker.client.subscribe(inbox, cb=on_answer, pending_msgs_limit=-1, pending_bytes_limit=-1)
        try:
            await broker.client.publish(f"$JS.API.DIRECT.GET.{EVENTS}", json.dumps(request).encode(), reply=inbox)
            async with asyncio.timeout(_ANSWER_SECONDS):
                while _SEQUENCE in (headers := (message := await answers.get()).headers or {}):
                    page.append(_stored(message, headers))
        finally:
            await subscription.unsubscribe()
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise BrokerUnavailableError(
            f"what is stored on {subject} can't be read: {str(error) or type(error).__name__}"
        ) from None
    return page, _has_more(headers, page)


def _has_more(headers: dict[str, str], page: list[StoredMessage]) -> bool:
    """What the message that ends a page says: a status instead of a stored message, 404 where there is none at all."""
    status = headers.get(STATUS)
    if status not in {"204", "404"}:
        raise BrokerUnavailableError(f"reading stored events was refused: {status} {headers.get(DESCRIPTION, '')}")
    return bool(page) and headers.get(_PENDING, "0") != "0"


def _stored(message: Msg, headers: dict[str, str]) -> StoredMessage:
    own = {name: value for name, value in headers.items() if name not in _OWN_HEADERS}
    return StoredMessage(headers[_SUBJECT], own, message.data, int(headers[_SEQUENCE]), _time(headers[_TIME]))


def _time(text: str) -> datetime:
    """An RFC 3339 time with up to nine digits, cut to the microsecond."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}").replace(tzinfo=UTC)
