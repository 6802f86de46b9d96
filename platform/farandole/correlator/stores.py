"""The correlator's stores by the scheme of `FARANDOLE_DATABASE_URL`: each is a plug-in of the group `farandole.stores`.

A package adds a scheme by an entry point of that group, named as the scheme, whose value is a `StoreFactory`.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.database import Database

_log = structlog.get_logger(__name__)


class StoreFactory(Protocol):
    """What the entry point of a store names."""

    def __call__(self, url: str, *, application_name: str) -> CorrelatorStore:
        """The store that `FARANDOLE_DATABASE_URL` names, not opened yet: it connects in `CorrelatorStore.open`, which
        is tried again while it raises `StoreUnavailableError`. Called once, in the event loop.

        `application_name` is what a server of databases should know this process by, so that whoever takes over from
        it can end what it has left hanging there.

        Raises `ValueError`, whose text follows the variable's name, where the URL is wrong: `must be …`. The text never
        holds a password.
        """
        ...


def scheme_of(url: str) -> str:
    """What stands before the first colon: the name of the store."""
    return url.partition(":")[0]


def sql_store(url: str, *, application_name: str) -> CorrelatorStore:
    """The store in a SQL database. A `StoreFactory`."""
    return SqlCorrelatorStore(Database(url, application_name=application_name))


def memory_store(url: str, *, application_name: str) -> CorrelatorStore:  # noqa: ARG001 - there is nothing to choose
    """The store in memory, for tests: each start folds the whole stream. A `StoreFactory`."""
    _log.warning("records are kept in memory alone: every start folds the stream from its beginning")
    return MemoryCorrelatorStore()
