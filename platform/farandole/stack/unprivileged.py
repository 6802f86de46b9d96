"""Programs that refuse to run as root: as whom they run where the caller is root, and running them.

`python -m farandole.stack.unprivileged PROGRAM ARGUMENT…` becomes that program, with the same process id.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farandole.errors import StackError

_ACCOUNTS = ("postgres", "nobody")
_SEARCHABLE_BY_ANYONE = 0o001


@dataclass(frozen=True, slots=True)
class Account:
    """A user without rights."""

    name: str
    user: int
    group: int

    def refuse_unreachable(self, path: Path) -> None:
        """Raises `StackError` where this user can't come to a path, with the directory that is in the way."""
        directory = self._obstacle(path)
        if directory is not None:
            raise StackError(
                f"{directory} lets nobody through, and {path} is used as the user {self.name}, since you are root: "
                f"run this as another user, or `chmod o+x {directory}`"
            )

    def reaches(self, path: Path) -> bool:
        """Whether this user can come to a path."""
        return self._obstacle(path) is None

    def _obstacle(self, path: Path) -> Path | None:
        """The directory that does not let this user through to a path."""
        for directory in path.resolve().parents:
            status = directory.stat()
            if status.st_uid != self.user and not status.st_mode & _SEARCHABLE_BY_ANYONE:
                return directory
        return None


def account_of_caller() -> Account | None:
    """As whom a program runs that refuses root; None where the caller is not root, and runs it as itself.

    Raises `StackError` where the machine knows no user without rights.
    """
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, found.pw_uid, found.pw_gid)
    raise StackError(f"this can't run as root, and there is no user {' or '.join(_ACCOUNTS)}: run it as another user")


def command_as(account: Account | None, command: Sequence[str | Path]) -> list[str]:
    """A command that runs `command` as that user, in the same process; `command` itself where there is none."""
    plain = [str(part) for part in command]
    return plain if account is None else [sys.executable, "-m", __name__, *plain]


def _main() -> None:
    account = account_of_caller()
    if account is not None:
        os.setgroups([])
        os.setgid(account.group)
        os.setuid(account.user)
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the command that this process was started with


if __name__ == "__main__":
    _main()
