"""Turning telemetry on, where the environment asks for it. Only then is what it takes imported."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog

from farandole.envelope import Publication
from farandole.errors import BrokerError, ConfigurationError, Fault
from farandole.settings import Settings
from farandole.telemetry.foreseen import Foreseen
from farandole.telemetry.ledger import Ledger
from farandole.telemetry.port import NO_TELEMETRY, Account, Guard, Telemetry
from farandole.telemetry.readings import Source, keep_reading

if TYPE_CHECKING:
    from farandole.telemetry.metrics import Metrics
    from farandole.telemetry.traces import Traces

STOP_SECONDS = 2.0
"""How long the last spans may take to be exported when the process stops."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def telemetry(settings: Settings, foreseen: Foreseen) -> AsyncIterator[Telemetry]:
    """The telemetry of a process while it runs: traces where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, metrics where
    `FARANDOLE_METRICS_ADDRESS` is; `NO_TELEMETRY` where neither is.

    Raises `ConfigurationError` where the address can't be bound, or another protocol is asked for than the one that
    is spoken.
    """
    traces = _traces(settings) if _wants_traces() else None
    metrics = _metrics(settings.service, foreseen) if settings.metrics_address else None
    if traces is None and metrics is None:
        yield NO_TELEMETRY
        return
    stop_serving = _serve(metrics, settings.metrics_address) if metrics and settings.metrics_address else None
    try:
        yield _Telemetry(traces, metrics)
    finally:
        if stop_serving is not None:
            await _within_bounds(stop_serving, "serving metrics")
        if traces is not None:
            await _within_bounds(traces.stop, "exporting spans")


class _Telemetry:
    """Traces, metrics, or both. See `Telemetry`."""

    def __init__(self, traces: Traces | None, metrics: Metrics | None) -> None:
        self._traces = traces
        self._metrics = metrics

    def account(self) -> Account:
        return Ledger(self._traces, self._metrics)

    def published(self, publication: Publication, seconds: float) -> None:
        if self._traces is not None:
            self._traces.published(publication)
        if self._metrics is not None:
            self._metrics.published(publication, seconds)

    def not_published(self, error: BrokerError) -> None:
        if self._metrics is not None:
            self._metrics.not_published(error)

    @property
    def rpc_guard(self) -> Guard | None:
        return None if self._traces is None else self._traces.guard

    def beside(self, *sources: Source) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:
        metrics = self._metrics
        return () if metrics is None else (lambda: keep_reading(sources, metrics),)


def _wants_traces() -> bool:
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return not is_off and any(os.environ.get(name) for name in _ENDPOINTS)


def _traces(settings: Settings) -> Traces:
    asked = next(((name, os.environ[name]) for name in _PROTOCOLS if os.environ.get(name)), None)
    if asked is not None and asked[1] != _PROTOCOL:
        raise ConfigurationError([Fault(asked[0], f"must be {_PROTOCOL}; no other one is spoken here")])
    from farandole.telemetry.traces import Traces  # what is off is not imported

    _log.info("traces are exported", endpoint=next(os.environ[name] for name in _ENDPOINTS if os.environ.get(name)))
    return Traces(settings.service, settings.replica)


def _metrics(service: str, foreseen: Foreseen) -> Metrics:
    from farandole.telemetry.metrics import Metrics  # what is off is not imported

    return Metrics(service, foreseen)


def _serve(metrics: Metrics, address: str) -> Callable[[], None]:
    """Serves metrics over HTTP, in threads of its own; returns what ends that."""
    from prometheus_client import start_http_server  # what is off is not imported

    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        reason = f"{address} can't be bound: {error.strerror}; set another address"
        raise ConfigurationError([Fault("FARANDOLE_METRICS_ADDRESS", reason)]) from None
    _log.info("serving metrics", address=address)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


async def _within_bounds(stop: Callable[[], None], what: str) -> None:
    """Stops something that may hang, in a thread that the process does not wait for when it ends."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def run() -> None:
        stop()
        with suppress(RuntimeError):  # nobody has waited so long: the loop is closed
            loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=run, name=f"stop-{what}", daemon=True).start()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await stopped.wait()
    except TimeoutError:
        _log.warning("not ended in time; the process ends without it", what=what)
