"""Small disks in memory, one for each store, that can be filled up at will."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SIZE = "1g"
"""Takes memory only as far as it is used."""
_TRIES = 50


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of its own, mounted on a directory."""

    name: str
    directory: Path

    def mount(self) -> None:
        """Mounts it, empty. Raises `CalledProcessError` where that is not possible."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._mount(f"size={_SIZE}")

    def fill(self) -> bool:
        """Leaves no room on it; returns whether it worked: what is written meanwhile may win the race."""
        for _ in range(_TRIES):
            try:
                self._mount(f"remount,size={self._used_bytes()}")
            except subprocess.CalledProcessError:
                continue  # the kernel takes no size below what is used by now
            if os.statvfs(self.directory).f_bavail == 0:
                return True
        return False

    def free(self) -> None:
        """Gives it its room back."""
        self._mount(f"remount,size={_SIZE}")

    def unmount(self) -> None:
        """Takes it away, with all that is on it; fine where it was never mounted."""
        subprocess.run(["umount", "--lazy", str(self.directory)], check=False, capture_output=True)

    def _used_bytes(self) -> int:
        state = os.statvfs(self.directory)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def _mount(self, options: str) -> None:
        # Named in full: without source and type `mount` would look for the disk in the machine's own table.
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.directory)]
        subprocess.run(command, check=True, capture_output=True)
