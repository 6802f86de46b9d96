"""The page on chaos says what chaos does."""

from __future__ import annotations

import re
from pathlib import Path

from farandole.stack.shape import Shape
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


def planned(shape: Shape) -> Plan:
    return Plan.of(seed=1, minutes=7, sagas=5250, must_be_complete=True, shape=shape)


def test_the_invariants_are_those_that_are_checked() -> None:
    assert table("What must hold") == [(invariant.name, invariant.says) for invariant in INVARIANTS]


def test_the_faults_are_those_that_are_brought_about(tmp_path: Path) -> None:
    brought_about: dict[str, str] = {}
    for shape in (Shape(), Shape(replicas=3, database="postgres", nats="cluster")):
        plan = planned(shape)
        stack = Stack(tmp_path / str(shape.replicas), plan.durations, shape)
        faults = Faults(stack, Proxy((), [1]), plan.rhythm, seed=1, disk_problem="")
        brought_about |= {strike.kind: strike.by for strike in faults.strikes()}
    told = [(kind, observed) for kind, _, observed in table("The faults")]
    assert told == list(brought_about.items())


def test_the_deadlines_and_the_size_are_those_of_the_plan() -> None:
    plan = planned(Shape())
    assert plan.durations == Durations(saga=20, step=8, compensation=15)
    assert "a saga has 20 seconds, a step 8, a compensation 15" in PAGE
    assert plan.kills >= 100
    assert planned(Shape(nats="cluster")).leader_kills >= 20
