"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from services.demo.books import Entry
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
            counts = ", ".join(f"{count} {name}" for name, count in progress.counts.items() if count)
            self._console.print(f"{seconds:6.1f} s  {progress.ended}/{self._total} ended: {counts}", soft_wrap=True)

    def _table(self, progress: Progress, seconds: float) -> Table:
        rate = progress.ended / seconds if seconds else 0.0
        table = Table(caption=f"{progress.ended} of {self._total} ended, {seconds:.1f} s, {rate:.0f} sagas/s")
        table.add_column("status")
        table.add_column("sagas", justify="right")
        for name, count in sorted(progress.counts.items()):
            table.add_row(name, str(count))
        return table


def show_books(console: Console, entries: Sequence[Entry]) -> None:
    """Shows the books, line by line."""
    for entry in entries:
        if entry.balances:
            console.print(f"[green]ok   [/] {entry.name}: {entry.found}")
        else:
            console.print(f"[red]WRONG[/] {entry.name}: {entry.found}, where {entry.expected} must be")
