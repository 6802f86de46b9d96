"""`up`, `down`, `stop`, `start`, `status` and `logs`: the embedded stack."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from farandole.stack.bring_up import BroughtUp, Progress
    from farandole.stack.plan import Plan
    from farandole.stack.shape import Shape
    from farandole.stack.status import ServiceStatus, StackStatus

FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="The stack file; else farandole.yaml here or in a directory above.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="How many seconds to wait for health.")]
UpTimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", min=1, help="How many seconds to wait for health; else 60, of many processes longer."),
]
ServiceArgument = Annotated[str, typer.Argument(help="A service of the stack file.", show_default=False)]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        max=16,
        envvar="FARANDOLE_STACK_REPLICAS",
        help="Of each service; several need postgres. As last time where it is not given; 1 the first time.",
    ),
]
DatabaseOption = Annotated[
    Literal["sqlite", "postgres"] | None,
    typer.Option(
        "--database", envvar="FARANDOLE_STACK_DATABASE", help="What services keep their data in; at first sqlite."
    ),
]
NatsOption = Annotated[
    Literal["single", "cluster"] | None,
    typer.Option("--nats", envvar="FARANDOLE_STACK_NATS", help="One nats-server, the usual, or a cluster of three."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]

_FOLLOW_INTERVAL_SECONDS = 0.2
_READ_BYTES = 64 * 1024


def plan_of(file: Path | None, shape: Shape | None = None) -> Plan:
    """The stack that a command means, see `FileOption`; without a shape, in that of its data."""
    from farandole.stack.planning import make_plan

    return make_plan(_stack_file(file), os.environ, shape)


def _stack_file(file: Path | None) -> Path:
    from farandole.stack.stack_file import find_stack_file

    return file or find_stack_file(Path.cwd())


def up(
    file: FileOption = None,
    timeout: UpTimeoutOption = None,
    replicas: ReplicasOption = None,
    database: DatabaseOption = None,
    nats: NatsOption = None,
) -> None:
    """Start the stack; returns when every service serves. Doing it again starts what was stopped."""
    from farandole.cli.output import console, quiet_logs
    from farandole.stack.bring_up import bring_up
    from farandole.stack.home import Home
    from farandole.stack.shape import asked_shape

    quiet_logs()
    path = _stack_file(file)
    shape = asked_shape(Home.of(path.resolve().parent, os.environ), replicas, database, nats)
    plan = plan_of(path, shape)
    with _shown_progress() as report:
        done = bring_up(plan, os.environ, Path.cwd(), timeout_seconds=timeout, report=report)
    out = console()
    if done.orphans:
        out.print(f"ended what a killed supervisor had left running: {', '.join(done.orphans)}", markup=False)
    out.print(_status_table(done.status))
    out.print()
    out.print(_what_was_done(done), markup=False)
    _tell_shape(done.status)
    if shown := [service.metrics for service in plan.services if service.metrics is not None]:
        out.print(
            f"metrics: http://{shown[0].address}/metrics, and so of each service on a port of its own", markup=False
        )
    if overruled := plan.overruled(os.environ):
        out.print(f"passed over, since the stack sets them for each service: {', '.join(overruled)}", markup=False)
    suggestions = plan.suggestions()
    if suggestions:
        out.print("\nTry next:")
    for say, run in suggestions:
        out.print(f"  {say}", markup=False)
        sys.stdout.write("".join(f"    {line}\n" for line in run.strip().splitlines()))


def _what_was_done(done: BroughtUp) -> str:
    if not done.started:
        return "everything is running already"
    made = f"; made {' and '.join(done.made)}" if done.made else ""
    return f"started {', '.join(done.started)}{made}"


@contextmanager
def _shown_progress() -> Iterator[Any]:
    """A live table on a terminal; elsewhere a line for each change."""
    from rich.console import Group
    from rich.live import Live
    from rich.spinner import Spinner

    from farandole.cli.output import console

    if sys.stdout.isatty():
        with Live(console=console(), transient=True, refresh_per_second=8) as live:
            spinner = Spinner("dots")

            def show(progress: Progress) -> None:
                spinner.update(text=progress.activity)
                live.update(Group(_status_table(progress.status), spinner))

            yield show
        return
    told: dict[str, str] = {}

    def tell(progress: Progress) -> None:
        lines = {service.name: _standing(service) for service in progress.status.services}
        lines[""] = progress.activity
        for name, line in lines.items():
            if told.get(name) != line and (name or not line.startswith("waiting")):
                sys.stdout.write(f"{name}: {line}\n" if name else f"{line}\n")
        sys.stdout.flush()
        told.update(lines)

    yield tell


def _tell_shape(status: StackStatus) -> None:
    """Says in which shape a stack runs, where that is not the usual one."""
    from farandole.cli.output import console
    from farandole.stack.shape import Shape

    if status.shape != Shape():
        console().print(f"it runs as {status.shape}", markup=False)


def _standing(service: ServiceStatus) -> str:
    standing = service.state if service.health is None else f"{service.state}, {service.health}"
    return f"{standing} ({service.reason})" if service.reason else standing


def _status_table(status: StackStatus) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    from farandole.cli.output import colored, duration, table

    made = table("SERVICE", "STATE", "PID", "RESTARTS", "UPTIME", "ADDRESS", "HEALTH", "REASON")
    for service in status.services:
        made.add_row(
            service.name,
            colored(service.state),
            str(service.pid or ""),
            str(service.restarts),
            duration(service.uptime_seconds),
            service.address,
            colored(service.health or ""),
            colored(service.reason),
        )
    return made


def down(file: FileOption = None) -> None:
    """Stop everything and keep the data."""
    from farandole.stack.take_down import take_down

    plan = plan_of(file)
    ended = take_down(plan)
    typer.echo(f"stopped {', '.join(ended)}; the data stays in {plan.home.data}" if ended else "nothing was running")


def clean(file: FileOption = None) -> None:
    """Stop everything and remove its data and its logs."""
    from farandole.stack.take_down import remove_all

    plan = plan_of(file)
    ended = remove_all(plan)
    stopped = f"stopped {', '.join(ended)}; " if ended else ""
    typer.echo(f"{stopped}nothing of the stack is left in {plan.home.directory}")


def stop(service: ServiceArgument, file: FileOption = None) -> None:
    """Stop one service; it stays stopped until it is started."""
    from farandole.stack.take_down import stop_service

    stopped = stop_service(plan_of(file), service)
    beside = f"; its work is done by {' and '.join(stopped.beside)}" if stopped.beside else ""
    typer.echo(f"stopped {service}{beside}" if stopped.was_running else f"{service} was stopped already{beside}")


def start(service: ServiceArgument, file: FileOption = None, timeout: TimeoutOption = 60.0) -> None:
    """Start one service and wait until it serves.

    FARANDOLE_* variables of this shell replace those that it was started with.
    """
    from farandole.stack.bring_up import start_service

    changed = start_service(plan_of(file), service, os.environ, Path.cwd(), timeout_seconds=timeout)
    typer.echo(f"started {service}" if changed else f"{service} is running already")


def status(file: FileOption = None, as_json: JsonOption = False) -> None:
    """How every service stands."""
    from farandole.cli.output import console, print_json
    from farandole.stack.status import read_status

    found = read_status(plan_of(file))
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    out.print(_status_table(found))
    _tell_shape(found)
    if found.supervisor_pid is None:
        running = any(service.pid for service in found.services)
        out.print("\nits supervisor was killed; `farandole up` puts that right" if running else "\nnothing is running")


def logs(
    service: Annotated[str | None, typer.Argument(help="A service, or `supervisor`; else all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="Go on printing what is written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of each log first.")] = 20,
    file: FileOption = None,
) -> None:
    """What services write."""
    from farandole.stack.log_rotation import last_lines
    from farandole.stack.supervisor_lock import SUPERVISOR

    plan = plan_of(file)
    if service is None:
        names = [SUPERVISOR, *(planned.name for planned in plan.services)]
    else:
        names = [service if service == SUPERVISOR else plan.service(service).name]
    width = max(len(name) for name in names)
    prefixes = {name: f"{name:{width}} | " if len(names) > 1 else "" for name in names}
    ends = {name: _size(plan.home.log(name)) for name in names}
    for name in names:
        for line in last_lines(plan.home.log(name), lines):
            sys.stdout.write(f"{prefixes[name]}{line}\n")
    sys.stdout.flush()
    unfinished = dict.fromkeys(names, b"")
    while follow:
        for name in names:
            log = plan.home.log(name)
            if _size(log) < ends[name]:
                ends[name] = 0  # rotated
            ends[name], written = _read_from(log, ends[name])
            *whole, unfinished[name] = (unfinished[name] + written).split(b"\n")
            for raw in whole:
                sys.stdout.write(f"{prefixes[name]}{raw.decode(errors='replace')}\n")
        sys.stdout.flush()
        time.sleep(_FOLLOW_INTERVAL_SECONDS)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _read_from(log: Path, position: int) -> tuple[int, bytes]:
    """What stands in a log from a position on, and the position after it."""
    try:
        with log.open("rb") as opened:
            opened.seek(position)
            data = opened.read(_READ_BYTES)
    except FileNotFoundError:
        return 0, b""
    return position + len(data), data
