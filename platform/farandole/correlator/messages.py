"""The correlator's values as `choreography.v1` messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.message import DecodeError

from choreography.v1 import dead_letter_pb2, dead_letter_service_pb2, saga_definition_pb2, saga_pb2, saga_service_pb2
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.filters import filter_text
from farandole.correlator.queries import DeadLetterField, DeadLetterGroup, RecordedSaga, SagaCount, StoredDefinition
from farandole.registry import Registry
from farandole.saga import HistoryEntry, Saga

MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""Of all payloads in one answer: gRPC clients refuse an answer above 4 MiB, and a saga must stay to be seen."""
MAX_PAYLOAD_DEPTH = 30
"""Each level of JSON is three of Protobuf, and clients refuse more than 100."""

Definitions = Mapping[tuple[str, int], saga_definition_pb2.SagaDefinition]
"""By name and version."""


def definition_message(stored: StoredDefinition) -> saga_definition_pb2.SagaDefinition:
    """The stored definition; where it can't be read any more, its name and version alone."""
    return _parsed(stored.message) or saga_definition_pb2.SagaDefinition(name=stored.name, version=stored.version)


def definitions_by_version(stored: Iterable[StoredDefinition]) -> Definitions:
    """The stored definitions as messages."""
    return {(one.name, one.version): definition_message(one) for one in stored}


def saga_message(saga: Saga, definitions: Definitions) -> saga_pb2.Saga:
    """The record without its history. A step that its definition does not name has no participant and no kind."""
    definition = definitions.get((saga.definition, saga.version), saga_definition_pb2.SagaDefinition())
    defined = {step.name: step for step in definition.steps}
    return saga_pb2.Saga(
        saga_id=saga.key,
        definition=saga.definition,
        version=saga.version,
        revision=saga.revision,
        status=saga_pb2.SagaStatus.ValueType(saga.status),
        cause=saga_pb2.SagaCause.ValueType(saga.cause),
        cause_detail=saga.cause_detail,
        health=saga_pb2.SagaHealth.ValueType(saga.health),
        start_time=_timestamp(saga.start_time),
        update_time=_timestamp(saga.update_time),
        end_time=_timestamp(saga.end_time),
        deadline=_timestamp(saga.deadline),
        finished_late=saga.finished_late,
        steps=[
            saga_pb2.SagaStep(
                name=step.name,
                participant=defined[step.name].participant if step.name in defined else "",
                kind=defined[step.name].kind if step.name in defined else saga_definition_pb2.STEP_KIND_UNSPECIFIED,
                status=saga_pb2.StepStatus.ValueType(step.status),
                deadline=_timestamp(step.deadline),
                start_time=_timestamp(step.start_time),
                end_time=_timestamp(step.end_time),
            )
            for step in saga.steps
        ],
        history_omitted=saga.history_omitted,
    )


def saga_with_history(recorded: RecordedSaga, definitions: Definitions, registry: Registry) -> saga_pb2.Saga:
    """The record with its history. Payloads are left out from where they together would be too large for a client."""
    message = saga_message(recorded.saga, definitions)
    room = MAX_PAYLOAD_BYTES
    for entry in recorded.saga.history:
        written = message.history.add()
        written.CopyFrom(_entry_message(entry))
        data = recorded.payloads.get(entry.fact.sequence)
        payload = None if data is None or len(data) > room else payload_json(entry.fact.type, data, registry)
        size = 0 if payload is None else payload.ByteSize()
        if payload is not None and size <= room:
            room -= size
            written.payload.CopyFrom(payload)
    return message


def count_message(count: SagaCount) -> saga_service_pb2.SagaCount:
    """One count of a summary."""
    return saga_service_pb2.SagaCount(
        definition=count.definition,
        status=saga_pb2.SagaStatus.ValueType(count.status),
        health=saga_pb2.SagaHealth.ValueType(count.health),
        count=count.count,
    )


