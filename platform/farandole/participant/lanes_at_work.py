"""The lanes that one process works on: for each a handler, and the worker that drives it over the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from farandole.broker.connection import Broker
from farandole.broker.consumers import description_of, remove_consumers
from farandole.broker.nudges import Nudges
from farandole.broker.relay import Refused
from farandole.database import Database
from farandole.lane_at_work import LaneAtWork, unpublished
from farandole.lanes import Lanes
from farandole.outbox import OutboxRow
from farandole.participant.circuits import Circuit
from farandole.participant.handler import ParticipantBatchHandler, utc_now
from farandole.participant.participant import Participant
from farandole.participant.tables import ParticipantTables
from farandole.telemetry import NO_TELEMETRY, Telemetry
from farandole.worker import Worker


class LanesAtWork:
    """What a process works on now, by lane."""

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
        self.lanes = lanes
        self._participant = participant
        self._database = database
        self._tables = tables
        self._broker = broker
        self._batch_size = batch_size
        self._clock = clock
        self._telemetry = telemetry
        self._nudges = Nudges(broker, f"participants.{participant.name}.outbox")
        self._description = description_of(participant.name)
        self._alone = asyncio.Lock()
        self._at_work: dict[int, LaneAtWork[ParticipantBatchHandler]] = {}

    def work_of(self, lane: int, report: Callable[[str, str | None], None]) -> LaneAtWork[ParticipantBatchHandler]:
        """What works on a lane, for a `LaneKeeper`. `report` takes what health should know, see `Worker`."""
        participant, partitions = self._participant, self.lanes.partitions(lane)
        handler = ParticipantBatchHandler(
            participant,
            self._database,
            self._tables,
            partitions=partitions,
            tell=self._tell_lanes_of,
            alone=self._alone,
            clock=self._clock,
            batch_size=self._batch_size,
            telemetry=self._telemetry,
        )
        worker = Worker(
            broker=self._broker,
            durable=self.lanes.durable(participant.name, lane),
            description=self._description,
            filters=participant.filters_of(partitions),
            handler=handler,
            batch_size=self._batch_size,
            report=report,
            hold_until_caught_up=False,
            telemetry=self._telemetry,
        )
        return LaneAtWork(lane, handler, worker, self._at_work)

    async def remove_left_over_consumers(self) -> None:
        """Removes the durable consumers of another number of lanes, which nobody reads once all replicas have this
        one."""
        names = self.lanes.left_over(self._participant.name)
        await remove_consumers(self._broker, names, description=self._description)

    @property
    def at_work(self) -> Mapping[int, LaneAtWork[ParticipantBatchHandler]]:
        """By lane, as they are now."""
        return dict(sorted(self._at_work.items()))

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
        if (found := self._at_work.get(lane)) is not None:
            found.worker.look_into_outbox()

    async def _tell_lanes_of(self, partitions: Collection[int]) -> None:
        for lane in {self.lanes.of(partition) for partition in partitions}:
            await self.tell(lane)

    @property
    def circuits(self) -> Mapping[Circuit, int]:
        """What is found to be down in any of them, and how many sagas wait for each."""
        return {circuit: waiting for one in self._at_work.values() for circuit, waiting in one.handler.circuits.items()}

    @property
    def unpublished(self) -> list[OutboxRow]:
        """The outbox rows that the broker has not acknowledged, in the order in which they were written."""
        return unpublished(self._at_work.values())

    @property
    def refused(self) -> list[Refused]:
        """The outbox rows that the broker refuses, the one refused for longest first."""
        refused = [refused for one in self._at_work.values() for refused in one.worker.refused]
        return sorted(refused, key=lambda one: -one.seconds)
