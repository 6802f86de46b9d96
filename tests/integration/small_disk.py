"""A small disk of a test's own, which can be filled up, and made read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory, under a directory."""

    path: Path

    def fill(self) -> None:
        """Takes all the room that is left."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (65536, 4096, 1):
                while True:
                    try:
                        filler.write(b"x" * size)
                    except OSError:
                        break

    def make_room(self) -> None:
        """Gives back what `fill` has taken."""
        self._filler.unlink()

    def remount(self, *, writable: bool) -> None:
        """Makes it read-only, which needs that nothing has a file of it open for writing; or writable again."""
        _run("mount", "-o", f"remount,{'rw' if writable else 'ro'}", str(self.path))

    @property
    def _filler(self) -> Path:
        return self.path / "filler"


@contextmanager
def small_disk(path: Path, *, mebibytes: int) -> Iterator[SmallDisk]:
    """Mounts one, which takes root. Without root the test is skipped, and fails in CI."""
    path.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        problem = f"a file system in memory can't be mounted: {error}"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
