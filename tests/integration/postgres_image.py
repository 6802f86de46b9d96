"""What PostgreSQL's official image does before its command: a cluster and the scripts of its user, at the first start.

Of its entry point this is what docker-compose.yml uses; the environment and the scripts are the file's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from farandole.stack.embedded_postgres import find_programs, within_reach
from farandole.stack.unprivileged import account_of_caller, command_as

_SECONDS = 60


class PostgresImage:
    """The image, with the volume of its data. Where root runs it, its data is a directory that another user reaches."""

    def __init__(self) -> None:
        self._account = account_of_caller()
        self.volume = Path(tempfile.mkdtemp(prefix="farandole-container-"))
        self._own(self.volume)
        self.programs = within_reach(find_programs(os.environ), self._account, self.volume)
        self._data = self.volume / "docker"

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], scripts: Sequence[Path], port: int, log: Path
    ) -> subprocess.Popen[bytes]:
        """Runs the command on a port of the loopback interface; before that, in an empty volume, what it takes."""
        here = [*command[1:], "-D", str(self._data), "-c", f"unix_socket_directories={self.volume}"]
        with log.open("ab") as output:
            if not self._data.exists():
                self._make(environment, output.fileno())
                with self._running([command[0], *here, "-c", "listen_addresses="], environment, log):
                    for script in scripts:
                        given = {**environment, "PGHOST": str(self.volume)}
                        subprocess.run([script], env=given, check=True, stdout=output, stderr=output, timeout=_SECONDS)
            there = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}"]
            words = command_as(self._account, [self.programs / command[0], *here, *there])
            return subprocess.Popen(words, env=dict(environment), cwd="/", stdout=output, stderr=output)

    def remove(self) -> None:
        """Removes the volume."""
        shutil.rmtree(self.volume)

    def _make(self, environment: Mapping[str, str], output: int) -> None:
        password = self.volume / "password"
        password.write_text(Path(environment["POSTGRES_PASSWORD_FILE"]).read_text())
        self._own(password)
        words: list[str | Path] = [
            self.programs / "initdb",
            f"--username={environment['POSTGRES_USER']}",
            f"--pwfile={password}",
        ]
        words += [f"--pgdata={self._data}", "--auth-local=trust", "--auth-host=scram-sha-256"]
        words += environment["POSTGRES_INITDB_ARGS"].split()
        subprocess.run(
            command_as(self._account, words),
            env=dict(environment),
            cwd="/",
            check=True,
            stdout=output,
            stderr=output,
            timeout=_SECONDS,
        )
        password.unlink()

    @contextmanager
    def _running(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
        """A server that only the scripts reach."""
        words = command_as(self._account, [self.programs / command[0], *command[1:]])
        with log.open("ab") as output:
            server = subprocess.Popen(words, env=dict(environment), cwd="/", stdout=output, stderr=output)
        ready: list[str | Path] = [self.programs / "pg_isready", "--quiet", f"--host={self.volume}"]
        until = time.monotonic() + _SECONDS
        while subprocess.run(ready, env=dict(environment), check=False).returncode != 0:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield
        server.terminate()
        assert server.wait(_SECONDS) == 0

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.user, self._account.group)
