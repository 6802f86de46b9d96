"""Whoever starts sagas: publishes their initiating events, or has a participant do so, until that is acknowledged."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from random import Random
from typing import Any

from google.protobuf.message import Message

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.envelope import Publication, encode
from farandole.errors import BrokerError, FarandoleError
from farandole.registry import EventType
from farandole.testing.simulation.scenario import Start
from farandole.testing.simulation.stage import Running, Stage, settings_of

_NAME = "customer"
_STARTING_SHARE = 0.7
"""Sagas begin in this share of the time in which faults do."""
_AT_ONCE = 0.3
_PAUSES = (0.05, 0.5)
_BARE = 0.3
_LATE_SECONDS = (0.0, 4.0)


class Customers:
    """Starts the sagas of one run."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self.acknowledged: set[str] = set()
        """The correlation keys of what was acknowledged."""
        self._stage = stage
        self._random = random
        self._published: list[Publication] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._broker = Broker(settings_of(_NAME), stage.broker.client(_NAME))
        self._publisher = Publisher(self._broker)

    def begin(self) -> list[float]:
        """Connects, and starts each saga at a time of its own; returns these, in seconds from now."""
        self._broker.start()
        until = self._stage.scenario.faults.seconds * _STARTING_SHARE
        moments = [
            0.0 if self._random.random() < _AT_ONCE else self._random.uniform(0.0, until)
            for _ in self._stage.scenario.starts
        ]
        for number, (start, at) in enumerate(zip(self._stage.scenario.starts, moments, strict=True)):
            self._begin(self._start(start, at, number))
        return moments

    @property
    def is_done(self) -> bool:
        """Whether all that was to be started is acknowledged."""
        return all(task.done() for task in self._tasks)

    @property
    def errors(self) -> list[str]:
        """What commands raised that is no refusal."""
        failed = (task.exception() for task in self._tasks if task.done() and not task.cancelled())
        return ["".join(traceback.format_exception(error)).rstrip() for error in failed if error is not None]

    def publish_again(self) -> bool:
        """Publishes once more what some saga was started with, soon or late; whether there is anything yet."""
        if not self._published:
            return False
        self._begin(self._again(self._random.choice(self._published)))
        return True

    async def end(self) -> None:
        """Stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.stop()
        await self._broker.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _start(self, start: Start, at: float, number: int) -> None:
        event_type = self._stage.registry.types[start.event.DESCRIPTOR.full_name]
        publication = self._publication(event_type, start.event, number)
        await asyncio.sleep(at)
        while True:
            if self._stage.trace.wanted:
                who = f"has {start.participant} start" if start.command else "starts"
                self._stage.note(_NAME, f"{who} {publication.key} by {event_type.name}")
            if await (self._command(start) if start.command else self._publish(publication)):
                break
            await asyncio.sleep(self._random.uniform(*_PAUSES))
        self.acknowledged.add(publication.key)
        self._published.append(publication)

    async def _publish(self, publication: Publication) -> bool:
        try:
            await self._publisher.publish(publication)
        except BrokerError:
            return False
        return True

    async def _command(self, start: Start) -> bool:
        """Calls the participant, as a client of its remote procedures would; whether it answered."""
        running = self._serving(start.participant)
        assert start.command is not None, "asked for by the caller"
        if running is None or running.runtime is None:
            return False
        call = running.process.spawn(running.runtime.execute(start.command))
        await asyncio.wait({call})
        if call.cancelled():
            return False
        error = call.exception()
        if error is not None and not isinstance(error, FarandoleError):
            raise error
        return error is None

    def _serving(self, participant: str) -> Running | None:
        processes = self._stage.services[participant].processes
        return self._random.choice(processes) if processes else None

    async def _again(self, publication: Publication) -> None:
        """The same event again: as it was, or under another id, or without any header."""
        await asyncio.sleep(self._random.uniform(*_LATE_SECONDS))
        headers = dict(publication.headers)
        how = self._random.random()
        if how < _BARE:
            headers = {name: value for name, value in headers.items() if name == "ce-datacontenttype"}
        elif how < 2 * _BARE:
            again = f"again-{self._random.getrandbits(32):08x}"
            headers |= {"ce-id": again, "Nats-Msg-Id": again}
        await self._publish(Publication(publication.key, publication.subject, headers, publication.data))

    def _publication(self, event_type: EventType, event: Message, number: int) -> Publication:
        return encode(event_type, event, source=_NAME, event_id=f"start-{number}", time=self._stage.now())
