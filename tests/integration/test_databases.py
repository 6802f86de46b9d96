"""The two kinds of database keep the same promises: whole transactions, and no other's writes in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from farandole.database import Database, is_store_trouble
from farandole.errors import StoreError, StoreUnavailableError
from farandole.testing.databases import DatabaseUnderTest

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("cents", sa.BigInteger, sa.CheckConstraint("cents >= 0"), nullable=False),
)
BALANCE = sa.select(accounts.c.cents).where(accounts.c.name == sa.bindparam("of"))
SET = sa.update(accounts).where(accounts.c.name == sa.bindparam("of")).values(cents=sa.bindparam("now"))


async def opened(url: str) -> Database:
    database = Database(url, application_name="test")
    await database.create(metadata, if_earlier="")
    return database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = await opened(database_url)
    yield made
    await made.close()


@pytest.fixture
async def two(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes' views of one PostgreSQL database."""
    both = await opened(postgres_url), await opened(postgres_url)
    yield both
    for one in both:
        await one.close()


def add(connection: sa.Connection, cents: int, name: str = "a") -> None:
    connection.execute(sa.insert(accounts), {"name": name, "cents": cents})


def add_both(connection: sa.Connection, cents: int) -> None:
    add(connection, cents, "a")
    add(connection, cents, "b")


def balance(connection: sa.Connection, name: str = "a") -> int:
    return int(connection.execute(BALANCE, {"of": name}).scalar_one())


def end_session(connection: sa.Connection, server: DatabaseUnderTest) -> None:
    """Ends a connection from the server's side."""
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with psycopg.connect(server.administrator_url, autocommit=True) as administrator:
        administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def put(connection: sa.Connection, cents: int, name: str = "a") -> None:
    connection.execute(SET, {"of": name, "now": cents})


