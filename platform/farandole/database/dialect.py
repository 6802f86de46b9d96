"""What differs between SQLite and PostgreSQL, behind one port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

ALONE = "farandole_alone"
"""The execution option of a connection whose transaction is to run with no other write transaction beside it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What an error says about a database that can't be used now."""

    remedy: str
    is_passing: bool = False
    """Whether an open connection gets over it."""
    may_rerun: bool = False
    """Whether the transaction is undone for certain, and gets through when it is run again, alone."""


class Dialect(Protocol):
    """One kind of database. It keeps nothing itself: what belongs to a connection is in the connection's `info`."""

    def engine(self, url: sa.URL, *, writes: bool, pool_size: int, application_name: str) -> sa.Engine:
        """An engine whose transactions are consistent views of what was committed; those that write see no other's
        writes come between what they read and what they write.

        A transaction that writes honours `ALONE`. The engine connects when it is first used.
        """
        ...

    def engine_beside(self, url: sa.URL, *, application_name: str) -> sa.Engine | None:
        """An engine for short transactions that no other one holds up, and that come one after the other whoever runs
        them; None where those of `engine` are no slower."""
        ...

    def name(self, url: sa.URL) -> str:
        """How the database is called in messages: without a password."""
        ...

    def make_place(self, url: sa.URL) -> None:
        """Makes what has to be there before the database can be opened, as far as a client can."""
        ...

    def refuse_replaced(self, connection: sa.Connection) -> None:
        """Raises `StoreUnavailableError` where what a connection has open is not the database any more."""
        ...

    def is_aborted(self, connection: sa.Connection) -> bool:
        """Whether the transaction can only be rolled back, since a statement in it has failed."""
        ...

    def doomed_by(self, connection: sa.Connection) -> BaseException | None:
        """The error after which this transaction has to run again, also where whoever met it has passed over it."""
        ...

    def end_sessions(self, connection: sa.Connection, run: str) -> None:
        """Ends what a process still does in the database, whose `application_name` begins with `run` and a space."""
        ...

    def trouble(self, error: BaseException) -> Trouble | None:
        """What this one error of the driver says; None where a statement is wrong, and for any other error."""
        ...

    def said_by(self, error: BaseException) -> str:
        """What an error of the driver says, without values of rows."""
        ...
