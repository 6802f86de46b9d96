"""What a run is made of: a broker, services with their stores, and the processes that come and go."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from random import Random
from typing import Any, TypeVar

import sqlalchemy as sa

from farandole.broker.connection import Broker
from farandole.correlator.changes import SagaChanges
from farandole.correlator.folded_lanes import folded_lanes
from farandole.correlator.main import open_store
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.store import Claim, CorrelatorStore
from farandole.errors import FencedError, StoreUnavailableError
from farandole.lane_keeper import LaneKeeper, WorkOf
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.lifecycle import CORRELATOR
from farandole.memory_leases import MemoryLeases
from farandole.participant.barrier import Direction
from farandole.participant.outcomes import DependencyDown, Snooze
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.step import Step
from farandole.participant.transaction import Transaction
from farandole.process import CHECKS
from farandole.registry import Registry
from farandole.rpc import HealthMonitor
from farandole.saga import Disposition
from farandole.service import Runtime
from farandole.settings import Settings
from farandole.testing.simulation.broker import SimulatedBroker
from farandole.testing.simulation.client import SimulatedClient
from farandole.testing.simulation.database import Disk, ProcessDatabase, ProcessLeases, process_store
from farandole.testing.simulation.deployment import Deployment
from farandole.testing.simulation.effects import Effect
from farandole.testing.simulation.faults import Fault
from farandole.testing.simulation.loop import VirtualTimeLoop
from farandole.testing.simulation.process import Process
from farandole.testing.simulation.rehearsal import Rehearsal, registry_of, rehearsal_of
from farandole.testing.simulation.scenario import Scenario
from farandole.testing.simulation.trace import WORLD, Trace

T = TypeVar("T")

_OFFSETS_SECONDS = (0.0, 0.0, 0.1, 3.0, 3600.0)
"""How far off the clocks of machines are, at most."""
_LATENCIES_SECONDS = ((0.0001, 0.001), (0.0001, 0.001), (0.001, 0.01), (0.005, 0.08))
"""Of messages, in runs of different kinds: in a slow network more goes on at the same time."""
_BATCH_SIZES = (1, 2, 10, 500)
_RESTART_SECONDS = (0.05, 1.0)
_LONG_RESTART_SECONDS = (1.0, 8.0)
_LONG_RESTARTS = 0.2
_LANES = (1, 1, 2, 3, 16)
"""In how many a service's work is shared out."""
_NAMESAKES = 0.6
"""In this share of the starts a process has the name of the one before: it takes over at once."""
_SNOOZE_SECONDS = (0.05, 1.0)
_OPEN_SECONDS = 1.0
"""Who can't open its store tries again after so long."""
_POSITIONS = "SELECT partition, epoch, position FROM farandole_position"
WAITING_TABLES = ("farandole_outbox", "farandole_queue", "farandole_prerequisite")
_TRIED = sa.text("SELECT max(attempts - attempts_before) FROM farandole_queue WHERE key = :key")


@dataclass(eq=False)
class Service:
    """What is started again and again: one participant, or the correlator."""

    name: str
    disk: Disk
    rehearsal: Rehearsal | None
    """None for the correlator."""
    processes: list[Running] = field(default_factory=list)
    """Those that live, the eldest first."""
    started: int = 0
    is_awaited: bool = False
    """Whether one is going to be started."""
    clock_offset: timedelta = timedelta(0)
    """By how much the clock of its machine is off."""
    raises: Fault | None = None
    """How its handlers end now, where they don't end well."""
    lanes: Lanes = Lanes()  # noqa: RUF009 - a frozen value
    """In how many lanes its processes share its work."""
    leases: MemoryLeases = field(init=False)
    """Who of them works on which."""
    positions: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The epoch and the position in its database, by partition, after the last transaction."""
    owners: dict[int, str] = field(default_factory=dict)
    """The process that claimed each partition last."""

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` finds in the participant's database, which nobody keeps from being read."""
        assert self.rehearsal is not None, "the correlator's store is another one"
        return self.rehearsal.disk.read(work)

    def inbox(self) -> dict[str, Disposition]:
        """What became of the events that the participant has dealt with, by their identities."""
        assert self.rehearsal is not None, "the correlator has no inbox"
        rows = self.rehearsal.disk.raw.execute("SELECT identity, disposition FROM farandole_inbox")
        return {identity: Disposition(disposition) for identity, disposition in rows}

    def left_over(self) -> dict[str, int]:
        """How many rows wait in each table of a participant's in which something waits."""
        if self.rehearsal is None:
            return {}
        return {
            table: self.rehearsal.disk.raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - own names
            for table in WAITING_TABLES
        }


