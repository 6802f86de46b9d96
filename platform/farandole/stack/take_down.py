"""Taking a stack down, whole or one service, from a command."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from farandole.errors import StackError
from farandole.stack.control import SupervisorClient
from farandole.stack.plan import Plan
from farandole.stack.processes import recorded_processes, take_down_orphans
from farandole.stack.supervisor_lock import SUPERVISOR, supervisor_lock

_POLL_SECONDS = 0.05
_END_MARGIN_SECONDS = 10.0


def _down_timeout(plan: Plan) -> float:
    return sum(service.stop_timeout_seconds for service in plan.services) + _END_MARGIN_SECONDS


def take_down(plan: Plan) -> list[str]:
    """Stops every service and the supervisor, and returns what was running; the data stays. Fine when nothing runs.

    A supervisor that does not do as it is told is killed, and what it leaves behind is ended here.
    """
    if not plan.home.run.is_dir():
        return []
    ended: list[str] = []
    supervisors = [record for record in recorded_processes(plan.home) if record.service == SUPERVISOR]
    client = SupervisorClient(plan.home)
    try:
        state = client.state()
        if state is not None:
            ended = [service.name for service in state.services if service.pid is not None]
            client.down(timeout_seconds=_down_timeout(plan))
    except StackError:
        _kill_supervisor(plan)
    until = time.monotonic() + _down_timeout(plan)
    while time.monotonic() < until:
        with supervisor_lock(plan.home) as ours:
            # it lets go of the lock a moment before its process has ended
            if ours and not any(supervisor.is_alive() for supervisor in supervisors):
                orphans = take_down_orphans(plan.home, stop_timeout_seconds=plan.longest_stop_seconds)
                return ended + [orphan.service for orphan in orphans if orphan.service not in ended]
        time.sleep(_POLL_SECONDS)
    raise StackError(f"the supervisor of {plan.home.directory} does not end; see {plan.home.log(SUPERVISOR)}")


def remove_all(plan: Plan) -> list[str]:
    """Stops everything as `take_down` does, then removes all that the stack keeps; returns what was running.

    Of the stack's home what else stands in it stays. Raises `StackError` as `take_down` does, with nothing removed.
    """
    home = plan.home
    ended = take_down(plan)
    for directory in (home.run, home.logs, home.data):
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
    with suppress(OSError):  # somebody else's files are in it, or it is not there
        home.directory.rmdir()
    return ended


def _kill_supervisor(plan: Plan) -> None:
    for record in recorded_processes(plan.home):
        if record.service == SUPERVISOR and record.is_alive():
            os.kill(record.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class StoppedService:
    """What came of stopping one service."""

    was_running: bool
    beside: tuple[str, ...]
    """The other replicas of it that are kept running: its work is theirs now."""


def stop_service(plan: Plan, name: str) -> StoppedService:
    """Stops one service, or one replica of it, which then stays stopped.

    Raises `StackError` where the stack is not running, `ConfigurationError` for an unknown name.
    """
    planned = plan.service(name)
    client = SupervisorClient(plan.home)
    was_running = client.stop(name, timeout_seconds=planned.stop_timeout_seconds + _END_MARGIN_SECONDS)
    state = client.state()
    running = {service.name for service in state.services if service.state != "stopped"} if state else set()
    replicas = (replica.name for replica in plan.replicas(planned.database))
    return StoppedService(was_running, tuple(other for other in replicas if other != name and other in running))
