"""Metrics for Prometheus: counted in memory, shown to whoever scrapes (decision 0046)."""

from __future__ import annotations

import itertools
import time
from collections import Counter as Count
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.saga import Disposition, Saga, Status
from farandole.telemetry import catalogue
from farandole.telemetry.catalogue import METRICS, UNKNOWN, Kind, Metric, Outcome, PublishFailure
from farandole.telemetry.foreseen import Foreseen, Place
from farandole.telemetry.ledger import Ledger
from farandole.telemetry.readings import Reading

_SERVICE = "service"
Child = TypeVar("Child", Counter, Histogram)


class Metrics:
    """What a process has counted, and what it read of itself last."""

    def __init__(self, service: str, foreseen: Foreseen) -> None:
        """What is `foreseen` is shown at 0 until it happens."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it was first counted
        self.registry = CollectorRegistry()
        self._service = service
        self._types = frozenset(foreseen.event_types)
        self._handled = self._counters(catalogue.EVENTS_HANDLED)
        self._put_off = self._counters(catalogue.EVENTS_PUT_OFF)
        self._handlers = self._histograms(catalogue.HANDLER_DURATION)
        self._published = self._counters(catalogue.EVENTS_PUBLISHED)
        self._failures = self._counters(catalogue.PUBLISH_FAILURES)
        self._started = self._counters(catalogue.SAGAS_STARTED)
        self._sagas = self._histograms(catalogue.SAGA_DURATION)
        self._transactions = self._histograms(catalogue.TRANSACTION_DURATION).of()
        self._batches = self._histograms(catalogue.BATCH_EVENTS).of()
        self._publishing = self._histograms(catalogue.PUBLISH_DURATION).of()
        self._show_zeros(foreseen)
        self._readings = _Readings(service)
        self.registry.register(self._readings)
        ProcessCollector(registry=self.registry)

    def _counters(self, metric: Metric) -> _Children[Counter]:
        labels = (_SERVICE, *metric.labels)
        return _Children(Counter(metric.name, metric.documentation, labels, registry=self.registry), self._service)

    def _histograms(self, metric: Metric) -> _Children[Histogram]:
        labels, buckets = (_SERVICE, *metric.labels), metric.buckets
        family = Histogram(metric.name, metric.documentation, labels, registry=self.registry, buckets=buckets)
        return _Children(family, self._service)

    def _show_zeros(self, foreseen: Foreseen) -> None:
        types = (*self._types, UNKNOWN)
        self._handled.show(self._types, (disposition.name for disposition in Disposition))
        self._put_off.show(types, foreseen.states)
        self._published.show(types)
        self._failures.show(PublishFailure)
        self._started.show(foreseen.definitions)
        self._sagas.show(foreseen.definitions, (status.name for status in Status if status.is_terminal))
        for place in foreseen.parts:
            for outcome in Outcome:
                self._handlers.of(*_words(place), outcome)

    def settled(self, ledger: Ledger, seconds: float) -> None:
        """Counts what a transaction did, which took so long."""
        handled: Count[tuple[str, str]] = Count()
        put_off: Count[tuple[str, str]] = Count()
        for handling in ledger.handlings.values():
            assert handling is not None, "with metrics somebody wants to know of each"
            event_type = self._type(handling.event.message.type)
            if handling.disposition is not None:
                handled[event_type, handling.disposition.name] += 1
            if handling.state:
                put_off[event_type, handling.state] += 1
            for run in handling.runs:
                outcome = Outcome.RETURNED if run.error is None else Outcome.RAISED
                self._handlers.of(*_words(run.place), outcome).observe(run.seconds)
        for labels, number in handled.items():
            self._handled.of(*labels).inc(number)
        for labels, number in put_off.items():
            self._put_off.of(*labels).inc(number)
        if number := handled.total() + put_off.total():
            self._batches.observe(number)
            self._transactions.observe(seconds)
        for saga in ledger.sagas:
            self._follow(saga.before, saga.after)

    def published(self, publication: Publication, seconds: float) -> None:
        """The stream has acknowledged a publication."""
        self._published.of(self._type(_type_of(publication))).inc()
        self._publishing.observe(seconds)

    def not_published(self, error: BrokerError) -> None:
        """The stream has not acknowledged a publication."""
        if error.is_conflict:
            reason = PublishFailure.CONFLICT
        elif isinstance(error, BrokerUnavailableError):
            reason = PublishFailure.UNAVAILABLE
        else:
            reason = PublishFailure.REFUSED
        self._failures.of(reason).inc()

    def read(self, readings: Iterable[Reading]) -> None:
        """Shows these readings from now on, in place of those before."""
        self._readings.show([*readings, Reading(catalogue.READ_TIME, (), time.time())])

    def _follow(self, before: Saga | None, after: Saga) -> None:
        if after.is_started and (before is None or not before.is_started):
            self._started.of(after.definition).inc()
        has_ended = after.status.is_terminal and (before is None or not before.status.is_terminal)
        if has_ended and after.start_time is not None and after.end_time is not None:
            seconds = (after.end_time - after.start_time).total_seconds()
            self._sagas.of(after.definition, after.status.name).observe(seconds)

    def _type(self, event_type: str) -> str:
        return event_type if event_type in self._types else UNKNOWN


class _Children(Generic[Child]):
    """One counter or histogram with its children at hand: looking one up by its labels costs more than counting."""

    def __init__(self, family: Child, service: str) -> None:
        self._family: Child = family
        self._service = service
        self._children: dict[tuple[str, ...], Child] = {}

    def of(self, *labels: str) -> Child:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._family.labels(self._service, *labels)
        return child

    def show(self, *values: Iterable[str]) -> None:
        """Shows the children of all combinations of these values, each of one label."""
        for labels in itertools.product(*values):
            self.of(*labels)


class _Readings(Collector):
    """Shows the last readings as gauges. What was not read is not shown: no reading is better than an old one."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._shown: Sequence[Reading] = ()

    def show(self, readings: Sequence[Reading]) -> None:
        self._shown = readings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        shown = self._shown  # it is replaced by another thread, as a whole
        for metric in METRICS.values():
            if metric.kind is Kind.GAUGE:
                family = GaugeMetricFamily(metric.name, metric.documentation, labels=(_SERVICE, *metric.labels))
                for reading in shown:
                    if reading.metric is metric:
                        family.add_metric((self._service, *reading.labels), reading.value)
                yield family


def _words(place: Place) -> tuple[str, str, str]:
    definition, step, direction = place
    return definition, step, str(direction)


def _type_of(publication: Publication) -> str:
    return publication.subject.split(".", 2)[2]
