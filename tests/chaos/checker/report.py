"""The verdict on a run, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.chaos.checker.choreographies import CHOREOGRAPHIES
from tests.chaos.checker.evidence import EndState
from tests.chaos.checker.invariants import Verdict

_MOST_SHOWN = 12
"""How many findings of one invariant are shown; the rest is counted."""


def show(console: Console, state: EndState, verdicts: Sequence[Verdict]) -> None:
    """Prints what happened, what was checked, and everything that is broken."""
    console.print(_sagas(state))
    console.print(_faults(state))
    console.print(_invariants(verdicts))
    for verdict in verdicts:
        _show_broken(console, verdict)


def _sagas(state: EndState) -> Table:
    table = Table("saga", "begun", "COMPLETED", "COMPENSATED", "FAILED", "other", "timed out", title="Sagas")
    for name in CHOREOGRAPHIES:
        sagas = [saga for saga in state.sagas if saga.choreography.name == name]
        ends = Counter(
            record.status if (record := state.records.sagas.get((name, saga.key))) else "no record" for saga in sagas
        )
        known = [ends.pop(status, 0) for status in ("COMPLETED", "COMPENSATED", "FAILED")]
        timed_out = sum(bool(saga.timed_out) for saga in sagas)
        table.add_row(name, *map(str, (len(sagas), *known, ends.total(), timed_out)))
    return table


def _faults(state: EndState) -> Table:
    table = Table("fault", "brought about", "seen to strike", "by", title="Faults")
    for strike in state.run.strikes:
        seen = Text(strike.problem or str(strike.observed), "" if strike.observed else "bold red")
        table.add_row(strike.kind, str(strike.brought_about), seen, strike.by)
    for process, count in state.run.kills.items():
        table.add_row(Text(f"  SIGKILL {process}"), "", str(count), "", style="dim")
    return table


def _invariants(verdicts: Sequence[Verdict]) -> Table:
    table = Table("invariant", "", "looked at", "broken", "", title="Invariants")
    for verdict in verdicts:
        word = Text("holds", "green") if verdict.holds else Text("BROKEN", "bold red")
        broken = str(len(verdict.broken)) if verdict.looked_at else "nothing to look at"
        table.add_row(verdict.invariant.name, verdict.invariant.says, f"{verdict.looked_at:,}", broken, word)
    return table


def _show_broken(console: Console, verdict: Verdict) -> None:
    if not verdict.broken:
        return
    console.print(Text(f"{verdict.invariant.name}: {verdict.invariant.says}", "bold red"))
    for finding in verdict.broken[:_MOST_SHOWN]:
        console.print(Text(f"  {finding}"), soft_wrap=True)
    if len(verdict.broken) > _MOST_SHOWN:
        console.print(f"  … and {len(verdict.broken) - _MOST_SHOWN} more")
