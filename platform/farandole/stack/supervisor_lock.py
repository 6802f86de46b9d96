"""Who may act as the supervisor of a home: whoever holds its lock, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from farandole.stack.home import Home

SUPERVISOR = "supervisor"
"""Its name among the pid files and logs of the services."""


@contextlib.contextmanager
def supervisor_lock(home: Home) -> Iterator[bool]:
    """Holds the right to act as the supervisor of a home; yields False where a supervisor has it."""
    with home.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
