"""One run: from a seed to what was found wrong. The same seed is the same run, down to the last message."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from structlog.typing import EventDict, WrappedLogger

from farandole.envelope import Event, StoredMessage, decode
from farandole.lifecycle import CORRELATOR
from farandole.testing.simulation.customers import Customers
from farandole.testing.simulation.database import at_once
from farandole.testing.simulation.deployment import Deployment, deployment_of
from farandole.testing.simulation.effects import Effect, read_effects
from farandole.testing.simulation.faults import Fault
from farandole.testing.simulation.invariants import broken
from farandole.testing.simulation.loop import NoProgressError, NothingLeftToHappenError, VirtualTimeLoop
from farandole.testing.simulation.process import CURRENT, Tasks
from farandole.testing.simulation.scenario import Scenario, ScenarioOf
from farandole.testing.simulation.stage import Service, Stage, registry_of_scenario, settings_of
from farandole.testing.simulation.striking import Striking
from farandole.testing.simulation.trace import Trace
from farandole.testing.simulation.world import PLATFORM_KEYS, World

_FIRST_STARTS = 0.1
"""In this share of the runs the correlator starts for the first time, with an empty stream."""
_LOOK_SECONDS = 0.25
"""How often a run looks whether all is quiet."""
_BOUND_SECONDS = 60.0
"""Once nothing goes wrong any more, and the deadlines of all sagas have passed, everything has ended within so long."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run."""

    seed: int
    violations: Sequence[str]
    """What does not hold, a line each; empty where all is well."""
    strikes: Counter[Fault]
    """How often each kind of fault did something."""
    drawn: Counter[Fault]
    """How often each was meant to strike."""
    sagas: Counter[str]
    """How many ended in which way."""
    seconds: float
    """How long it took, in virtual seconds."""
    events: int
    """How many events the stream holds in the end."""
    trace: Trace


def run_seed(scenario_of: ScenarioOf, seed: int, *, traced: bool = False) -> Result:
    """Runs a scenario once. `traced` keeps what happens for people to read; it changes nothing of the run."""
    trace = Trace(wanted=traced)
    loop = VirtualTimeLoop()
    tasks = Tasks()
    loop.set_task_factory(tasks)  # type: ignore[arg-type]  # a factory may take a context, since Python 3.11
    with _seeded(seed), _logging_into(trace, loop):
        draw = random.Random(f"{seed} scenario")  # noqa: S311 - reproducible on purpose
        is_first_start = draw.random() < _FIRST_STARTS
        scenario = scenario_of(draw)
        run = _Run(scenario, seed, loop, tasks, trace, None if is_first_start else _deployment(scenario))
        try:
            return loop.run_until_complete(run.result())
        except (NothingLeftToHappenError, NoProgressError) as error:
            return run.stuck(str(error))
        finally:
            loop.close()