def dead_letter_message(dead_letter: DeadLetter) -> dead_letter_pb2.DeadLetter:
    """The dead letter without headers and body."""
    return dead_letter_pb2.DeadLetter(
        dead_letter_id=dead_letter.id,
        participant=dead_letter.participant,
        sequence=dead_letter.sequence,
        subject=dead_letter.subject,
        event_type=dead_letter.event_type,
        saga_id=dead_letter.key,
        reason=dead_letter_pb2.DeadLetterReason.ValueType(dead_letter.reason),
        detail=dead_letter.detail,
        stream_time=_timestamp(dead_letter.stream_time),
        body_size=dead_letter.body_size,
        body_sha256=dead_letter.body_sha256,
        definition=dead_letter.definition,
        step=dead_letter.step,
        compensation=dead_letter.compensation,
        attempts=dead_letter.attempts,
        state=dead_letter_pb2.DeadLetterState.ValueType(dead_letter.state),
        close_time=_timestamp(dead_letter.close_time),
        close_actor=dead_letter.close_actor,
        close_reason=dead_letter.close_reason,
    )


def group_message(group: DeadLetterGroup, listed: str) -> dead_letter_service_pb2.DeadLetterGroup:
    """A group of the dead letters that match the filter `listed`.

    Its own filter is empty where it would be longer than a filter may be: what participants tell is never so long.
    """
    values = dict(group.values)
    failure = values.pop("failure", None)
    filter_ = filter_text(listed, values)
    if not filter_ and failure is not None:
        rest = {name: value for name, value in values.items() if name not in DeadLetterField.FAILURE.fields}
        filter_ = filter_text(listed, {"failure": failure, **rest})
    reason = values.pop("reason", None)
    return dead_letter_service_pb2.DeadLetterGroup(
        filter=filter_,
        count=group.count,
        open=group.open,
        reason=dead_letter_pb2.DeadLetterReason.ValueType(reason if isinstance(reason, int) else 0),
        first_time=_timestamp(group.first_time),
        last_time=_timestamp(group.last_time),
        **{name: str(value) for name, value in values.items() if value is not None},
    )


def dead_letter_with_body(dead_letter: DeadLetter, registry: Registry) -> dead_letter_pb2.DeadLetter:
    """The whole dead letter."""
    message = dead_letter_message(dead_letter)
    message.headers.update(dead_letter.headers)
    message.body_prefix = dead_letter.body_prefix
    if dead_letter.payload is not None:
        payload = payload_json(dead_letter.event_type, dead_letter.payload, registry)
        if payload is not None and payload.ByteSize() <= MAX_PAYLOAD_BYTES:
            message.payload.CopyFrom(payload)
    return message


def payload_json(event_type: str, data: bytes, registry: Registry) -> struct_pb2.Struct | None:
    """A stored payload as JSON; None where its type is not known any more or it can't be told as JSON.

    It was redacted before it was stored; it is once more, so that a field marked since then is not shown either.
    """
    known = registry.get(event_type)
    if known is None:
        return None
    try:
        body = known.redactor.redact(known.message_class.FromString(data))
        content = json_format.MessageToDict(body, descriptor_pool=body.DESCRIPTOR.file.pool)  # type: ignore[arg-type]
        if _depth(content, MAX_PAYLOAD_DEPTH) > MAX_PAYLOAD_DEPTH:
            return None
        payload = struct_pb2.Struct()
        payload.update(content)
    except (DecodeError, json_format.Error, ValueError, TypeError, RecursionError):
        return None
    return payload


def _entry_message(entry: HistoryEntry) -> saga_pb2.HistoryEntry:
    fact = entry.fact
    return saga_pb2.HistoryEntry(
        event_type=fact.type,
        id=fact.id,
        source=fact.source,
        time=_timestamp(fact.time),
        sequence=fact.sequence,
        disposition=saga_pb2.Disposition.ValueType(entry.disposition),
        causation_id=fact.causation_id,
        stream_time=_timestamp(fact.stream_time),
        reason=entry.reason,
    )


def _depth(value: object, limit: int) -> int:
    """How many objects and lists a JSON value has in each other, counted no further than just above the limit."""
    inner: Iterable[object]
    match value:
        case dict():
            inner = value.values()
        case list():
            inner = value
        case _:
            return 0
    if limit <= 0:
        return 1
    return 1 + max((_depth(one, limit - 1) for one in inner), default=0)


def _timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


@lru_cache(maxsize=256)
def _parsed(serialized: bytes) -> saga_definition_pb2.SagaDefinition | None:
    """A definition that nobody may change: it is shared. None where it can't be read."""
    try:
        return saga_definition_pb2.SagaDefinition.FromString(serialized)
    except DecodeError:
        return None
