"""The lanes of a participant that one process works on, and who tells whom of rows in the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from farandole.broker.connection import Broker
from farandole.broker.nudges import Nudges
from farandole.clock import utc_now
from farandole.database import Database
from farandole.lanes import Lanes
from farandole.lanes_at_work import LanesAtWork
from farandole.participant.circuits import Circuit
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.participant import Participant
from farandole.participant.tables import ParticipantTables
from farandole.telemetry import NO_TELEMETRY, Telemetry


class ParticipantLanes(LanesAtWork[ParticipantBatchHandler]):
    """What a process of a participant works on now, by lane."""

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: ParticipantTables,
        *,
        lanes: Lanes,
        broker: Broker,
        batch_size: int,
        clock: Callable[[], datetime] = utc_now,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """`clock` is the machine's."""
        alone = asyncio.Lock()

        def handler_of(partitions: Collection[int]) -> ParticipantBatchHandler:
            return ParticipantBatchHandler(
                participant,
                database,
                tables,
                partitions=partitions,
                tell=self._tell_lanes_of,
                alone=alone,
                clock=clock,
                batch_size=batch_size,
                telemetry=telemetry,
            )

        super().__init__(
            participant.name,
            lanes=lanes,
            broker=broker,
            handler_of=handler_of,
            filters_of=participant.filters_of,
            batch_size=batch_size,
            hold_until_caught_up=False,
            telemetry=telemetry,
        )
        self._nudges = Nudges(broker, f"participants.{participant.name}.outbox")

    async def tell(self, lane: int) -> None:
        """Has whoever works on a lane look into the outbox, here or in another replica."""
        self._look_into_outbox(lane)
        await self._nudges.send(str(lane).encode())

    async def listen(self) -> None:
        """Looks into the outbox whenever another replica has written into it, until it is cancelled."""
        await self._nudges.listen(self._on_nudge)

    def _on_nudge(self, body: bytes) -> None:
        if body.isdigit():
            self._look_into_outbox(int(body))

    def _look_into_outbox(self, lane: int) -> None:
        if (found := self.at_work.get(lane)) is not None:
            found.worker.look_into_outbox()

    async def _tell_lanes_of(self, partitions: Collection[int]) -> None:
        for lane in {self.lanes.of(partition) for partition in partitions}:
            await self.tell(lane)

    @property
    def circuits(self) -> Mapping[Circuit, int]:
        """What is found to be down in any of them, and how many sagas wait for each."""
        at_work = self.at_work.values()
        return {circuit: waiting for one in at_work for circuit, waiting in one.handler.circuits.items()}