async def test_what_raises_leaves_nothing(database: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        add(connection, 1)
        raise RuntimeError("a handler's own")

    with pytest.raises(RuntimeError, match="a handler's own"):
        await database.write(fail)
    await database.write(lambda connection: add(connection, 2))
    assert await database.read(balance) == 2


async def test_a_wrong_statement_is_no_trouble_and_quotes_no_values(database: Database) -> None:
    await database.write(lambda connection: add(connection, 1, "4111-1111"))
    caught: list[BaseException] = []

    def add_again(connection: sa.Connection) -> None:
        try:
            add(connection, 1, "4111-1111")
        except sa.exc.IntegrityError as error:
            caught.append(error)
            raise

    with pytest.raises(StoreError, match="refused") as refused:
        await database.write(add_again)
    assert not isinstance(refused.value, StoreUnavailableError)
    assert not is_store_trouble(caught[0])
    for text in (str(refused.value), str(caught[0])):
        assert "4111" not in text


@pytest.mark.parametrize("text", ["\0", "a\0b", "␀", "␀0", "␀.", "\0␀0\0.", "ж", ""])
async def test_every_text_comes_back_and_is_found(database: Database, text: str) -> None:
    await database.write(lambda connection: add(connection, 7, text))
    assert await database.read(lambda connection: balance(connection, text)) == 7
    assert await database.read(lambda connection: connection.execute(sa.select(accounts.c.name)).scalar_one()) == text


async def test_a_file_is_for_its_user_alone(tmp_path: Path) -> None:
    """Outbox and queue hold what is shown to nobody else. What stands beside it is SQLite's own."""
    path = tmp_path / "new" / "till.db"
    database = Database(f"sqlite:///{path}")
    await database.create(metadata, if_earlier="")
    modes = {one.name: one.stat().st_mode & 0o777 for one in (path.parent, *path.parent.iterdir())}
    await database.close()
    assert modes == {"new": 0o700, "till.db": 0o600, "till.db-wal": 0o600, "till.db-shm": 0o600}


async def test_a_read_sees_one_state(database: Database) -> None:
    await database.write(lambda connection: add(connection, 1))
    is_read, is_written = threading.Event(), threading.Event()

    def twice(connection: sa.Connection) -> tuple[int, int]:
        first = balance(connection)
        is_read.set()
        assert is_written.wait(10)
        return first, balance(connection)

    reading = asyncio.create_task(database.read(twice))
    await asyncio.to_thread(is_read.wait, 10)
    await database.write(lambda connection: put(connection, 5))
    is_written.set()
    assert await reading == (1, 1)


async def test_no_update_is_lost(two: tuple[Database, Database]) -> None:
    """What reads and then writes is as safe as on SQLite: the second runs again, over what the first has written."""
    await two[0].write(lambda connection: add(connection, 0))
    both_have_read = threading.Barrier(2)
    seen: list[int] = []

    def work(connection: sa.Connection) -> int:
        found = balance(connection)
        seen.append(found)
        if len(seen) <= 2:
            both_have_read.wait(10)
        put(connection, found + 1)
        return found

    assert sorted(await asyncio.gather(*(one.write(work) for one in two))) == [0, 1]
    assert await two[0].read(balance) == 2
    assert seen == [0, 0, 1]


async def test_two_that_each_look_at_what_the_other_writes_do_not_both_pass(two: tuple[Database, Database]) -> None:
    """Write skew, which no lock of a row prevents: at least one of two accounts is to keep its cent."""
    await two[0].write(lambda connection: add_both(connection, 1))
    both_have_read = threading.Barrier(2)
    tries: list[str] = []

    def withdraw(name: str) -> Callable[[sa.Connection], bool]:
        def work(connection: sa.Connection) -> bool:
            total = balance(connection, "a") + balance(connection, "b")
            tries.append(name)
            if len(tries) <= 2:
                both_have_read.wait(10)
            if total < 2:
                return False
            put(connection, 0, name)
            return True

        return work

    passed = await asyncio.gather(two[0].write(withdraw("a")), two[1].write(withdraw("b")))
    assert sorted(passed) == [False, True]


@pytest.mark.parametrize("is_isolated", [False, True])
async def test_a_conflict_that_is_passed_over_runs_again_all_the_same(
    two: tuple[Database, Database], is_isolated: bool
) -> None:
    """A handler may catch whatever its statement raises; the conflict is not the handler's to deal with."""
    await two[0].write(lambda connection: add(connection, 0))

    def work(connection: sa.Connection) -> int:
        found = balance(connection)
        tried.append(found)
        if len(tried) == 1:
            other = asyncio.run_coroutine_threadsafe(two[1].write(lambda c: put(c, 10)), loop)
            other.result(10)
        try:
            if is_isolated:
                with connection.begin_nested():
                    put(connection, found + 1)
            else:
                put(connection, found + 1)
        except sa.exc.OperationalError:
            return -1
        return found

    tried: list[int] = []
    loop = asyncio.get_running_loop()
    assert await two[0].write(work) == 10
    assert await two[0].read(balance) == 11
    assert tried == [0, 10]


async def test_a_deadlock_runs_again(two: tuple[Database, Database]) -> None:
    await two[0].write(lambda connection: add_both(connection, 0))
    both_have_locked = threading.Barrier(2)
    tries: list[str] = []
    lock = sa.select(accounts.c.cents).where(accounts.c.name == sa.bindparam("of")).with_for_update()

    def in_order(*names: str) -> Callable[[sa.Connection], None]:
        def work(connection: sa.Connection) -> None:
            tries.append(names[0])
            connection.execute(lock, {"of": names[0]})
            if len(tries) <= 2:
                both_have_locked.wait(10)
            connection.execute(lock, {"of": names[1]})
            put(connection, balance(connection, names[0]) + 1, names[0])

        return work

    await asyncio.gather(two[0].write(in_order("a", "b")), two[1].write(in_order("b", "a")))
    assert await two[0].read(lambda connection: [balance(connection, name) for name in "ab"]) == [1, 1]
    assert len(tries) > 2


async def test_whoever_runs_again_runs_alone(two: tuple[Database, Database]) -> None:
    """However busy others are, a second try gets through."""
    await two[0].write(lambda connection: add(connection, 0))
    stop = threading.Event()
    tries = 0

    def slow(connection: sa.Connection) -> None:
        nonlocal tries
        tries += 1
        found = balance(connection)
        if tries == 1:
            has_begun.set()
            assert has_written.wait(10)
        put(connection, found + 1000)

    async def keep_writing() -> int:
        written = 0
        while not stop.is_set():
            await two[1].write(lambda connection: put(connection, balance(connection) + 1))
            written += 1
            if has_begun.is_set():
                has_written.set()
        return written

    has_begun, has_written = threading.Event(), threading.Event()
    writing = asyncio.create_task(keep_writing())
    await two[0].write(slow)
    stop.set()
    written = await writing
    assert tries == 2
    assert await two[0].read(balance) == 1000 + written


async def test_a_transaction_that_a_statement_has_ended_is_not_taken_for_committed(postgres_url: str) -> None:
    """PostgreSQL answers a COMMIT of it with no error."""
    database = await opened(postgres_url)

    def pass_over(connection: sa.Connection) -> None:
        add(connection, 1)
        with pytest.raises(sa.exc.IntegrityError):
            add(connection, 1)

    with pytest.raises(StoreError, match="takes a savepoint"):
        await database.write(pass_over)
    await database.close()


@pytest.fixture(scope="module")
def bad_postgres(new_postgres: DatabaseUnderTest) -> DatabaseUnderTest:
    """A running server that is treated badly."""
    new_postgres.start()
    return new_postgres


async def test_a_server_that_is_killed_suspended_and_started_again(
    bad_postgres: DatabaseUnderTest,
) -> None:
    server = bad_postgres
    url = server.new_database()
    database = await opened(url)
    await database.write(lambda connection: add(connection, 1))

    server.kill()
    for use in (database.check, lambda: database.read(balance)):
        with pytest.raises(StoreUnavailableError, match=r"can't be used: .*see that the server runs") as told:
            await use()
        assert url.partition("@")[0].rpartition(":")[2] not in str(told.value)
    server.start()
    assert await database.read(balance) == 1
    await database.write(lambda connection: put(connection, 2))

    server.kill()  # connections of the pool know nothing of it
    server.start()
    assert await database.read(balance) == 2
    await database.write(lambda connection: put(connection, 3))

    server.suspend()
    waiting = asyncio.create_task(database.write(lambda connection: put(connection, 4)))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    server.resume()
    await waiting
    assert await database.read(balance) == 4
    await database.close()


async def test_a_connection_that_is_lost_and_passed_over_is_trouble_all_the_same(
    postgres: DatabaseUnderTest, postgres_url: str
) -> None:
    database = await opened(postgres_url)

    def pass_over(connection: sa.Connection) -> None:
        end_session(connection, postgres)
        with pytest.raises(sa.exc.OperationalError):
            add(connection, 1)

    with pytest.raises(StoreUnavailableError, match="lost in the middle of a transaction"):
        await database.write(pass_over)
    await database.check()
    await database.close()


async def test_a_server_that_goes_in_the_middle_of_a_transaction(bad_postgres: DatabaseUnderTest) -> None:
    server = bad_postgres
    database = await opened(server.new_database())

    def interrupted(connection: sa.Connection) -> None:
        add(connection, 1)
        server.kill()
        add(connection, 2, "b")

    with pytest.raises(StoreUnavailableError, match="can't be used"):
        await database.write(interrupted)
    server.start()
    assert await database.read(lambda c: c.execute(sa.select(accounts)).all()) == []
    await database.write(lambda connection: add(connection, 3))
    await database.close()


async def test_a_session_that_an_administrator_ends(
    two: tuple[Database, Database], postgres: DatabaseUnderTest
) -> None:
    """In the middle of a transaction it is trouble, told with the remedy; between two it is not noticed."""
    await two[0].write(lambda connection: add(connection, 1))

    def end(connection: sa.Connection) -> None:
        end_session(connection, postgres)
        put(connection, 2)

    with pytest.raises(StoreUnavailableError, match=r"terminating connection due to administrator command; .*again"):
        await two[0].write(end)
    assert await two[0].read(balance) == 1
    await two[0].write(lambda connection: put(connection, 2))


async def test_a_lock_that_is_held_too_long_is_told(postgres_url: str) -> None:
    impatient = Database(f"{postgres_url}?options=-clock_timeout%3D100ms")
    await impatient.check()
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE farandole_check IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailableError, match="another transaction holds its lock"):
            await impatient.check()
    await impatient.check()
    await impatient.close()


