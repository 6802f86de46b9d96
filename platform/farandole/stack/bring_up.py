"""Bringing a stack up, from a command; the supervisor goes on after the command has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from farandole.errors import StackError
from farandole.stack.control import ServiceState, SupervisorClient, SupervisorState
from farandole.stack.embedded_broker import check_version, find_nats_server
from farandole.stack.log_rotation import last_lines
from farandole.stack.plan import Plan, overriding, passed_on
from farandole.stack.ports import Port, taken_ports
from farandole.stack.processes import ProcessRecord, take_down_orphans
from farandole.stack.provisioning import provision_broker
from farandole.stack.shape import keep_shape, kept_shape
from farandole.stack.stack_file import POSTGRES
from farandole.stack.status import ServiceStatus, StackStatus, combine
from farandole.stack.supervisor_lock import SUPERVISOR, supervisor_lock

DEFAULT_TIMEOUT_SECONDS = 60.0
_PROCESS_SECONDS = 5.0
"""How much longer many processes may take, which share the machine."""

_SUPERVISOR_START_SECONDS = 15.0
_POLL_SECONDS = 0.1
_LOG_LINES_SHOWN = 10
_MOST_DEATHS = 3
"""A service that has ended by itself so often while it was waited for is not going to serve."""

Report = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `bring_up` is."""

    status: StackStatus
    activity: str
    """What it does or waits for."""


@dataclass(frozen=True, slots=True)
class BroughtUp:
    """What `bring_up` did."""

    status: StackStatus
    started: tuple[str, ...]
    """The services that it started; empty where all ran already."""
    orphans: tuple[str, ...]
    """Services that a killed supervisor had left running, ended and started anew."""
    made: tuple[str, ...]
    """What it made for the services before they started, in words: `the streams EVENTS, DEADLETTERS`."""


def bring_up(
    plan: Plan,
    environment: Mapping[str, str],
    callers_directory: Path,
    *,
    timeout_seconds: float | None = None,
    report: Report,
) -> BroughtUp:
    """Starts the supervisor, where there is none, and every service that does not run; waits until all serve.

    A service is started once all that it depends on serve, and once what the embedded servers hold for services is
    there: the streams and the databases. The data stay those of one shape (`keep_shape`). `report` is called whenever
    something may have changed. Doing it again is fine.

    Raises `StackError`: ports are taken (all are named), the data are of another shape, the supervisor does not start,
    or not all services serve in time; the stack is left as it is then. Raises `ConfigurationError` or `BrokerError`
    where provisioning does.
    """
    if timeout_seconds is None:
        timeout_seconds = max(DEFAULT_TIMEOUT_SECONDS, len(plan.services) * _PROCESS_SECONDS)
    plan.home.prepare()
    client = SupervisorClient(plan.home)
    deadline = time.monotonic() + timeout_seconds
    orphans: Sequence[ProcessRecord] = ()
    state = client.state()
    if state is None:
        orphans = _clear_the_way(plan, environment)
        state = _start_supervisor(plan, environment, callers_directory, client)
    _refuse_another_place(plan, state)
    stopped = {service.name for service in state.services if service.state == "stopped"}
    _refuse_taken_ports([port for service in plan.services if service.name in stopped for port in service.ports])
    if any(broker.name in stopped for broker in plan.brokers):
        check_version(find_nats_server(environment))
    wanted = overriding(passed_on(environment, callers_directory))
    started: list[str] = []
    made: list[str] = []
    preparations = list(_preparations(plan, deadline))
    patience = _Patience(timeout_seconds, state.services)
    while True:
        status = combine(plan, state, state.services)
        serving = {service.name for service in status.services if service.is_serving}
        for preparation in [p for p in preparations if serving.issuperset(p.needs)]:
            report(Progress(status, preparation.activity))
            made += preparation.work()
            preparations.remove(preparation)
        for planned in plan.services:
            ready = serving.issuperset(planned.depends_on) and (planned.kind != "service" or not preparations)
            if planned.name in stopped and planned.name not in started and ready:
                client.start(planned.name, wanted)
                started.append(planned.name)
        waiting = [service.name for service in status.services if not service.is_serving]
        report(Progress(status, f"waiting for {', '.join(waiting)}" if waiting else "all services serve"))
        if not waiting and not preparations:
            return BroughtUp(status, tuple(started), tuple(orphan.service for orphan in orphans), tuple(made))
        if over := patience.over(status.services):
            raise StackError(_not_serving(plan, status, over))
        time.sleep(_POLL_SECONDS)
        state = _state(client, plan)


