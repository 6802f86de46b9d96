"""What commands print: plain tables, ages and times, and JSON."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH_WITHOUT_TERMINAL = 200
"""A pipe has no width; lines are cut for nobody then."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def console() -> Console:
    """Where people read."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, width=None if terminal else _WIDTH_WITHOUT_TERMINAL, soft_wrap=False)


def print_json(value: object) -> None:
    """One JSON value on standard output, for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_json_line(value: object) -> None:
    """One JSON value on one line, for programs that read a stream."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def quiet_logs() -> None:
    """What a command has to say it prints; the library's own log lines are for services."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def table(*columns: str, last_wraps: bool = True) -> Table:
    """A table without lines; only its last column wraps."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns[:-1]:
        made.add_column(column, no_wrap=True)
    made.add_column(columns[-1], no_wrap=not last_wraps, overflow="fold")
    return made


def colored(text: str) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    """A text whose first word is in its colour, where that is a status."""
    from rich.text import Text

    found = Text(printable(text))
    status = text.partition(" ")[0]
    if status == text or status.isupper():  # `stopped` alone is a status, at the head of a sentence it is none
        found.stylize(_COLORS.get(status, ""), 0, len(status))
    return found


def printable(text: str) -> str:
    """A text without the characters that would do something to a terminal; lines and tabs stay."""
    return _CONTROLS.sub("\ufffd", text)


def shell_word(text: str) -> str:
    """A text as one word of a shell's command line, in which nothing does anything to a terminal."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(_shell_escape(character) for character in text)
    return f"$'{escaped}'"


def _shell_escape(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def print_next(commands: Iterable[str]) -> None:
    """What to try next. A command is one line, however long, so that it can be copied."""
    lines = "".join(f"  {command}\n" for command in commands)
    sys.stdout.write(f"\nTry next:\n{printable(lines)}" if lines else "")
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, on standard error; elsewhere nothing.

    To be told now and then: what is at work, and how much of it is done, of how much (0 where that is not known).
    """
    from rich.progress import Progress

    if not sys.stderr.isatty():
        yield lambda _what, _done, _of: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of or None)

        yield report


def duration(seconds: float | None) -> str:
    """`3s`, `2m05s`, `1h07m`, `3d04h`; empty for none."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def timestamp(message: Any, field: str) -> str:  # noqa: ANN401 - any generated message
    """A timestamp field in the local time zone to the millisecond; empty where it is absent."""
    moment = _local(message, field)
    return moment.isoformat(sep=" ", timespec="milliseconds") if moment else ""


def cell_time(message: Any, field: str) -> str:  # noqa: ANN401 - any generated message
    """A timestamp field for a cell of a table.

    Like `timestamp`, but on a terminal, which has no room for it, without the zone, and without the day or the
    milliseconds: of today the time is told, of another day the minute.
    """
    moment = _local(message, field)
    if moment is None or not sys.stdout.isatty():
        return timestamp(message, field)
    if moment.date() == datetime.now().astimezone().date():
        return moment.time().isoformat(timespec="milliseconds")
    return moment.replace(tzinfo=None).isoformat(sep=" ", timespec="minutes")


def _local(message: Any, field: str) -> datetime | None:  # noqa: ANN401 - any generated message
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return moment.astimezone()


def word(enumeration: Any, number: int, prefix: str) -> str:  # noqa: ANN401 - any generated enumeration
    """An enumeration's value without its prefix: `COMPLETED`; empty for unspecified."""
    if number == 0:
        return ""
    try:
        return str(enumeration.Name(number)).removeprefix(prefix)
    except ValueError:
        return str(number)  # a newer server's value


_COLORS = {
    "SERVING": "green", "COMPLETED": "green", "running": "green", "SUCCEEDED": "green", "APPLIED": "green",
    "ON_TIME": "green", "SNOOZED": "cyan", "RETRYING": "yellow", "DEPENDENCY_DOWN": "yellow",
    "NOT_SERVING": "yellow", "restarting": "yellow", "stopping": "yellow", "COMPENSATING": "yellow", "RUNNING": "cyan",
    "OVERDUE": "yellow", "DUPLICATE": "yellow", "EARLY": "yellow", "LATE": "yellow", "COMPENSATED": "magenta",
    "unsupervised": "yellow",
    "UNREACHABLE": "red", "FAILED": "red", "COMPENSATION_FAILED": "red", "STALLED": "red", "QUARANTINED": "red",
    "UNEXPECTED": "red", "UNMATCHED": "red", "OPEN": "red", "DEAD_LETTERED": "red", "UNREADABLE": "red",
    "stopped": "dim", "PENDING": "dim", "VOIDED": "dim", "REDRIVEN": "dim", "DISCARDED": "dim", "SUPERSEDED": "dim",
    "WAITING": "dim",
}  # fmt: skip
