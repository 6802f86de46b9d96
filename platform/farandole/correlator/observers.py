"""The port of those who are told what becomes of sagas. `farandole.testing.ObserverConformance` checks an observer.

A package offers one by an entry point of the group `farandole.observers`, whose value is an `ObserverFactory`;
`FARANDOLE_OBSERVERS` names those to use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from farandole.saga import Fact, Saga


@dataclass(frozen=True, slots=True)
class Transition:
    """One event that changed a saga's record."""

    before: Saga | None
    """None where there was no record. Both records are whole, with their histories, and have no payloads."""
    after: Saga
    event: Fact
    """What changed it; `event.sequence` is its place in the stream."""


class Observer(Protocol):
    """Somebody who is told of each transition, after it was committed.

    Order: of one saga, (definition, key), in the order of its commits, one at a time; `observe` is never called while
    another call is under way, and all calls come from one thread.

    Delivery: at most once. What was committed and not yet told is not told again after a crash, nor where the observer
    is so slow that its queue is full: those are counted, logged, and shown by `farandole plugins --running`. Whoever
    misses one can tell: `before.revision` is then not the revision that it saw last. A correlator that begins with an
    empty store folds the stream anew, and tells everything again, with the same sequences; so whatever an observer
    keeps is best kept by (definition, key, revision). Of several replicas each tells of the sagas that it folds.
    """

    def observe(self, transition: Transition) -> None:
        """Takes a transition in. It may block: nothing but this observer waits for it. What it raises is counted and
        logged, and the next transition follows."""
        ...

    def close(self) -> None:
        """Lets go of everything, once, after the last `observe`, at an orderly stop. It has two seconds."""
        ...


class ObserverFactory(Protocol):
    """What the entry point of an observer names."""

    def __call__(self) -> Observer:
        """A new observer, which reads its own settings from the environment.

        Raises `farandole.errors.ConfigurationError` where a setting is wrong: the correlator refuses to start. Raises
        it anything else, or hangs, the correlator works without this observer and calls the factory again later.
        """
        ...


Observe: TypeAlias = Callable[[Sequence[Transition]], None]
"""Takes the transitions of a commit, in order, in the event loop: it never waits and never raises."""


def tell_nobody(transitions: Sequence[Transition]) -> None:
    """Observes nothing."""