def bring_up_servers(
    plan: Plan,
    environment: Mapping[str, str],
    callers_directory: Path,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Starts the embedded servers alone, with empty databases and without any stream: for what comes before services.

    Raises `StackError` where the stack is running already, and like `bring_up`.
    """
    plan.home.prepare()
    client = SupervisorClient(plan.home)
    if client.state() is not None:
        raise StackError("the stack is running; `farandole down` first")
    deadline = time.monotonic() + timeout_seconds
    _clear_the_way(plan, environment)
    _start_supervisor(plan, environment, callers_directory, client)
    servers = [service.name for service in plan.services if service.kind != "service"]
    for name in servers:  # all of them first: a server of a cluster does not serve alone
        client.start(name, overriding(passed_on(environment, callers_directory)))
    for name in servers:
        start_service(plan, name, environment, callers_directory, timeout_seconds=timeout_seconds)
    if plan.postgres is not None:
        _make_databases(plan, deadline)


class _Patience:
    """How long a command waits for services."""

    def __init__(self, timeout_seconds: float, services: Sequence[ServiceState]) -> None:
        self._timeout_seconds = timeout_seconds
        self._until = time.monotonic() + timeout_seconds
        self._restarts = {service.name: service.restarts for service in services}

    def over(self, services: Sequence[ServiceStatus]) -> str:
        """Why to wait no longer; empty while there is hope."""
        for service in services:
            deaths = service.restarts - self._restarts.get(service.name, 0)
            if deaths >= _MOST_DEATHS and not service.is_serving:
                return f"{service.name} can't run: it has ended {deaths} times"
        if time.monotonic() > self._until:
            return f"not every service serves after {self._timeout_seconds:g} s"
        return ""


def _clear_the_way(plan: Plan, environment: Mapping[str, str]) -> Sequence[ProcessRecord]:
    """Ends what a killed supervisor left running, and refuses to go on where the stack could not start."""
    with supervisor_lock(plan.home) as ours:
        if not ours:
            return ()  # one is just starting; it will answer soon
        orphans = take_down_orphans(plan.home, stop_timeout_seconds=plan.longest_stop_seconds)
        _refuse_taken_ports([port for service in plan.services for port in service.ports])
        if plan.brokers:
            check_version(find_nats_server(environment))
        keep_shape(plan.home, plan.shape)
        return orphans


def _start_supervisor(
    plan: Plan, environment: Mapping[str, str], callers_directory: Path, client: SupervisorClient
) -> SupervisorState:
    log = plan.home.log(SUPERVISOR)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-m", "farandole.stack.supervisor", str(plan.file), str(callers_directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=plan.root,
            env=dict(environment),
            start_new_session=True,
        )
    until = time.monotonic() + _SUPERVISOR_START_SECONDS
    while time.monotonic() < until:
        state = client.state()
        if state is not None:
            return state
        if process.poll() not in (None, 0):  # 0: another one has the stack, and will answer
            break
        time.sleep(_POLL_SECONDS)
    raise StackError(f"the supervisor did not start; {log} ends with:\n{_indented(last_lines(log, _LOG_LINES_SHOWN))}")


def _state(client: SupervisorClient, plan: Plan) -> SupervisorState:
    state = client.state()
    if state is None:
        log = plan.home.log(SUPERVISOR)
        raise StackError(f"the supervisor has ended; {log} ends with:\n{_indented(last_lines(log, _LOG_LINES_SHOWN))}")
    return state


def _refuse_taken_ports(ports: Sequence[Port]) -> None:
    if taken := taken_ports(ports):
        raise StackError("\n".join(str(port) for port in taken))


def _refuse_another_place(plan: Plan, state: SupervisorState) -> None:
    """A running stack keeps the shape, the services and the ports with which it was started."""
    if (running_shape := kept_shape(plan.home)) not in (None, plan.shape):
        raise StackError(
            f"the stack runs as {running_shape}, and not as {plan.shape}: `{running_shape.command}` goes on with it; "
            "for another number of replicas `farandole down` first"
        )
    wanted = {planned.name: planned.port.address for planned in plan.services}
    running = {service.name: service.address for service in state.services}
    if wanted != running:
        differing = sorted(name for name in wanted.keys() | running.keys() if wanted.get(name) != running.get(name))
        raise StackError(
            "the stack runs with other services or ports than now asked for ("
            + ", ".join(f"{name}: {running.get(name, 'none')}, not {wanted.get(name, 'none')}" for name in differing)
            + "); `farandole down` first"
        )


@dataclass(frozen=True, slots=True)
class _Preparation:
    """What is made on an embedded server before any service starts."""

    activity: str
    needs: frozenset[str]
    """What must serve for it."""
    work: Callable[[], list[str]]
    """Does it, and says in words what was not there before. To do it again is safe."""


def _preparations(plan: Plan, deadline: float) -> Iterator[_Preparation]:
    if plan.brokers:
        servers = frozenset(broker.name for broker in plan.brokers)
        yield _Preparation("making the streams", servers, lambda: _make_streams(plan))
    if plan.postgres is not None:
        yield _Preparation("making the databases", frozenset({POSTGRES}), lambda: _make_databases(plan, deadline))


def _make_streams(plan: Plan) -> list[str]:
    assert plan.nats_url is not None, "there are brokers"
    outcomes = provision_broker(plan.nats_url, replicas=len(plan.brokers))
    made = [outcome.stream for outcome in outcomes if outcome.outcome == "created"]
    return [f"the streams {', '.join(made)}"] if made else []


def _make_databases(plan: Plan, deadline: float) -> list[str]:
    assert plan.postgres is not None, "its server is planned"
    plan.postgres.make_databases(plan.databases, within_seconds=max(deadline - time.monotonic(), 1.0))
    return []


def _not_serving(plan: Plan, status: StackStatus, over: str) -> str:
    """Which services do not serve, why, and how their logs end."""
    parts = [f"{over}; the stack is left as it is"]
    for service in status.services:
        if service.is_serving:
            continue
        log = plan.home.log(service.name)
        lines = last_lines(log, _LOG_LINES_SHOWN)
        parts.append(f"{service.name}: {_why(service, plan, status)}")
        parts.append(f"  {log} ends with:\n{_indented(lines)}" if lines else f"  {log} is empty")
    return "\n".join(parts)


def _why(service: ServiceStatus, plan: Plan, status: StackStatus) -> str:
    if service.state == "stopped":
        serving = {other.name for other in status.services if other.is_serving}
        missing = [name for name in plan.service(service.name).depends_on if name not in serving]
        return f"not started: waits for {', '.join(missing)}" if missing else "not started"
    return f"{service.state}, {service.health or 'not running'}: {service.reason or 'no reason given'}"


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"


def start_service(
    plan: Plan,
    name: str,
    environment: Mapping[str, str],
    callers_directory: Path,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> bool:
    """Starts one service and waits until it serves; returns whether it had not been running.

    It gets the caller's `FARANDOLE_*` variables over those with which the stack was brought up.
    Raises `StackError` where it can't be started or does not serve in time.
    """
    plan.service(name)
    client = SupervisorClient(plan.home)
    changed = client.start(name, overriding(passed_on(environment, callers_directory)))
    patience = _Patience(timeout_seconds, _state(client, plan).services)
    while True:
        state = _state(client, plan)
        status = combine(plan, state, [service for service in state.services if service.name == name])
        if status.is_serving:
            return changed
        if over := patience.over(status.services):
            raise StackError(_not_serving(plan, status, over))
        time.sleep(_POLL_SECONDS)
