"""What one transaction did, kept until it has committed, and then handed to traces and metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from farandole.envelope import Event, Unreadable
from farandole.saga import Disposition, Saga
from farandole.telemetry.foreseen import Place

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from farandole.telemetry.metrics import Metrics
    from farandole.telemetry.traces import Sending, Traces


@dataclass(slots=True)
class Run:
    """One run of a handler."""

    place: Place
    seconds: float = 0.0
    error: BaseException | None = None


@dataclass(slots=True)
class Handling:
    """What became of one event."""

    event: Event | Unreadable
    span: Span | None = None
    """None where its trace is not recorded."""
    disposition: Disposition | None = None
    state: str = ""
    """Why it waits in the queue, where it does."""
    attempts: int = 0
    error: BaseException | None = None
    runs: list[Run] = field(default_factory=list)
    definitions: Sequence[str] = ()
    """Of an event that was folded: the sagas that it went to."""
    end: int = 0
    """In nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class SagaStep:
    """A saga's record before and after a transaction."""

    before: Saga | None
    after: Saga


class Ledger:
    """An `Account` that keeps what it is told."""

    __slots__ = ("_ambient", "_began", "_current", "_metrics", "_traces", "handlings", "sagas", "sendings")

    def __init__(self, traces: Traces | None, metrics: Metrics | None) -> None:
        self._traces = traces
        self._ambient = None if traces is None else traces.ambient()
        self._metrics = metrics
        self._began = time.perf_counter()
        self._current: Handling | None = None
        """Of the event that was begun last."""
        self.handlings: dict[int, Handling | None] = {}
        """By the event's sequence, in order; None for one that no trace is recorded of, and nobody counts."""
        self.sagas: list[SagaStep] = []
        self.sendings: list[Sending] = []
        """The events that are to be published, as far as their traces are recorded."""

    def begin(self, event: Event) -> None:
        """See `Account.begin`."""
        self._current = self._of(event)

    def tried_before(self, event: Event, attempts: int) -> None:
        """See `Account.tried_before`."""
        if attempts and (handling := self._of(event)) is not None:
            handling.attempts = attempts + 1

    def running(self, place: Place, given: Sequence[Event]) -> AbstractContextManager[None]:
        """See `Account.running`."""
        handling = self._current
        if handling is None:
            return _NOT_TOLD
        run = Run(place)
        handling.runs.append(run)
        if self._traces is not None and handling.span is not None:
            self._traces.caused(handling.span, [event for event in given if event is not handling.event])
            return _Running(run, self._traces.within(handling.span))
        return _Running(run, None)

    def noted(self, event: Event, disposition: Disposition) -> None:
        """See `Account.noted`."""
        if (handling := self._of(event)) is not None:
            handling.disposition = disposition
            handling.end = time.time_ns()

    def put_off(
        self, event: Event | Unreadable, state: str, *, attempts: int = 0, error: BaseException | None = None
    ) -> None:
        """See `Account.put_off`."""
        if (handling := self._of(event)) is not None:
            handling.state, handling.attempts, handling.error = state, attempts, error
            handling.end = time.time_ns()
        if self.sendings:  # what its handler had published was taken back
            self.sendings = [sending for sending in self.sendings if sending.cause is not event]

    def folded(self, event: Event, changed: Mapping[str, Saga]) -> None:
        """See `Account.folded`."""
        if (handling := self._of(event)) is not None:
            handling.definitions = tuple(changed)
            handling.disposition = _disposition(event, changed)
            handling.end = time.time_ns()

    def changed(self, before: Saga | None, after: Saga) -> None:
        """See `Account.changed`."""
        if self._metrics is not None:
            self.sagas.append(SagaStep(before, after))

    def traceparent(self, cause: Event | Unreadable | None) -> str:
        """See `Account.traceparent`."""
        if self._traces is None:
            return "" if cause is None else cause.traceparent
        if cause is None:
            within = self._ambient
        else:
            handling = self._of(cause)
            within = None if handling is None else handling.span
        header, sending = self._traces.sending(cause, within)
        if sending is not None:
            self.sendings.append(sending)
        return header

    def settled(self) -> None:
        """See `Account.settled`."""
        if self._traces is not None:
            self._traces.settled(self)
        if self._metrics is not None:
            self._metrics.settled(self, time.perf_counter() - self._began)

    def _of(self, event: Event | Unreadable) -> Handling | None:
        sequence = event.message.sequence
        try:
            return self.handlings[sequence]
        except KeyError:
            span = None if self._traces is None else self._traces.begin(event)
            wanted = span is not None or self._metrics is not None
            handling = self.handlings[sequence] = Handling(event, span) if wanted else None
            return handling


_NOT_TOLD = nullcontext()


class _Running:
    """The context in which a handler runs: it is timed, and spans that it makes itself belong to the event's."""

    __slots__ = ("_began", "_run", "_within")

    def __init__(self, run: Run, within: AbstractContextManager[object] | None) -> None:
        self._run = run
        self._within = within
        self._began = 0.0

    def __enter__(self) -> None:
        if self._within is not None:
            self._within.__enter__()
        self._began = time.perf_counter()

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._run.seconds = time.perf_counter() - self._began
        self._run.error = error
        if self._within is not None:
            self._within.__exit__(None, None, None)


def _disposition(event: Event, changed: Mapping[str, Saga]) -> Disposition:
    """What the fold made of an event, in the first of the sagas that it went to; most go to one."""
    for saga in changed.values():
        for entry in reversed(saga.history):
            if entry.fact.sequence == event.sequence:
                return entry.disposition
    return Disposition.UNMATCHED
