"""Words that say when, how many, and of which event."""

from __future__ import annotations

from datetime import UTC, datetime

from farandole.saga import Fact


def named(fact: Fact) -> str:
    """An event, with its place in the stream."""
    return f"{fact.type} (sequence {fact.sequence})"


def count(number: int, one: str, many: str) -> str:
    """`1 try`, `2 tries`."""
    return f"{number} {one if number == 1 else many}"


def sentence(text: str) -> str:
    """A text on one line that ends like a sentence."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def due(time: datetime | None) -> str:
    """The time of a deadline, to stand behind that word; nothing where there is none."""
    return f" ({at(time)})" if time is not None else ""


def at(time: datetime | None) -> str:
    """`2026-11-22T12:00:01.500Z`."""
    if time is None:
        return "an unknown time"
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
