"""One run: the stack comes up, load and faults rage, everything is put right, what is left is gathered as evidence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from farandole.stack.shape import Shape
from tests.chaos.checker.__main__ import DATABASES
from tests.chaos.checker.choreographies import SERVICES
from tests.chaos.checker.evidence import LEDGER, REBUILT, RUN, STREAM, Run
from tests.chaos.checker.stream import copy_stream, last_sequence
from tests.chaos.databases import DatabaseError
from tests.chaos.faults import Faults, Rhythm, raging
from tests.chaos.load import Load
from tests.chaos.operators import keep_redriving
from tests.chaos.proxy import Proxy
from tests.chaos.stack import Durations, Stack, StackFailedError, problem_at

LOAD = "load"
"""The link over which the load publishes."""

_REPORT_SECONDS = 5.0
_QUIET_SECONDS = 2.0
"""How long the stream must stand still before all is taken for quiet."""
_REBUILD_SECONDS = 120.0
_LAST_ACKNOWLEDGEMENTS_SECONDS = 60.0
_TERMINAL = (2, 4, 6)
"""`choreography.v1.SagaStatus` of sagas that have ended."""


@dataclass(frozen=True)
class Plan:
    """What a run is to be."""

    seed: int
    seconds: float
    """How long load and faults rage."""
    sagas: int
    kills: int
    """How many SIGKILLs there must be at least."""
    leader_kills: int
    """How often a leader must be killed, and succeeded, at least."""
    durations: Durations
    bound_seconds: float
    rhythm: Rhythm
    must_be_complete: bool
    """Whether a kind of fault that the machine does not allow breaks the run."""

    @classmethod
    def of(cls, *, seed: int, minutes: float, sagas: int, must_be_complete: bool, shape: Shape) -> Plan:
        """A run of so many minutes of storm: faults come as often in a short one as in a long one."""
        seconds = minutes * 60
        # a cluster elects a leader for seconds, and many processes share the machine
        is_usual = shape == Shape()
        durations = Durations(saga=20, step=8, compensation=15) if is_usual else Durations(30, 12, 20)
        return cls(
            seed=seed,
            seconds=seconds,
            sagas=sagas,
            kills=int(seconds / 4.2),
            leader_kills=int(seconds / 21) if shape.nats == "cluster" else 0,
            durations=durations,
            bound_seconds=60 if is_usual else 120,
            must_be_complete=must_be_complete,
            rhythm=Rhythm(
                kill=3.5 if shape.replicas == 1 else 2.5,  # so that many processes have their turn, too
                suspend=5,
                connection=2.5,
                disk=12,
                rival=20,
                long_stops=max(2, round(minutes * 0.7)),
                broker_disk=max(1, round(minutes / 2)),
                long_stop_seconds=durations.saga * 1.4,
                leader=14,
                session=6,
            ),
        )


Say = Callable[[str], None]


async def rage(plan: Plan, stack: Stack, disk_problem: str, say: Say) -> None:
    """Makes one run, and leaves its evidence in the stack's directory, and the disks mounted.

    Raises `StackFailedError` where the stack can't run.
    """
    directory = stack.directory
    if not disk_problem:
        for disk in stack.disks:
            disk.mount()
    async with Proxy((*SERVICES, LOAD), stack.broker_ports) as proxy:
        try:
            say("starting the stack")
            await asyncio.to_thread(stack.up, {name: proxy.url(name) for name in SERVICES})
            stack.databases.count_effects()
            faults = Faults(stack, proxy, plan.rhythm, seed=plan.seed, disk_problem=disk_problem)
            load = Load(
                nats_url=proxy.url(LOAD),
                orders=stack.address("orders"),
                parcels=stack.address("parcels"),
                ledger=directory / LEDGER,
                seed=plan.seed,
                sagas=plan.sagas,
                seconds=plan.seconds * 0.97,
            )
            await _storm(plan, stack, faults, load, say)
            healed = datetime.now(UTC)
            say("the faults are over; waiting until all is quiet")
            unsettled = await _settle(plan, stack, load, say)
            say("rebuilding the correlator's records from the stream")
            published = await _rebuild(stack)
            run = Run(
                seed=plan.seed,
                deadlines=dict.fromkeys(("order-fulfilment", "drone-delivery"), plan.durations.saga),
                bound_seconds=plan.bound_seconds,
                healed=healed,
                wanted_sagas=plan.sagas,
                wanted_kills=plan.kills,
                wanted_leader_kills=plan.leader_kills,
                kills=faults.kills_seen(),
                strikes=faults.strikes(),
                published_by_rebuild=published,
                must_be_complete=plan.must_be_complete,
                unsettled=unsettled,
            )
            (directory / RUN).write_text(json.dumps(asdict(run), default=_written, indent=2), encoding="utf-8")
            (directory / "faults.log").write_text("\n".join(faults.done.log) + "\n", encoding="utf-8")
            stack.databases.gather(directory / DATABASES)
        finally:
            await asyncio.to_thread(stack.down)


def _written(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} is not written")


async def _storm(plan: Plan, stack: Stack, faults: Faults, load: Load, say: Say) -> None:
    """Load and faults at the same time; returns once the faults are over and all load was acknowledged."""
    began = time.monotonic()
    loading = asyncio.create_task(load.run())
    beside = [
        loading,
        asyncio.create_task(_tell(began, stack, faults, load, say)),
        asyncio.create_task(keep_redriving(stack.address("correlator"))),
    ]
    try:
        async with raging(faults, plan.seconds):
            pass
        async with asyncio.timeout(_LAST_ACKNOWLEDGEMENTS_SECONDS):
            await loading
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _tell(began: float, stack: Stack, faults: Faults, load: Load, say: Say) -> None:
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        ended, timed_out = await asyncio.to_thread(_ended, stack)
        kinds = faults.done.brought_about
        struck = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
        say(
            f"{time.monotonic() - began:4.0f} s  {load.progress.begun} sagas begun, {ended} ended, "
            f"{timed_out} timed out | {struck}"
        )


def _ended(stack: Stack) -> tuple[int, int]:
    """How many sagas have ended, and how many were timed out, as the correlator has recorded it."""
    ended, timed_out = f"status IN {_TERMINAL}", "cause = 2"
    try:
        row = stack.databases.one(
            "correlator", f"SELECT count(*) FILTER (WHERE {ended}), count(*) FILTER (WHERE {timed_out}) FROM saga"
        )
    except DatabaseError:
        return 0, 0
    return int(row[0]), int(row[1])


async def _settle(plan: Plan, stack: Stack, load: Load, say: Say) -> str:
    """Waits until nothing moves any more; returns what still does when every deadline and the bound have passed."""
    until = time.monotonic() + plan.durations.saga + plan.bound_seconds
    last, since = -1, time.monotonic()
    told = time.monotonic()
    while True:
        moving = await _moving(stack, load)
        with contextlib.suppress(Exception):
            sequence = await last_sequence(stack.nats_url)
            if sequence != last:
                last, since = sequence, time.monotonic()
        if not moving and last >= 0 and time.monotonic() - since > _QUIET_SECONDS:
            return ""
        if time.monotonic() > until:
            return moving or "the stream still grows"
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            say(f"not quiet yet: {moving or 'the stream grows'}")
        await asyncio.sleep(0.5)


async def _moving(stack: Stack, load: Load) -> str:
    """What is not as it is to be at the end; nothing where all is."""
    problems = {name: problem for name in stack.processes if (problem := await stack.problem_of(name))}
    return str(problems) if problems else await asyncio.to_thread(_unfinished, stack, load.progress.begun)


def _unfinished(stack: Stack, begun: int) -> str:
    try:
        found = {
            f"{table} of {name}": count
            for name in SERVICES
            for table in ("farandole_outbox", *(("farandole_queue",) if name != "correlator" else ()))
            if (count := _count(stack, name, f"SELECT count(*) FROM {table}"))
        }
        ended = _count(stack, "correlator", f"SELECT count(*) FROM saga WHERE status IN {_TERMINAL}")
    except DatabaseError as error:
        return repr(error)
    if ended < begun:
        found["sagas that have not ended"] = begun - ended
    return str(found) if found else ""


def _count(stack: Stack, service: str, statement: str) -> int:
    count: int = stack.databases.one(service, statement)[0]
    return count


async def _rebuild(stack: Stack) -> list[str]:
    """Has a correlator fold the stream into an empty store, and copies the stream then.

    Returns the types of what came into the stream meanwhile. Raises `StackFailedError` where it does not get there.
    """
    for replica in stack.processes_of("correlator"):
        await asyncio.to_thread(stack.farandole, "stop", replica)
    before = await last_sequence(stack.nats_url)
    with stack.second_process("correlator", stack.nats_url, database=REBUILT) as second:
        until = time.monotonic() + _REBUILD_SECONDS
        while problem := await problem_at(second.address):
            if time.monotonic() > until or second.process.poll() is not None:
                raise StackFailedError(f"a correlator on an empty store does not serve: {problem}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(_QUIET_SECONDS)
    await copy_stream(stack.nats_url, stack.directory / STREAM)
    with (stack.directory / STREAM).open(encoding="utf-8") as lines:
        messages = [json.loads(line) for line in lines]
    return [message["subject"].split(".", 2)[2] for message in messages if message["sequence"] > before]
