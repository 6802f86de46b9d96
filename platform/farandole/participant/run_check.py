"""What is looked at before a handler runs: whether it needs what is down, and whether its event ended a process."""

from __future__ import annotations

from collections.abc import Mapping

from farandole.envelope import Event
from farandole.participant.circuits import CircuitOpenError, Circuits
from farandole.participant.crashes import CrashedError, Crashes
from farandole.participant.participant import Reaction

NO_PROBES: Mapping[str, str] = {}


class RunCheck:
    """One transaction's checks; see `intake.BeforeRun`."""

    def __init__(
        self, crashes: Crashes, circuits: Circuits, *, doubtful: bool, probes: Mapping[str, str] = NO_PROBES
    ) -> None:
        """`doubtful` says that every event is to be counted before it runs. `probes` are the sagas that are run
        although a dependency is down, by dependency."""
        self.ran: set[int] = set()
        """The counted events that ran: their counts go with the transaction."""
        self.crashed: set[int] = set()
        """The events that must not run any more."""
        self.probed: set[str] = set()
        """The dependencies that a probe was let through to."""
        self._crashes = crashes
        self._circuits = circuits
        self._doubtful = doubtful
        self._probes = probes

    def __call__(self, event: Event, reaction: Reaction) -> None:
        """Raises `CircuitOpenError`, and `CrashedError` or `CountFirstError`, see `Crashes.check`."""
        # a probe finds out only by being run, whatever else it was found to need
        if event.key not in self._probes.values() and (circuit := self._circuits.blocking(reaction.place)):
            raise CircuitOpenError(circuit.dependency, circuit.error)
        try:
            self._crashes.check(event.sequence, event.key, doubtful=self._doubtful)
        except CrashedError:
            self.crashed.add(event.sequence)
            raise
        self.probed |= {
            dependency
            for dependency, key in self._probes.items()
            if key == event.key and reaction.place in self._circuits.places(dependency)
        }
        if self._crashes.is_counted(event.sequence):
            self.ran.add(event.sequence)
