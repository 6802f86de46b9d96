"""What becomes of an event that was not dealt with: another try, a wait, or a dead letter and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from farandole.dead_letter_copy import dead_letter_copy, dead_letter_id
from farandole.envelope import Event, Unreadable
from farandole.participant.barrier import Direction
from farandole.participant.circuits import CircuitOpenError
from farandole.participant.crashes import CrashedError
from farandole.participant.error_text import MAX_TEXT, text_of, traceback_of
from farandole.participant.intake import Failure
from farandole.participant.outcomes import DependencyDown, Reject, Snooze
from farandole.participant.outgoing import Outgoing
from farandole.participant.participant import Reaction
from farandole.participant.queue_table import QueueEntry, QueueState
from farandole.participant.retries import Retries
from farandole.reasons import Reason

_log = structlog.get_logger(__name__)


def after_failure(entry: QueueEntry, event: Event, failure: Failure, retries: Retries, now: datetime) -> QueueEntry:
    """The entry after a handler raised: due again later, waiting, or given up. Pure."""
    definition, step, direction = failure.reaction.place
    entry = replace(
        entry,
        error=text_of(failure.error, event, *failure.earlier),
        definition=definition,
        step=step,
        direction=direction,
        dependency="",
    )
    match failure.error:
        case Snooze():
            delay = failure.error.delay
            return replace(entry, state=QueueState.SNOOZED, due=now + delay, pause=delay)
        case DependencyDown():
            since = entry.due if entry.state is QueueState.DEPENDENCY_DOWN else now
            return replace(
                entry,
                state=QueueState.DEPENDENCY_DOWN,
                due=since,
                pause=timedelta(0),
                dependency=failure.error.dependency,
            )
        case CrashedError():
            return _given_up(replace(entry, attempts=entry.attempts + failure.error.times), now)
        case Reject():
            return _given_up(replace(entry, attempts=entry.attempts + 1), now)
        case _:
            return _after_try(entry, QueueState.RETRYING, retries, now)


def after_unreadable(
    entry: QueueEntry, unreadable: Unreadable, reaction: Reaction | None, retries: Retries, now: datetime
) -> QueueEntry:
    """The entry after its message could not be read: tried again later, or given up. Pure.

    `reaction` is what its type would lead to first; None where it would lead to nothing.
    """
    definition, step, direction = reaction.place if reaction is not None else ("", "", "")
    entry = replace(
        entry, error=unreadable.detail[:MAX_TEXT], definition=definition, step=step, direction=direction, dependency=""
    )
    return _after_try(entry, QueueState.UNREADABLE, retries, now)


def _after_try(entry: QueueEntry, state: QueueState, retries: Retries, now: datetime) -> QueueEntry:
    entry = replace(entry, attempts=entry.attempts + 1)
    pause = retries.pause_after(entry.attempts - entry.attempts_before)
    if pause is None:
        return _given_up(entry, now)
    return replace(entry, state=state, due=now + pause, pause=pause)


def _given_up(entry: QueueEntry, now: datetime) -> QueueEntry:
    return replace(entry, state=QueueState.DEAD_LETTERED, due=now, pause=timedelta(0))


def tell(entry: QueueEntry, event: Event, failure: Failure, outgoing: Outgoing, now: datetime) -> None:
    """Tells what `after_failure` came to: in the log, and of what is given up on in the outbox too."""
    about = _about(entry) | {"event_id": event.id}
    match failure.error:
        case CircuitOpenError():
            return  # what is down has been told; that one more event waits for it is what the status tells
        case DependencyDown():
            _log.info("waits for a dependency", dependency=entry.dependency, **about)
        case Snooze():
            _log.info("snoozed", delay_seconds=failure.error.delay.total_seconds(), **about)
        case Reject():
            tell_given_up(entry, event, Reason.REJECTED, outgoing, about)
        case CrashedError():
            tell_given_up(entry, event, Reason.CRASHED, outgoing, about)
        case _:
            if entry.attempts == entry.attempts_before + 1:
                about["exception"] = traceback_of(failure.error, event, *failure.earlier)
            if entry.given_up:
                tell_given_up(entry, event, Reason.RETRIES_EXHAUSTED, outgoing, about)
            else:
                _log.warning("handler failed, trying again", retry_seconds=(entry.due - now).total_seconds(), **about)


def tell_unreadable(entry: QueueEntry, unreadable: Unreadable, outgoing: Outgoing, now: datetime) -> None:
    """Tells what `after_unreadable` came to."""
    about = _about(entry) | {"reason": unreadable.reason.name}
    if entry.given_up:
        tell_given_up(entry, unreadable, unreadable.reason, outgoing, about)
    else:
        _log.warning("event can't be read, trying again", retry_seconds=(entry.due - now).total_seconds(), **about)


def tell_given_up(
    entry: QueueEntry, event: Event | Unreadable, reason: Reason, outgoing: Outgoing, about: dict[str, object]
) -> None:
    """Tells of a dead letter: the copy comes first, so that whoever hears of a dead letter finds it."""
    participant = outgoing.participant
    identity = dead_letter_id(participant, entry.message.sequence)
    _log.error("dead letter", **{**about, "dead_letter_id": identity, "reason": reason.name})
    outgoing.add_copy(
        dead_letter_copy(entry.message, participant=participant, key=entry.key, reason=reason, detail=entry.error)
    )
    recorded = DeadLetterRecorded(
        saga_id=entry.key,
        definition=entry.definition,
        step=entry.step,
        participant=participant,
        sequence=entry.message.sequence,
        compensation=entry.direction == Direction.UNDO,
        event_type=entry.message.type,
        event_source=event.source,
        event_id=event.id,
        reason=reason.value,  # type: ignore[arg-type]  # the numbers are the same, see farandole.envelope
        detail=entry.error,
        attempts=entry.attempts,
    )
    outgoing.add_about_dead_letter(recorded, dead_letter=event, attempts=entry.attempts, cause=event)


def tell_superseded(entry: QueueEntry, event: Event | Unreadable, by: Event, outgoing: Outgoing) -> None:
    """Tells that nobody needs a dead letter any more: `by` has undone what it would have done, or says that no one can
    read it."""
    participant = outgoing.participant
    _log.info(
        "dead letter superseded",
        dead_letter_id=dead_letter_id(participant, entry.message.sequence),
        saga_id=entry.key,
        event_id=by.id,
        type=by.type,
        step=entry.step,
    )
    superseded = DeadLetterSuperseded(
        saga_id=entry.key,
        definition=entry.definition,
        step=entry.step,
        participant=participant,
        sequence=entry.message.sequence,
    )
    outgoing.add_about_dead_letter(superseded, dead_letter=event, attempts=entry.attempts, cause=by)


def _about(entry: QueueEntry) -> dict[str, object]:
    return {
        "saga_id": entry.key,
        "sequence": entry.message.sequence,
        "type": entry.message.type,
        "step": entry.step,
        "attempts": entry.attempts,
        "error": entry.error,
    }
