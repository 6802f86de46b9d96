"""Namespaces of a run's own: its disks are mounted where nobody else sees them, and nothing of it outlives it.

The kernel unmounts the disks and ends every process that is left once the run's first process ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

_MARKER = "FARANDOLE_CHAOS_ISOLATION"
_OWN_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
_WAYS: Sequence[tuple[str, ...]] = (
    ("--mount", *_OWN_PROCESSES),
    ("--user", "--map-root-user", "--mount", *_OWN_PROCESSES),
    ("--mount",),
    ("--user", "--map-root-user", "--mount"),
)
_PROBE_SECONDS = 10


def enter(*, as_caller: bool) -> str:
    """Runs this very program again in namespaces of its own, where it does not do so yet; then it does not return.

    With `as_caller` it stays who it is: PostgreSQL does not run as a user that is root for the namespace alone.
    Returns why no disks can be mounted, or nothing where they can.
    """
    if (known := os.environ.get(_MARKER)) is not None:
        return known
    unshare = shutil.which("unshare")
    ways = [way for way in _WAYS if not (as_caller and "--user" in way)]
    way = next((way for way in ways if unshare and _can_mount([unshare, *way])), None)
    if unshare is None or way is None:
        return "this machine lets nobody mount a disk: it takes root, or user namespaces, and the program unshare"
    os.environ[_MARKER] = ""
    os.execv(unshare, [unshare, *way, sys.executable, *sys.orig_argv[1:]])
    raise AssertionError("execv does not return")


def _can_mount(prefix: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run(
                [*prefix, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory],
                capture_output=True,
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0
