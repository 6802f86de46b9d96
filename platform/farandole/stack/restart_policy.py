"""How long to wait before a service that died is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff that forgets after a stable run."""

    first_seconds: float = 0.2
    factor: float = 2.0
    longest_seconds: float = 10.0
    stable_after_seconds: float = 10.0
    """A run at least this long counts as stable: the next death is a first one again."""

    def deaths_in_a_row(self, before: int, ran_seconds: float) -> int:
        """How many deaths in a row there are, with the one after a run of that length."""
        return 1 if ran_seconds >= self.stable_after_seconds else before + 1

    def delay_seconds(self, deaths_in_a_row: int) -> float:
        """How long to wait after that many deaths in a row, at least one."""
        exponent = min(deaths_in_a_row - 1, 64)
        return float(min(self.first_seconds * self.factor**exponent, self.longest_seconds))
