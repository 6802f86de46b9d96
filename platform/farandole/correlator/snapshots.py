"""Snapshots: the correlator's records as of a place in the stream, kept in a stream beside it.

A snapshot outlives the correlator's database, since it is where the events are, with as many replicas. It is stored in
pieces, and its manifest comes last: without one there is no snapshot. What stands in it is never taken on trust: the
manifest has the digest of the whole.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from farandole.broker.codes import NO_MESSAGE_FOUND, STREAM_NOT_FOUND
from farandole.broker.connection import Broker
from farandole.broker.pruned import pruned_of
from farandole.broker.publisher import Publisher
from farandole.broker.streams import EVENTS, SNAPSHOTS, SNAPSHOTS_STREAM, StreamState, events_state, fit_stream
from farandole.correlator.contents import FORMAT, reading
from farandole.correlator.store import CorrelatorStore
from farandole.envelope import Publication
from farandole.errors import BrokerError, SnapshotError
from farandole.private_file import private_file

_PIECE_BYTES = 256 * 1024
"""Well below the least `max_payload` that brokers are run with, also as base64 in an answer."""
_UNDER_WAY = 16
"""How many pieces are published at a time."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot is, as its manifest tells."""

    id: str
    format: str
    """That of its contents, see `farandole.correlator.contents`."""
    incarnation: str
    """The stream whose events were folded."""
    position: int
    """Every event up to this sequence was folded, of some partitions later ones too."""
    pieces: int
    size: int
    """Bytes."""
    sha256: str


async def store_snapshot(broker: Broker, contents: Path, *, state: StreamState, position: int) -> Snapshot:
    """Stores a file of contents as a snapshot, in as many replicas as the events have.

    Raises what the broker does; what was stored so far is no snapshot then.
    """
    await fit_stream(broker, SNAPSHOTS_STREAM, replicas=state.config.get("num_replicas", 1))
    snapshot_id = f"{position}-{secrets.token_hex(4)}"
    digest = hashlib.sha256()
    publisher = Publisher(broker)
    pieces = size = 0
    try:
        under_way: list[asyncio.Future[object]] = []
        for number, piece in enumerate(_pieces(contents)):
            digest.update(piece)
            pieces, size = number + 1, size + len(piece)
            under_way.append(asyncio.ensure_future(publisher.publish(_publication(snapshot_id, str(number), piece))))
            if len(under_way) == _UNDER_WAY:
                await asyncio.gather(*under_way)
                under_way.clear()
        await asyncio.gather(*under_way)
        snapshot = Snapshot(snapshot_id, FORMAT, state.incarnation, position, pieces, size, digest.hexdigest())
        await publisher.publish(_publication(snapshot_id, _MANIFEST, json.dumps(asdict(snapshot)).encode()))
    finally:
        await publisher.stop()
    return snapshot


async def fetch_snapshot(broker: Broker, snapshot_id: str, path: Path) -> Snapshot:
    """Reads a snapshot into a new file. Raises `SnapshotError` with the remedy where it is missing or damaged, and what
    the broker does."""
    snapshot = _manifest(snapshot_id, await _message(broker, snapshot_id, _MANIFEST))
    digest = hashlib.sha256()
    with private_file(path) as file:
        for number in range(snapshot.pieces):
            piece = await _message(broker, snapshot_id, str(number))
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != snapshot.sha256:
        raise SnapshotError(f"the snapshot {snapshot_id} is not what was stored: its digest differs; {_REMEDY}")
    return snapshot


async def check_snapshot(broker: Broker, snapshot_id: str) -> None:
    """Reads a snapshot as `fetch_snapshot` does, and keeps nothing."""
    with TemporaryDirectory(prefix="farandole-snapshot-") as directory:
        await fetch_snapshot(broker, snapshot_id, Path(directory) / "snapshot")


async def remove_other_snapshots(broker: Broker, snapshot_id: str) -> None:
    """Removes every snapshot but one."""
    info = await broker.request(f"$JS.API.STREAM.INFO.{SNAPSHOTS}", {"subjects_filter": "snapshots.*.>"})
    subjects: Mapping[str, int] = info["state"].get("subjects") or {}
    for other in {subject.split(".")[1] for subject in subjects} - {snapshot_id}:
        await broker.request(f"$JS.API.STREAM.PURGE.{SNAPSHOTS}", {"filter": f"snapshots.{other}.>"})


async def begin_from_snapshot(broker: Broker, store: CorrelatorStore) -> None:
    """Fills a new store with what the stream does not hold any more, where it was pruned.

    Raises `SnapshotError` with the remedy where there is no snapshot that can be used; `DefinitionError` where sagas
    keep what a file has with another content; and what broker and store do.
    """
    state = await events_state(broker)
    pruned = pruned_of(state)
    if pruned is None or await store.positions():
        return
    _log.info("beginning from a snapshot", snapshot=pruned.snapshot, pruned_until=pruned.until)
    await restore_snapshot(broker, pruned.snapshot, store, state=state, needed=pruned.until)


async def restore_snapshot(
    broker: Broker, snapshot_id: str, store: CorrelatorStore, *, state: StreamState, needed: int
) -> Snapshot:
    """Fills a new store with a snapshot, which has to reach as far as `needed`. Raises `SnapshotError` otherwise."""
    with TemporaryDirectory(prefix="farandole-snapshot-") as directory:
        path = Path(directory) / "snapshot"
        snapshot = await fetch_snapshot(broker, snapshot_id, path)
        if snapshot.incarnation != state.incarnation or snapshot.position < needed:
            raise SnapshotError(
                f"the snapshot {snapshot_id} reaches to {snapshot.position} of the stream {EVENTS} that was made at "
                f"{snapshot.incarnation}; what is needed is {needed} of the one made at {state.incarnation}; {_REMEDY}"
            )
        try:
            await store.restore(lambda: reading(path))
        except SnapshotError as error:
            raise SnapshotError(f"the snapshot {snapshot_id} can't be used: it {error}; {_REMEDY}") from None
    return snapshot


_MANIFEST = "manifest"
_REMEDY = (
    f"restore the stream {SNAPSHOTS} from its backup, or the correlator's database from its own: the stream {EVENTS} "
    "was pruned, and does not hold all that its records are made of"
)


def _publication(snapshot_id: str, part: str, data: bytes) -> Publication:
    subject = f"snapshots.{snapshot_id}.{part}"
    return Publication(snapshot_id, subject, {"Nats-Msg-Id": subject}, data)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


async def _message(broker: Broker, snapshot_id: str, part: str) -> bytes:
    request = {"last_by_subj": f"snapshots.{snapshot_id}.{part}"}
    try:
        answer = await broker.request(f"$JS.API.STREAM.MSG.GET.{SNAPSHOTS}", request)
    except BrokerError as error:
        if error.code in (NO_MESSAGE_FOUND, STREAM_NOT_FOUND):
            raise SnapshotError(f"the snapshot {snapshot_id} is not there, or not all of it; {_REMEDY}") from None
        raise
    return base64.b64decode(answer["message"].get("data", ""))


def _manifest(snapshot_id: str, data: bytes) -> Snapshot:
    try:
        snapshot = Snapshot(**json.loads(data))
    except (ValueError, TypeError):
        raise SnapshotError(f"the manifest of the snapshot {snapshot_id} can't be read; {_REMEDY}") from None
    if snapshot.format != FORMAT:
        raise SnapshotError(
            f"the snapshot {snapshot_id} is of the format {snapshot.format}, and this version of Farandole reads "
            f"{FORMAT}; prune with this version from a correlator's database that is there, or go back to the version "
            "that made it"
        )
    return snapshot
