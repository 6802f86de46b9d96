"""What the page on backups says of databases and brokers that no stack of Farandole runs, typed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from farandole.backup.stores import find_program
from farandole.broker.connection import Broker
from farandole.broker.streams import DEADLETTERS, EVENTS, events_state
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.errors import BrokerError
from farandole.saga import Status
from farandole.testing.brokers import BrokerUnderTest, EmbeddedCluster, connect
from farandole.testing.databases import DatabaseUnderTest
from tests.e2e.readme_sessions import BIN, ROOT
from tests.e2e.running_stack import Tools
from tests.integration.correlators import HAPPY, correlating, tell, unhurried
from tests.integration.farandole_command import Command

PAGE = (ROOT / "docs/backup.md").read_text(encoding="utf-8")
DATABASES = ("correlator", "payments")
ROLES = ("owner", "backup")
PASSWORD = "no-other-place-has-it"
ELECTION_SECONDS = 30


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


@dataclass(frozen=True)
class Place:
    """Where databases and a broker are: the hosts that the page names, and what stands for them here."""

    postgres: DatabaseUnderTest
    nats_url: str

    @property
    def server(self) -> str:
        """HOST:PORT of the databases."""
        return urlsplit(self.postgres.administrator_url).netloc.rpartition("@")[2]

    def url(self, role: str, database: str) -> str:
        """The URL of a database, with the role's password."""
        return f"postgresql://{role}:{PASSWORD}@{self.server}/{database}"

    def environment(self, role: str) -> dict[str, str]:
        """What the tools of each part are told of the place."""
        host, _, port = self.server.partition(":")
        return {"PGHOST": host, "PGPORT": port, "PGUSER": role, "NATS_URL": self.nats_url}

    def make_databases(self) -> None:
        """Makes empty databases, a role that owns them, and one that may only read them."""
        with psycopg.connect(self.postgres.administrator_url, autocommit=True) as connection:
            for database in DATABASES:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
            for role in ROLES:
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
                create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORD))
                connection.execute(create)
            connection.execute("GRANT pg_read_all_data TO backup")
            for database in DATABASES:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER owner").format(sql.Identifier(database)))


@dataclass(frozen=True)
class Shell:
    """Types commands in a directory."""

    directory: Path
    environment: dict[str, str]

    async def __call__(self, commands: str, **more: str) -> str:
        """Types them one after the other; each must succeed. Returns all that they printed."""
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-ec", commands],
            cwd=self.directory,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return str(done.stdout)


@pytest.fixture
def old(postgres: DatabaseUnderTest, provisioned: BrokerUnderTest) -> Place:
    """Databases, and a broker with streams."""
    place = Place(postgres, provisioned.url)
    place.make_databases()
    return place


@pytest.fixture(scope="module")
def another_postgres(new_postgres: DatabaseUnderTest) -> DatabaseUnderTest:
    """A server beside the one that tests share."""
    new_postgres.start()
    return new_postgres


@pytest.fixture
def new(another_postgres: DatabaseUnderTest, embedded_nats_server: BrokerUnderTest) -> Place:
    """Empty databases, and a broker without streams."""
    place = Place(another_postgres, embedded_nats_server.url)
    place.make_databases()
    return place


@pytest.fixture
def new_cluster(another_postgres: DatabaseUnderTest, tmp_path: Path) -> Iterator[Place]:
    """Empty databases, and three brokers without streams that are a cluster."""
    cluster = EmbeddedCluster(tmp_path / "cluster")
    cluster.start()
    try:
        place = Place(another_postgres, cluster.url)
        place.make_databases()
        yield place
    finally:
        cluster.stop()


@pytest.fixture
def shell(old: Place, another_postgres: DatabaseUnderTest, tools: Tools, tmp_path: Path) -> Shell:
    """With the programs that the page names, and with the passwords where libpq looks for them."""
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    servers = (old.server, Place(another_postgres, "").server)
    passwords.write_text("".join(f"{server}:*:{role}:{PASSWORD}\n" for server in servers for role in ROLES))
    programs = [BIN, tools.nats.parent, Path(find_program("pg_dump")).parent]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARANDOLE_", "NATS_", "PG"))}
    path = os.pathsep.join([*map(str, programs), kept["PATH"]])
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return Shell(directory, {**kept, "PATH": path, "PGPASSFILE": str(passwords)})


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Broker]:
    """A connection to a broker whose JetStream has a leader."""
    broker = await connect(url)
    try:
        async with asyncio.timeout(ELECTION_SECONDS):
            while True:
                try:
                    await broker.request("$JS.API.INFO")
                    break
                except BrokerError:
                    await asyncio.sleep(0.1)
        yield broker
    finally:
        await broker.close()


