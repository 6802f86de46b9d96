"""The supervisor: a detached process that starts the services of a stack, and starts again what dies.

It lives in a session of its own and holds a lock for as long as it lives, so that a stack has at most one. It talks
to nobody but its owner, over a socket (`control`). It knows processes, not health: a service that says NOT_SERVING is
alive, and tells its reason to whoever asks it.

Run as `python -m farandole.stack.supervisor STACK_FILE CALLERS_DIRECTORY`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from farandole import logs
from farandole.errors import FarandoleError, StackError
from farandole.stack.control import LONGEST_LINE_BYTES, ServiceState, State, SupervisorState
from farandole.stack.log_rotation import last_lines, rotate
from farandole.stack.plan import Plan, PlannedService, passed_on, places
from farandole.stack.planning import make_plan
from farandole.stack.ports import taken_ports
from farandole.stack.processes import forget_process, record_process, signal_group, take_down_orphans
from farandole.stack.restart_policy import RestartPolicy
from farandole.stack.start_commands import StartCommands
from farandole.stack.supervisor_lock import SUPERVISOR, supervisor_lock

_ROTATION_INTERVAL_SECONDS = 5.0
_ORPHAN_STOP_TIMEOUT_SECONDS = 10.0

_LAST_WORD_CHARACTERS = 200

_log = structlog.get_logger(__name__)


class SupervisedService:
    """One service: its process, if it has one, and the task that keeps it running."""

    def __init__(
        self, plan: Plan, planned: PlannedService, commands: StartCommands, environment: Mapping[str, str]
    ) -> None:
        self.planned = planned
        self._commands = commands
        self._usual_environment = environment
        self.environment = dict(environment)
        self.finished = asyncio.Event()
        """Set while no task keeps it running."""
        self.finished.set()
        self._plan = plan
        self._policy = RestartPolicy()
        self._state: State = "stopped"
        self._reason = ""
        self._restarts = 0
        self._process: Process | None = None
        self._started_at = 0.0
        self._stop_requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ServiceState:
        """What is known of it now."""
        running = self._process is not None
        return ServiceState(
            name=self.planned.name,
            state=self._state,
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            uptime_seconds=round(time.monotonic() - self._started_at, 3) if running else None,
            address=self.planned.port.address,
            kind=self.planned.kind,
            health_address=self.planned.health_address,
            reason=self._reason,
        )

    async def start(self, environment: Mapping[str, str]) -> bool:
        """Starts it, if it does not run; returns whether it did not. `environment` counts over the stack's own, until
        it is stopped.

        What has died, and waits for its next try, is tried now, with what it is given now.

        Raises `StackError` where a port is taken or there is no such program: nothing is kept running then.
        """
        if self._state == "restarting":
            self._stop_requested.set()
        if self._stop_requested.is_set():
            await self.finished.wait()
        if not self.finished.is_set():
            return False
        self.environment = {**self._usual_environment, **environment}
        self._refuse_taken_ports()
        process = await self._spawn()
        self._stop_requested.clear()
        self.finished.clear()
        self._task = asyncio.create_task(self._keep_running(process), name=self.planned.name)
        return True

    async def stop(self) -> bool:
        """Stops it, and waits until its process has ended; returns whether it was being kept running."""
        if self.finished.is_set():
            return False
        self._stop_requested.set()
        await self.finished.wait()
        return True

    async def _keep_running(self, process: Process | None) -> None:
        deaths = 0
        try:
            while True:
                if process is not None:
                    self._state, self._reason = "running", ""
                    if await self._ended_on_request(process):
                        return
                    deaths = self._policy.deaths_in_a_row(deaths, time.monotonic() - self._started_at)
                    self._reason = _ending(process.returncode, self._plan.home.log(self.planned.name))
                delay = self._policy.delay_seconds(max(deaths, 1))
                self._state = "restarting"
                _log.warning("service died", process=self.planned.name, reason=self._reason, next_try_seconds=delay)
                if await _happened(self._stop_requested, delay):
                    return
                try:
                    self._refuse_taken_ports()
                    process = await self._spawn()
                    self._restarts += 1
                except StackError as error:
                    process, self._reason = None, str(error)
                    deaths += 1
        finally:
            forget_process(self._plan.home, self.planned.name)
            self._process = None
            self._state, self._reason = "stopped", ""
            self.finished.set()
            _log.info("service stopped", process=self.planned.name)

    async def _ended_on_request(self, process: Process) -> bool:
        """Waits until the process ends: by itself (False), or because it was asked to (True)."""
        ending = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stop_requested.wait())
        await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        requested = self._stop_requested.is_set()
        if not ending.done():
            self._state = "stopping"
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.planned.stop_signal)
            done, _ = await asyncio.wait({ending}, timeout=self.planned.stop_timeout_seconds)
            if not done:
                _log.warning(
                    "service killed", process=self.planned.name, after_seconds=self.planned.stop_timeout_seconds
                )
                signal_group(process.pid, signal.SIGKILL)
        await ending
        # A service ends with all that it started: a child left behind would keep its port.
        signal_group(process.pid, signal.SIGKILL)
        self._process = None
        return requested

    def _refuse_taken_ports(self) -> None:
        if taken := taken_ports(self.planned.ports):
            raise StackError("\n".join(str(port) for port in taken))

    async def _spawn(self) -> Process:
        """Starts the process. Raises `StackError` where there is no such program."""
        home, planned = self._plan.home, self.planned
        environment = {**self.environment, **planned.environment, "PYTHONUNBUFFERED": "1"}
        try:
            command = await asyncio.to_thread(self._commands.of, planned, environment)
            with home.log(planned.name).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._plan.root,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, FarandoleError) as error:
            raise StackError(f"{planned.name} can't be started: {error}") from error
        self._process, self._started_at = process, time.monotonic()
        try:
            record_process(home, planned.name, process.pid, self._plan.services.index(planned))
        except OSError as error:
            _log.warning("not recorded: nobody else knows of it", process=planned.name, error=str(error))
        _log.info("service started", process=planned.name, pid=process.pid)
        return process


class Supervisor:
    """All services of a plan, and the socket over which they are commanded."""

    def __init__(self, plan: Plan, environment: Mapping[str, str]) -> None:
        self._plan = plan
        self._environment = environment
        commands = StartCommands(plan)
        self._services = {
            planned.name: SupervisedService(plan, planned, commands, environment) for planned in plan.services
        }
        self._changing = asyncio.Lock()
        self._ending = asyncio.Event()

    @property
    def state(self) -> SupervisorState:
        """What is known now."""
        return SupervisorState(
            pid=os.getpid(),
            services=tuple(service.state for service in self._services.values()),
            places=places(self._environment),
        )

    async def run(self) -> None:
        """Serves the socket until `down` or SIGTERM; then all services have ended."""
        home = self._plan.home
        home.control_socket.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._converse, home.control_socket, limit=LONGEST_LINE_BYTES)
        finally:
            os.umask(mask)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        rotating = asyncio.create_task(self._rotate_logs(), name="log-rotation")
        _log.info("supervisor started", pid=os.getpid(), file=str(self._plan.file), home=str(home.directory))
        try:
            await self._ending.wait()
            await self._stop_all()
        finally:
            rotating.cancel()
            home.control_socket.unlink(missing_ok=True)
            server.close()
            _log.info("supervisor ended")

    async def _stop_all(self) -> None:
        """Stops everything from the last to the first; a service ends only after all that depend on it have."""
        async with self._changing:
            await asyncio.gather(*(self._stop_after_dependents(planned) for planned in reversed(self._plan.services)))

    async def _stop_after_dependents(self, planned: PlannedService) -> None:
        for other in self._plan.services:
            if planned.name in other.depends_on or (planned.kind == "broker" and other.kind == "service"):
                await self._services[other.name].finished.wait()
        await self._services[planned.name].stop()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        try:
            answer = await self._answer(await reader.readline())
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError) as error:
            _log.warning("request failed", error=str(error))
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request: dict[str, Any] = json.loads(line)
            match request["command"]:
                case "status":
                    return {"state": self.state.to_json()}
                case "start":
                    service = self._service(request)
                    async with self._changing:
                        if self._ending.is_set():
                            return {"error": "the stack is going down"}
                        return {"changed": await service.start(request["environment"])}
                case "stop":
                    return {"changed": await self._service(request).stop()}
                case "down":
                    await self._stop_all()
                    self._ending.set()
                    return {}
                case unknown:
                    return {"error": f"the supervisor knows no command {unknown!r}"}
        except StackError as error:
            return {"error": str(error)}
        except (ValueError, KeyError, TypeError) as error:
            return {"error": f"the supervisor can't read the request: {error!r}"}

    def _service(self, request: Mapping[str, Any]) -> SupervisedService:
        service = self._services.get(request["service"])
        if service is None:
            raise StackError(
                f"the running stack has no service {request['service']}; "
                "it was started from another stack file: `farandole down`, then `farandole up`"
            )
        return service

    async def _rotate_logs(self) -> None:
        limits = self._plan.logs
        files = [self._plan.home.log(name) for name in (SUPERVISOR, *self._services)]
        while True:
            await asyncio.sleep(_ROTATION_INTERVAL_SECONDS)
            for log in files:
                try:
                    await asyncio.to_thread(rotate, log, limit_bytes=limits.limit_bytes, keep=limits.keep)
                except OSError as error:
                    _log.warning("log not rotated", log=str(log), error=str(error))


async def _happened(event: asyncio.Event, within_seconds: float) -> bool:
    """Whether the event is set within a time."""
    try:
        await asyncio.wait_for(event.wait(), within_seconds)
    except TimeoutError:
        return False
    return True


def _ending(return_code: int | None, log: Path) -> str:
    """How a process ended, and its last word where that is a line for people."""
    if return_code is not None and return_code < 0:
        try:
            return f"ended by {signal.Signals(-return_code).name}"
        except ValueError:
            return f"ended by signal {-return_code}"
    last_word = next(iter(last_lines(log, 1)), "")
    is_for_people = bool(return_code) and last_word.strip() and not last_word.startswith("{")
    return f"exited with code {return_code}" + (
        f": {last_word.strip()[:_LAST_WORD_CHARACTERS]}" if is_for_people else ""
    )


def supervise(file: Path, callers_directory: Path, environment: Mapping[str, str]) -> int:
    """Runs the supervisor of a stack until it is told to end; returns the exit code."""
    logs.configure(SUPERVISOR)
    plan = make_plan(file, environment)
    home = plan.home
    home.prepare()
    with supervisor_lock(home) as ours:
        if not ours:
            _log.info("another supervisor has this stack")
            return 0
        take_down_orphans(home, stop_timeout_seconds=_ORPHAN_STOP_TIMEOUT_SECONDS)
        record_process(home, SUPERVISOR, os.getpid(), -1)
        try:
            asyncio.run(_supervise(plan, passed_on(environment, callers_directory)))
        finally:
            forget_process(home, SUPERVISOR)
    return 0


async def _supervise(plan: Plan, environment: Mapping[str, str]) -> None:
    await Supervisor(plan, environment).run()


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), Path(sys.argv[2]), os.environ))
