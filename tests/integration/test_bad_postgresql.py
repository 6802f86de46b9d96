"""A PostgreSQL server on bad days: killed, suspended, locked, closed. What was acknowledged stays, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from farandole.testing.databases import DatabaseUnderTest
from tests.integration.bad_days import BOTH, ORDERS, BadDay, Clients, bad_day, clients_of


@pytest.fixture(scope="module")
def server(new_postgres: DatabaseUnderTest) -> DatabaseUnderTest:
    new_postgres.start()
    return new_postgres


@pytest.fixture(scope="module")
def urls(server: DatabaseUnderTest) -> dict[str, str]:
    return {service: server.new_database() for service in BOTH}


@pytest.fixture(scope="module")
def day(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    with bad_day(tmp_path_factory.mktemp("day") / "parts", urls=urls) as parts:
        processes = dict(parts.services.processes)
        yield parts
        assert parts.services.processes == processes
        assert all(process.poll() is None for process in processes.values()), "no service had to be started again"


@pytest.fixture
async def clients(day: BadDay) -> AsyncIterator[Clients]:
    async with clients_of(day) as found:
        yield found


async def test_a_server_that_is_down(day: BadDay, server: DatabaseUnderTest, clients: Clients) -> None:
    """What is accepted before, and what the stream takes meanwhile, is all dealt with once it is back."""
    before = [f"before-{number}" for number in range(5)]
    await clients.place(*before)
    await clients.until_stored("orders.v1.OrderCreated", before)
    server.kill()
    await day.until_told("PostgreSQL is down", *BOTH)
    with pytest.raises(grpc.aio.AioRpcError, match="the store can't be reached now"):
        await clients.try_to_place("meanwhile")
    await clients.ship(*before)
    server.start()
    await day.until_serving(*BOTH)
    await clients.until_complete(*before)
    await clients.sell("after")
    await clients.until_complete("after")


async def test_a_server_that_is_killed_again_and_again_at_work(
    day: BadDay, server: DatabaseUnderTest, clients: Clients
) -> None:
    """Some transactions end in the middle, and of some it is not known whether they were committed."""
    order_ids = [f"killed-{number}" for number in range(60)]

    async def sell() -> None:
        for first in range(0, len(order_ids), 5):
            await clients.sell(*order_ids[first : first + 5])

    selling = asyncio.create_task(sell())
    for number in (10, 25, 40):
        await clients.until_stored("orders.v1.OrderCreated", order_ids[:number])
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await selling
    await clients.until_complete(*order_ids)


async def test_a_server_that_does_not_answer(day: BadDay, server: DatabaseUnderTest, clients: Clients) -> None:
    server.suspend()
    try:
        await day.until_told("PostgreSQL does not answer", *BOTH)
    finally:
        server.resume()
    await day.until_serving(*BOTH)
    await clients.sell("answered")
    await clients.until_complete("answered")


async def test_a_lock_that_somebody_else_holds(day: BadDay, urls: dict[str, str], clients: Clients) -> None:
    with psycopg.connect(urls[ORDERS]) as other:
        other.execute("LOCK TABLE farandole_check IN EXCLUSIVE MODE")
        await day.until_told("a store is locked", ORDERS)
    await day.until_serving(*BOTH)
    await clients.sell("unlocked")
    await clients.until_complete("unlocked")


async def test_a_user_who_is_not_let_in(
    day: BadDay, server: DatabaseUnderTest, urls: dict[str, str], clients: Clients
) -> None:
    url = make_url(urls[ORDERS])
    role = sql.Identifier(str(url.username))
    with psycopg.connect(server.administrator_url, autocommit=True) as administrator:
        administrator.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(role))
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (url.username,)
        )
        await day.until_told("PostgreSQL lets a service in no more", ORDERS)
        assert str(url.password) not in day.health(ORDERS).reason
        administrator.execute(sql.SQL("ALTER ROLE {} LOGIN").format(role))
    await day.until_serving(*BOTH)
    await clients.sell("let-in")
    await clients.until_complete("let-in")


async def test_no_password_is_ever_logged(day: BadDay, urls: dict[str, str]) -> None:
    for service in BOTH:
        logged = (day.services.directory / f"{service}.log").read_text()
        assert "can't be used" in logged
        assert str(make_url(urls[service]).password) not in logged
