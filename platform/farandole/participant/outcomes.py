"""What a handler may raise to say what is to become of its event. Any other exception means another try."""

from __future__ import annotations

from datetime import timedelta

from farandole.errors import ContractError

LONGEST_SNOOZE = timedelta(days=30)
_MOST_CHARACTERS = 100


class Reject(Exception):  # noqa: N818 - an outcome that a handler chooses, like returning an event
    """Raised by a handler that can't ever deal with the event: it becomes a dead letter now, without another try."""

    def __init__(self, reason: str) -> None:
        """`reason` says to people what is wrong with the event. Values that are marked not to be shown are blanked."""
        super().__init__(reason)
        self.reason = reason


class Snooze(Exception):  # noqa: N818 - see above
    """Raised by a handler that wants the event later: it and its saga's later events wait so long. It is no try."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        """`reason` says to people what it waits for.

        Raises `ContractError`, which is a failed try like any other, where `delay` is not above 0 or above 30 days.
        """
        if not timedelta(0) < delay <= LONGEST_SNOOZE:
            raise ContractError(f"Snooze: a delay is above 0 and at most {LONGEST_SNOOZE.days} days, not {delay}")
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class DependencyDown(Exception):  # noqa: N818 - see above
    """Raised by a handler that finds something down without which it can't work: a circuit opens. It is no try.

    The event waits, and with it every other one whose step was found to need the dependency, without being run. Now
    and then one of them is tried; once that does not find the dependency to be down any more, all go on.
    """

    def __init__(self, dependency: str, reason: str = "") -> None:
        """`dependency` is its name, the same wherever it is needed; `reason` says to people what is wrong with it.

        Raises `ContractError`, which is a failed try like any other, where it has no name or a long one.
        """
        if not 0 < len(dependency) <= _MOST_CHARACTERS:
            raise ContractError(
                f"DependencyDown: a dependency's name has 1 to {_MOST_CHARACTERS} characters, not {len(dependency)}"
            )
        super().__init__(reason)
        self.dependency = dependency
        self.reason = reason
