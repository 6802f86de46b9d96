"""Dead letters: what is kept and shown of an event that was given up on, and what becomes of it."""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from choreography.v1 import dead_letter_events_pb2
from farandole.dead_letter_copy import PREFIX_BYTES, dead_letter_copy, dead_letter_id
from farandole.envelope import Event, Publication, Unreadable
from farandole.lifecycle import CORRELATOR
from farandole.partitions import PARTITIONS, key_in, partition_key
from farandole.reasons import Reason
from farandole.registry import Registry
from farandole.saga import HistoryEntry


class DeadLetterState(enum.IntEnum):
    """What has become of a dead letter (`choreography.v1.DeadLetterState`)."""

    OPEN = 1
    REDRIVEN = 2
    DISCARDED = 3
    SUPERSEDED = 4


_PARTITIONS = {str(partition): partition for partition in range(PARTITIONS)}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One delivery that was given up on (`choreography.v1.DeadLetter`)."""

    participant: str
    sequence: int
    """Of the event in the stream `EVENTS`; unique together with the participant."""
    subject: str
    event_type: str
    key: str
    """The correlation key, where the body could be read that far."""
    reason: Reason
    detail: str
    stream_time: datetime
    """When the stream stored the event; of a participant's dead letter whose event is not in the saga's history (which
    has a limit) when the stream stored that it was given up on."""
    headers: Mapping[str, str]
    body_size: int
    """0 where it is not known: a participant tells nothing of the body."""
    body_sha256: str
    """Empty where it is not known."""
    state_sequence: int
    """The stream sequence of the event that brought it into its state: its own where no one can read it. A store
    takes no step back to what an earlier event said."""
    payload: bytes | None = field(default=None, repr=False)
    """The serialized message of `event_type`, redacted, where the body could be decoded."""
    body_prefix: bytes = field(default=b"", repr=False)
    definition: str = ""
    """The saga definition whose step could not deal with it; empty for what no one can read."""
    step: str = ""
    compensation: bool = False
    """Whether it was the step's compensation that could not deal with it."""
    attempts: int = 0
    """How often it was tried, counted over redrives; 0 for what no one can read."""
    state: DeadLetterState = DeadLetterState.OPEN
    close_time: datetime | None = None
    """The stream's time of the event that closed it; None while it is open."""
    close_actor: str = ""
    """Which operator closed it; empty while it is open, and where no operator did."""
    close_reason: str = ""
    """The operator's reason, in words."""

    @property
    def id(self) -> str:
        """`<participant>-<sequence>`."""
        return dead_letter_id(self.participant, self.sequence)

    @property
    def failure(self) -> str:
        """32 hexadecimal digits: the same for what the same step gave up on for the same reason, in the same words."""
        alike = (self.participant, self.definition, self.step, self.event_type, self.reason.name, self.detail)
        return hashlib.sha256(json.dumps(alike).encode()).hexdigest()[:32]

    @property
    def partition(self) -> int:
        """The partition in which the event is stored; 0 where the broker chose none."""
        return _PARTITIONS.get(self.subject.split(".", 2)[1], 0)

    @property
    def address(self) -> str:
        """The key under which everybody is told of it, in the partition of its event: its saga's, or the whole
        partition's where that is not known, or of another one."""
        return key_in(self.partition, self.key)


@dataclass(frozen=True, slots=True)
class ClosedDeadLetter:
    """That a participant's dead letter holds nothing up any more."""

    participant: str
    sequence: int
    definition: str
    step: str
    """With the definition: which step's it is. What names another one closes nothing."""
    state: DeadLetterState
    time: datetime
    """When the stream stored the event that closed it."""
    state_sequence: int
    """The stream sequence of that event."""
    actor: str = ""
    """Which operator decided it; empty where none did."""
    reason: str = ""
    """The operator's reason, in words."""


def parse_dead_letter_id(text: str) -> tuple[str, int] | None:
    """Participant and sequence of a dead letter's id; None where it can't be one."""
    participant, _, sequence = text.rpartition("-")
    if participant and re.fullmatch(r"[1-9]\d{0,17}", sequence, re.ASCII):
        return participant, int(sequence)
    return None


