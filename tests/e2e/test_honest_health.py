"""Health says no within five seconds of a trouble of the broker, and why, and yes again once it is over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running_stack import (
    HEALTH,
    ORDERS,
    SERVED_BY,
    SERVICES,
    Health,
    Stack,
    eventually,
    json_values,
    order,
    order_subject,
)

WITHIN_SECONDS = 5.0
NOT_FOUND = 5
UNAVAILABLE = 14


@pytest.fixture(autouse=True)
def _all_serve(own_stack: Stack) -> Iterator[None]:
    """Each test begins and ends with a stack of which every service serves, as the same processes."""
    all_serve(own_stack)
    before = own_stack.pids()
    yield
    all_serve(own_stack)
    after = own_stack.status()
    assert {name: after[name]["pid"] for name in SERVICES} == {name: before[name] for name in SERVICES}
    assert {name: after[name]["restarts"] for name in SERVICES} == dict.fromkeys(SERVICES, 0)


def all_serve(stack: Stack) -> None:
    """Waits until every service says SERVING."""
    eventually(lambda: all(one.status == "SERVING" for one in stack.health().values()), "every service serves")


def none_serves(stack: Stack, seconds: float, says: Callable[[Health], bool] = lambda _: True) -> dict[str, Health]:
    """What every service says once all of them say NOT_SERVING and why, which must be within the time."""

    def look() -> dict[str, Health] | None:
        found = stack.health()
        return found if all(one.status == "NOT_SERVING" and says(one) for one in found.values()) else None

    return eventually(look, "every service says NOT_SERVING, and why", seconds)


@contextmanager
def watched(stack: Stack, directory: Path) -> Iterator[Callable[[], dict[str, list[str]]]]:
    """Watches every service's health by `grpcurl`; the block gets what tells the statuses seen so far."""
    processes: list[subprocess.Popen[bytes]] = []
    outputs = {service: directory / f"{service}.json" for service in SERVICES}

    def seen() -> dict[str, list[str]]:
        return {name: [str(v["status"]) for v in json_values(out.read_text())] for name, out in outputs.items()}

    try:
        for service, output in outputs.items():
            with output.open("wb") as opened:
                command = stack.grpcurl(service).command(f"{HEALTH}/Watch", {}, seconds=120)
                processes.append(subprocess.Popen(command, stdout=opened, stderr=subprocess.DEVNULL))
        yield seen
    finally:
        for process in processes:
            process.kill()
            process.wait()


def each_saw(statuses: Callable[[], dict[str, list[str]]], expected: list[str], seconds: float = 30.0) -> None:
    eventually(lambda: all(one == expected for one in statuses().values()), f"every watcher saw {expected}", seconds)


def test_every_service_serves_as_a_whole_and_by_name(own_stack: Stack) -> None:
    for name, service in SERVED_BY.items():
        for asked in ({}, {"service": name}):
            assert own_stack.grpcurl(service).answers(f"{HEALTH}/Check", asked) == [{"status": "SERVING"}]
    refused = own_stack.grpcurl("orders").run(f"{HEALTH}/Check", {"service": "nobody.v1.Service"}, seconds=5)
    assert refused.returncode == 64 + NOT_FOUND
    assert own_stack.grpcurl("orders").health() == Health("SERVING", "")


def test_what_every_service_offers_is_told_by_reflection(own_stack: Stack) -> None:
    for name, service in SERVED_BY.items():
        done = subprocess.run(
            [own_stack.tools.grpcurl, "-plaintext", own_stack.address(service), "list"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert {name, HEALTH} <= set(done.stdout.split())


def test_a_broker_that_is_stopped_and_started(own_stack: Stack, tmp_path: Path) -> None:
    with watched(own_stack, tmp_path) as statuses:
        each_saw(statuses, ["SERVING"])
        own_stack.farandole("stop", "nats")
        stopped = time.monotonic()
        found = none_serves(own_stack, WITHIN_SECONDS)
        each_saw(statuses, ["SERVING", "NOT_SERVING"], WITHIN_SECONDS - (time.monotonic() - stopped))
        for health in found.values():
            assert own_stack.nats.url in health.reason
            assert "not reachable" in health.reason
        shown = own_stack.status()
        assert all(shown[service]["health"] == "NOT_SERVING" for service in SERVICES)
        assert all("not reachable" in shown[service]["reason"] for service in SERVICES)
        assert shown["nats"]["state"] == "stopped"

        own_stack.farandole("start", "nats")
        each_saw(statuses, ["SERVING", "NOT_SERVING", "SERVING"])
    own_stack.nats.publish(order_subject("after-the-stop"), order("after-the-stop"))
    own_stack.completed("after-the-stop")


def test_a_broker_that_is_suspended(own_stack: Stack) -> None:
    """Connections stand and nothing answers: that is found out too."""
    broker = own_stack.pid("nats")
    os.kill(broker, signal.SIGSTOP)
    try:
        none_serves(own_stack, WITHIN_SECONDS)
        assert own_stack.ask(f"{ORDERS}/PlaceOrder", order("while-suspended")) == {"order_id": "while-suspended"}
    finally:
        os.kill(broker, signal.SIGCONT)
    all_serve(own_stack)
    own_stack.completed("while-suspended")


def test_a_broker_that_comes_back_empty(own_stack: Stack) -> None:
    """Its streams are gone, or others: nothing is read from them, and the remedy is told, until the data is back."""
    stack = own_stack
    store, away = stack.home / "data" / "nats", stack.home / "nats-data-moved-away"
    stack.nats.publish(order_subject("before-the-loss"), order("before-the-loss"))
    stack.completed("before-the-loss")

    stack.farandole("stop", "nats")
    shutil.move(store, away)
    try:
        stack.farandole("start", "nats")
        without_streams = none_serves(stack, 15, lambda one: "does not exist" in one.reason)
        for health in without_streams.values():
            assert "restore it" in health.reason

        assert "EVENTS: made" in stack.farandole("provision")
        other_stream = none_serves(stack, 15, lambda one: "was made at" in one.reason)
        for health in other_stream.values():
            assert "restore the stream from its backup" in health.reason
            assert "`make clean`" in health.reason
        stack.nats.store(order_subject("in-the-wrong-stream"), order("in-the-wrong-stream"))
        assert stack.completed("before-the-loss"), "what is known stays to be asked for"
        none_serves(stack, WITHIN_SECONDS)
    finally:
        stack.farandole("stop", "nats")
        shutil.rmtree(store)
        shutil.move(away, store)
        stack.farandole("start", "nats")
    all_serve(stack)
    stack.nats.publish(order_subject("after-the-loss"), order("after-the-loss"))
    stack.completed("after-the-loss")
    assert "in-the-wrong-stream" not in {saga["saga_id"] for saga in stack.sagas()}


def test_a_stream_that_was_changed_is_told(own_stack: Stack) -> None:
    """What guarantees rest on is looked at again whenever the connection comes back."""
    stack = own_stack
    stack.nats("stream", "edit", "EVENTS", "--max-age=1h", "--force")
    broker = stack.pid("nats")
    os.kill(broker, signal.SIGKILL)
    found = none_serves(stack, 15, lambda one: "max_age" in one.reason)
    for health in found.values():
        assert "not as Farandole needs it" in health.reason
    stack.nats("stream", "edit", "EVENTS", "--max-age=0s", "--force")
    all_serve(stack)
