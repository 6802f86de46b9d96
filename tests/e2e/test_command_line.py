"""The stack and its sagas by `farandole` and `make`, as people type them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farandole.partitions import PARTITIONS
from tests.e2e.running_stack import (
    JSON,
    PARTS,
    ROOT,
    SAMPLES,
    Health,
    Stack,
    Tools,
    assert_no_secrets,
    eventually,
    order,
    order_subject,
)

FAILED, WRONG_USAGE = 1, 2


@pytest.fixture(autouse=True)
def _all_run(own_stack: Stack) -> None:
    """Each test finds the stack running, whatever the one before did to it."""
    if any(one.status != "SERVING" for one in own_stack.health().values()):
        own_stack.farandole("up")


def runs(pid: int) -> bool:
    """Whether a process is there, and no mere zombie whose parent has not asked how it ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def suggested(printed: str) -> list[str]:
    """The commands under `Try next:`."""
    return re.findall(r"^    (\S.*)$", printed.partition("Try next:")[2], re.MULTILINE)


def shell(stack: Stack, command: str) -> str:
    """Types a command at the root of the checkout."""
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_up_again_starts_nothing_and_says_what_to_try(own_stack: Stack) -> None:
    before = own_stack.pids()
    printed = own_stack.farandole("up")
    assert "everything is running already" in printed
    assert own_stack.pids() == before
    for part in PARTS:
        assert own_stack.address(part) in printed

    place, ask, show, *_ = suggested(printed)
    assert place.startswith(f"nats -s {own_stack.address('nats')} pub ")
    assert "Published" in shell(own_stack, place)
    own_stack.completed("ord-1")
    assert ask.startswith("grpcurl ")
    assert "SAGA_STATUS_COMPLETED" in shell(own_stack, ask)
    assert show == ".venv/bin/farandole sagas show ord-1"
    assert "COMPLETED" in own_stack.farandole("sagas", "show", "ord-1")


def test_a_stopped_service_stays_stopped_until_it_is_started(own_stack: Stack) -> None:
    stack = own_stack
    before = stack.pids()
    assert "stopped shipping" in stack.farandole("stop", "shipping")
    assert "shipping was stopped already" in stack.farandole("stop", "shipping")
    stack.nats.publish(order_subject("waits-1"), order("waits-1"))

    def waits_for_shipping() -> bool:
        steps = {s["name"]: s["status"] for saga in stack.sagas('saga_id = "waits-1"') for s in saga["steps"]}
        return steps.get("ship-order") == "STEP_STATUS_RUNNING"

    eventually(waits_for_shipping, "the order waits to be shipped")
    assert "ship-order (shipping)" in stack.farandole("sagas", "list", "--filter", "status = RUNNING")

    os.kill(before["payments"], signal.SIGKILL)  # its restart shows that the supervisor is at work meanwhile
    eventually(lambda: stack.status()["payments"]["pid"] not in (None, before["payments"]), "payments is restarted")
    standing = stack.status()
    assert (standing["shipping"]["state"], standing["shipping"]["pid"]) == ("stopped", None)
    assert stack.grpcurl("shipping").health() == Health("UNREACHABLE", "")
    untouched = ("nats", "correlator", "orders", "inventory")
    assert {name: standing[name]["pid"] for name in untouched} == {name: before[name] for name in untouched}

    assert "started shipping" in stack.farandole("start", "shipping")
    assert "shipping is running already" in stack.farandole("start", "shipping")
    stack.completed("waits-1")


def test_up_starts_what_was_stopped(own_stack: Stack) -> None:
    own_stack.farandole("stop", "inventory")
    own_stack.farandole("stop", "orders")
    assert "started orders, inventory" in own_stack.farandole("up")


