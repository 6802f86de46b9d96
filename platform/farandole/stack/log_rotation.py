"""Keeps logs bounded while processes write to them.

A service writes straight into its log, opened for appending, so that its lines reach the disk also while no
supervisor lives. Rotation therefore copies and truncates: the writer goes on with the same open file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def rotate(log: Path, *, limit_bytes: int, keep: int) -> bool:
    """Moves what a log holds to `LOG.1` (and `LOG.1` to `LOG.2`, up to `keep`) where it has reached the limit.

    Returns whether it did. Lines written between the copy's end and the truncation are lost: microseconds, once for
    each `limit_bytes`.
    """
    try:
        if log.stat().st_size < limit_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(keep - 1, 0, -1):
        older = _piece(log, number)
        if older.exists():
            older.replace(_piece(log, number + 1))
    with log.open("rb") as source, _piece(log, 1).open("wb") as target:
        shutil.copyfileobj(source, target)
        os.truncate(log, 0)
    return True


def last_lines(log: Path, count: int, *, most_bytes: int = 256 * 1024) -> list[str]:
    """The last lines of a log; none where it does not exist."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:] if count > 0 else []


def _piece(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
