"""Traces by OpenTelemetry, after its semantic conventions for messaging (decision 0045).

| span | kind | begins, ends | its parent |
|---|---|---|---|
| `PACKAGE.SERVICE/METHOD` | server | a call of a remote procedure | the caller's, from its metadata |
| `process events.*.TYPE` | consumer | dealing with one event, until that is decided | what published the event |
| `send events.*.TYPE` | producer | an event is decided, until the stream has it | the span that decided it |

What is decided in a transaction that is rolled back is not told. Only where the transaction has committed do spans end,
and one that has not ended is never exported.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from farandole.envelope import Event, Publication, Unreadable
from farandole.ids import message_id
from farandole.telemetry import traceparent
from farandole.telemetry.ledger import Handling, Ledger
from farandole.telemetry.traceparent import TraceParent

DEFAULT_RATIO = 0.01
"""Of traces that are recorded where `OTEL_TRACES_SAMPLER` says nothing: recording each takes as much of the processor
as the saga itself (decision 0045). All of a trace is recorded, or nothing."""

_MOST_SENDING = 20_000
"""Events that are decided and not acknowledged yet, of which a span is kept."""
_EVENTS = "events."
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The gRPC status codes that are the server's fault, as the conventions for RPC say."""
_NOT_SAMPLED = "-00"
"""How a `traceparent` ends of which nothing is recorded, as good as always; other flags may be set besides."""
_NOT_TRACED = "/grpc."
"""Health and reflection, which are called without end."""

