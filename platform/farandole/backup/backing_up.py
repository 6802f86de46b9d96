"""A backup of everything, and restoring it.

Stores come first, then streams: so no restored store is ahead of its stream. What a stream has beyond a store is what
that store takes in again, as after any crash; what a store had beyond its stream could never be told from an event that
was lost. The manifest comes last: without one there is no backup.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from farandole.backup.origins import origins_of, refuse_strange
from farandole.backup.stores import Programs, backup_store, refuse_filled, restore_store, store_kind
from farandole.backup.streams import backup_stream, path_size, restore_stream, sha256_of
from farandole.broker.codes import STREAM_NOT_FOUND
from farandole.broker.connection import Broker
from farandole.broker.pruned import pruned_of
from farandole.broker.streams import DEADLETTERS, EVENTS, SNAPSHOTS, events_state, stream_state
from farandole.errors import BrokerError, FarandoleError, PreconditionError, SnapshotError, StreamMissingError

FORMAT = "farandole.backup/1"
MANIFEST = "manifest.json"
_STREAMS = (SNAPSHOTS, DEADLETTERS, EVENTS)
"""In this order: whatever the others tell of is in the events too."""

_log = structlog.get_logger(__name__)

Report = Callable[[str, int, int], None]
"""Told now and then: what is at work, and how many bytes of it are done, of how many (0 where that is not known)."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """One file of a backup."""

    name: str
    """Of the service whose store it is, or of the stream."""
    kind: str
    """`sqlite`, `postgresql` or `stream`."""
    file: str
    size: int
    sha256: str
    stream: dict[str, Any] | None = None
    """Of a stream: its configuration and its state."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds."""

    format: str
    made: str
    """When it was complete, by this machine's clock."""
    files: tuple[BackedUp, ...]
    """In the order in which they were made."""

    @property
    def stores(self) -> tuple[BackedUp, ...]:
        """The databases."""
        return tuple(one for one in self.files if one.stream is None)

    @property
    def streams(self) -> tuple[BackedUp, ...]:
        """The streams."""
        return tuple(one for one in self.files if one.stream is not None)


async def back_up(
    directory: Path, stores: Mapping[str, str], broker: Broker, programs: Programs, report: Report
) -> Manifest:
    """Backs up databases, by service and URL, and all streams into a new or empty directory.

    What was begun and not finished has no manifest, and the directory can be removed. Raises `SnapshotError` where the
    directory holds anything, `PreconditionError` where a store belongs to another stream or the stream was pruned
    meanwhile, and what stores and broker do.
    """
    origins = {name: await asyncio.to_thread(origins_of, url) for name, url in stores.items()}
    state = await events_state(broker)
    for name, found in origins.items():
        refuse_strange(name, found, state)
    _make_empty(directory)
    pruned = pruned_of(state)
    files: list[BackedUp] = []
    for name, url in stores.items():
        report(name, 0, 0)
        path = directory / f"{name}.{store_kind(url)}"
        await asyncio.to_thread(backup_store, url, path, programs)
        files.append(await asyncio.to_thread(_backed_up, name, store_kind(url), path))
    for name in _STREAMS:
        path = directory / f"{name}.stream"
        try:
            told = await backup_stream(broker, name, path, partial(report, name))
        except BrokerError as error:
            if error.code == STREAM_NOT_FOUND and name == SNAPSHOTS:
                continue  # nothing was ever pruned
            raise
        files.append(await asyncio.to_thread(_backed_up, name, "stream", path, told))
    if pruned_of(await events_state(broker)) != pruned:
        raise PreconditionError(
            "the stream was pruned while it was backed up, and these stores are older than that; back up again",
            reason="PRUNED_MEANWHILE",
        )
    manifest = Manifest(FORMAT, datetime.now(UTC).isoformat(timespec="seconds"), tuple(files))
    await asyncio.to_thread(_write_manifest, directory, manifest)
    return manifest


