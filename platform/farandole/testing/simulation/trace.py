"""What happened in a run, in order: kept cheaply as it happens, made readable only where someone wants to read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORLD = "-"
"""Stands for what no process did: the broker, and the faults that strike it."""
_FAULT = "!"
_WIDEST_NAME = 14


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened."""

    time: float
    """Virtual seconds since the run began."""
    process: str
    what: str
    is_fault: bool


class Trace:
    """The lines of one run."""

    def __init__(self, *, wanted: bool) -> None:
        """`wanted` says whether someone is going to read it; else nothing should be added, which costs time."""
        self.wanted = wanted
        self._lines: list[Line] = []

    @property
    def lines(self) -> Sequence[Line]:
        """What happened, in order."""
        return self._lines

    def add(self, time: float, process: str, what: str) -> None:
        """Something was done."""
        self._lines.append(Line(time, process, what, is_fault=False))

    def strike(self, time: float, process: str, what: str) -> None:
        """A fault struck."""
        self._lines.append(Line(time, process, what, is_fault=True))

    def table(self) -> str:
        """The lines as text: the time in seconds, the process, and what it did; faults are marked by `!`."""
        return "\n".join(_rows(self._lines))


def _rows(lines: Iterable[Line]) -> Iterable[str]:
    for line in lines:
        mark = _FAULT if line.is_fault else " "
        yield f"{line.time:>10.4f} {mark} {line.process:<{_WIDEST_NAME}} {line.what}"
