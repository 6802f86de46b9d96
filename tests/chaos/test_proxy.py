"""The proxy does to connections what it says, and sees that it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.chaos.proxy import Direction, Link, Proxy

PATIENCE_SECONDS = 20.0
SILENCE_SECONDS = 0.5


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.port = 0
        self.got = b""
        self.ended = asyncio.Event()
        """A connection has ended, as far as the server knows."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1024):
                self.got += chunk
                writer.write(chunk)
        except OSError:
            pass
        finally:
            self.ended.set()
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    try:
        yield echo
    finally:
        server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(("orders", "payments"), [echo.port]) as proxy:
        yield proxy


class Client:
    """A connection through a link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def says(self, words: bytes, seconds: float = PATIENCE_SECONDS) -> bytes:
        """What comes back; nothing where nothing does in time, or the connection has ended."""
        self.writer.write(words)
        try:
            return await asyncio.wait_for(self.reader.readexactly(len(words)), seconds)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return b""

    async def has_ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_SECONDS) == b""
        except ConnectionResetError:
            return True


Connect = Callable[[Link], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes connections of which the whole way stands."""
    clients: list[Client] = []

    async def connect(link: Link) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", link.port))
        clients.append(client)
        assert await client.says(b"hello") == b"hello"
        return client

    yield connect
    for client in clients:
        client.writer.transport.abort()
    await asyncio.sleep(0)  # the loop closes what was aborted


async def test_a_cut_ends_the_connections_of_one_link_and_no_others(proxy: Proxy, connect: Connect) -> None:
    cut, other = await connect(proxy.links["orders"]), await connect(proxy.links["payments"])
    assert proxy.links["orders"].cut() == 1
    assert await cut.has_ended()
    assert proxy.observed.cut == 1
    assert await other.says(b"still here") == b"still here"
    assert await (await connect(proxy.links["orders"])).says(b"again") == b"again"


async def test_what_is_delayed_comes_later_and_whole(proxy: Proxy, connect: Connect) -> None:
    client = await connect(proxy.links["orders"])
    loop = asyncio.get_running_loop()
    proxy.links["orders"].delay_seconds = 0.2
    began = loop.time()
    assert await client.says(b"slowly") == b"slowly"
    assert loop.time() - began >= 0.4, "there and back"
    assert proxy.observed.delayed["orders"] == 2


@pytest.mark.parametrize(
    ("deaf", "arrives"),
    [(Direction.TO_BROKER, False), (Direction.FROM_BROKER, True)],
    ids=["what is sent is lost", "what is answered is lost"],
)
async def test_a_half_open_connection_looks_well_and_lets_nothing_through(
    proxy: Proxy, connect: Connect, echo: Echo, deaf: Direction, arrives: bool
) -> None:
    client = await connect(proxy.links["orders"])
    assert proxy.links["orders"].half_open(frozenset({deaf}), 2.0) == 1
    assert await client.says(b"anyone?", SILENCE_SECONDS) == b""
    assert not client.reader.at_eof()
    assert echo.got.endswith(b"anyone?") is arrives
    assert proxy.observed.half_opened == 1
    assert proxy.observed.swallowed_bytes == len(b"anyone?")
    assert await client.has_ended(), "at the end of the time"


async def test_the_broker_is_not_told_that_the_client_of_a_half_open_connection_has_gone(
    proxy: Proxy, connect: Connect, echo: Echo
) -> None:
    client = await connect(proxy.links["orders"])
    proxy.links["orders"].half_open(frozenset(Direction), 1.5)
    client.writer.close()
    await asyncio.sleep(SILENCE_SECONDS)
    assert not echo.ended.is_set()
    await asyncio.wait_for(echo.ended.wait(), PATIENCE_SECONDS)


async def test_a_new_connection_beside_a_half_open_one_is_well(proxy: Proxy, connect: Connect) -> None:
    await connect(proxy.links["orders"])
    proxy.links["orders"].half_open(frozenset(Direction), 10.0)
    assert await (await connect(proxy.links["orders"])).says(b"fresh") == b"fresh"


async def test_a_broker_that_is_away_is_away_behind_the_proxy_too(echo: Echo) -> None:
    async with Proxy(("orders",), [1]) as proxy:
        client = Client(*await asyncio.open_connection("127.0.0.1", proxy.links["orders"].port))
        assert await client.has_ended()
        client.writer.close()
