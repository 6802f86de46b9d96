"""Backing up one stream into a file, and restoring it on a broker that has none of that name.

By JetStream's own snapshots (its API `STREAM.SNAPSHOT` and `STREAM.RESTORE`), as `nats stream backup` does. Consumers
are left out: every reader of Farandole has its position in its own database and makes its consumer anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nats.errors
from nats.aio.msg import Msg

from farandole.broker.codes import STREAM_NAME_IN_USE
from farandole.broker.connection import Broker, read_answer
from farandole.broker.headers import DESCRIPTION, STATUS
from farandole.errors import BrokerError, BrokerUnavailableError, SnapshotError
from farandole.private_file import private_file

Report = Callable[[int, int], None]
"""Told now and then: how many bytes are done, of how many."""

_CHUNK_BYTES = 128 * 1024
_SILENCE_SECONDS = 20.0
_RETRY_SECONDS = 0.05


async def backup_stream(broker: Broker, name: str, path: Path, report: Report) -> dict[str, Any]:
    """Writes a stream into a new file; returns its configuration and state as of then.

    Raises `BrokerUnavailableError` where the broker stops in the middle, `BrokerError` where it refuses.
    """
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = broker.client.new_inbox()

    async def on_chunk(message: Msg) -> None:
        chunks.put_nowait(message)

    subscription = await broker.client.subscribe(inbox, cb=on_chunk, pending_msgs_limit=-1, pending_bytes_limit=-1)
    try:
        request = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": _CHUNK_BYTES}
        answer = await broker.request(f"$JS.API.STREAM.SNAPSHOT.{name}", request)
        total, done = answer["state"]["bytes"], 0
        with private_file(path) as file:
            while (message := await _next(chunks, name)).data:
                file.write(message.data)
                done += len(message.data)
                report(min(done, total), total)
                if message.reply:
                    await broker.client.publish(message.reply, b"")
        status = (message.headers or {}).get(STATUS, "")
        if status and status != "204":
            raise BrokerError(
                f"the stream {name} was not backed up: {(message.headers or {}).get(DESCRIPTION, status)}"
            )
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailableError(f"the stream {name} was not backed up: {_text(error)}") from None
    finally:
        await subscription.unsubscribe()
    return {"config": answer["config"], "state": answer["state"]}


async def restore_stream(
    broker: Broker, name: str, path: Path, told: dict[str, Any], report: Report, *, replicas: int | None = None
) -> None:
    """Makes a stream from a file; `told` is what `backup_stream` returned.

    Raises `SnapshotError` where there is such a stream already, and like `backup_stream`.
    """
    config = told["config"] if replicas is None else {**told["config"], "num_replicas": replicas}
    try:
        request = {"config": config, "state": told["state"]}
        answer = await broker.request(f"$JS.API.STREAM.RESTORE.{name}", request)
    except BrokerError as error:
        if error.code == STREAM_NAME_IN_USE:
            raise SnapshotError(
                f"the broker has a stream {name} already: a backup is restored into an empty place only"
            ) from None
        raise
    subject, total, done = answer["deliver_subject"], path_size(path), 0
    with _opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            await _deliver(broker, subject, chunk, name)
            done += len(chunk)
            report(done, total)
    await _deliver(broker, subject, b"", name)
    state = (await broker.request(f"$JS.API.STREAM.INFO.{name}"))["state"]
    for field in ("last_seq", "messages"):
        if state[field] != told["state"][field]:
            raise SnapshotError(
                f"the stream {name} was restored with {field} {state[field]}, not {told['state'][field]}: its backup "
                "is damaged"
            )


async def _deliver(broker: Broker, subject: str, chunk: bytes, name: str) -> None:
    try:
        reply = await _handed_over(broker, subject, chunk)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise BrokerUnavailableError(f"the stream {name} was not restored: {_text(error)}") from None
    if reply.data:
        read_answer(reply.data, f"the restoring of {name}")


async def _handed_over(broker: Broker, subject: str, chunk: bytes) -> Msg:
    """The answer to a chunk. In a cluster another server may take it, of whose subject this one hears a moment later:
    till then there is no responder, and nobody has got it."""
    until = time.monotonic() + _SILENCE_SECONDS
    while True:
        try:
            return await broker.client.request(subject, chunk, timeout=_SILENCE_SECONDS)
        except nats.errors.NoRespondersError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


async def _next(chunks: asyncio.Queue[Msg], name: str) -> Msg:
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            return await chunks.get()
    except TimeoutError:
        raise BrokerUnavailableError(f"the stream {name} was not backed up: the broker sends nothing more") from None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def sha256_of(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_size(path: Path) -> int:
    """The size of a file in bytes."""
    return path.stat().st_size


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")
