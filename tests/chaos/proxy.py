"""A small TCP proxy between each service and the broker, which cuts, delays and half-opens connections.

Each user of the broker has a link, a port of its own, so that one can be struck and the others not.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_CHUNK_BYTES = 256 * 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time left: closing sends a reset and no orderly end."""


class Direction(enum.StrEnum):
    """Which way bytes go."""

    TO_BROKER = "to the broker"
    FROM_BROKER = "from the broker"


@dataclass(eq=False)
class _Connection:
    """One connection of a client, and the one to the broker behind it."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    deaf: set[Direction] = field(default_factory=set)
    """The ways on which nothing comes through any more, without either end being told."""
    silent_until: float = 0.0

    def abort(self) -> None:
        """Resets both connections."""
        for writer in (self.client, self.broker):
            with contextlib.suppress(OSError):
                own: socket.socket = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


@dataclass
class Observed:
    """What the proxy has seen of its own doing."""

    cut: int = 0
    """Connections that stood and were reset."""
    half_opened: int = 0
    """Connections on which bytes were swallowed, the ends not knowing."""
    swallowed_bytes: int = 0
    delayed: Counter[str] = field(default_factory=Counter)
    """Chunks that were held back, by link."""


class Link:
    """The way of one client to the broker."""

    def __init__(self, name: str, upstream_ports: Sequence[int], observed: Observed) -> None:
        """Each connection goes to the next of the servers that takes one."""
        self.name = name
        self.port = 0
        """Where it listens on the loopback interface, once it is open."""
        self.delay_seconds = 0.0
        """How long each chunk is held back, either way."""
        self._upstream_ports = deque(upstream_ports)
        self._observed = observed
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begins to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Resets every connection; returns how many there were."""
        count = len(self._connections)
        for connection in tuple(self._connections):
            connection.abort()
        self._observed.cut += count
        return count

    def half_open(self, directions: frozenset[Direction], seconds: float) -> int:
        """Swallows what comes in these directions, on the connections that there are now; resets them after a time.

        An end that gives up is not told of to the other end meanwhile. Returns how many connections there were.
        """
        loop = asyncio.get_running_loop()
        for connection in self._connections:
            connection.deaf |= directions
            connection.silent_until = loop.time() + seconds
            loop.call_later(seconds, connection.abort)
        return len(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await self._connect()
        if found is None:  # the broker is away: so is what stands before it
            writer.transport.abort()
            return
        upstream_reader, upstream = found
        connection = _Connection(writer, upstream)
        self._connections.add(connection)
        pumps = [
            asyncio.create_task(self._pump(connection, Direction.TO_BROKER, reader, upstream)),
            asyncio.create_task(self._pump(connection, Direction.FROM_BROKER, upstream_reader, writer)),
        ]
        with self._kept(*pumps):
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if connection.deaf:
                    # One end has given up. The other one learns of it when the time is over.
                    rest = connection.silent_until - asyncio.get_running_loop().time()
                    await asyncio.wait(pumps, timeout=max(rest, 0.0))
            finally:
                self._connections.discard(connection)
                for pump in pumps:
                    pump.cancel()
                connection.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self._upstream_ports)):
            self._upstream_ports.rotate(-1)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", self._upstream_ports[0], limit=_CHUNK_BYTES)
        return None

    @contextlib.contextmanager
    def _kept(self, *tasks: asyncio.Task[None]) -> Iterator[None]:
        own = asyncio.current_task()
        kept = {*tasks, *([own] if own is not None else [])}
        self._tasks |= kept
        try:
            yield
        finally:
            self._tasks -= kept

    async def _pump(
        self,
        connection: _Connection,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        has_swallowed = False
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                if self.delay_seconds:
                    self._observed.delayed[self.name] += 1
                    await asyncio.sleep(self.delay_seconds)
                if direction in connection.deaf:
                    self._observed.half_opened += not has_swallowed
                    self._observed.swallowed_bytes += len(chunk)
                    has_swallowed = True
                    continue
                writer.write(chunk)
                await writer.drain()


class Proxy:
    """All links to one broker, or to the servers of a cluster."""

    def __init__(self, names: tuple[str, ...], upstream_ports: Sequence[int]) -> None:
        self.observed = Observed()
        self.links = {name: Link(name, upstream_ports, self.observed) for name in names}

    async def __aenter__(self) -> Proxy:
        for link in self.links.values():
            await link.open()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for link in self.links.values():
            await link.close()

    def url(self, name: str) -> str:
        """Where a client finds the broker."""
        return f"nats://127.0.0.1:{self.links[name].port}"
