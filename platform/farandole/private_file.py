"""New files that nobody else may read: what stands in a store stands in its copies, secrets too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_OWNER_ALONE = 0o600


def private_file(path: Path) -> BinaryIO:
    """Opens a new file for writing, which only this user can read. Raises `FileExistsError` where there is one."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ALONE), "wb")