_NOWHERE = Context()
"""In no trace."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sending:
    """An event that is to be published, and its span, which ends once the stream has it."""

    cause: Event | Unreadable | None
    header: str
    """Its `traceparent`, by which the span is found again."""
    span: Span


class Traces:
    """Where a process tells its spans."""

    def __init__(self, service: str, replica: str, exporter: SpanExporter | None = None) -> None:
        """`replica` is the name of this process among those of the service. Without an `exporter` spans go where the
        standard variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`)."""
        self._service = service
        self._ids = _Ids()
        sampler = _sampler()
        self._provider = TracerProvider(
            sampler=sampler,
            resource=Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: replica}),
            id_generator=self._ids,
            shutdown_on_exit=False,  # `stop` does, within bounds
        )
        self._provider.add_span_processor(BatchSpanProcessor(_Telling(exporter or OTLPSpanExporter())))
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it repeats each failure; `_Telling` does not
        trace.set_tracer_provider(self._provider)  # for spans that handlers make themselves
        self._tracer = self._provider.get_tracer("farandole", version("farandole"))
        self._sampler = self._provider.sampler
        self._follows = isinstance(self._sampler, ParentBased)
        """Whether nothing is recorded of what follows from something that is not."""
        self._sending: dict[str, Span] = {}
        """By `traceparent`, in the order in which they were decided."""

    def begin(self, event: Event | Unreadable) -> Span | None:
        """The span of dealing with an event; None where its trace is not recorded."""
        header = event.traceparent
        if self._follows and header.endswith(_NOT_SAMPLED):
            return None
        came = traceparent.read(header)
        if came is None:
            trace_id = traceparent.derived(message_id(event.source, event.id)).trace_id
            if self._follows and not self._begins(trace_id):
                return None
            with self._ids.of_trace(trace_id):
                span = self._process(event, Context())
        elif self._follows and not came.is_sampled:
            return None
        else:
            cause = _context(came)
            within = trace.set_span_in_context(NonRecordingSpan(cause), Context())
            span = self._process(event, within, Link(cause))
        return span if span.is_recording() else None

    def _begins(self, trace_id: int) -> bool:
        """Whether a trace that begins here is recorded: asked before a span is made of it, which costs far more."""
        return self._sampler.should_sample(_NOWHERE, trace_id, "process").decision is Decision.RECORD_AND_SAMPLE

    def _process(self, event: Event | Unreadable, within: Context, *links: Link) -> Span:
        message = event.message
        attributes: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": message.subject,
            "messaging.destination.partition.id": str(message.partition),
            "messaging.consumer.group.name": self._service,
            "messaging.message.id": event.id,
            "messaging.message.body.size": len(message.data),
            "farandole.sequence": message.sequence,
        }
        if event.key:
            attributes["messaging.message.conversation_id"] = event.key
        name = "process"
        if isinstance(event, Event):  # the type of any other is whatever its publisher wrote
            template = attributes["messaging.destination.template"] = _template(event.type)
            name = f"process {template}"
        return self._tracer.start_span(name, within, SpanKind.CONSUMER, attributes, links)

    def caused(self, span: Span, others: Iterable[Event]) -> None:
        """The event is dealt with together with others that came before it."""
        for other in others:
            if came := traceparent.read(other.traceparent):
                span.add_link(_context(came))

    def within(self, span: Span) -> AbstractContextManager[object]:
        """A context in which spans that others make belong to this one."""
        return trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def ambient(self) -> Span:
        """The span in whose context this is called."""
        return trace.get_current_span()

    def sending(self, cause: Event | Unreadable | None, within: Span | None) -> tuple[str, Sending | None]:
        """The `traceparent` of an event that is to be published, and its span, where one is recorded."""
        if within is None:
            assert cause is not None, "a call has a span, if not one that is recorded"
            return cause.traceparent or traceparent.derived(message_id(cause.source, cause.id)).header, None
        span = self._tracer.start_span("send", trace.set_span_in_context(within, Context()), SpanKind.PRODUCER, _SEND)
        context = span.get_span_context()
        header = TraceParent(context.trace_id, context.span_id, is_sampled=context.trace_flags.sampled).header
        return header, Sending(cause, header, span) if span.is_recording() else None

    def settled(self, ledger: Ledger) -> None:
        """Ends the spans of what a transaction dealt with, and remembers those of what it publishes."""
        for handling in ledger.handlings.values():
            if handling is not None and handling.span is not None and handling.end:
                _describe(handling, handling.span)
                handling.span.end(handling.end)
        for sending in ledger.sendings:
            self._sending[sending.header] = sending.span
        while len(self._sending) > _MOST_SENDING:
            del self._sending[next(iter(self._sending))]

    def published(self, publication: Publication) -> None:
        """The stream has acknowledged an event."""
        span = self._sending.pop(publication.headers.get("traceparent", ""), None)
        if span is None:
            return
        event_type = publication.subject.split(".", 2)[2]
        span.update_name(f"send {_template(event_type)}")
        span.set_attributes(
            {
                "messaging.destination.name": publication.subject,
                "messaging.destination.template": _template(event_type),
                "messaging.message.id": publication.headers["ce-id"],
                "messaging.message.conversation_id": publication.key,
                "messaging.message.body.size": len(publication.data),
            }
        )
        span.end()

    @asynccontextmanager
    async def guard(self, _request: Any, call: Any, method: str) -> AsyncIterator[None]:  # noqa: ANN401 - gRPC's
        """The context in which a call of a remote procedure runs, as `farandole.rpc.guarding.Guard`."""
        if method.startswith(_NOT_TRACED):
            yield
            return
        name = method.removeprefix("/")
        context = Context()
        if came := _of_metadata(call.invocation_metadata() or ()):
            context = trace.set_span_in_context(NonRecordingSpan(_context(came)), context)
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        try:
            with self.within(span):
                yield
        finally:
            code = _code(call)
            span.set_attribute("rpc.response.status_code", code)
            if code in _FAULTS:
                span.set_attribute("error.type", code)
                span.set_status(StatusCode.ERROR)
            span.end()

    def stop(self) -> None:
        """Exports what has ended so far. May take as long as the exporter does."""
        self._provider.shutdown()


class _Telling(SpanExporter):
    """Says once that spans are not exported, and once that they are again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            _log.warning("spans are not exported, and dropped; look after the collector at OTEL_EXPORTER_OTLP_ENDPOINT")
        elif self._is_failing and not is_failing:
            _log.info("spans are exported again")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        """See `SpanExporter.shutdown`."""
        self._exporter.shutdown()


class _Ids(RandomIdGenerator):
    """Random ids, but for traces of which it is said which one they are."""

    def __init__(self) -> None:
        self._own = threading.local()

    def of_trace(self, trace_id: int) -> _OfTrace:
        """The context in which a trace that begins has this id."""
        return _OfTrace(self._own, trace_id)

    def generate_trace_id(self) -> int:
        """See `IdGenerator.generate_trace_id`."""
        return getattr(self._own, "trace_id", None) or super().generate_trace_id()


class _OfTrace:
    __slots__ = ("_own", "_trace_id")

    def __init__(self, own: threading.local, trace_id: int) -> None:
        self._own = own
        self._trace_id = trace_id

    def __enter__(self) -> None:
        self._own.trace_id = self._trace_id

    def __exit__(self, *_: object) -> None:
        self._own.trace_id = None


_SEND: Mapping[str, str] = {
    "messaging.system": "nats",
    "messaging.operation.name": "send",
    "messaging.operation.type": "send",
}


def _sampler() -> Sampler | None:
    """What is recorded where the standard variable says nothing; None where it does."""
    return None if os.environ.get(OTEL_TRACES_SAMPLER) else ParentBased(TraceIdRatioBased(DEFAULT_RATIO))


def _describe(handling: Handling, span: Span) -> None:
    """Says what became of the event."""
    attributes: dict[str, str | int | tuple[str, ...]] = {}
    if handling.disposition is not None:
        attributes["farandole.disposition"] = handling.disposition.name
    if handling.state:
        attributes["farandole.queue.state"] = handling.state
    if handling.attempts:
        attributes["farandole.attempts"] = handling.attempts
    if handling.definitions:
        attributes["farandole.definitions"] = tuple(handling.definitions)
    if handling.runs:
        definitions, steps, directions = zip(*(run.place for run in handling.runs), strict=True)
        attributes |= {
            "farandole.definitions": definitions,
            "farandole.steps": steps,
            "farandole.directions": directions,
        }
    if handling.error is not None:
        attributes["error.type"] = type(handling.error).__qualname__
        span.set_status(StatusCode.ERROR)
    span.set_attributes(attributes)


def _template(event_type: str) -> str:
    return f"{_EVENTS}*.{event_type}"


def _context(place: TraceParent) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if place.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(place.trace_id, place.span_id, is_remote=True, trace_flags=flags)


def _of_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> TraceParent | None:
    """The caller's place in a trace, where the metadata of a call tell one."""
    for name, value in metadata:
        if name == "traceparent" and isinstance(value, str):
            return traceparent.read(value)
    return None


def _code(call: Any) -> str:  # noqa: ANN401 - gRPC's context, whose `code` has no one type
    """The name of the status with which a call ends."""
    code = call.code()
    return next((status.name for status in grpc.StatusCode if code in (status, status.value[0])), "OK")