def test_a_service_that_dies_is_restarted_and_counted(own_stack: Stack) -> None:
    before = own_stack.status()["inventory"]
    os.kill(before["pid"], signal.SIGKILL)

    def look() -> JSON | None:
        now = own_stack.status()["inventory"]
        return now if now["health"] == "SERVING" and now["pid"] != before["pid"] else None

    after = eventually(look, "inventory is restarted")
    assert after["restarts"] == before["restarts"] + 1
    assert own_stack.pid("inventory") == after["pid"]
    [row] = [line.split() for line in own_stack.farandole("status").splitlines() if line.startswith("inventory ")]
    assert row[1:4] == ["running", str(after["pid"]), str(after["restarts"])]


def test_the_table_and_json_of_status_say_the_same(own_stack: Stack) -> None:
    rows = {line.split()[0]: line.split() for line in own_stack.farandole("status").splitlines()[1:] if line}
    standing = own_stack.status()
    assert list(standing) == list(rows) == list(PARTS)
    for name, part in standing.items():
        assert rows[name][:4] == [name, part["state"], str(part["pid"]), str(part["restarts"])]
        assert rows[name][5:7] == [part["address"], part["health"]]
        assert part["address"] == own_stack.address(name)
    assert own_stack.make("status").stdout.split()[:2] == ["SERVICE", "STATE"]


def test_a_taken_port_is_named_with_its_process(own_stack: Stack, tools: Tools, tmp_path: Path) -> None:
    second = Stack(tmp_path / "second", tools)
    second.environment["FARANDOLE_PORT_PAYMENTS"] = str(own_stack.ports["payments"])
    second.environment["FARANDOLE_PORT_NATS"] = str(own_stack.ports["nats"])
    done = second.try_farandole("up")
    assert done.returncode == FAILED
    holder = own_stack.pid("payments")
    assert f"port {own_stack.ports['payments']} is taken by python" in done.stderr
    assert f"(pid {holder})" in done.stderr
    assert f"port {own_stack.ports['nats']} is taken by nats-server (pid {own_stack.pid('nats')})" in done.stderr
    assert "FARANDOLE_PORT_PAYMENTS" in done.stderr
    assert "FARANDOLE_PORT_OFFSET" in done.stderr
    assert {part["state"] for part in second.status().values()} == {"stopped"}


def test_a_second_stack_runs_beside_the_first_with_its_ports_moved(
    own_stack: Stack, tools: Tools, tmp_path: Path
) -> None:
    second = Stack(tmp_path / "second", tools)
    for name in [name for name in second.environment if name.startswith("FARANDOLE_PORT_")]:
        del second.environment[name]
    offset = 2000 + os.getpid() % 1000
    second.environment["FARANDOLE_PORT_OFFSET"] = str(offset)
    try:
        second.farandole("up")
        addresses = {name: part["address"] for name, part in second.status().items()}
        assert addresses["nats"] == f"127.0.0.1:{4222 + offset}"
        assert addresses["correlator"] == f"127.0.0.1:{50051 + offset}"
        said = second.farandole("pub", "orders.v1.OrderCreated", json.dumps(order("elsewhere-1")))
        activations = 2 * PARTITIONS  # of the two definitions, which stand before it
        assert f"stored at sequence {activations + 1}\n" in said
        assert "is COMPLETED" in second.farandole("sagas", "watch", "elsewhere-1", "--timeout", "20")
    finally:
        second.farandole("down")
    assert own_stack.try_farandole("sagas", "show", "elsewhere-1").returncode == FAILED


def test_down_keeps_what_is_known(own_stack: Stack) -> None:
    stack = own_stack
    stack.nats.publish(order_subject("kept-1"), order("kept-1"))
    saga = stack.completed("kept-1")
    placed, payment, stock = stack.order("kept-1"), stack.payment("kept-1"), stack.stock()
    supervisor = stack.pid("supervisor")

    done = stack.make("down")
    assert done.returncode == 0, done.stderr
    assert f"the data stays in {stack.home / 'data'}" in done.stdout
    assert "nothing was running" in stack.farandole("down")
    assert {part["state"] for part in stack.status().values()} == {"stopped"}
    assert not runs(supervisor)

    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert "made the streams" not in done.stdout
    assert stack.saga("kept-1") == saga
    assert (stack.order("kept-1"), stack.payment("kept-1"), stack.stock()) == (placed, payment, stock)
    stack.nats.publish(order_subject("kept-2"), order("kept-2"))
    stack.completed("kept-2")