def dead_letter_of(unreadable: Unreadable, registry: Registry) -> DeadLetter:
    """What the correlator keeps of a message that no one can read, with nothing in it that must not be shown.

    Bytes of the body are kept only where its type is known and has nothing to redact: of an unknown type, nobody can
    tell what they hold.
    """
    message = unreadable.message
    event_type = None if unreadable.reason is Reason.UNKNOWN_TYPE else registry.get(message.type)
    payload: bytes | None = None
    prefix = b""
    if unreadable.body is not None and event_type is not None:
        payload = event_type.redactor.redact(unreadable.body).SerializeToString(deterministic=True)
    elif event_type is not None and not event_type.redactor.is_needed and _is_consistent(unreadable):
        prefix = message.data[:PREFIX_BYTES]
    return DeadLetter(
        participant=CORRELATOR,
        sequence=message.sequence,
        subject=message.subject,
        event_type=message.type,
        key=unreadable.key,
        reason=unreadable.reason,
        detail=unreadable.detail,
        stream_time=message.time,
        headers=dict(message.headers),
        body_size=len(message.data),
        body_sha256=hashlib.sha256(message.data).hexdigest(),
        state_sequence=message.sequence,
        payload=payload,
        body_prefix=prefix,
    )


def participant_dead_letter(event: Event, history: Iterable[HistoryEntry] = ()) -> DeadLetter | None:
    """The dead letter that a `DeadLetterRecorded` tells of; None for any other event, and where it names the
    correlator, which records its own: what someone else tells must not stand in their place.

    `history` is that of the saga: it knows when the dead-lettered event was stored. Its headers are the CloudEvents
    attributes that the participant told, in plain text; its payload the store finds in the history (`get_dead_letter`).
    """
    body = event.body
    if not isinstance(body, dead_letter_events_pb2.DeadLetterRecorded) or body.participant == CORRELATOR:
        return None
    stored = (entry.fact.stream_time for entry in history if entry.fact.sequence == body.sequence)
    return DeadLetter(
        participant=body.participant,
        sequence=body.sequence,
        subject=f"events.{event.partition}.{body.event_type}",
        event_type=body.event_type,
        key="" if event.key == partition_key(event.partition) else event.key,
        reason=Reason(body.reason),
        detail=body.detail,
        stream_time=next(stored, event.stream_time),
        headers={"ce-id": body.event_id, "ce-source": body.event_source, "ce-type": body.event_type},
        body_size=0,
        body_sha256="",
        state_sequence=event.sequence,
        definition=body.definition,
        step=body.step,
        compensation=body.compensation,
        attempts=body.attempts,
    )


def closing(event: Event) -> ClosedDeadLetter | None:
    """The end of a dead letter that an event tells of; None for any other event."""
    body = event.body
    actor, reason = "", ""
    match body:
        case dead_letter_events_pb2.DeadLetterRedriven():
            state, actor, reason = DeadLetterState.REDRIVEN, body.actor, body.reason
        case dead_letter_events_pb2.DeadLetterDiscarded():
            state, actor, reason = DeadLetterState.DISCARDED, body.actor, body.reason
        case dead_letter_events_pb2.DeadLetterSuperseded():
            state = DeadLetterState.SUPERSEDED
        case _:
            return None
    return ClosedDeadLetter(
        participant=body.participant,
        sequence=body.sequence,
        definition=body.definition,
        step=body.step,
        state=state,
        time=event.stream_time,
        state_sequence=event.sequence,
        actor=actor,
        reason=reason,
    )


def dead_letter_publication(dead_letter: DeadLetter, unreadable: Unreadable) -> Publication:
    """The copy for the stream `DEADLETTERS` of what no one can read."""
    return dead_letter_copy(
        unreadable.message,
        participant=dead_letter.participant,
        key=dead_letter.address,
        reason=dead_letter.reason,
        detail=dead_letter.detail,
    )


def _is_consistent(unreadable: Unreadable) -> bool:
    """Whether the subject's type is the only one that the message claims."""
    return unreadable.reason is not Reason.TYPE_MISMATCH
