"""Definitions that change while sagas run: each saga keeps the version under which it started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running_stack import (
    JSON,
    SAGAS,
    RefusedError,
    Stack,
    Tools,
    definitions,
    eventually,
    order,
    order_subject,
    running,
)


@pytest.fixture
def sagas(tmp_path: Path) -> Path:
    """The directory of definitions of the stack."""
    return definitions(tmp_path / "sagas")


@pytest.fixture
def changeable(tools: Tools, tmp_path: Path, sagas: Path) -> Iterator[Stack]:
    with running(tmp_path / "home", tools, {"FARANDOLE_SAGAS": str(sagas)}) as stack:
        yield stack


def restart_correlator(stack: Stack) -> None:
    stack.farandole("stop", "correlator")
    stack.farandole("start", "correlator")
    eventually(lambda: stack.grpcurl("correlator").health().status == "SERVING", "the correlator serves")


def versions(stack: Stack, ids: list[str]) -> dict[str, int]:
    return {saga_id: stack.saga(saga_id)["version"] for saga_id in ids}


def running_saga(stack: Stack, saga_id: str) -> JSON | None:
    try:
        return stack.saga(saga_id)
    except RefusedError:
        return None


def test_old_sagas_keep_their_version_also_when_their_records_are_rebuilt(changeable: Stack, sagas: Path) -> None:
    stack = changeable
    stack.farandole("stop", "shipping")
    stack.nats.store(order_subject("under-1"), order("under-1"))
    eventually(lambda: running_saga(stack, "under-1"), "the first saga has started")

    file = sagas / "order-fulfilment.yaml"
    file.write_text(file.read_text().replace("version: 1", "version: 2").replace('"1800s"', '"3600s"'))
    restart_correlator(stack)
    stack.nats.store(order_subject("under-2"), order("under-2"))
    eventually(lambda: running_saga(stack, "under-2"), "the second saga has started")
    expected = {"under-1": 1, "under-2": 2}
    assert versions(stack, list(expected)) == expected

    stack.farandole("stop", "correlator")
    for database in (stack.home / "data").glob("correlator.db*"):
        database.unlink()
    stack.farandole("start", "correlator")
    eventually(lambda: stack.grpcurl("correlator").health().status == "SERVING", "the records are rebuilt")
    assert versions(stack, list(expected)) == expected

    stack.farandole("start", "shipping")
    for saga_id in expected:
        assert stack.completed(saga_id)["version"] == expected[saga_id]


def test_the_sagas_of_a_definition_that_was_removed_are_still_shown(changeable: Stack, sagas: Path) -> None:
    stack = changeable
    stack.farandole("stop", "shipping")
    stack.nats.store(order_subject("kept"), order("kept"))
    eventually(lambda: running_saga(stack, "kept"), "the saga has started")
    (sagas / "order-fulfilment.yaml").unlink()
    restart_correlator(stack)
    shown = stack.saga("kept")
    assert (shown["definition"], shown["version"], shown["status"]) == ("order-fulfilment", 1, "SAGA_STATUS_RUNNING")
    assert [saga["saga_id"] for saga in stack.sagas('definition = "order-fulfilment"')] == ["kept"]
    stored = stack.ask(f"{SAGAS}/GetSagaDefinition", {"name": "order-fulfilment"})["definition"]
    assert stored["version"] == 1

    stack.nats.store(order_subject("not-followed"), order("not-followed"))
    stack.farandole("start", "shipping")
    assert stack.completed("kept")["version"] == 1, "it goes on under the definition that it keeps"
    eventually(lambda: stack.order("not-followed")["status"] == "ORDER_STATUS_COMPLETED", "participants go on")
    assert stack.refusal(f"{SAGAS}/GetSaga", {"saga_id": "not-followed"}).code == 5
