"""A backup of all that there can be: PostgreSQL, a stream that was pruned, its snapshot; restored into a cluster."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from farandole.stack.planning import make_plan
from farandole.stack.stack_file import STACK_FILE
from tests.e2e.busy_orders import busy, counts
from tests.e2e.readme_sessions import link_checkout
from tests.e2e.running_stack import PARCEL_SERVICES, ROOT, Stack, Tools, eventually, running

ON_POSTGRESQL = {"FARANDOLE_STACK_DATABASE": "postgres"}
ORDERS = "order-fulfilment.yaml"
STREAMS = ("SNAPSHOTS", "DEADLETTERS", "EVENTS")
PAYMENTS = "SELECT status, count(*) FROM payments GROUP BY status"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own: where root runs the tests, PostgreSQL's user has to come through."""
    made = Path(tempfile.mkdtemp(prefix="farandole-backup-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def checkout(directory: Path) -> Path:
    """A checkout whose stack has the services of orders alone."""
    made = directory / "checkout"
    made.mkdir()
    link_checkout(made)
    stack = yaml.safe_load((ROOT / STACK_FILE).read_text(encoding="utf-8"))
    stack["services"] = [service for service in stack["services"] if service["name"] not in PARCEL_SERVICES]
    sagas = made / "sagas"
    sagas.mkdir()
    (sagas / ORDERS).symlink_to(ROOT / "services/correlator/sagas" / ORDERS)
    [correlator] = [service for service in stack["services"] if service["name"] == "correlator"]
    correlator["environment"] = {"FARANDOLE_SAGAS": str(sagas)}
    del stack["next_steps"]
    (made / STACK_FILE).write_text(yaml.safe_dump(stack, sort_keys=False), encoding="utf-8")
    return made


def payments(stack: Stack) -> dict[str, int]:
    """How many payments have each status, by the service's own database."""
    postgres = make_plan(stack.checkout / STACK_FILE, stack.environment).postgres
    assert postgres is not None
    with psycopg.connect(postgres.url("payments"), passfile=str(postgres.passwords)) as connection:
        return {str(status): int(count) for status, count in connection.execute(PAYMENTS).fetchall()}


@pytest.mark.timeout(300)
def test_a_busy_stack_on_postgresql_that_was_pruned_goes_on_in_a_cluster(
    tools: Tools, directory: Path, checkout: Path
) -> None:
    backup = directory / "backup"
    with running(directory / "here", tools, ON_POSTGRESQL, checkout=checkout) as here:
        with busy(here, "before"):
            eventually(lambda: len(here.sagas()) > 20, "orders are under way")
        eventually(lambda: not here.sagas("NOT end_time:*"), "every order has ended")
        pruned = json.loads(here.farandole("prune", "--json"))
        assert pruned["removed"] > 100
        with busy(here):
            eventually(lambda: len(here.sagas()) > 60, "more are under way")
            here.farandole("backup", str(backup))
            eventually(lambda: len(here.sagas()) > 80, "it goes on")
    files = json.loads((backup / "manifest.json").read_text())["files"]
    assert {one["kind"] for one in files} == {"postgresql", "stream"}
    held = {one["name"]: one["stream"]["state"] for one in files if one["stream"]}
    assert tuple(held) == STREAMS

    there = Stack(directory / "there", tools, checkout=checkout)
    there.farandole("restore", str(backup), "--nats", "cluster")
    try:
        assert "PostgreSQL, a cluster of three nats-servers" in there.farandole("up")
        for name in STREAMS:
            stream = there.nats.stream(name)
            assert stream["config"]["num_replicas"] == 3
            assert stream["state"]["last_seq"] >= held[name]["last_seq"]
        assert len(there.sagas()) > 60
        eventually(lambda: not there.sagas("NOT end_time:*"), "every order has ended")
        there.all_taken_in("marker")
        told = counts(there)
        assert told.keys() == {"SAGA_STATUS_COMPLETED", "SAGA_STATUS_COMPENSATED"}, told
        completed, undone = told["SAGA_STATUS_COMPLETED"], told["SAGA_STATUS_COMPENSATED"]
        # the books: each order was reserved once and paid once, or that was undone once
        assert there.stock() == (1_000_000 - 2 * completed, 2 * completed)
        assert payments(there) == {"PROCESSED": completed, "REFUNDED": undone}
        assert there.dead_letters() == []
        replayed = there.farandole("replay")
        assert f"behind the snapshot as of {pruned['snapshot'].partition('-')[0]}" in replayed
        assert "identical: " in replayed
        assert {part["health"] for part in there.status().values()} == {"SERVING"}
        assert json.loads(there.farandole("prune", "--json"))["until"] > pruned["until"]
    finally:
        there.farandole("down")
