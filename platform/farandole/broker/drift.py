"""How a stream differs from what Farandole needs, and which of that can be put right in place (decision 0040)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PARTITIONS_METADATA = "farandole.partitions"

_CHOSEN = frozenset({"num_replicas", "metadata", "duplicate_window", "max_bytes", "max_msg_size", "max_consumers"})
"""What an operator may choose: no guarantee rests on it. Of the metadata the number of partitions is checked, and the
number of replicas where one is asked for."""
_SAID = frozenset({"description"})
"""What should be as it is here, though no guarantee rests on it."""
_OF_NO_MIRROR = frozenset({"subjects", "subject_transform"})
"""What a mirror can't have: that it is one is what is wrong."""
_NEVER_CHANGED = "the broker never changes it"
_NEVER_TAKEN_BACK = "the broker never takes it back"
_STORED_NO_LONGER = "what comes from there would be stored no longer"
_PERMANENT = {
    "storage": _NEVER_CHANGED,
    "persist_mode": _NEVER_CHANGED,
    "sealed": _NEVER_TAKEN_BACK,
    "deny_delete": _NEVER_TAKEN_BACK,
    "deny_purge": _NEVER_TAKEN_BACK,
    "allow_msg_ttl": _NEVER_TAKEN_BACK,
    "allow_msg_counter": _NEVER_TAKEN_BACK,
    "sources": _STORED_NO_LONGER,
    "subject_transform": "what is stored stays in the partitions that it is in",
}


@dataclass(frozen=True, slots=True)
class Drift:
    """One setting of a stream that is not as it should be."""

    stream: str
    setting: str
    actual: object
    wanted: object
    is_needed: bool
    """Whether a guarantee rests on it: services do not work with a stream that has it wrong."""
    obstacle: str
    """Why it can't be changed in place with nothing lost, and the remedy where there is one; empty where it can."""

    def __str__(self) -> str:
        never = ", and can't be changed" if self.setting == PARTITIONS_METADATA else ""
        setting = f"metadata {self.setting}" if self.setting == PARTITIONS_METADATA else self.setting
        return f"{setting} is {self.actual!r}, not {self.wanted!r}{never}"


def drift_of(wanted: Mapping[str, Any], actual: Mapping[str, Any], *, replicas: int | None = None) -> list[Drift]:
    """How the configuration of a stream differs from what is wanted, as the JetStream API has both.

    The number of replicas is compared where one is given.
    """
    return list(_drift_of(wanted, actual, replicas))


def _drift_of(wanted: Mapping[str, Any], actual: Mapping[str, Any], replicas: int | None) -> Iterator[Drift]:
    name = wanted["name"]
    passed_over = _CHOSEN | (_OF_NO_MIRROR if actual.get("mirror") else frozenset())
    for setting, value in wanted.items():
        found = actual.get(setting, unset(value))
        if setting not in passed_over and found != value:
            yield Drift(name, setting, found, value, setting not in _SAID, _obstacle(name, setting, found, value))
    partitions = wanted["metadata"].get(PARTITIONS_METADATA)
    stored = (actual.get("metadata") or {}).get(PARTITIONS_METADATA)
    if partitions is not None and stored != partitions:
        permanent = "the number of partitions is permanent: what is stored was shared out by it"
        yield Drift(name, PARTITIONS_METADATA, stored, partitions, is_needed=True, obstacle=permanent)
    copies = actual.get("num_replicas", 1)
    if replicas is not None and copies != replicas:
        fewer = f"fewer copies would be kept; if that is meant: `nats stream edit {name} --replicas {replicas}`"
        yield Drift(
            name, "num_replicas", copies, replicas, is_needed=False, obstacle=fewer if copies > replicas else ""
        )


def _obstacle(stream: str, setting: str, actual: object, wanted: object) -> str:
    if setting == "subjects" and isinstance(actual, list) and isinstance(wanted, list):
        others = [subject for subject in actual if not any(_covers(pattern, subject) for pattern in wanted)]
        if others:
            option = f"--subjects='{','.join(wanted)}'"
            return (
                f"{', '.join(others)} would be stored no longer; if that is meant: `nats stream edit {stream} {option}`"
            )
    if setting == "retention" and actual == "workqueue":
        return _NEVER_CHANGED
    if setting == "mirror":
        return f"{_STORED_NO_LONGER}; if that is meant: `nats stream edit {stream} --no-mirror`"
    return _PERMANENT.get(setting, "")


def _covers(pattern: str, subject: str) -> bool:
    """Whether all that one subject with wildcards stands for is stood for by another one too."""
    wide, narrow = pattern.split("."), subject.split(".")
    for place, part in enumerate(wide):
        if part == ">":
            return len(narrow) > place
        if place >= len(narrow) or (part != narrow[place] and (part != "*" or narrow[place] == ">")):
            return False
    return len(narrow) == len(wide)


def unset(value: object) -> object:
    """What a setting means that the server leaves out of its answer."""
    return False if isinstance(value, bool) else value if value in (0, "default") else None
