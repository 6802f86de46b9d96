"""Metrics for Prometheus: counted in memory, shown to whoever scrapes (decision 0046)."""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import Collection, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError
from farandole.saga import Saga
from farandole.telemetry import catalogue
from farandole.telemetry.catalogue import METRICS, UNKNOWN, Kind, Metric
from farandole.telemetry.ledger import Ledger, Place
from farandole.telemetry.readings import Reading

_SERVICE = "service"


class Metrics:
    """What a process has counted, and what it read of itself last."""

    def __init__(self, service: str, event_types: Collection[str]) -> None:
        """`event_types` are those that labels may name; all others are `unknown`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it was first counted
        self.registry = CollectorRegistry()
        self._service = service
        self._types = frozenset(event_types)
        self._handled = _Counters(catalogue.EVENTS_HANDLED, self.registry, service)
        self._put_off = _Counters(catalogue.EVENTS_PUT_OFF, self.registry, service)
        self._handlers = _Histograms(catalogue.HANDLER_DURATION, self.registry, service)
        self._published = _Counters(catalogue.EVENTS_PUBLISHED, self.registry, service)
        self._failures = _Counters(catalogue.PUBLISH_FAILURES, self.registry, service)
        self._started = _Counters(catalogue.SAGAS_STARTED, self.registry, service)
        self._sagas = _Histograms(catalogue.SAGA_DURATION, self.registry, service)
        self._transactions = _Histograms(catalogue.TRANSACTION_DURATION, self.registry, service).of()
        self._batches = _Histograms(catalogue.BATCH_EVENTS, self.registry, service).of()
        self._publishing = _Histograms(catalogue.PUBLISH_DURATION, self.registry, service).of()
        self._readings = _Readings(service)
        self.registry.register(self._readings)
        ProcessCollector(registry=self.registry)

    def settled(self, ledger: Ledger, seconds: float) -> None:
        """Counts what a transaction did, which took so long."""
        handled: Count[tuple[str, str]] = Count()
        put_off: Count[tuple[str, str]] = Count()
        for handling in ledger.handlings.values():
            event_type = self._type(handling.event.message.type)
            if handling.disposition is not None:
                handled[event_type, handling.disposition.name] += 1
            if handling.state:
                put_off[event_type, handling.state] += 1
            for run in handling.runs:
                outcome = "returned" if run.error is None else "raised"
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
            reason = "conflict"
        else:
            reason = "unavailable" if isinstance(error, BrokerUnavailableError) else "refused"
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


class _Counters:
    """One counter with its children at hand: looking one up by its labels costs more than counting."""

    def __init__(self, metric: Metric, registry: CollectorRegistry, service: str) -> None:
        self._family = Counter(metric.name, metric.documentation, (_SERVICE, *metric.labels), registry=registry)
        self._service = service
        self._children: dict[tuple[str, ...], Counter] = {}

    def of(self, *labels: str) -> Counter:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._family.labels(self._service, *labels)
        return child


class _Histograms:
    """The same of a histogram."""

    def __init__(self, metric: Metric, registry: CollectorRegistry, service: str) -> None:
        self._family = Histogram(
            metric.name,
            metric.documentation,
            (_SERVICE, *metric.labels),
            registry=registry,
            buckets=metric.buckets,
        )
        self._service = service
        self._children: dict[tuple[str, ...], Histogram] = {}

    def of(self, *labels: str) -> Histogram:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._family.labels(self._service, *labels)
        return child


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
