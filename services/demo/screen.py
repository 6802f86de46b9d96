"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from farandole.cli.output import table
from services.demo.books import Entry
from services.demo.outcomes import Outcome
from services.demo.progress import Progress

_LINE_EVERY_SECONDS = 1.0


class Screen:
    """Shows how far a run has come."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last_line_at = -_LINE_EVERY_SECONDS

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: Progress, seconds: float) -> None:
        """Shows where the sagas stand, `seconds` after the start."""
        if self._live:
            self._live.update(self._table(progress, seconds), refresh=True)
        elif progress.is_over or seconds - self._last_line_at >= _LINE_EVERY_SECONDS:
            self._last_line_at = seconds
            counts = ", ".join(f"{count} {name}" for name, count in sorted(progress.counts.items()))
            self._console.print(f"{seconds:6.1f} s  {progress.ended}/{self._total} ended: {counts}", soft_wrap=True)

    def _table(self, progress: Progress, seconds: float) -> Table:
        rate = progress.ended / seconds if seconds else 0.0
        shown = Table(caption=f"{progress.ended} of {self._total} ended, {seconds:.1f} s, {rate:.0f} sagas/s")
        shown.add_column("status")
        shown.add_column("sagas", justify="right")
        for name, count in sorted(progress.counts.items()):
            shown.add_row(name, str(count))
        return shown


def show_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Shows how the sagas of each kind have ended, beside how they must."""
    shown = table("", "SAGA", "KIND", "PLACED", "EXPECTED", "FOUND")
    for outcome in outcomes:
        shown.add_row(
            _verdict(outcome.is_expected),
            outcome.kind.definition,
            outcome.kind.name,
            str(outcome.sagas),
            outcome.kind.expected,
            ", ".join(f"{count} {status}" for status, count in sorted(outcome.found.items())),
        )
    console.print(shown)


def show_books(console: Console, entries: Sequence[Entry]) -> None:
    """Shows the books, line by line."""
    shown = table("", "BOOK", "BEFORE", "EXPECTED", "FOUND")
    for entry in entries:
        before = "" if entry.before is None else str(entry.before)
        shown.add_row(_verdict(entry.balances), entry.name, before, str(entry.expected), str(entry.found))
    console.print(shown)


def _verdict(is_right: bool) -> str:
    return "[green]ok[/]" if is_right else "[red]WRONG[/]"
