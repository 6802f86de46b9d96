"""Plug-ins for tests: each kind once as it should be, writing down what it does, and once as it should not be.

`TRYOUT_DIRECTORY` is where they write. `TRYOUT_WAYWARD` says where and how the wayward ones go wrong: `hang make`, or
`raise act, exit observe, hang close`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from farandole.correlator.contents import Take
from farandole.correlator.deadline_actions import PassedDeadline
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.observers import Transition
from farandole.correlator.store import Claim, Committed, CorrelatorStore, FoldedBatch
from farandole.errors import ConfigurationError, Fault, StoreError

NOTHING = "this is no factory"


class _Book:
    """A file of JSON lines."""

    def __init__(self, name: str) -> None:
        directory = os.environ.get("TRYOUT_DIRECTORY", "")
        if not directory:
            raise ConfigurationError([Fault("TRYOUT_DIRECTORY", "must be set")])
        self._path = Path(directory) / f"{name}.jsonl"
        self._lock = threading.Lock()

    def write(self, entry: object) -> None:
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class Diary:
    """An observer."""

    def __init__(self) -> None:
        self._book = _Book("diary")

    def observe(self, transition: Transition) -> None:
        before, after = transition.before, transition.after
        self._book.write(
            {
                "saga": after.key,
                "definition": after.definition,
                "from": None if before is None else [before.revision, before.status.name],
                "to": [after.revision, after.status.name],
                "event": transition.event.type,
                "sequence": transition.event.sequence,
            }
        )

    def close(self) -> None:
        self._book.write("closed")


class Notebook:
    """A deadline action."""

    def __init__(self) -> None:
        self._book = _Book("notebook")

    def act(self, passed: PassedDeadline) -> None:
        self._book.write([passed.event_type, passed.saga_id, passed.event_id])

    def close(self) -> None:
        self._book.write("closed")


class JournalStore(MemoryCorrelatorStore):
    """A store: that in memory, which writes down how far it has come."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        committed = await super().commit(claim, batch)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{committed.claim.position}\n")
        return committed

    async def export(self, take: Take) -> None:
        raise StoreError(f"{self._path} only says how far its correlator is: it can't be read beside that")


def journal_store(url: str, *, application_name: str) -> CorrelatorStore:
    path = url.removeprefix("journal:///")
    if path == url or not path:
        raise ValueError("must be journal:///PATH")
    return JournalStore(Path("/") / path)


def _raise(where: str) -> None:
    raise RuntimeError(f"went wrong in {where}")


def _hang(_where: str) -> None:
    threading.Event().wait()


def _exit(where: str) -> None:
    sys.exit(f"enough of {where}")


_WRONGS = {"raise": _raise, "hang": _hang, "exit": _exit}


class _Wayward:
    """Does as it should but for one thing."""

    def __init__(self) -> None:
        self._book = _Book("wayward")
        self.go_wrong("make")

    def go_wrong(self, where: str) -> None:
        self._book.write(where)
        for one in os.environ["TRYOUT_WAYWARD"].split(","):
            how, wanted = one.split()
            if where == wanted:
                _WRONGS[how](where)

    def close(self) -> None:
        self.go_wrong("close")


class WaywardObserver(_Wayward):
    def observe(self, transition: Transition) -> None:
        self.go_wrong("observe")


class WaywardAction(_Wayward):
    def act(self, passed: PassedDeadline) -> None:
        self.go_wrong("act")