@pytest.mark.timeout(300)
async def test_what_is_named_is_backed_up_and_restored_elsewhere_as_the_page_says(
    old: Place, new_cluster: Place, shell: Shell, tmp_path: Path
) -> None:
    with psycopg.connect(old.url("owner", "payments")) as connection:
        connection.execute("CREATE TABLE payments AS SELECT generate_series(1, 1000) AS id")
    definitions = unhurried(tmp_path / "definitions")
    store = SqlCorrelatorStore(Database(old.url("owner", "correlator")))
    async with connected(old.nats_url) as broker, correlating(broker, store, definitions) as correlator:
        await tell(broker, "open", HAPPY[:3])
        await tell(broker, "done")
        await correlator.until("done", Status.COMPLETED)
        before = await events_state(broker)
    await store.close()

    async with connected(new_cluster.nats_url) as broker:
        [commands] = re.findall(
            r"^```sh\n(.*?)^```$", section("Elsewhere than in the embedded stack"), re.MULTILINE | re.DOTALL
        )
        assert "--stream-replicas 3" in commands
        for shown, here in (
            ("nats://nats.example:4222", old.nats_url),
            ("nats://new.example:4222", new_cluster.nats_url),
            ("@db.example", f"@{old.server}"),
            ("@new.example", f"@{new_cluster.server}"),
        ):
            assert shown in commands
            commands = commands.replace(shown, here)
        await shell(commands)

        for stream in (EVENTS, DEADLETTERS):
            assert (await broker.request(f"$JS.API.STREAM.INFO.{stream}"))["config"]["num_replicas"] == 3
        restored = await events_state(broker)
        assert (restored.incarnation, restored.last_sequence) == (before.incarnation, before.last_sequence)
        with psycopg.connect(new_cluster.url("owner", "payments")) as connection:
            assert connection.execute("SELECT count(*), sum(id) FROM payments").fetchone() == (1000, 500_500)
        url = new_cluster.url("owner", "correlator")
        farandole = Command(new_cluster.nats_url, url)
        assert "identical: 2 sagas" in await asyncio.to_thread(farandole, "replay")
        store = SqlCorrelatorStore(Database(url))
        async with correlating(broker, store, definitions) as correlator:
            await tell(broker, "open", HAPPY[3:])
            await correlator.until("open", Status.COMPLETED)
            assert "identical: 2 sagas" in await asyncio.to_thread(farandole, "replay")
        await store.close()


@pytest.fixture
def _sqlite3() -> None:
    """SQLite's own program. In CI it must be there."""
    if shutil.which("sqlite3") is None:
        problem = "sqlite3 is not installed; on Debian: apt-get install sqlite3"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)


@pytest.mark.usefixtures("_sqlite3")
@pytest.mark.timeout(300)
async def test_each_part_is_backed_up_and_restored_by_hand_as_the_page_says(
    old: Place, new: Place, shell: Shell
) -> None:
    copied, dumped, loaded, backed_up, restored = re.findall(
        r"`((?:sqlite3|pg_dump|pg_restore|nats stream (?:backup|restore)) .*?)`", section("By hand")
    )
    with closing(sqlite3.connect(shell.directory / "payments.db")) as in_use:
        in_use.execute("PRAGMA journal_mode=WAL")
        in_use.executescript("CREATE TABLE payments (id); INSERT INTO payments VALUES (1), (2)")
        await shell(copied)
        with closing(sqlite3.connect(shell.directory / "copy.db")) as copy:
            assert copy.execute("SELECT count(*), sum(id) FROM payments").fetchone() == (2, 3)
    assert sorted(path.name for path in shell.directory.glob("copy.db*")) == ["copy.db"], "nothing stands beside it"

    with psycopg.connect(old.url("owner", "payments")) as connection:
        connection.execute("CREATE TABLE payments AS SELECT generate_series(1, 1000) AS id")
    await shell(dumped, **old.environment("backup"))
    await shell(loaded, **new.environment("owner"))
    with psycopg.connect(new.url("owner", "payments")) as connection:
        assert connection.execute("SELECT count(*), sum(id) FROM payments").fetchone() == (1000, 500_500)

    async with connected(old.nats_url) as broker:
        await tell(broker, "done")
        before = await events_state(broker)
    for stream in (EVENTS, DEADLETTERS):
        here = {"EVENTS": stream, "DIRECTORY": f"backup-of-{stream}"}
        for command, place in ((backed_up, old), (restored, new)):
            words = [here.get(word, word) for word in command.split()]
            await shell(" ".join(words), **place.environment("backup"))
    async with connected(new.nats_url) as broker:
        after = await events_state(broker)
    assert (after.incarnation, after.last_sequence) == (before.incarnation, before.last_sequence)
