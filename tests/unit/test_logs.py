"""What a log line says, and what it never says."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from farandole import logs
from orders.v1 import order_events_pb2

SECRET = "4111-1111-1111-1111"
ORDER = order_events_pb2.OrderCreated(order_id="ord-1", card=SECRET)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """`configure` is for a whole process; give this one back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def test_a_line_is_one_json_object_with_service_level_time_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments")
    structlog.get_logger("some.module").warning("a card\nwas declined", amount_cents=1200)
    [line] = _lines(capsys)
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
    assert line == {
        "service": "payments",
        "level": "warning",
        "logger": "some.module",
        "message": "a card\nwas declined",
        "amount_cents": 1200,
    }


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_counts_for_libraries_too(capsys: pytest.CaptureFixture[str], level: str, shown: int) -> None:
    logs.configure("payments", level)
    for logger in (
        structlog.get_logger("own"),
        logging.getLogger("nats.aio.client"),
        logging.getLogger("grpc._cython"),
    ):
        for write in (logger.debug, logger.info, logger.warning, logger.error):
            write("text")
    assert len(_lines(capsys)) == 3 * shown


def test_what_libraries_log_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments")
    with logs.bound(saga_id="ord-1"):
        logging.getLogger("nats.aio.client").warning("lost %s after %d ms", "nats://127.0.0.1:4222", 12)
    [line] = _lines(capsys)
    assert line["message"] == "lost nats://127.0.0.1:4222 after 12 ms"
    assert (line["service"], line["saga_id"], line["logger"]) == ("payments", "ord-1", "nats.aio.client")


def test_warnings_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("payments")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        [line] = _lines(capsys)
        logging.captureWarnings(capture=False)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_configuring_again_replaces_and_does_not_double(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments")
    log = structlog.get_logger("own")
    log.info("first")
    logs.configure("shipping")
    log.info("second")
    assert [(line["service"], line["message"]) for line in _lines(capsys)] == [
        ("payments", "first"),
        ("shipping", "second"),
    ]


def test_ids_stand_in_every_line_inside_and_in_none_outside(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments")
    log = structlog.get_logger("own")
    with logs.bound(saga_id="ord-1", event_id="e-1"):
        with logs.bound(event_id="e-2", attempt=2):
            log.info("inner")
        log.info("outer")
    log.info("outside")
    with logs.bound(saga_id="ord-2"):
        log.info("no event")
    ids = [{name: line[name] for name in ("saga_id", "event_id", "attempt") if name in line} for line in _lines(capsys)]
    assert ids == [
        {"saga_id": "ord-1", "event_id": "e-2", "attempt": 2},
        {"saga_id": "ord-1", "event_id": "e-1"},
        {},
        {"saga_id": "ord-2"},
    ]


async def test_ids_of_concurrent_tasks_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments")
    log = structlog.get_logger("own")
    barrier = asyncio.Barrier(5)

    async def handle(key: str) -> None:
        with logs.bound(saga_id=key):
            await barrier.wait()
            log.info("handled", expected=key)

    await asyncio.gather(*(handle(f"ord-{number}") for number in range(5)))
    lines = _lines(capsys)
    assert len(lines) == 5
    assert all(line["saga_id"] == line["expected"] for line in lines)


@dataclass
class Holder:
    body: Any


def _fail(_local: object) -> None:
    raise ValueError("went wrong")


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "payload",
    [
        ORDER,
        ORDER.SerializeToString(),
        bytearray(ORDER.SerializeToString()),
        memoryview(ORDER.SerializeToString()),
        Holder(ORDER),
        [ORDER],
        {"event": [{"body": ORDER}]},
        (Holder(ORDER.SerializeToString()),),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_payload_is_never_logged(capsys: pytest.CaptureFixture[str], payload: object, form: Any) -> None:
    logs.configure("payments", format=form)
    log = structlog.get_logger("own")
    log.info("handled", payload=payload, sku="widget")
    log.bind(payload=payload).info("handled")
    if isinstance(payload, bytes | bytearray | type(ORDER)):
        logging.getLogger("library").warning("got %s", payload)
        logging.getLogger("library").warning("got %(payload)s", {"payload": payload})
    try:
        _fail(payload)
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed")
    out = capsys.readouterr().out
    assert SECRET not in out
    assert out.count("ValueError: went wrong") == 2, "the traceback is there, without its local variables"
    assert "widget" in out


class Colour(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, 1.5),
        (None, None),
        (True, True),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (timedelta(seconds=90), 90.0),
        (Path("a/b"), "a/b"),
        (Colour.RED, "RED"),
        (Size.LARGE, "LARGE"),
        (OSError("gone"), "gone"),
        ({"a": (1, {"b"})}, {"a": [1, ["b"]]}),
        (ORDER, "<orders.v1.order_events_pb2.OrderCreated>"),
        (b"123", "<3 bytes>"),
    ],
)
def test_plain_data_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], value: object, shown: object) -> None:
    logs.configure("payments")
    structlog.get_logger("own").info("text", value=value)
    assert _lines(capsys)[0]["value"] == shown


def test_the_console_form_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("payments", format="console")
    with logs.bound(saga_id="ord-1"):
        structlog.get_logger("own").info("handled")
    [line] = capsys.readouterr().out.splitlines()
    assert "handled" in line
    assert "ord-1" in line
    assert not line.startswith("{")
