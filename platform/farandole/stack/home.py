"""Where a stack keeps its state: `.farandole/` beside the stack file, or `FARANDOLE_HOME`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farandole.errors import StackError

HOME_VARIABLE = "FARANDOLE_HOME"

_LONGEST_SOCKET_PATH_BYTES = 100
"""Linux takes 107 bytes, macOS 103."""
_SHORT_DIRECTORY = Path("/tmp")  # noqa: S108 - the directory made in it is private, and checked to be ours
_PRIVATE = 0o700
_PASSABLE = 0o711


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of a stack's state; an absolute path."""

    directory: Path

    @classmethod
    def of(cls, root: Path, environment: Mapping[str, str]) -> Home:
        """The home of the stack whose file stands in `root`; a relative `FARANDOLE_HOME` counts from there."""
        return cls((root / (environment.get(HOME_VARIABLE) or ".farandole")).resolve())

    @property
    def data(self) -> Path:
        """What `down` keeps: the broker's store and the services' databases."""
        return self.directory / "data"

    @property
    def logs(self) -> Path:
        """One log a service."""
        return self.directory / "logs"

    @property
    def run(self) -> Path:
        """What only a running stack needs."""
        return self.directory / "run"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.run / "supervisor.lock"

    @property
    def shape(self) -> Path:
        """Says of which shape the data are."""
        return self.data / "shape.json"

    def broker_configuration(self, server: str) -> Path:
        """Written anew at each start of that server."""
        return self.run / f"{server}.conf"

    def broker_store(self, server: str = "nats") -> Path:
        """JetStream's directory, of one server of a cluster or of the only one."""
        return self.data / server

    @property
    def postgres(self) -> Path:
        """The directory of the embedded PostgreSQL."""
        return self.data / "postgres"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor listens: in `run/`, or, where that path is too long for a socket, in `/tmp`."""
        socket = self.run / "supervisor.sock"
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return _SHORT_DIRECTORY / f"farandole-{os.getuid()}" / f"{digest}.sock"

    def log(self, service: str) -> Path:
        """The log of a service, or of the `supervisor`."""
        return self.logs / f"{service}.log"

    def pid_file(self, service: str) -> Path:
        """Holds the process id of a service, or of the `supervisor`, and nothing else."""
        return self.run / f"{service}.pid"

    def process_record(self, service: str) -> Path:
        """Says which process the pid file means, so that a recycled process id is never taken for it."""
        return self.run / f"{service}.json"

    def database_url(self, service: str) -> str:
        """The URL of a service's own SQLite database."""
        return f"sqlite:///{self.data / service}.db"

    def let_through(self) -> None:
        """Lets other users come to what lies below `data` and is theirs, and see nothing on the way."""
        for directory in (self.directory, self.data):
            directory.chmod(_PASSABLE)

    def prepare(self) -> None:
        """Makes the directories, for this user only. Raises `StackError` where it can't."""
        try:
            for directory in (self.directory, self.data, self.logs, self.run):
                directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            shelter = self.control_socket.parent
            if shelter != self.run:
                shelter.mkdir(mode=_PRIVATE, exist_ok=True)
                found = shelter.lstat()
                if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
                    raise StackError(f"{shelter} must be a directory that only you can enter; remove it")
        except OSError as error:
            raise StackError(
                f"the stack's directory can't be made: {error}; set {HOME_VARIABLE} to one that can be written"
            ) from error
