"""A backup of a busy stack, restored in another place: it goes on there, and nothing is lost or done twice."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.e2e.busy_orders import busy, counts
from tests.e2e.running_stack import JSON, SERVICES, Stack, Tools, eventually, running

PAYMENTS = "SELECT status, count(*) FROM payments GROUP BY status"


def rows(stack: Stack, service: str, query: str) -> list[tuple[object, ...]]:
    """What stands in a service's own database."""
    connection = sqlite3.connect(f"file:{stack.home}/data/{service}.db?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_a_backup_of_a_busy_stack_goes_on_elsewhere(tools: Tools, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    with running(tmp_path / "here", tools) as here, busy(here):
        eventually(lambda: len(here.sagas()) > 40, "orders are under way")
        said = here.farandole("backup", str(backup))
        assert "is not empty" in here.try_farandole("backup", str(backup)).stderr
        eventually(lambda: len(here.sagas()) > 60, "it goes on")
    assert "EVENTS" in said
    assert all(path.stat().st_mode & 0o077 == 0 for path in backup.iterdir()), "others can read nothing"
    occupied = here.try_farandole("restore", str(backup))
    assert occupied.returncode == 1
    assert "holds data already" in occupied.stderr

    there = Stack(tmp_path / "there", tools)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in backup.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == "payments.sqlite":
            data[len(data) // 2] ^= 1
        (damaged / path.name).write_bytes(data)
    assert "payments.sqlite is missing or not what was written" in there.try_farandole("restore", str(damaged)).stderr
    assert not (there.home / "data").exists()
    assert "complete as of" in there.farandole("restore", str(backup))
    try:
        there.farandole("up")
        restored: list[JSON] = there.sagas()
        assert len(restored) > 40
        eventually(lambda: not there.sagas("NOT end_time:*"), "every order has ended")
        there.all_taken_in("marker")
        told = counts(there)
        assert told.keys() == {"SAGA_STATUS_COMPLETED", "SAGA_STATUS_COMPENSATED"}, told
        completed, undone = told["SAGA_STATUS_COMPLETED"], told["SAGA_STATUS_COMPENSATED"]
        events = int(there.nats.stream("EVENTS")["state"]["messages"])
        assert events > 0
        # the books: each order was reserved once and paid once, or that was undone once
        assert there.stock() == (1_000_000 - 2 * completed, 2 * completed)
        paid = {str(status): count for status, count in rows(there, "payments", PAYMENTS)}
        assert paid == {"PROCESSED": completed, "REFUNDED": undone}
        assert there.dead_letters() == []
        assert "identical: " in there.farandole("replay")
        assert {health.status for health in there.health().values()} == {"SERVING"}
        assert len(there.health()) == len(SERVICES)
    finally:
        there.farandole("down")