async def test_what_the_server_cuts_short_is_trouble_and_no_mistake_of_the_statement(postgres_url: str) -> None:
    hurried = Database(f"{postgres_url}?options=-cstatement_timeout%3D100ms")
    try:
        with pytest.raises(StoreUnavailableError, match="it took longer than the server lets it"):
            await hurried.write(lambda connection: connection.exec_driver_sql("SELECT pg_sleep(20)"))
        assert await hurried.write(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one()) == 1
    finally:
        await hurried.close()


async def test_what_the_url_says_of_a_session_leaves_what_protects_it(postgres_url: str) -> None:
    url = f"{postgres_url}?application_name=theirs&options=-csearch_path%3Dpublic%20-clock_timeout%3D2s"
    database = Database(url, application_name="0123456789ab till/a")

    def settings(connection: sa.Connection) -> list[str]:
        names = ("application_name", "search_path", "lock_timeout", "idle_in_transaction_session_timeout", "timezone")
        return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]

    try:
        for run in (database.write, database.read):
            assert await run(settings) == ["0123456789ab till/a theirs", "public", "2s", "30s", "UTC"]
    finally:
        await database.close()


async def test_who_is_not_let_in_is_told_without_the_password(postgres_url: str) -> None:
    url = sa.make_url(postgres_url)
    for wrong, said in ((url.set(password="secret-1"), "password authentication"), (url.set(database="none"), "none")):
        database = Database(wrong.render_as_string(hide_password=False))
        with pytest.raises(StoreUnavailableError, match=said) as told:
            await database.check()
        assert f"the database postgresql://{url.username}@127.0.0.1:{url.port}/" in str(told.value)
        assert "secret-1" not in str(told.value)
        await database.close()


async def test_a_server_knows_who_is_connected(two: tuple[Database, Database]) -> None:
    name = await two[0].read(lambda c: c.exec_driver_sql("SHOW application_name").scalar_one())
    assert name == "test"


async def test_several_processes_may_begin_at_once(postgres_url: str) -> None:
    many = [Database(postgres_url) for _ in range(6)]
    await asyncio.gather(*(one.create(metadata, if_earlier="") for one in many))
    await asyncio.gather(*(one.check() for one in many))
    for one in many:
        await one.close()
