"""What follows when a handler raises: another try after a pause, or giving up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from farandole.errors import ContractError


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and with which pauses, an event is tried whose handler raises. Each pause is twice the last one."""

    tries: int = 3
    """How often in all, the first time included; again as often after each redrive."""
    first: timedelta = timedelta(milliseconds=500)
    """The pause before the second try."""
    longest: timedelta = timedelta(seconds=30)
    """No pause is longer."""

    def __post_init__(self) -> None:
        """Raises `ContractError` where the numbers make no sense."""
        if self.tries < 1:
            raise ContractError(f"Retries: an event is tried at least once, not {self.tries} times")
        if not timedelta(0) < self.first <= self.longest:
            raise ContractError(f"Retries: the first pause {self.first} must be above 0 and not above {self.longest}")

    def pause_after(self, failed: int) -> timedelta | None:
        """How long to wait after so many failed tries; None where there is no further one."""
        if failed >= self.tries:
            return None
        pause = self.first
        for _ in range(failed - 1):
            if pause >= self.longest:
                break
            pause *= 2
        return min(pause, self.longest)
