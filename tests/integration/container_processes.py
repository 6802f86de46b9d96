"""The containers of docker-compose.yml as processes of this machine: the same commands, environments and health checks.

A container's addresses become those where it is published on this machine, its paths become paths below a directory.
Of a container it has neither the walls nor the network: what a process can reach here, it might not reach there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from farandole.stack.embedded_broker import find_nats_server
from tests.contract.compose_project import IMAGE, JSON, ROOT, dependencies, published_ports, required_program
from tests.integration.container_image import Image
from tests.integration.postgres_image import PostgresImage

_ONE_SHOT_SECONDS = 60
_SECRETS = "/run/secrets"
_SCRIPTS = "/docker-entrypoint-initdb.d/"
_SYSTEM = ("/usr/bin", "/bin")
_SECONDS = re.compile(r"(?:(\d+)m)?(\d+)s")


class Containers:
    """The services of a resolved project. `directory` gets their volumes, configurations and logs."""

    def __init__(self, project: JSON, image: Image, directory: Path) -> None:
        self.project = project
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._image = image
        self._directory = directory
        self._secrets = self._made_secrets()
        self._mounts = {name: self._mounted(service) for name, service in project["services"].items()}
        self._postgres = PostgresImage()

    def up(self) -> None:
        """Starts every service as Compose does, each once what it depends on is as it must be; waits for health."""
        waiting = dict(self.project["services"])
        while waiting:
            started = self.project["services"].keys() - waiting.keys()
            ready = sorted(name for name, service in waiting.items() if dependencies(service).keys() <= started)
            assert ready, f"these wait for each other: {sorted(waiting)}"
            for name in ready:
                for needed, condition in dependencies(waiting.pop(name)).items():
                    self._wait_for(needed, condition)
                self.start(name)
        for name in self.long_running:
            self.wait_until_healthy(name)

    def down(self) -> None:
        """Ends all that run, the last one first, each of which must end within its grace period."""
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.Signals[self.project["services"][name].get("stop_signal", "SIGTERM")])
            grace = seconds(self.project["services"][name].get("stop_grace_period", "10s"))
            assert process.wait(timeout=grace) == 0, f"{name} ended with {process.returncode}: {self.log(name)}"
        self.processes.clear()

    def kill(self) -> None:
        """Leaves no process behind, whatever has happened."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self._postgres.remove()

    @property
    def long_running(self) -> list[str]:
        """The services that have a health check: all but those that do one thing and end."""
        services = self.project["services"].items()
        return [name for name, service in services if not service["healthcheck"].get("disable")]

    def start(self, name: str) -> None:
        """Starts one service, also again, on the volumes that it has."""
        self.processes.pop(name, None)  # what was started last ends first
        if name == "postgres":
            self.processes[name] = self._start_postgres()
            return
        command = self._command(name, self.project["services"][name]["command"])
        with (self._directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=self._working_directory(name), stdout=log, stderr=log
            )

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        scripts = [copy for place, copy in self._mounts["postgres"].items() if place.startswith(_SCRIPTS)]
        return self._postgres.start(
            self.project["services"]["postgres"]["command"],
            self.environment("postgres"),
            scripts,
            int(self.address("postgres").rpartition(":")[2]),
            self._directory / "postgres.log",
        )

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs a service's health check once; one that takes too long has failed."""
        check = self.project["services"][name]["healthcheck"]
        kind, *words = check["test"]
        assert kind == "CMD"
        command = self._command(name, words)
        try:
            return subprocess.run(
                command,
                env=self.environment(name),
                cwd=self._working_directory(name),
                capture_output=True,
                text=True,
                timeout=seconds(check["timeout"]),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"no answer within {check['timeout']}")

    def is_healthy(self, name: str) -> bool:
        """Whether a service's health check passes now."""
        return self.check(name).returncode == 0

    def wait_until_healthy(self, name: str) -> None:
        """Waits for as long as Compose would before it says unhealthy."""
        check = self.project["services"][name]["healthcheck"]
        until = time.monotonic() + seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])
        while (answer := self.check(name)).returncode != 0:
            said = answer.stdout + answer.stderr
            assert self.processes[name].poll() is None, f"{name} has ended: {self.log(name)}"
            assert time.monotonic() < until, f"{name} is not healthy: {said}\n{self.log(name)}"

    def listens(self, name: str) -> set[tuple[str, int]]:
        """Where a running service takes connections."""
        connections = psutil.Process(self.processes[name].pid).net_connections("inet")
        listening = [one.laddr for one in connections if one.status == psutil.CONN_LISTEN]
        return {(address.ip.removeprefix("::ffff:"), address.port) for address in listening}  # gRPC takes both families

    def address(self, name: str) -> str:
        """HOST:PORT where a service's first port is published."""
        host, port = next(iter(published_ports(self.project["services"][name]).values()))
        return f"{host}:{port}"

    def log(self, name: str) -> str:
        """The last that a service has written."""
        return (self._directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def _wait_for(self, name: str, condition: str) -> None:
        match condition:
            case "service_healthy":
                self.wait_until_healthy(name)
            case "service_completed_successfully":
                assert self.processes[name].wait(_ONE_SHOT_SECONDS) == 0, self.log(name)
            case other:
                raise AssertionError(f"{other} is a condition that these tests do not know")

    def _is_ours(self, name: str) -> bool:
        return bool(self.project["services"][name]["image"] == IMAGE)

    def environment(self, name: str) -> dict[str, str]:
        """What a container's process gets, and nothing of this one's."""
        if self._is_ours(name):
            own = dict(self._image.environment)
        else:  # what the official image has on its PATH
            programs = [find_nats_server(os.environ), required_program("wget", "apt-get install wget")]
            directories = [*(program.parent for program in programs), self._postgres.programs, *_SYSTEM]
            own = {"PATH": ":".join(map(str, directories))}
        given = {key: str(value) for key, value in (self.project["services"][name].get("environment") or {}).items()}
        return {variable: self._here(name, value) for variable, value in (own | given).items()}

    def _working_directory(self, name: str) -> str:
        return self._image.placed(self._image.working_directory) if self._is_ours(name) else str(self._directory)

    def _command(self, name: str, words: list[str]) -> list[str]:
        """With its program found as the container finds it, on its own PATH."""
        program, *arguments = (self._here(name, word) for word in words)
        found = shutil.which(program, path=self.environment(name)["PATH"])
        assert found is not None, f"{name} has no program {program}"
        return [found, *arguments]

    def _here(self, name: str, text: str) -> str:
        """A text of a container with addresses and paths of this machine."""
        return self._image.placed(self._addressed(text), self._mounts[name])

    def _mounted(self, service: JSON) -> dict[str, Path]:
        """By place in the container: the volume's directory, or the configuration file's copy."""
        mounts: dict[str, Path] = {}
        if secrets := [secret["source"] for secret in service.get("secrets") or []]:
            mounts[_SECRETS] = Path(tempfile.mkdtemp(dir=self._directory))
            for secret in secrets:
                shutil.copy(self._secrets / secret, mounts[_SECRETS])
        for volume in service.get("volumes") or []:
            mounts[volume["target"]] = self._directory / "volumes" / volume["source"]
            mounts[volume["target"]].mkdir(parents=True)
        for config in service.get("configs", []):
            source = Path(self.project["configs"][config["source"]]["file"])
            copy = self._directory / source.name
            text = self._addressed(source.read_text(encoding="utf-8"))
            copy.write_text(self._image.placed(text, mounts), encoding="utf-8")
            copy.chmod(source.stat().st_mode)
            mounts[config["target"]] = copy
        return mounts

    def _made_secrets(self) -> Path:
        """The directory of those that the program makes which is to be run before."""
        made = self._directory / "deploy"
        shutil.copytree(ROOT / "deploy", made, ignore=shutil.ignore_patterns("passwords"))
        subprocess.run([made / "make-passwords.sh"], check=True, timeout=_ONE_SHOT_SECONDS)
        named = {Path(secret["file"]).relative_to(ROOT) for secret in self.project["secrets"].values()}
        passwords = made / "passwords"
        assert named == {path.relative_to(self._directory) for path in passwords.iterdir()}
        return passwords

    def _addressed(self, text: str) -> str:
        """HOST:PORT of a container as the address where that port is published; the host must be one of them."""
        published: dict[int, tuple[str, int]] = {}
        for service in self.project["services"].values():
            published |= published_ports(service)
        hosts = "|".join(re.escape(host) for host in [*self.project["services"], "0.0.0.0", "127.0.0.1"])

        def here(found: re.Match[str]) -> str:
            host, port = published[int(found[1])]
            return f"{host}:{port}"

        return re.sub(rf"(?<![\w.-])(?:{hosts}):(\d+)", here, text)


def seconds(duration: str) -> float:
    """Of a duration as the loader writes it: `1m0s`, `20s`."""
    match = _SECONDS.fullmatch(duration)
    assert match is not None, duration
    return int(match[1] or 0) * 60 + int(match[2])