def read_backup(directory: Path) -> Manifest:
    """The manifest of a backup, all of whose files are as they were made.

    Raises `SnapshotError` where something is missing or damaged, or of another format.
    """
    try:
        told = json.loads((directory / MANIFEST).read_bytes())
        manifest = Manifest(told["format"], told["made"], tuple(BackedUp(**one) for one in told["files"]))
    except OSError as error:
        raise SnapshotError(f"{directory} is no whole backup: {MANIFEST} can't be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SnapshotError(f"{directory / MANIFEST} can't be read: {error}") from None
    if manifest.format != FORMAT:
        raise SnapshotError(f"{directory} is of the format {manifest.format}; this version reads {FORMAT}")
    for one in manifest.files:
        path = directory / one.file
        if not path.is_file() or path_size(path) != one.size or sha256_of(path) != one.sha256:
            raise SnapshotError(f"{path} is missing or not what was written: the backup is damaged; take an older one")
    return manifest


async def restore(
    directory: Path,
    manifest: Manifest,
    stores: Mapping[str, str],
    broker: Broker,
    programs: Programs,
    report: Report,
    *,
    replicas: int | None = None,
) -> None:
    """Restores every stream on a broker that has none of them, in so many replicas or as many as they had, and every
    database to the place that `stores` gives, by service; all places must be empty.

    Everything is looked at first. Raises `SnapshotError`, with nothing written, where a stream is there, or a place is
    missing or not empty; and what stores and broker do. Where it fails later no stream stays, and the error tells which
    databases were filled.
    """
    for one in manifest.streams:
        await _refuse_existing(broker, one.name)
    await asyncio.to_thread(_refuse_unfit, manifest, stores)
    done: list[BackedUp] = []
    try:
        for one in (*manifest.streams, *manifest.stores):
            path = directory / one.file
            report(one.name, 0, 0)
            if one.stream is None:
                await asyncio.to_thread(restore_store, path, stores[one.name], programs)
            else:
                told = partial(report, one.name)
                await restore_stream(broker, one.name, path, one.stream, told, replicas=replicas)
            done.append(one)
    except BaseException as error:
        for one in done:
            if one.stream is not None:
                await _remove_stream(broker, one.name)
        filled = [one.name for one in done if one.stream is None]
        if filled and isinstance(error, FarandoleError):
            raise SnapshotError(
                f"{error}; what was restored of the streams is removed; of the databases {', '.join(filled)} "
                f"{'is' if len(filled) == 1 else 'are'} filled, and to be emptied before this is tried again"
            ) from None
        raise


def _refuse_unfit(manifest: Manifest, stores: Mapping[str, str]) -> None:
    for one in manifest.stores:
        if one.name not in stores:
            raise SnapshotError(f"the backup has a database of {one.name}, and no place for it; name it by --store")
        if store_kind(stores[one.name]) != one.kind:
            raise SnapshotError(
                f"the backup of {one.name} is one of {one.kind}; {store_kind(stores[one.name])} can't take it"
            )
        refuse_filled(stores[one.name])


async def _refuse_existing(broker: Broker, name: str) -> None:
    try:
        await stream_state(broker, name)
    except StreamMissingError:
        return
    raise SnapshotError(f"the broker has a stream {name} already: a backup is restored into an empty place only")


async def _remove_stream(broker: Broker, name: str) -> None:
    try:
        await broker.request(f"$JS.API.STREAM.DELETE.{name}")
    except BrokerError as error:
        _log.warning("a stream that was restored may be left", stream=name, error=str(error))


def _make_empty(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise SnapshotError(f"{directory} is not empty: name a new directory for each backup")
    except OSError as error:
        raise SnapshotError(f"{directory} can't be written: {error.strerror}") from None


def _backed_up(name: str, kind: str, path: Path, told: dict[str, Any] | None = None) -> BackedUp:
    return BackedUp(name, kind, path.name, path_size(path), sha256_of(path), told)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    beginning = directory / f"{MANIFEST}.beginning"
    beginning.touch(mode=0o600)
    beginning.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    beginning.rename(directory / MANIFEST)
