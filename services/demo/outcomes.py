"""What became of the sagas of a run, kind by kind, against what must become of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.demo.plan import KINDS, Kind, Placement


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the sagas of one kind stand."""

    kind: Kind
    found: Mapping[str, int]
    """How many, by the short name of their status."""

    @property
    def sagas(self) -> int:
        """How many there are."""
        return sum(self.found.values())

    @property
    def is_expected(self) -> bool:
        """Whether all have ended as they must."""
        return set(self.found) == {self.kind.expected}


def outcomes(placements: Sequence[Placement], status_of: Callable[[str], str]) -> list[Outcome]:
    """The outcome of each kind that was placed. `status_of` tells a saga's status by its id."""
    found: dict[Kind, Counter[str]] = {kind: Counter() for kind in KINDS}
    for placement in placements:
        found[placement.kind][status_of(placement.saga_id)] += 1
    return [Outcome(kind, statuses) for kind, statuses in found.items() if statuses]