def test_an_unknown_service_is_told_with_what_may_be_meant(own_stack: Stack) -> None:
    for command in ("stop", "start", "logs"):
        done = own_stack.try_farandole(command, "payment")
        assert done.returncode == WRONG_USAGE
        assert "did you mean payments?" in done.stderr


def test_logs_of_one_and_of_all(own_stack: Stack) -> None:
    stack = own_stack
    stack.nats.publish(order_subject("logged-1"), "nonsense")
    eventually(lambda: "UNDECODABLE" in stack.farandole("logs", "correlator", "-n", "5"), "the dead letter is logged")
    for line in stack.farandole("logs", "orders", "-n", "3").splitlines():
        assert json.loads(line)["service"] == "orders"
    everyone = stack.farandole("logs", "-n", "2")
    assert {line.split(" | ")[0].strip() for line in everyone.splitlines()} >= {*PARTS, "supervisor"}
    assert_no_secrets(stack.logs())


def test_logs_are_followed(own_stack: Stack) -> None:
    command = [Path(sys.executable).with_name("farandole"), "logs", "correlator", "--follow", "-n", "1"]
    with subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=own_stack.environment, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        try:
            following.stdout.readline()
            own_stack.nats.publish("events.followed-1.orders.v1.Nothing", "{}")
            for line in following.stdout:
                if "orders.v1.Nothing" in line:
                    break
        finally:
            following.kill()


def test_pub_checks_the_event_and_waits_for_the_stream(own_stack: Stack) -> None:
    body = order("published-1")
    said = own_stack.farandole("pub", "orders.v1.OrderCreated", json.dumps(body))
    assert re.search(r"events\.published-1\.orders\.v1\.OrderCreated is stored at sequence \d+", said)
    assert "farandole sagas watch published-1" in said
    saga = own_stack.completed("published-1")
    assert saga["history"][0]["source"] == "farandole-cli"
    assert "as a duplicate" in own_stack.farandole("pub", "orders.v1.OrderCreated", json.dumps(body))

    del body["orderId"]
    own_stack.farandole("pub", "orders.v1.OrderCreated", json.dumps(body), "--key", "published-2", "--source", "shop")
    assert own_stack.completed("published-2")["history"][0]["source"] == "shop"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("orders.v1.OrderCreate", "{}"), "did you mean orders.v1.OrderCreated?"),
        (("orders.v1.OrderCreated", "nonsense"), "JSON"),
        (("orders.v1.OrderCreated", json.dumps(order("refused-1", currency="euros"))), "currency"),
        (("orders.v1.OrderCreated", json.dumps(order("refused-1")), "--key", "other"), "--key"),
        (("orders.v1.OrderCreated", json.dumps(order("two words"))), "order_id"),
    ],
)
def test_pub_refuses_what_would_be_a_dead_letter(own_stack: Stack, arguments: tuple[str, ...], said: str) -> None:
    before = own_stack.nats.stream("EVENTS")["state"]["last_seq"]
    done = own_stack.try_farandole("pub", *arguments)
    assert done.returncode in {FAILED, WRONG_USAGE}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert_no_secrets(done.stderr)
    assert own_stack.nats.stream("EVENTS")["state"]["last_seq"] == before