@dataclass(eq=False)
class Running:
    """A process that lives, and what reaches into it from outside."""

    process: Process
    client: SimulatedClient
    monitor: HealthMonitor
    runtime: Runtime | None = None
    """What its remote procedures would use, once it has one."""


class HandlerFailsError(Exception):
    """Raised by handlers that are told to fail for a while."""


class Stage:
    """The world of one run."""

    def __init__(
        self, scenario: Scenario, seed: int, loop: VirtualTimeLoop, trace: Trace, deployment: Deployment | None
    ) -> None:
        """Without a `deployment` the correlator has never run before."""
        self.scenario = scenario
        self.loop = loop
        self.trace = trace
        self.strikes: Counter[Fault] = Counter()
        """How often each kind of fault struck."""
        self.violations: list[str] = []
        """What was seen to be wrong while the run went on."""
        self.committed_at: dict[Effect, datetime] = {}
        self.begun_at: dict[Effect, datetime] = {}
        """When the process was started that committed an effect first."""
        self.raised: set[tuple[str, str]] = set()
        """The participants of which a handler has raised, each with the saga for which it did."""
        self.random = Random(f"{seed} stage")  # noqa: S311 - reproducible on purpose
        self.broker = SimulatedBroker(loop, Random(f"{seed} broker"))  # noqa: S311 - reproducible on purpose
        self.broker.on_fault = self._tell_broker_fault
        self.broker.provision()
        self.store = deployment.store(self.broker) if deployment is not None else MemoryCorrelatorStore()
        self.broker.weather.latency_seconds = self.random.choice(_LATENCIES_SECONDS)
        self.batch_size = self.random.choice(_BATCH_SIZES)
        self.registry = registry_of_scenario(scenario)
        disks = Random(f"{seed} disks")  # noqa: S311 - reproducible on purpose
        self.services = {
            participant.name: Service(participant.name, Disk(disks, self.struck), rehearsal_of(participant))
            for participant in scenario.participants
        }
        self.services[CORRELATOR] = Service(CORRELATOR, Disk(disks, self.struck), None)
        for service in self.services.values():
            service.clock_offset = timedelta(seconds=self.random.uniform(-1, 1) * self.random.choice(_OFFSETS_SECONDS))
            service.lanes = Lanes(self.random.choice(_LANES))
            service.leases = MemoryLeases(loop.time)
        self._is_over = False
        self._effects: list[Effect] = []
        """Of the transaction that is going on."""

    def begin(self) -> None:
        """Makes the databases as they are at first, and starts every service."""
        if self.trace.wanted:
            self.broker.jetstream.on_stored = self._tell_stored
        for service in self.services.values():
            if service.rehearsal is not None:
                service.rehearsal.disk.begin()
            self._start_in(service, self.random.uniform(0.0, 0.2))

    def end(self) -> None:
        """Kills what lives; nothing is started any more."""
        self._is_over = True
        for service in self.services.values():
            for running in list(service.processes):
                self._remove(service, running)

    def now(self) -> datetime:
        """The broker's clock."""
        return self.broker.now()

    def note(self, process: str, what: str) -> None:
        """Adds to the trace."""
        self.trace.add(self.loop.time(), process, what)

    def struck(self, fault: Fault, process: str, what: str) -> None:
        """A fault has done something."""
        self.strikes[fault] += 1
        if self.trace.wanted:
            self.trace.strike(self.loop.time(), process, f"{fault.value}{': ' if what else ''}{what}")

    # processes

    def start(self, service: Service) -> Running | None:
        """Starts one more process of a service."""
        if self._is_over:
            return None
        service.is_awaited = False
        service.started += 1
        name = service.name if service.started == 1 else f"{service.name}#{service.started}"
        process = Process(name, self, lambda: self.broker.now() + service.clock_offset)
        running = Running(process, self.broker.client(name, process.gate), HealthMonitor(CHECKS))
        service.processes.append(running)
        if self.trace.wanted:
            self.note(name, "starts")
        program = self._correlator if service.rehearsal is None else self._participant
        main = process.start(lambda: program(service, running))
        main.add_done_callback(lambda task: self._ended(service, running, task.cancelled() or task.exception()))
        return running

    def kill(self, service: Service, running: Running) -> None:
        """Ends a process at once; where it was the last one, another is started after a while."""
        self._remove(service, running)
        self._see_to(service)

    def _remove(self, service: Service, running: Running) -> None:
        if running in service.processes:
            service.processes.remove(running)
            running.process.kill()
            running.client.kill()

    def _ended(self, service: Service, running: Running, how: BaseException | bool | None) -> None:
        """A program has ended by itself."""
        if running not in service.processes:
            return
        name = running.process.name
        self._remove(service, running)
        if isinstance(how, BaseException):
            error = "".join(traceback.format_exception(how)).rstrip()
            self.violations.append(f"{name} ended by an error:\n{error}")
        self._see_to(service)

    def _see_to(self, service: Service) -> None:
        """Has a service started again of which no process lives."""
        if not service.processes and not service.is_awaited:
            is_long = self.random.random() < _LONG_RESTARTS
            self._start_in(service, self.random.uniform(*(_LONG_RESTART_SECONDS if is_long else _RESTART_SECONDS)))

    def _start_in(self, service: Service, seconds: float) -> None:
        service.is_awaited = True
        self.loop.call_later(seconds, self._start_where_awaited, service)

    def _start_where_awaited(self, service: Service) -> None:
        if service.is_awaited:
            self.start(service)

    # programs: what a process of each service runs

    async def _participant(self, service: Service, running: Running) -> None:
        assert service.rehearsal is not None, "the correlator has a program of its own"
        process, participant, disk = running.process, service.rehearsal.participant, service.rehearsal.disk
        broker = Broker(settings_of(service.name), running.client)
        database = ProcessDatabase(
            process, service.disk, disk.engine, time=self.loop.time, ended=partial(self._transacted, service, process)
        )
        lanes = ParticipantLanes(
            participant,
            database,
            disk.tables,
            lanes=service.lanes,
            broker=broker,
            batch_size=self.batch_size,
            clock=process.clock,
        )
        keeper = self._keeper(service, running, broker, lanes.work_of)
        running.runtime = Runtime(participant, database, disk.tables, lanes, clock=process.clock)
        process.spawn(lanes.listen())
        broker.start()
        await self._work(keeper.run(), broker, process)

    def _replica_name(self, process: Process) -> str:
        return "the-one" if self.random.random() < _NAMESAKES else process.name

    async def _correlator(self, service: Service, running: Running) -> None:
        process = running.process
        broker = Broker(settings_of(service.name), running.client)
        store = process_store(
            process, service.disk, self.store, self.loop.time, partial(self._store_written, service, process)
        )
        broker.start()
        await self._open(store)
        lanes = folded_lanes(
            store,
            self.registry,
            lanes=service.lanes,
            broker=broker,
            changes=SagaChanges(),
            batch_size=self.batch_size,
            clock=process.clock,
            monotonic=self.loop.time,
        )
        keeper = self._keeper(service, running, broker, lanes.work_of)
        await self._work(keeper.run(), broker, process)

    def _keeper(self, service: Service, running: Running, broker: Broker, work_of: WorkOf) -> LaneKeeper:
        process = running.process
        return LaneKeeper(
            service.name,
            lanes=service.lanes,
            replica=Replica(self._replica_name(process), process.name),
            leases=ProcessLeases(process, service.disk, service.leases),
            broker=broker,
            work_of=work_of,
            report=running.monitor.set,
        )

    async def _open(self, store: CorrelatorStore) -> None:
        """Opens the store as soon as that can be done, as a process waits for it."""
        while True:
            try:
                return await open_store(store, self.scenario.definitions, replica=CORRELATOR)
            except StoreUnavailableError:
                await asyncio.sleep(_OPEN_SECONDS)

    async def _work(self, work: Coroutine[Any, Any, None], broker: Broker, process: Process) -> None:
        try:
            await work
        except FencedError as error:
            if self.trace.wanted:
                self.note(process.name, f"ends: {error}")
        finally:
            if not process.is_dead:
                await broker.close()

    # what the handlers do

    def handler_begins(self, participant: str, step: Step, direction: Direction, tx: Transaction) -> None:
        """See `process.Witness`. Raises where the handlers of the participant are told to, as long as there is a try
        left after this one: a dead letter would need somebody to decide about it."""
        service = self.services[participant]
        if service.raises is None or service.rehearsal is None:
            return
        tried = tx.connection.execute(_TRIED, {"key": tx.key}).scalar() or 0
        if service.raises is Fault.HANDLER_RAISES and tried + 1 >= service.rehearsal.participant.retries.tries:
            return
        self.struck(service.raises, participant, f"{direction.value} of {step.name} for {tx.key}")
        match service.raises:
            case Fault.HANDLER_SNOOZES:
                raise Snooze(timedelta(seconds=self.random.uniform(*_SNOOZE_SECONDS)), "told to wait")
            case Fault.DEPENDENCY_DOWN:
                raise DependencyDown(f"what {participant} needs", "told to be down")
            case _:
                raise HandlerFailsError("told to fail")

    def handler_ends(self, effect: Effect) -> None:
        """See `process.Witness`."""
        self._effects.append(effect)

    def handler_raises(self, participant: str, key: str) -> None:
        """See `process.Witness`."""
        self.raised.add((participant, key))

    def _transacted(self, service: Service, process: Process, committed: bool) -> None:
        """A transaction of a participant has ended."""
        effects, self._effects = self._effects, []
        if not committed:
            return
        for effect in effects:
            self.committed_at.setdefault(effect, self.now())
            self.begun_at.setdefault(effect, self.now() - timedelta(seconds=self.loop.time() - process.began))
            if self.trace.wanted:
                self.note(process.name, str(effect))
        assert service.rehearsal is not None, "only participants have a database of their own"
        for partition, *row in service.rehearsal.disk.raw.execute(_POSITIONS).fetchall():
            self._moved(service, process, partition, (row[0], row[1]))

    def _moved(self, service: Service, process: Process, partition: int, row: tuple[int, int]) -> None:
        """A transaction has ended, after which a participant's database has this epoch and position."""
        before = service.positions.get(partition, (0, 0))
        if row == before:
            return
        epoch, position = before
        if row[0] != epoch:
            service.owners[partition] = process.name
        elif service.owners[partition] != process.name:
            self.violations.append(
                f"{process.name} moved the position of partition {partition} to {row[1]} after "
                f"{service.owners[partition]} had taken over at {position}"
            )
        if row[1] < position:
            self.violations.append(
                f"{process.name} moved the position back from {position} to {row[1]} in partition {partition}"
            )
        if self.trace.wanted and row[1] != position:
            self.note(process.name, f"has taken in all up to {row[1]} of partition {partition}")
        service.positions[partition] = row

    def _store_written(self, service: Service, process: Process, what: str, claim: Claim) -> None:
        """The correlator's store was claimed, or a batch committed: `claim` is what the process holds then."""
        for partition in claim.partitions:
            epoch, position = service.positions.get(partition, (0, 0))
            if what == "claim":
                service.owners[partition] = process.name
            elif service.owners[partition] != process.name:
                self.violations.append(f"{process.name} committed after {service.owners[partition]} had taken over")
            now = claim.position_of(partition)
            if now < position:
                self.violations.append(
                    f"{process.name} moved the position back from {position} to {now} in partition {partition}"
                )
            service.positions[partition] = (max(epoch, claim.epoch), now)
        if self.trace.wanted and what == "commit":
            self.note(process.name, f"has folded all up to {claim.position}")

    def _tell_stored(self, stream: str, message: Any) -> None:  # noqa: ANN401 - a stored message
        key = message.headers.get("ce-correlationid", "")
        source = message.headers.get("ce-source", "anonymous")
        self.note(WORLD, f"{stream} {message.sequence}: {message.type} of {source} for {key}")

    def _tell_broker_fault(self, kind: str, detail: str) -> None:
        if self.trace.wanted:
            self.trace.strike(self.loop.time(), WORLD, f"{kind}{': ' if detail else ''}{detail}")


def registry_of_scenario(scenario: Scenario) -> Registry:
    """All events that play a part in it."""
    return registry_of(tuple(scenario.participants), frozenset(type(start.event) for start in scenario.starts))


@lru_cache(maxsize=256)
def settings_of(service: str) -> Settings:
    """A process's settings, whatever this machine's environment says."""
    return Settings.model_construct(
        service=service,
        default_grpc_port=0,
        nats_url="nats://simulated:4222",
        nats_user=None,
        nats_password=None,
        batch_size=500,
    )
