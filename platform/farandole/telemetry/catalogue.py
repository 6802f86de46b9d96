"""Every metric that a process may expose: its name, what it counts, and by which labels. Pure.

docs/telemetry.md has the same table, and a test holds what processes expose against it. No label ever holds an id, an
error's text, or anything else without bounds: event types are those of the registry, others are `unknown`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"
"""The event type of what is none, in labels."""
GIVEN_UP = "DEAD_LETTERED"
"""The state of an event that is given up on, in labels; that of a participant's queue has the same name."""


class Outcome(enum.StrEnum):
    """What a run of a handler came to."""

    RETURNED = "returned"
    RAISED = "raised"


class PublishFailure(enum.StrEnum):
    """Why a publication was not acknowledged."""

    CONFLICT = "conflict"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


class Kind(enum.StrEnum):
    """As Prometheus has them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Each has the label `service` before its own."""

    name: str
    kind: Kind
    labels: Sequence[str]
    documentation: str
    buckets: Sequence[float] = ()
    """Of a histogram: the upper bounds."""


_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_OF_SAGAS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
_OF_BATCHES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)

EVENTS_HANDLED = Metric(
    "farandole_events_handled_total",
    Kind.COUNTER,
    ("type", "disposition"),
    "Events dealt with, by what became of them; by the correlator those of sagas.",
)
EVENTS_PUT_OFF = Metric(
    "farandole_events_put_off_total",
    Kind.COUNTER,
    ("type", "state"),
    "Times that an event was not dealt with and went into the queue, or stayed there, in this state.",
)
HANDLER_DURATION = Metric(
    "farandole_handler_duration_seconds",
    Kind.HISTOGRAM,
    ("definition", "step", "direction", "outcome"),
    "How long handlers of steps ran, by whether they returned or raised.",
    _SHORT,
)
TRANSACTION_DURATION = Metric(
    "farandole_transaction_duration_seconds",
    Kind.HISTOGRAM,
    (),
    "How long transactions that dealt with events took, handlers and commit included.",
    _LONG,
)
BATCH_EVENTS = Metric(
    "farandole_batch_events", Kind.HISTOGRAM, (), "How many events a transaction dealt with.", _OF_BATCHES
)
EVENTS_PUBLISHED = Metric(
    "farandole_events_published_total", Kind.COUNTER, ("type",), "Events that the stream has acknowledged."
)
PUBLISH_DURATION = Metric(
    "farandole_publish_duration_seconds",
    Kind.HISTOGRAM,
    (),
    "From sending an event to the stream's acknowledgement.",
    _LONG,
)
PUBLISH_FAILURES = Metric(
    "farandole_publish_failures_total",
    Kind.COUNTER,
    ("reason",),
    "Publications that were not acknowledged: `conflict` (another event came first), `refused`, `unavailable`.",
)
SAGAS_STARTED = Metric("farandole_sagas_started_total", Kind.COUNTER, ("definition",), "Sagas that started.")
SAGA_DURATION = Metric(
    "farandole_saga_duration_seconds",
    Kind.HISTOGRAM,
    ("definition", "status"),
    "From a saga's start to its end, by the stream's time and by how it ended.",
    _OF_SAGAS,
)
HEALTH = Metric("farandole_health", Kind.GAUGE, ("check",), "1 where a check of the process is well, 0 where not.")
READ_TIME = Metric(
    "farandole_read_timestamp_seconds",
    Kind.GAUGE,
    (),
    "When the process last took the readings that it shows, in seconds since 1970.",
)
CONSUMER_LAG = Metric(
    "farandole_consumer_lag_events",
    Kind.GAUGE,
    ("consumer",),
    "Events in the stream that a durable consumer has not delivered, or that were not acknowledged.",
)
POSITION_AGE = Metric(
    "farandole_position_age_seconds",
    Kind.GAUGE,
    (),
    "For how long the consumer that stands still for longest took no event in though some wait; 0 for none.",
)
OUTBOX_DEPTH = Metric("farandole_outbox_depth", Kind.GAUGE, (), "Publications that the stream has not acknowledged.")
OUTBOX_OLDEST = Metric(
    "farandole_outbox_oldest_seconds", Kind.GAUGE, (), "How long the first of them has waited; 0 for none."
)
QUEUED_EVENTS = Metric(
    "farandole_queued_events",
    Kind.GAUGE,
    ("state",),
    "Events in a participant's queue of what isn't finished, by why.",
)
CIRCUIT_OPEN = Metric(
    "farandole_circuit_open", Kind.GAUGE, ("dependency",), "1 while a dependency is found to be down, 0 after that."
)
CIRCUIT_SAGAS = Metric(
    "farandole_circuit_waiting_sagas", Kind.GAUGE, ("dependency",), "Sagas that wait for a dependency."
)
OPEN_SAGAS = Metric(
    "farandole_open_sagas",
    Kind.GAUGE,
    ("definition", "status", "health"),
    "Sagas that have started and not ended.",
)
DEAD_LETTERS_OPEN = Metric(
    "farandole_dead_letters_open",
    Kind.GAUGE,
    ("participant", "reason"),
    "Dead letters that are neither redriven nor discarded.",
)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        EVENTS_HANDLED,
        EVENTS_PUT_OFF,
        HANDLER_DURATION,
        TRANSACTION_DURATION,
        BATCH_EVENTS,
        EVENTS_PUBLISHED,
        PUBLISH_DURATION,
        PUBLISH_FAILURES,
        SAGAS_STARTED,
        SAGA_DURATION,
        HEALTH,
        READ_TIME,
        CONSUMER_LAG,
        POSITION_AGE,
        OUTBOX_DEPTH,
        OUTBOX_OLDEST,
        QUEUED_EVENTS,
        CIRCUIT_OPEN,
        CIRCUIT_SAGAS,
        OPEN_SAGAS,
        DEAD_LETTERS_OPEN,
    )
}
"""All of them, by name."""

PROCESS_METRICS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""What prometheus_client tells of the process itself, without labels."""
