"""What is looked at before a handler runs: whether its event has ended the process before."""

from __future__ import annotations

from farandole.envelope import Event
from farandole.participant.crashes import CrashedError, Crashes
from farandole.participant.participant import Reaction


class RunCheck:
    """One transaction's checks; see `intake.BeforeRun`."""

    def __init__(self, crashes: Crashes, *, doubtful: bool) -> None:
        """`doubtful` says that every event is to be counted before it runs."""
        self.ran: set[int] = set()
        """The counted events that ran: their counts go with the transaction."""
        self.crashed: set[int] = set()
        """The events that must not run any more."""
        self._crashes = crashes
        self._doubtful = doubtful

    def __call__(self, event: Event, _reaction: Reaction) -> None:
        """Raises `CrashedError` or `CountFirstError`, see `Crashes.check`."""
        try:
            self._crashes.check(event.sequence, event.key, doubtful=self._doubtful)
        except CrashedError:
            self.crashed.add(event.sequence)
            raise
        if self._crashes.is_counted(event.sequence):
            self.ran.add(event.sequence)