def _deployment(scenario: Scenario) -> Deployment:
    """What the run begins with. What is drawn to make it is none of the run's: it may have been made for another."""
    with _seeded(0):
        return deployment_of(scenario.definitions, registry_of_scenario(scenario), settings_of(CORRELATOR))


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        loop: VirtualTimeLoop,
        tasks: Tasks,
        trace: Trace,
        deployment: Deployment | None,
    ) -> None:
        self._scenario = scenario
        self._tasks = tasks
        self._seed = seed
        self._loop = loop
        self._drawn: Counter[Fault] = Counter()
        self._stage = Stage(scenario, seed, loop, trace, deployment)

    async def result(self) -> Result:
        stage, scenario = self._stage, self._scenario
        stage.begin()
        customers = Customers(stage, random.Random(f"{self._seed} customers"))  # noqa: S311
        striking = Striking(stage, random.Random(f"{self._seed} strikes"), customers.publish_again)  # noqa: S311
        self._drawn = striking.schedule(customers.begin())
        await asyncio.sleep(scenario.faults.seconds)
        striking.heal()
        until = self._loop.time() + _BOUND_SECONDS + max(d.deadline.total_seconds() for d in scenario.definitions)
        is_quiet = 0
        while is_quiet < 2 and self._loop.time() < until and not stage.violations:
            await asyncio.sleep(_LOOK_SECONDS)
            is_quiet = is_quiet + 1 if not striking.holds and self._is_quiet(customers) else 0
        striking.count()
        world = self._world(customers)
        violations = [*stage.violations, *customers.errors, *broken(world), *_checked(scenario, world)]
        if not violations and is_quiet < 2:
            violations.append("all has ended, and there is no rest: " + "; ".join(self._unrest(customers)))
        stage.end()
        await customers.end()
        await self._end_tasks()
        return self._result(world, violations)

    def stuck(self, why: str) -> Result:
        """The result of a run that did not end."""
        violations = [*self._stage.violations, why]
        return self._result(None, violations)

    def _result(self, world: World | None, violations: Sequence[str]) -> Result:
        return Result(
            seed=self._seed,
            violations=violations,
            strikes=self._stage.strikes,
            drawn=self._drawn,
            sagas=Counter(saga.status.name for saga in world.sagas.values()) if world else Counter(),
            seconds=self._loop.time(),
            events=len(world.events) if world else 0,
            trace=self._stage.trace,
        )

    async def _end_tasks(self) -> None:
        """Cancels what is left, until it has ended."""
        while rest := [task for task in self._tasks.unfinished if task is not asyncio.current_task()]:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=_LOOK_SECONDS)

    def _is_quiet(self, customers: Customers) -> bool:
        return next(self._unrest(customers), None) is None

    def _unrest(self, customers: Customers) -> Iterator[str]:
        """What is still going on, what is told most cheaply first."""
        stage = self._stage
        if not customers.is_done:
            yield "not all that starts sagas is acknowledged"
        for alike in at_once(stage.store.summarize()):
            if not alike.status.is_terminal:
                yield f"{alike.count} sagas of {alike.definition} are {alike.status.name}"
        stored = stage.broker.stored
        for service in stage.services.values():
            for partition, wanted in _last_wanted(service, stored).items():
                _, position = service.positions.get(partition, (0, 0))
                if position < wanted:
                    yield f"{service.name} has come to {position} of {wanted} in partition {partition}"
        if waiting := at_once(stage.store.waiting_publications()):
            yield f"{len(waiting)} events wait in the outbox of {CORRELATOR}"
        for service in stage.services.values():
            for table, count in service.left_over().items():
                if count:
                    yield f"{count} rows wait in {table} of {service.name}"

    def _world(self, customers: Customers) -> World:
        stage = self._stage
        told_to_sagas = (message for message in stage.broker.stored if _key_of(message) not in PLATFORM_KEYS)
        decoded = [decode(stage.registry, message) for message in told_to_sagas]
        events = [event for event in decoded if isinstance(event, Event)]
        records = {
            (record.saga.definition, key): record
            for key in dict.fromkeys(event.key for event in events)
            for record in at_once(stage.store.get_sagas(key))
        }
        effects: list[Effect] = []
        for name, service in stage.services.items():
            if service.rehearsal is not None:
                effects += read_effects(name, service.rehearsal.disk.raw)
        return World(
            scenario=self._scenario,
            records=records,
            events=events,
            effects=effects,
            acknowledged=frozenset(customers.acknowledged),
            committed_at=stage.committed_at,
            begun_at=stage.begun_at,
            raised=stage.raised,
            reader=lambda participant, work: stage.services[participant].read(work),
            left_over=lambda participant: stage.services[participant].left_over(),
            inbox=lambda participant: stage.services[participant].inbox(),
        )


def _checked(scenario: Scenario, world: World) -> Iterator[str]:
    """What the scenario's own check finds; what it raises counts as well."""
    try:
        yield from scenario.check(world)
    except Exception as error:  # noqa: BLE001 - in a world that is broken a check may find what it does not expect
        yield f"check failed: {''.join(traceback.format_exception(error)).rstrip()}"


def _last_wanted(service: Service, stored: Sequence[StoredMessage]) -> dict[int, int]:
    """By partition: the sequence of the last event that a service consumes."""
    consumed = None if service.rehearsal is None else service.rehearsal.consumed
    return {
        message.partition or 0: message.sequence for message in stored if consumed is None or message.type in consumed
    }


def _key_of(message: StoredMessage) -> str:
    """The correlation key as the headers have it; empty where there are none."""
    return message.headers.get("ce-correlationid", "")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Has what is drawn elsewhere follow from the seed too: ids by `uuid.uuid4`, and Python's own random numbers."""
    state, uuid4 = random.getstate(), uuid.uuid4
    ids = random.Random(f"{seed} ids")  # noqa: S311 - reproducible on purpose
    random.seed(seed)
    uuid.uuid4 = lambda: uuid.UUID(int=ids.getrandbits(128), version=4)
    try:
        yield
    finally:
        uuid.uuid4 = uuid4
        random.setstate(state)


@contextmanager
def _logging_into(trace: Trace, loop: VirtualTimeLoop) -> Iterator[None]:
    """Has the logs of processes go into the trace, or nowhere where nobody wants it."""

    def keep(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        process = CURRENT.get()
        what = event.pop("event")
        details = " ".join(f"{name}={value}" for name, value in event.items() if name != "exc_info")
        trace.add(loop.time(), process.name if process else "-", f"{method}: {what} {details}".rstrip())
        raise structlog.DropEvent

    was_configured, before = structlog.is_configured(), structlog.get_config()
    structlog.configure(
        processors=[keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if trace.wanted else logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        if was_configured:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()
