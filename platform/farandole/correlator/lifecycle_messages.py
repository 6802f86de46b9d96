"""The lifecycle events that a record calls for, as what to publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from choreography.v1 import lifecycle_pb2
from farandole.advance import PendingLifecycle
from farandole.envelope import Publication, encode
from farandole.lifecycle import CORRELATOR
from farandole.registry import Registry


def lifecycle_publication(
    registry: Registry, pending: PendingLifecycle, *, time: datetime, traceparent: str = ""
) -> Publication:
    """What to publish for a lifecycle event. `time` is when it was decided, for people: nothing rests on it."""
    return encode(
        registry.types[pending.type],
        _MESSAGES[pending.type](pending),
        source=CORRELATOR,
        event_id=pending.id,
        time=time,
        causation_id=pending.causation_id,
        traceparent=traceparent,
    )


def _ended(
    message_class: type[lifecycle_pb2.SagaCompleted | lifecycle_pb2.SagaCompensated | lifecycle_pb2.SagaFailed],
) -> Callable[[PendingLifecycle], Message]:
    return lambda pending: message_class(
        saga_id=pending.key,
        definition=pending.definition,
        version=pending.version,
        cause=pending.cause.value,  # type: ignore[arg-type]  # the numbers are the same, see farandole.saga
    )


def _overdue(pending: PendingLifecycle) -> Message:
    (step,) = pending.steps
    return lifecycle_pb2.StepOverdue(
        saga_id=pending.key,
        definition=pending.definition,
        version=pending.version,
        cause=pending.cause.value,  # type: ignore[arg-type]  # the numbers are the same
        step=step,
        participant=pending.participant,
        deadline=_timestamp(pending.deadline),
        compensation=pending.compensation,
    )


def _stalled(pending: PendingLifecycle) -> Message:
    return lifecycle_pb2.SagaStalled(
        saga_id=pending.key,
        definition=pending.definition,
        version=pending.version,
        cause=pending.cause.value,  # type: ignore[arg-type]  # the numbers are the same
        deadline=_timestamp(pending.deadline),
    )


def _timed_out(pending: PendingLifecycle) -> Message:
    return lifecycle_pb2.SagaTimedOut(
        saga_id=pending.key,
        definition=pending.definition,
        version=pending.version,
        cause=pending.cause.value,  # type: ignore[arg-type]  # the numbers are the same
        steps=pending.steps,
        deadline=_timestamp(pending.deadline),
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


_MESSAGES: Mapping[str, Callable[[PendingLifecycle], Message]] = {
    lifecycle_pb2.SagaCompleted.DESCRIPTOR.full_name: _ended(lifecycle_pb2.SagaCompleted),
    lifecycle_pb2.SagaCompensated.DESCRIPTOR.full_name: _ended(lifecycle_pb2.SagaCompensated),
    lifecycle_pb2.SagaFailed.DESCRIPTOR.full_name: _ended(lifecycle_pb2.SagaFailed),
    lifecycle_pb2.StepOverdue.DESCRIPTOR.full_name: _overdue,
    lifecycle_pb2.SagaStalled.DESCRIPTOR.full_name: _stalled,
    lifecycle_pb2.SagaTimedOut.DESCRIPTOR.full_name: _timed_out,
}
