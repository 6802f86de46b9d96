"""What a handler may do inside the participant's one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from farandole.participant.outgoing import Outgoing

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """A step's view of the transaction that holds the inbox, the barrier, the service's state and the outbox."""

    connection: sa.Connection
    key: str
    """The saga's correlation key."""
    step_id: str
    """The same for this step of this saga, however often it is tried: the idempotency key of its outside effects."""
    time: datetime
    """When the stream stored the triggering event, in UTC. A handler that needs a time takes this one."""

    def execute(self, statement: sa.Executable, parameters: Parameters = None) -> sa.CursorResult[Any]:
        """Runs a SQLAlchemy Core statement on the participant's database."""
        return self.connection.execute(statement, parameters)


@dataclass(frozen=True, slots=True)
class CommandTransaction:
    """A remote procedure's view of one write transaction: state, and events into the outbox."""

    connection: sa.Connection
    outgoing: Outgoing

    def execute(self, statement: sa.Executable, parameters: Parameters = None) -> sa.CursorResult[Any]:
        """Runs a SQLAlchemy Core statement on the participant's database."""
        return self.connection.execute(statement, parameters)

    def publish(self, event: Message) -> None:
        """Publishes an event once the transaction has committed; its id follows from its content.

        Raises `InvalidEventError` where it breaks a rule, `ContractError` where the participant does not declare it.
        """
        self.outgoing.add_command(event)
