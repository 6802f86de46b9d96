"""Where a run begins that is not about the first start: the stream and the correlator know the definitions already."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from farandole.broker.connection import Broker
from farandole.correlator.changes import SagaChanges
from farandole.correlator.definitions import Definitions
from farandole.correlator.folded_lanes import folded_lanes
from farandole.correlator.main import open_store
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.definition import Definition
from farandole.envelope import Publication
from farandole.lanes import Lanes
from farandole.registry import Registry
from farandole.settings import Settings
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.loop import VirtualTimeLoop

_MOST_KEPT = 200
_MOST_SECONDS = 10.0


@dataclass(frozen=True)
class Deployment:
    """The stream and the correlator's store as they are once definitions are active in every partition."""

    publications: Sequence[Publication]
    _store: MemoryCorrelatorStore

    def store(self, broker: SimulatedBroker) -> MemoryCorrelatorStore:
        """Puts into an empty stream what it holds then; returns a store of its own for one run."""
        usual, broker.weather.store_seconds = broker.weather.store_seconds, (0.0, 0.0)  # stored before anything strikes
        for one in self.publications:
            broker.jetstream.takes(one.subject, "", one.headers, one.data)
        broker.weather.store_seconds = usual
        return _copied(self._store)


_kept: OrderedDict[tuple[str, ...], Deployment] = OrderedDict()
"""By the digests of the definitions."""


def deployment_of(definitions: Sequence[Definition], registry: Registry, settings: Settings) -> Deployment:
    """The same for the same definitions."""
    digests = tuple(definition.digest for definition in definitions)
    found = _kept.get(digests)
    if found is None:
        found = _kept[digests] = _deploy(definitions, registry, settings)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return found


def _deploy(definitions: Sequence[Definition], registry: Registry, settings: Settings) -> Deployment:
    """Has a correlator read, on a broker that does nothing wrong, that all definitions are active."""
    loop = VirtualTimeLoop()
    broker = SimulatedBroker(loop, Random(0))  # noqa: S311 - nothing is drawn from it that matters
    broker.provision()
    publications = Definitions(definitions).missing(registry, broker.now())
    for one in publications:
        broker.jetstream.takes(one.subject, "", one.headers, one.data)
    store = MemoryCorrelatorStore()

    async def read() -> None:
        connection = Broker(settings, broker.client(settings.service))
        is_up_to_date = asyncio.Event()

        def report(check: str, problem: str | None) -> None:
            if check == "events" and problem is None:
                is_up_to_date.set()

        await open_store(store, definitions, replica=settings.service)
        lanes = folded_lanes(
            store,
            registry,
            lanes=Lanes(),
            broker=connection,
            changes=SagaChanges(),
            batch_size=len(publications),
            clock=broker.now,
            monotonic=loop.time,
        )
        connection.start()
        working = asyncio.create_task(lanes.work_of(0, report).run())
        async with asyncio.timeout(_MOST_SECONDS):
            await is_up_to_date.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await connection.close()

    try:
        loop.run_until_complete(read())
    finally:
        loop.close()
    return Deployment(publications, store)


def _copied(store: MemoryCorrelatorStore) -> MemoryCorrelatorStore:
    """A store of its own with the same in it: its tables are dictionaries, and what they hold never changes."""
    copied = copy.copy(store)
    for name, value in vars(store).items():
        if isinstance(value, dict):
            vars(copied)[name] = dict(value)
    return copied
