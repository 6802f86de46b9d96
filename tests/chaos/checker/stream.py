"""The stream, copied message by message into a file, with plain nats-py."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

EVENTS = "EVENTS"
_PATIENCE_SECONDS = 20.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def last_sequence(url: str) -> int:
    """Where the stream ends."""
    connection = await nats.connect(url.split(","), connect_timeout=3)
    try:
        info = await connection.jetstream().stream_info(EVENTS)
        sequence: int = info.state.last_seq
        return sequence
    finally:
        await connection.close()


async def leader(url: str) -> str:
    """The server of a cluster that leads the stream; nothing while none does."""
    servers = url.split(",")
    connection = await nats.connect(servers, connect_timeout=2, max_reconnect_attempts=0, error_cb=_unheard)
    try:
        info = await connection.jetstream(timeout=2).stream_info(EVENTS)
        return (info.cluster.leader if info.cluster else None) or ""
    finally:
        await connection.close()


async def _unheard(_error: Exception) -> None:
    """What a server that is being killed does to a connection is no news."""


async def copy_stream(url: str, path: Path) -> None:
    """Writes every stored message to a file of JSON lines: sequence, subject, time, headers, data (Base64)."""
    connection = await nats.connect(url.split(","))
    try:
        context = connection.jetstream()
        last = (await context.stream_info(EVENTS)).state.last_seq
        with path.open("w", encoding="utf-8") as lines:
            if last == 0:
                return
            subscription = await context.subscribe(
                "events.>",
                stream=EVENTS,
                ordered_consumer=True,
                config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
            )
            sequence = 0
            while sequence < last:
                message = await subscription.next_msg(timeout=_PATIENCE_SECONDS)
                sequence = message.metadata.sequence.stream
                lines.write(json.dumps(_line(message)) + "\n")
    finally:
        await connection.close()


def _line(message: Any) -> dict[str, Any]:
    # The time of storing, in nanoseconds, is the last but one part of the subject under which it is acknowledged.
    nanoseconds = int(message.reply.split(".")[-2])
    return {
        "sequence": message.metadata.sequence.stream,
        "subject": message.subject,
        "time": (_EPOCH + timedelta(microseconds=nanoseconds // 1000)).isoformat(),
        "headers": dict(message.headers or {}),
        "data": base64.b64encode(message.data).decode(),
    }
