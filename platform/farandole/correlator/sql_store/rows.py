"""Records, histories and dead letters as rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa

from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.sql_store.tables import HISTORY, SAGA
from farandole.deadlines import next_deadline
from farandole.reasons import Reason
from farandole.saga import (
    Cause,
    Disposition,
    Fact,
    Health,
    HistoryEntry,
    Lifecycle,
    Saga,
    Status,
    StepRecord,
    StepStatus,
)
from farandole.times import maybe_microseconds_of, maybe_time_of, microseconds_of, time_of

Parameters: TypeAlias = dict[str, Any]
Row: TypeAlias = sa.Row[Any]

SAGA_COLUMNS = (
    SAGA.c.definition, SAGA.c.version, SAGA.c.key, SAGA.c.revision, SAGA.c.status, SAGA.c.cause,
    SAGA.c.cause_detail, SAGA.c.health, SAGA.c.start_time, SAGA.c.update_time, SAGA.c.end_time,
    SAGA.c.deadline, SAGA.c.finished_late, SAGA.c.steps, SAGA.c.history_omitted,
)  # fmt: skip
FACT_COLUMNS = (
    HISTORY.c.sequence, HISTORY.c.stream_time, HISTORY.c.type, HISTORY.c.source, HISTORY.c.event_id,
    HISTORY.c.digest, HISTORY.c.time, HISTORY.c.causation_id, HISTORY.c.reason, HISTORY.c.lifecycle,
    HISTORY.c.disposition, HISTORY.c.disposition_reason,
)  # fmt: skip

STATE = (
    "version", "revision", "status", "cause", "cause_detail", "health", "start_time", "update_time", "end_time",
    "deadline", "next_deadline", "finished_late", "steps", "history_omitted",
)  # fmt: skip
"""The columns of a record that change, as `state_values` gives them."""

ENTRY = (
    "disposition", "disposition_reason", "stream_time", "type", "source", "event_id", "digest", "time",
    "causation_id", "reason", "lifecycle",
)  # fmt: skip
"""The columns of a history row besides its key and its payload, as `entry_values` gives them."""

_STATUSES = {member.value: member for member in Status}
_CAUSES = {member.value: member for member in Cause}
_HEALTHS = {member.value: member for member in Health}
_STEP_STATUSES = {member.value: member for member in StepStatus}
_DISPOSITIONS = {member.value: member for member in Disposition}

_dump: Callable[[object], str] = json.JSONEncoder(separators=(",", ":")).encode


def state_values(saga: Saga) -> tuple[Any, ...]:
    """The values of `STATE`."""
    return (
        saga.version,
        saga.revision,
        saga.status.value,
        saga.cause.value,
        saga.cause_detail,
        saga.health.value,
        maybe_microseconds_of(saga.start_time),
        microseconds_of(saga.update_time),
        maybe_microseconds_of(saga.end_time),
        maybe_microseconds_of(saga.deadline),
        maybe_microseconds_of(next_deadline(saga)),
        saga.finished_late,
        _dump([_step_values(step) for step in saga.steps]),
        saga.history_omitted,
    )


def _step_values(step: StepRecord) -> list[str | int | None]:
    return [
        step.name,
        step.status.value,
        maybe_microseconds_of(step.deadline),
        maybe_microseconds_of(step.start_time),
        maybe_microseconds_of(step.end_time),
    ]


def saga_of(columns: Sequence[Any], history: tuple[HistoryEntry, ...]) -> Saga:
    """The record of a row of `SAGA_COLUMNS`."""
    (
        definition, version, key, revision, status, cause, cause_detail, health, start_time, update_time, end_time,
        deadline, finished_late, steps, history_omitted,
    ) = columns  # fmt: skip
    return Saga(
        definition=definition,
        version=version,
        key=key,
        revision=revision,
        status=_STATUSES[status],
        cause=_CAUSES[cause],
        cause_detail=cause_detail,
        health=_HEALTHS[health],
        start_time=maybe_time_of(start_time),
        update_time=time_of(update_time),
        end_time=maybe_time_of(end_time),
        deadline=maybe_time_of(deadline),
        finished_late=finished_late,
        steps=tuple(
            StepRecord(name, _STEP_STATUSES[step], maybe_time_of(due), maybe_time_of(start), maybe_time_of(end))
            for name, step, due, start, end in json.loads(steps)
        ),
        history=history,
        history_omitted=history_omitted,
    )


def entry_values(entry: HistoryEntry) -> tuple[Any, ...]:
    """The values of `ENTRY`."""
    fact = entry.fact
    return (
        entry.disposition.value,
        entry.reason,
        microseconds_of(fact.stream_time),
        fact.type,
        fact.source,
        fact.id,
        fact.digest,
        microseconds_of(fact.time),
        fact.causation_id,
        fact.reason,
        None if fact.lifecycle is None else _lifecycle_text(fact.lifecycle),
    )


def _lifecycle_text(lifecycle: Lifecycle) -> str:
    return _dump(
        [
            lifecycle.definition,
            lifecycle.version,
            lifecycle.cause.value,
            list(lifecycle.steps),
            lifecycle.compensation,
            lifecycle.dead_letter,
        ]
    )


def entry_of(columns: Sequence[Any]) -> HistoryEntry:
    """The history entry of a row of `FACT_COLUMNS`."""
    (
        sequence, stream_time, type_, source, event_id, digest, time, causation_id, reason, lifecycle, disposition,
        disposition_reason,
    ) = columns  # fmt: skip
    fact = Fact(
        sequence,
        time_of(stream_time),
        type_,
        source,
        event_id,
        digest,
        time_of(time),
        causation_id,
        reason,
        None if lifecycle is None else _lifecycle(lifecycle),
    )
    return HistoryEntry(fact, _DISPOSITIONS[disposition], disposition_reason)


def _lifecycle(text: str) -> Lifecycle:
    definition, version, cause, steps, compensation, dead_letter = json.loads(text)
    about = None if dead_letter is None else (dead_letter[0], dead_letter[1])
    return Lifecycle(definition, version, _CAUSES[cause], tuple(steps), compensation, about)


def dead_letter_parameters(dead_letter: DeadLetter) -> Parameters:
    return {
        "participant": dead_letter.participant,
        "sequence": dead_letter.sequence,
        "subject": dead_letter.subject,
        "event_type": dead_letter.event_type,
        "key": dead_letter.key or None,
        "reason": dead_letter.reason.value,
        "detail": dead_letter.detail,
        "failure": dead_letter.failure,
        "stream_time": microseconds_of(dead_letter.stream_time),
        "headers": _dump(dict(dead_letter.headers)),
        "body_size": dead_letter.body_size,
        "body_sha256": dead_letter.body_sha256,
        "state_sequence": dead_letter.state_sequence,
        "payload": dead_letter.payload,
        "body_prefix": dead_letter.body_prefix,
        "definition": dead_letter.definition or None,
        "step": dead_letter.step or None,
        "compensation": dead_letter.compensation,
        "attempts": dead_letter.attempts,
        "state": dead_letter.state.value,
        "close_time": maybe_microseconds_of(dead_letter.close_time),
        "close_actor": dead_letter.close_actor,
        "close_reason": dead_letter.close_reason,
    }


def dead_letter_of(row: Row) -> DeadLetter:
    return DeadLetter(
        participant=row.participant,
        sequence=row.sequence,
        subject=row.subject,
        event_type=row.event_type,
        key=row.key or "",
        reason=Reason(row.reason),
        detail=row.detail,
        stream_time=time_of(row.stream_time),
        headers=json.loads(row.headers),
        body_size=row.body_size,
        body_sha256=row.body_sha256,
        state_sequence=row.state_sequence,
        payload=row.payload,
        body_prefix=row.body_prefix,
        definition=row.definition or "",
        step=row.step or "",
        compensation=row.compensation,
        attempts=row.attempts,
        state=DeadLetterState(row.state),
        close_time=maybe_time_of(row.close_time),
        close_actor=row.close_actor,
        close_reason=row.close_reason,
    )
