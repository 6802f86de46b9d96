"""Receivers of webhooks on this machine, well-behaved and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """What a receiver was sent."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """One receiver, and what it was sent."""

    answer: Answer
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[list[Request]], bool]) -> None:
        """Waits until something holds of the requests."""
        async with asyncio.timeout(30):
            while not condition(self.requests):
                self._changed.clear()
                await self._changed.wait()

    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def stop(self) -> None:
        """Ends what is under way."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in rest)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append(Request(line.split()[1], headers, body))
            self._changed.set()
            await self.answer(writer)
            writer.close()
            await writer.wait_closed()


def status(line: str, *headers: str) -> Answer:
    """Answers with a status, and nothing in it."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([f"HTTP/1.1 {line}", *headers, "content-length: 0", "", ""]).encode())
        await writer.drain()

    return answer


async def hang(_writer: asyncio.StreamWriter) -> None:
    """Says nothing."""
    await asyncio.Event().wait()


async def gigabytes(writer: asyncio.StreamWriter) -> None:
    """Answers with as much as anyone takes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8000000000\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Answers a header for ever, so that there is always something new."""
    writer.write(b"HTTP/1.1 200 OK\r\nx-header: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def garbage(writer: asyncio.StreamWriter) -> None:
    """Speaks another protocol."""
    writer.write(b"220 mail.example.com ESMTP\r\n")
    await writer.drain()


@asynccontextmanager
async def receiving(answer: Answer) -> AsyncIterator[Receiver]:
    """A receiver at work."""
    receiver = Receiver(answer)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, limit=1 << 20)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        server.close()
        await receiver.stop()
