"""The page on chaos says what chaos does."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.checker.invariants import INVARIANTS
from tests.chaos.faults import Faults
from tests.chaos.proxy import Proxy
from tests.chaos.stack import Durations, Stack
from tests.chaos.storm import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text(encoding="utf-8")


def table(heading: str) -> list[tuple[str, ...]]:
    """The rows of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [tuple(cell.strip() for cell in row.split("|")) for row in rows[2:]]


def test_the_invariants_are_those_that_are_checked() -> None:
    assert table("What must hold") == [(invariant.name, invariant.says) for invariant in INVARIANTS]


def test_the_faults_are_those_that_are_brought_about(tmp_path: Path) -> None:
    plan = Plan.of(seed=1, minutes=7, sagas=5250, must_be_complete=True)
    faults = Faults(Stack(tmp_path, plan.durations), Proxy((), 1), plan.rhythm, seed=1, disk_problem="")
    told = [(kind, observed) for kind, _, observed in table("The faults")]
    assert told == [(strike.kind, strike.by) for strike in faults.strikes()]


def test_the_deadlines_and_the_size_are_those_of_the_plan() -> None:
    plan = Plan.of(seed=1, minutes=7, sagas=5250, must_be_complete=True)
    assert plan.durations == Durations(saga=20, step=8, compensation=15)
    assert "a saga has 20 seconds, a step 8, a compensation 15" in PAGE
    assert plan.kills >= 100