def test_sagas_are_listed_shown_and_watched(own_stack: Stack) -> None:
    stack = own_stack
    stack.nats.publish(order_subject("shown-1"), order("shown-1"))
    watched = stack.farandole("sagas", "watch", "shown-1", "--timeout", "20")
    assert "order-fulfilment shown-1 is COMPLETED" in watched
    for event_type in ("orders.v1.OrderCreated", "choreography.v1.SagaCompleted"):
        assert event_type in watched

    shown = stack.farandole("sagas", "show", "shown-1")
    for word in ("shown-1", "order-fulfilment v1", "COMPLETED", "ON_TIME", "take-payment", "shipping.v1.OrderShipped"):
        assert word in shown
    assert_no_secrets(shown, watched)
    as_json = json.loads(stack.farandole("sagas", "show", "shown-1", "--json"))
    assert (as_json["sagaId"], as_json["status"]) == ("shown-1", "SAGA_STATUS_COMPLETED")
    assert_no_secrets(as_json)
    lines = stack.farandole("sagas", "watch", "shown-1", "--json").splitlines()
    assert json.loads(lines[-1]) == as_json

    listed = stack.farandole("sagas", "list", "--filter", 'saga_id = "shown-1"')
    assert re.search(r"^shown-1 +order-fulfilment v1 +COMPLETED +ON_TIME ", listed, re.MULTILINE)
    newest = json.loads(stack.farandole("sagas", "list", "--order-by", "start_time desc", "--limit", "1", "--json"))
    assert [saga["sagaId"] for saga in newest["sagas"]] == ["shown-1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("sagas", "show", "nobody-ordered-this"), FAILED, "there is no saga 'nobody-ordered-this'"),
        (("sagas", "watch", "nobody-ordered-this", "--timeout", "0.5"), FAILED, "in time"),
        (("sagas", "list", "--filter", "colour = red"), WRONG_USAGE, "there is no field colour"),
        (("sagas", "list", "--order-by", "colour"), WRONG_USAGE, "order_by"),
        (("deadletters", "show", "correlator-999999999"), FAILED, "there is no dead letter"),
        (("sagas", "list", "--address", "127.0.0.1:4"), FAILED, "no correlator answers at 127.0.0.1:4"),
    ],
)
def test_what_can_not_be_answered_is_said_in_a_line(
    own_stack: Stack, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = own_stack.try_farandole(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_dead_letters_are_listed_and_shown(own_stack: Stack) -> None:
    stack = own_stack
    receipt = stack.nats.store(order_subject("broken-1"), order("broken-1", currency="euros"))
    identity = f"correlator-{receipt.sequence}"
    filter_ = f"sequence = {receipt.sequence}"
    listed = eventually(
        lambda: found if identity in (found := stack.farandole("deadletters", "list", "--filter", filter_)) else None,
        "it is listed",
    )
    assert re.search(rf"^{identity} +OPEN +orders.v1.OrderCreated +broken-1 +RULE_VIOLATION ", listed, re.MULTILINE)
    shown = stack.farandole("deadletters", "show", identity)
    for word in (identity, "RULE_VIOLATION", "currency", "events.", "euros", "[REDACTED]"):
        assert word in shown
    assert_no_secrets(listed, shown)
    assert json.loads(stack.farandole("deadletters", "show", identity, "--json"))["deadLetterId"] == identity


def test_provisioning_a_stack_that_runs_changes_nothing(own_stack: Stack) -> None:
    assert own_stack.farandole("provision").count("is there already, and as it should be") == 2


def test_make_demo_passes(own_stack: Stack) -> None:
    done = own_stack.make("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: 300 sagas have ended as they must, and everything adds up" in done.stdout


def test_the_demo_passes_with_services_killed_meanwhile(own_stack: Stack) -> None:
    stack = own_stack
    before = stack.nats.stream("EVENTS")["state"]["last_seq"]
    with subprocess.Popen(
        [sys.executable, "-m", "services.demo", "--orders", "75", "--parcels", "75", "--failing", "30"],
        cwd=ROOT,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            eventually(lambda: stack.nats.stream("EVENTS")["state"]["last_seq"] > before + 150, "it is under way")
            for service in SAMPLES[1:]:
                os.kill(stack.pid(service), signal.SIGKILL)
            printed = demo.communicate(timeout=60)[0]
        finally:
            demo.kill()
    assert demo.returncode == 0, printed
    assert "PASSED: 150 sagas have ended as they must, and everything adds up" in printed
