"""Circuits: what is down that handlers depend on, who waits for it, and when it is tried again. Pure.

A circuit opens where a handler raises `DependencyDown`. While it is open, nothing is run of what was found to need the
dependency, but now and then one event, as a probe. Whatever else that comes to than the same again closes the circuit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from farandole.errors import ContractError
from farandole.participant.outcomes import DependencyDown

Place = tuple[str, str, str]
"""What needs a dependency: (definition, step, direction)."""


class CircuitOpenError(DependencyDown):
    """In place of running an event: it would need what is known to be down."""


@dataclass(frozen=True, slots=True)
class Probes:
    """When a dependency that is down is tried again. Each pause is twice the last one."""

    first: timedelta = timedelta(seconds=1)
    """The pause before the first probe."""
    longest: timedelta = timedelta(seconds=30)
    """No pause is longer."""

    def __post_init__(self) -> None:
        """Raises `ContractError` where the numbers make no sense."""
        if not timedelta(0) < self.first <= self.longest:
            raise ContractError(f"Probes: the first pause {self.first} must be above 0 and not above {self.longest}")


@dataclass(frozen=True, slots=True)
class Circuit:
    """A dependency that is down."""

    dependency: str
    opened: datetime
    error: str
    """What the last try was told, with nothing in it that must not be shown."""
    pause: timedelta
    """How long to wait for the next probe."""
    next_probe: datetime
    places: frozenset[Place]
    """What was found to need it."""
    probed: int = 0
    """How often it was tried: the next probe is another event's turn."""


@dataclass(slots=True)
class Circuits:
    """The open circuits. A transaction works on a copy, which counts once that has committed."""

    probes: Probes
    open: dict[str, Circuit] = field(default_factory=dict)
    """By dependency."""
    found_down: set[str] = field(default_factory=set)
    """What handlers have found to be down in this transaction."""

    def copy(self) -> Circuits:
        """One for a transaction to work on."""
        return Circuits(self.probes, dict(self.open))

    def places(self, dependency: str) -> Collection[Place]:
        """What was found to need a dependency that is down; empty where it is not."""
        circuit = self.open.get(dependency)
        return circuit.places if circuit is not None else ()

    def blocking(self, place: Place) -> Circuit | None:
        """A circuit that keeps something from being run; None where none does."""
        return next((circuit for circuit in self.open.values() if place in circuit.places), None)

    def met(self, dependency: str, place: Place, error: str, now: datetime) -> None:
        """A handler has found a dependency to be down."""
        self.found_down.add(dependency)
        circuit = self.open.get(dependency)
        if circuit is None:
            first = self.probes.first
            self.open[dependency] = Circuit(dependency, now, error, first, now + first, frozenset({place}))
        else:
            self.open[dependency] = replace(circuit, error=error, places=circuit.places | {place})

    def known_down(self, dependency: str, place: Place, error: str, since: datetime, now: datetime) -> None:
        """An event waits for a dependency since an earlier session: that is tried at once."""
        circuit = self.open.get(dependency)
        if circuit is None:
            self.open[dependency] = Circuit(dependency, since, error, self.probes.first, now, frozenset({place}))
        else:
            opened = min(circuit.opened, since)
            self.open[dependency] = replace(circuit, opened=opened, places=circuit.places | {place})

    def probed(self, dependency: str, outcome: bool | None, now: datetime) -> None:
        """What a probe came to: `True` closes the circuit, `False` says that it is down still, None nothing."""
        circuit = self.open.get(dependency)
        if circuit is None:
            return
        if outcome:
            del self.open[dependency]
            return
        pause = min(circuit.pause * 2, self.probes.longest) if outcome is False else circuit.pause
        self.open[dependency] = replace(circuit, pause=pause, next_probe=now + pause, probed=circuit.probed + 1)

    def due_in(self, now: datetime) -> float | None:
        """In how many seconds a probe is due; None where no circuit is open."""
        for circuit in list(self.open.values()):
            if circuit.next_probe - now > circuit.pause:  # the clock was set back
                self.open[circuit.dependency] = replace(circuit, next_probe=now + circuit.pause)
        return min(((circuit.next_probe - now).total_seconds() for circuit in self.open.values()), default=None)

    def due(self, now: datetime) -> Iterable[Circuit]:
        """The circuits of which a probe is due."""
        return [circuit for circuit in self.open.values() if circuit.next_probe <= now]

    @property
    def problem(self) -> str | None:
        """What is down, for health; None where nothing is."""
        return "; ".join(map(_words, sorted(self.open.values(), key=lambda c: c.dependency))) or None


def _words(circuit: Circuit) -> str:
    since = circuit.opened.isoformat(timespec="seconds").replace("+00:00", "Z")
    said = f": {circuit.error}" if circuit.error else ""
    return f"{circuit.dependency} has been down since {since}{said}"


def changed(before: Mapping[str, Circuit], after: Mapping[str, Circuit]) -> tuple[list[Circuit], list[Circuit]]:
    """The circuits that were opened, and those that were closed."""
    return [after[d] for d in after if d not in before], [before[d] for d in before if d not in after]
