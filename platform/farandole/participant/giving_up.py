"""What becomes of an event whose handler raised: another try, or a dead letter and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import structlog

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded, DeadLetterSuperseded
from farandole.dead_letter_copy import dead_letter_copy, dead_letter_id
from farandole.envelope import Event, Reason
from farandole.participant.barrier import Direction
from farandole.participant.crashes import CrashedError
from farandole.participant.error_text import text_of, traceback_of
from farandole.participant.intake import Failure
from farandole.participant.outgoing import Outgoing
from farandole.participant.retries import Reject, Retries
from farandole.participant.tables import QueueEntry

_log = structlog.get_logger(__name__)


def after_failure(entry: QueueEntry, event: Event, failure: Failure, retries: Retries, now: datetime) -> QueueEntry:
    """The entry after a try that failed: due again later, or given up. Pure."""
    attempts = entry.attempts + (failure.error.times if isinstance(failure.error, CrashedError) else 1)
    pause = retries.pause_after(attempts - entry.attempts_before) if _may_try_again(failure.error) else None
    return replace(
        entry,
        attempts=attempts,
        due=now if pause is None else now + pause,
        error=text_of(failure.error, event, *failure.earlier),
        given_up=pause is None,
        definition=failure.reaction.step.saga,
        step=failure.reaction.step.name,
    )


def tell(entry: QueueEntry, event: Event, failure: Failure, outgoing: Outgoing, now: datetime) -> None:
    """Tells what `after_failure` came to: in the log, and of what is given up on in the outbox too.

    There the copy comes first, so that whoever hears of a dead letter finds it.
    """
    first = entry.attempts == entry.attempts_before + 1
    about = {
        "saga_id": entry.key,
        "event_id": event.id,
        "sequence": entry.message.sequence,
        "type": event.type,
        "step": entry.step,
        "attempts": entry.attempts,
        "error": entry.error,
    }
    if first and _may_try_again(failure.error):
        about["exception"] = traceback_of(failure.error, event, *failure.earlier)
    if not entry.given_up:
        _log.warning("handler failed, trying again", retry_seconds=(entry.due - now).total_seconds(), **about)
        return
    reason = _reason(failure.error)
    participant = outgoing.participant
    _log.error(
        "dead letter",
        dead_letter_id=dead_letter_id(participant, entry.message.sequence),
        reason=reason.name,
        **about,
    )
    outgoing.add_copy(
        dead_letter_copy(entry.message, participant=participant, key=entry.key, reason=reason, detail=entry.error)
    )
    recorded = DeadLetterRecorded(
        saga_id=entry.key,
        definition=entry.definition,
        step=entry.step,
        participant=participant,
        sequence=entry.message.sequence,
        compensation=failure.reaction.direction is Direction.UNDO,
        event_type=event.type,
        event_source=event.source,
        event_id=event.id,
        reason=reason.value,  # type: ignore[arg-type]  # the numbers are the same, see farandole.envelope
        detail=entry.error,
        attempts=entry.attempts,
    )
    outgoing.add_about_dead_letter(recorded, dead_letter=event, attempts=entry.attempts, cause=event)


def _may_try_again(error: BaseException) -> bool:
    return not isinstance(error, Reject | CrashedError)


def _reason(error: BaseException) -> Reason:
    match error:
        case Reject():
            return Reason.REJECTED
        case CrashedError():
            return Reason.CRASHED
        case _:
            return Reason.RETRIES_EXHAUSTED


def tell_superseded(entry: QueueEntry, event: Event, by: Event, outgoing: Outgoing) -> None:
    """Tells that nobody needs a dead letter any more, since `by` has undone what it would have done."""
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
