"""Which process is meant: pid files for people, and records that tell a process from a later one with its id.

A process id is used again by the system. Nothing here signals a process unless it started when the recorded one did.
The command is no evidence: a script that ends in `exec` changes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from farandole.stack.home import Home

_START_TIME_TOLERANCE_SECONDS = 2.0
"""The system derives start times from its boot time, which moves when the clock is corrected."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that was started for a service."""

    service: str
    pid: int
    start_time: float
    """Seconds since the epoch, as the system says."""
    position: int
    """The service's place in the start order: orphans are taken down from the last."""

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and abs(process.create_time() - self.start_time) <= _START_TIME_TOLERANCE_SECONDS
            )
        except psutil.Error:
            return False


def record_process(home: Home, service: str, pid: int, position: int) -> None:
    """Writes the record, then the pid file, each atomically."""
    try:
        start_time = psutil.Process(pid).create_time()
    except psutil.Error:
        return  # it has ended already; whoever waits for it will see
    record = ProcessRecord(service, pid, start_time, position)
    _write(home.process_record(service), json.dumps(asdict(record)))
    _write(home.pid_file(service), f"{pid}\n")


def forget_process(home: Home, service: str) -> None:
    """Removes the record and the pid file."""
    home.process_record(service).unlink(missing_ok=True)
    home.pid_file(service).unlink(missing_ok=True)


def recorded_processes(home: Home) -> list[ProcessRecord]:
    """Every record, in start order; what can't be read is no record."""
    found: list[ProcessRecord] = []
    for path in home.run.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(ProcessRecord(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda record: record.position)


def live_processes(home: Home) -> list[ProcessRecord]:
    """The recorded processes that still run, in start order."""
    return [record for record in recorded_processes(home) if record.is_alive()]


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signals a service's whole process group; each service leads its own. Gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def take_down_orphans(home: Home, *, stop_timeout_seconds: float) -> list[ProcessRecord]:
    """Ends what a supervisor that was killed left running, last started first; returns what was ended.

    Each process gets SIGTERM and the time given, then SIGKILL.
    """
    orphans = live_processes(home)
    for record in reversed(orphans):
        if not record.is_alive():
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        if not _has_ended(record, stop_timeout_seconds):
            signal_group(record.pid, signal.SIGKILL)
            _has_ended(record, stop_timeout_seconds)
    for record in recorded_processes(home):
        if not record.is_alive():
            forget_process(home, record.service)
    return orphans


def _has_ended(record: ProcessRecord, within_seconds: float) -> bool:
    """Whether it ends within a time. A process that has ended may stay listed where nobody collects orphans."""
    until = time.monotonic() + within_seconds
    while record.is_alive():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
