"""What no one can read: how the correlator tells it, and keeps to it.

That an event can't be read depends on the descriptor set that the correlator runs with; that it was not read is a fact
of the stream, told by `EventUnreadable`. So whoever folds the stream again, with newer descriptors too, reads the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeAlias

from choreography.v1 import correlator_events_pb2
from farandole.bodies import MAX_BODY_BYTES
from farandole.correlator.dead_letters import DeadLetter
from farandole.envelope import Event, Publication, StoredMessage, Unreadable, decode, encode, unknown_type
from farandole.ids import derived_id
from farandole.lifecycle import CORRELATOR
from farandole.partitions import partition_key
from farandole.reasons import Reason
from farandole.registry import Registry

EVENT_UNREADABLE = correlator_events_pb2.EventUnreadable.DESCRIPTOR.full_name

StoredAt: TypeAlias = Callable[[int], Awaitable[StoredMessage | None]]
"""The event stored at a sequence; None where the stream has none there. Raises `BrokerError`."""

_WITH_KEY = frozenset({Reason.RULE_VIOLATION, Reason.WRONG_PARTITION})
_WITH_BODY = _WITH_KEY | {Reason.INVALID_KEY}


def unreadable_publication(registry: Registry, dead_letter: DeadLetter, *, time: datetime) -> Publication:
    """The `EventUnreadable` about the event of a dead letter; the same again has the same id. `time` is for people."""
    body = correlator_events_pb2.EventUnreadable(
        partition_key=partition_key(dead_letter.partition),
        sequence=dead_letter.sequence,
        event_type=dead_letter.event_type,
        reason=dead_letter.reason.value,  # type: ignore[arg-type]  # the numbers are the same
    )
    event_id = derived_id((CORRELATOR, EVENT_UNREADABLE, body.partition_key, str(dead_letter.sequence)))
    return encode(registry.types[EVENT_UNREADABLE], body, source=CORRELATOR, event_id=event_id, time=time)


def told_unreadable(event: Event) -> tuple[int, Reason] | None:
    """The sequence of the event that a correlator could not read, and why; None for any other event, and where someone
    else tells it."""
    body = event.body
    if not isinstance(body, correlator_events_pb2.EventUnreadable):
        return None
    if event.source != CORRELATOR or event.key != partition_key(event.partition) or body.sequence >= event.sequence:
        return None
    return body.sequence, Reason(body.reason)


async def read_again(dead_letter: DeadLetter, registry: Registry, stored_at: StoredAt) -> Event | str:
    """The event of a dead letter of the correlator, where it can be read now; else why not, in words.

    Raises what `stored_at` does.
    """
    if dead_letter.body_size > MAX_BODY_BYTES:
        return f"its body has {dead_letter.body_size} bytes; an event has at most {MAX_BODY_BYTES}"
    message = await stored_at(dead_letter.sequence)
    if message is None:
        return "the stream does not hold it any more"
    event = decode(registry, message)
    if isinstance(event, Unreadable):
        return f"{event.reason.name}: {event.detail}"
    if event.key == partition_key(event.partition):
        return f"{event.key} is the key of a partition, and of no saga"
    return event


def as_it_was(event: Event, reason: Reason) -> Unreadable:
    """An event that can be read now as a correlator found it that could not.

    What it said of the reason in words is not in the stream, but for a type that it did not know.
    """
    detail = unknown_type(event.type) if reason is Reason.UNKNOWN_TYPE else "the correlator could not read it then"
    return Unreadable(
        event.message,
        reason,
        detail,
        key=event.key if reason in _WITH_KEY else "",
        body=event.body if reason in _WITH_BODY else None,
    )
