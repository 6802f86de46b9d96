"""What goes wrong in a run, how often, and for how long. All of it is drawn from the run's seed."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType


class Fault(enum.Enum):
    """A kind of fault; the value says in words what it is."""

    KILL = "a process is killed at a moment of its own time"
    KILL_AT_A_GATE = "a process is killed between two things that it tells the broker or its database"
    SUSPEND = "a process is suspended, and goes on later as if nothing had happened"
    TAKEOVER = "a process is suspended while another one takes over its work, and goes on later"
    OVERLAP = "a second process of the same service is started beside the first"
    HELD_UNTIL_LATE = "a service stands still until about the deadline of a saga that needs it"
    RACE = "a saga is about to be timed out, and who decides that is suspended while its commit event comes"
    CLOCK_JUMP = "the wall clock of a process is set on or back"
    HANDLER_RAISES = "the handlers of a participant raise for a while"
    HANDLER_SNOOZES = "the handlers of a participant put off whatever comes, for a while"
    DEPENDENCY_DOWN = "the handlers of a participant find down what they depend on, for a while"
    DATABASE_FULL = "the disk of a database is full for a while"
    DATABASE_READ_ONLY = "a database is read-only for a while"
    DATABASE_LOCKED = "a database is locked for a while"
    COMMIT_FAILS = "a transaction is rolled back as it commits"
    COMMIT_UNKNOWN = "a transaction is committed, and its process told that the database is in trouble"
    DATABASE_SLOW = "transactions of a database take long for a while"
    CUT = "a connection is cut, and what is under way in it is lost"
    HALF_OPEN = "nothing passes on a connection any more, and neither end is told"
    DROP = "single messages and acknowledgements are lost for a while"
    SLOW_NETWORK = "messages take long for a while"
    BROKER_RESTART = "the broker is restarted"
    LEADER_CHANGE = "the stream has no leader for a while"
    BROKER_FULL = "the broker's disk is full for a while"
    FORGET_DUPLICATES = "the broker forgets which messages it has stored before"
    SAME_AGAIN = "the event that starts a saga is published again, soon or late"


_RATES: Mapping[Fault, float] = MappingProxyType(
    {
        Fault.KILL: 0.6,
        Fault.KILL_AT_A_GATE: 1.0,
        Fault.SUSPEND: 0.4,
        Fault.TAKEOVER: 0.9,
        Fault.OVERLAP: 0.2,
        Fault.HELD_UNTIL_LATE: 0.5,
        Fault.RACE: 1.0,
        Fault.CLOCK_JUMP: 0.5,
        Fault.HANDLER_RAISES: 0.4,
        Fault.HANDLER_SNOOZES: 0.3,
        Fault.DEPENDENCY_DOWN: 0.3,
        Fault.DATABASE_FULL: 0.3,
        Fault.DATABASE_READ_ONLY: 0.2,
        Fault.DATABASE_LOCKED: 0.2,
        Fault.COMMIT_FAILS: 0.5,
        Fault.COMMIT_UNKNOWN: 0.5,
        Fault.DATABASE_SLOW: 0.3,
        Fault.CUT: 0.5,
        Fault.HALF_OPEN: 0.3,
        Fault.DROP: 0.4,
        Fault.SLOW_NETWORK: 0.4,
        Fault.BROKER_RESTART: 0.2,
        Fault.LEADER_CHANGE: 0.3,
        Fault.BROKER_FULL: 0.2,
        Fault.FORGET_DUPLICATES: 0.4,
        Fault.SAME_AGAIN: 0.8,
    }
)


@dataclass(frozen=True, slots=True)
class Faults:
    """How much goes wrong in a run."""

    seconds: float = 5.0
    """Faults begin within so many virtual seconds; soon after, all that is left of them ends."""
    rates: Mapping[Fault, float] = field(default_factory=lambda: _RATES)
    """How often each kind is meant to strike in a run, on average. A kind that is not named never does."""

    @classmethod
    def none(cls) -> Faults:
        """Nothing goes wrong."""
        return cls(rates={})

    def drawn(self, random: Random, moments: Sequence[float]) -> list[tuple[float, Fault]]:
        """When what is to strike in one run, in order of time. `moments` are when something begins that is worth it.

        Half of the kinds are left out of each run, and the others strike twice as often: so that runs differ, and what
        only a single kind brings about is not hidden by the others. Every other strike comes soon after some moment: a
        saga takes a small part of a run.
        """
        strikes: list[tuple[float, Fault]] = []
        for fault, rate in self.rates.items():
            if random.random() < _LEFT_OUT:
                continue
            strikes += [(self._time(random, moments), fault) for _ in range(_count(random, rate / _LEFT_OUT))]
        return sorted(strikes, key=lambda strike: strike[0])

    def _time(self, random: Random, moments: Sequence[float]) -> float:
        if moments and random.random() < _AT_A_MOMENT:
            return min(random.choice(moments) + random.expovariate(1.0 / _SOON_SECONDS), self.seconds)
        return random.uniform(0.0, self.seconds)


_LEFT_OUT = 0.5
_AT_A_MOMENT = 0.5
_SOON_SECONDS = 0.03
_MOST = 20


def _count(random: Random, mean: float) -> int:
    """A number of strikes with that mean: as often as times between them, drawn one after the other, fit into 1."""
    at, count = random.expovariate(1.0) / mean if mean > 0 else 1.0, 0
    while at < 1.0 and count < _MOST:
        count += 1
        at += random.expovariate(1.0) / mean
    return count
