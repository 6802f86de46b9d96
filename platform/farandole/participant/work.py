"""What the parts of one transaction of a participant share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from farandole.envelope import Event, StoredMessage, Unreadable
from farandole.participant.circuits import Circuits
from farandole.participant.intake import Intake
from farandole.participant.participant import Participant
from farandole.participant.queue_table import QueueTable
from farandole.participant.schedule import Schedule, ScheduleChanges
from farandole.participant.set_aside import SetAsideTable
from farandole.telemetry import Account

Decode = Callable[[StoredMessage], Event | Unreadable]


@dataclass(frozen=True, slots=True)
class Work:
    """One transaction's work."""

    participant: Participant
    queue: QueueTable
    set_aside: SetAsideTable
    intake: Intake
    schedule: Schedule
    """As it was when the transaction began."""
    circuits: Circuits
    """A copy, which counts once the transaction has committed."""
    decode: Decode
    now: datetime
    changes: ScheduleChanges = field(default_factory=ScheduleChanges)
    """To be applied to the schedule once the transaction has committed."""

    @property
    def connection(self) -> sa.Connection:
        """The transaction's connection."""
        return self.intake.connection

    @property
    def account(self) -> Account:
        """What the transaction tells of itself."""
        return self.intake.outgoing.account
