"""Structured logs on standard output: one JSON object a line, with the saga and the event that it is about.

Everything goes through here, what nats-py, grpc and other libraries log by `logging` too. A payload never does: any
value that is not plain data is shown by its type.
"""

from __future__ import annotations

import datetime as dt
import enum
import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import structlog
from google.protobuf.message import Message
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_LOUD_LIBRARIES = ("sqlalchemy", "alembic", "asyncio", "httpx", "httpcore")
"""Below a warning these tell statements with their parameters, URLs with what they hold of secrets, or nothing that an
operator could act on."""
_ECHOING_LIBRARIES = ("psycopg",)
"""These warn of what they raise as well, such as a conflict of two transactions, of which nothing is left by then."""


def configure(service: str, level: str = "info", format: Literal["json", "console"] = "json") -> None:  # noqa: A002 - the setting's name
    """Sends all logs of this process to standard output. To be called once, by a process's entry point.

    `service` stands in every line; `level` is debug, info, warning or error.
    """

    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    rendering: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _only_plain_data,
        structlog.processors.EventRenamer("message"),
    ]
    if format == "json":
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        # plain tracebacks: the pretty ones show local variables, and so payloads
        plain = structlog.dev.plain_traceback
        rendering.append(structlog.dev.ConsoleRenderer(event_key="message", exception_formatter=plain))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_without_payloads)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LEVELS[level])
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, _LEVELS[level]))
    for name in _ECHOING_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def bound(*, saga_id: str = "", event_id: str = "", **more: str | int) -> AbstractContextManager[None]:
    """Adds a saga id, an event id and more to every line logged inside it, in this task and those that it starts."""
    ids = {name: value for name, value in (("saga_id", saga_id), ("event_id", event_id)) if value}
    return structlog.contextvars.bound_contextvars(**ids, **more)


def _only_plain_data(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: value if name == "exc_info" else _plain(value) for name, value in event.items()}


def _without_payloads(record: logging.LogRecord) -> bool:
    """The same for `logging`'s positional arguments, which are formatted into the message. Keeps every record."""
    if isinstance(record.args, Mapping):
        record.args = {name: _without_payload(value) for name, value in record.args.items()}
    elif record.args:
        record.args = tuple(_without_payload(value) for value in record.args)
    return True


def _without_payload(value: object) -> object:
    return _plain(value) if isinstance(value, Message | bytes | bytearray | memoryview) else value


def _plain(value: object) -> object:
    """The value where it is plain data; what it is, not what it holds, where it could carry a payload."""
    match value:
        case enum.Enum():
            return value.name
        case None | bool() | int() | float() | str():
            return value
        case dt.datetime() | dt.date():
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case Path() | BaseException():
            return str(value)
        case Mapping():
            return {str(name): _plain(entry) for name, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(entry) for entry in value]
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case _:
            return f"<{type(value).__module__}.{type(value).__qualname__}>"
