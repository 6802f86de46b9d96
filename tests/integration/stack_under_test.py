"""A stack of its own, in a directory of its own, on free ports, driven by the command line as people drive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from farandole.stack.planning import make_plan
from farandole.stack.status import read_status
from farandole.testing.brokers import free_port

ROOT = Path(__file__).resolve().parents[2]
SERVICE = Path(__file__).with_name("stack_service.py")
WAIT_SECONDS = 30.0

Value = TypeVar("Value")


def eventually(look: Callable[[], Value | None], what: str, seconds: float = WAIT_SECONDS) -> Value:
    """What `look` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class StackUnderTest:
    """Two services, `alpha` and `beta`, behind the real nats-server; `beta` waits for `alpha`."""

    def __init__(self, directory: Path, *, home: Path | None = None, more: str = "") -> None:
        self.directory = directory
        self.home = home or directory / "home"
        self.file = directory / "farandole.yaml"
        self.file.write_text(
            f"""\
services:
  - name: nats
    broker: embedded
  - name: alpha
    command: [python, {SERVICE}, alpha]
    grpc_port: 50061
    depends_on: [nats]
    stop_timeout_seconds: 2
  - name: beta
    command: [python, {SERVICE}, beta]
    grpc_port: 50062
    depends_on: [nats, alpha]
    stop_timeout_seconds: 2
next_steps:
  - say: look at beta
    run: grpcurl -plaintext ${{beta}} list
{more}""",
            encoding="utf-8",
        )
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
            "FARANDOLE_HOME": str(self.home),
            "FARANDOLE_PORT_NATS": str(free_port()),
            "FARANDOLE_PORT_NATS_MONITORING": str(free_port()),
            "FARANDOLE_PORT_ALPHA": str(free_port()),
            "FARANDOLE_PORT_BETA": str(free_port()),
            "FARANDOLE_DESCRIPTORS": str(ROOT / "generated" / "descriptors.binpb"),
        }
        self.printed = ""
        self._seen: dict[int, float] = {}

    def farandole(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "farandole", *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=self.directory,
            env={**self.environment, **(environment or {})},
        )

    def up(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Brings it up, which must succeed; returns what was printed."""
        done = self.farandole("up", *arguments, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        self.status()
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        """How each service stands, with the supervisor as another one; what `status --json` prints."""
        found = read_status(make_plan(self.file, self.environment)).to_json()
        services = {service["name"]: service for service in found["services"]}
        services["supervisor"] = {"pid": found["supervisor_pid"]}
        for service in services.values():
            if service["pid"] and psutil.pid_exists(service["pid"]):
                self._seen[service["pid"]] = psutil.Process(service["pid"]).create_time()
        return services

    def pid(self, service: str) -> int:
        return int((self.home / "run" / f"{service}.pid").read_text())

    def kill(self, service: str) -> int:
        """Kills it with SIGKILL; returns the process id that it had."""
        pid = self.pid(service)
        os.kill(pid, signal.SIGKILL)
        return pid

    def restarted(self, service: str, before: int) -> dict[str, Any]:
        """Waits until the service serves as another process."""

        def look() -> dict[str, Any] | None:
            found = self.status()[service]
            return found if found["pid"] not in (None, before) and found["health"] == "SERVING" else None

        return eventually(look, f"{service} serves again, no longer as {before}")

    def leftovers(self) -> list[int]:
        """Processes that were part of this stack and still live."""
        return [
            pid for pid, started in self._seen.items() if runs(pid) and psutil.Process(pid).create_time() == started
        ]


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
