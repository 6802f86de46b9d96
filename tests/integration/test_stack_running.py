"""What `farandole up` promises, tried with the real nats-server and real processes that are really killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from farandole.testing.brokers import free_port
from tests.integration.small_disk import small_disk
from tests.integration.stack_under_test import StackUnderTest, eventually, runs


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[StackUnderTest]:
    made = StackUnderTest(tmp_path)
    yield made
    made.status()
    down = made.farandole("down")
    assert down.returncode == 0, down.stderr
    assert made.leftovers() == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackUnderTest]:
    made = StackUnderTest(tmp_path_factory.mktemp("running"))
    try:
        made.printed = made.up()
        yield made
    finally:
        made.status()
        assert made.farandole("down").returncode == 0
    assert made.leftovers() == []


@pytest.fixture
def running(shared: StackUnderTest) -> StackUnderTest:
    """A stack that is up, shared by tests that need no new one; `printed` is what the first `up` said."""
    if any(shared.status()[name]["health"] != "SERVING" for name in ("nats", "alpha", "beta")):
        shared.up()
    return shared


def test_up_returns_when_every_service_serves_and_says_what_to_try_next(running: StackUnderTest) -> None:
    printed = running.printed
    status = running.status()
    services = ["nats", "alpha", "beta"]
    assert [status[name]["health"] for name in services] == ["SERVING"] * 3
    assert [status[name]["pid"] for name in services] == [running.pid(name) for name in services]
    assert status["supervisor"]["pid"] == running.pid("supervisor")
    assert f"grpcurl -plaintext 127.0.0.1:{running.environment['FARANDOLE_PORT_BETA']} list" in printed
    log = (running.home / "logs" / "alpha.log").read_text()
    assert f"its database is sqlite:///{running.home}/data/alpha.db" in log


def test_up_made_the_streams_before_any_service_started(running: StackUnderTest) -> None:
    lines = running.printed.splitlines()
    assert lines.index("making the streams") < next(n for n, line in enumerate(lines) if line.startswith("alpha: run"))
    assert any("made the streams EVENTS, DEADLETTERS" in line for line in lines)


def test_status_for_programs_is_the_status(running: StackUnderTest) -> None:
    printed = json.loads(running.farandole("status", "--json").stdout)
    assert printed["supervisor_pid"] == running.pid("supervisor")
    assert [(service["name"], service["pid"], service["health"]) for service in printed["services"]] == [
        (name, running.pid(name), "SERVING") for name in ("nats", "alpha", "beta")
    ]


def test_status_for_people_is_a_table(running: StackUnderTest) -> None:
    running.farandole("stop", "beta")
    lines = [line.split() for line in running.farandole("status").stdout.splitlines()]
    assert lines[0] == ["SERVICE", "STATE", "PID", "RESTARTS", "UPTIME", "ADDRESS", "HEALTH", "REASON"]
    address = f"127.0.0.1:{running.environment['FARANDOLE_PORT_BETA']}"
    restarts = str(running.status()["alpha"]["restarts"])
    assert lines[2][:4] == ["alpha", "running", str(running.pid("alpha")), restarts]
    assert lines[3][:2] == ["beta", "stopped"]
    assert lines[3][-1] == address


def test_only_the_owner_can_open_the_control_socket(running: StackUnderTest) -> None:
    mode = (running.home / "run" / "supervisor.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_supervisor_lives_in_a_session_of_its_own(running: StackUnderTest) -> None:
    supervisor = running.pid("supervisor")
    assert os.getsid(supervisor) == supervisor
    assert os.getsid(running.pid("alpha")) == running.pid("alpha")


def test_a_second_up_leaves_everything_running_as_it_is(running: StackUnderTest) -> None:
    before = {name: service["pid"] for name, service in running.status().items()}
    assert "everything is running already" in running.up()
    assert {name: service["pid"] for name, service in running.status().items()} == before


def test_a_variable_that_counts_for_no_service_is_told(running: StackUnderTest) -> None:
    passed_over = "passed over, since the stack sets them for each service: "
    assert passed_over not in running.printed
    assert f"{passed_over}FARANDOLE_DATABASE_URL\n" in running.up(environment={"FARANDOLE_DATABASE_URL": "sqlite:///x"})


def test_two_at_once_make_one_stack(stack: StackUnderTest) -> None:
    command = [sys.executable, "-m", "farandole", "up"]
    both = [subprocess.Popen(command, cwd=stack.directory, env=stack.environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    status = stack.status()
    assert [status[name]["restarts"] for name in ("nats", "alpha", "beta")] == [0, 0, 0]


def test_taken_ports_are_all_named_with_who_has_them_and_what_moves_them(stack: StackUnderTest) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener, service in ((first, "ALPHA"), (second, "NATS_MONITORING")):
            listener.bind(("127.0.0.1", int(stack.environment[f"FARANDOLE_PORT_{service}"])))
            listener.listen()
        refused = stack.farandole("up")
        assert refused.returncode == 1
        for service in ("ALPHA", "NATS_MONITORING"):
            port = stack.environment[f"FARANDOLE_PORT_{service}"]
            (line,) = [line for line in refused.stderr.splitlines() if f"port {port} is taken" in line]
            assert f"(pid {os.getpid()})" in line
            assert f"FARANDOLE_PORT_{service}" in line
        assert "Traceback" not in refused.stderr
        assert stack.status()["supervisor"]["pid"] is None
        moved = {"FARANDOLE_PORT_ALPHA": str(free_port()), "FARANDOLE_PORT_NATS_MONITORING": str(free_port())}
        stack.environment.update(moved)
        stack.up()
        assert stack.status()["alpha"]["address"] == f"127.0.0.1:{moved['FARANDOLE_PORT_ALPHA']}"


def test_a_running_stack_refuses_to_be_brought_up_on_other_ports(running: StackUnderTest) -> None:
    refused = running.farandole("up", environment={"FARANDOLE_PORT_ALPHA": str(free_port())})
    assert refused.returncode == 1
    assert "`farandole down` first" in refused.stderr


@pytest.mark.parametrize("service", ["alpha", "nats"])
def test_what_dies_is_started_again_and_counted(running: StackUnderTest, service: str) -> None:
    others = {name: running.pid(name) for name in ("nats", "alpha", "beta") if name != service}
    restarts = running.status()[service]["restarts"]
    killed = running.kill(service)
    found = running.restarted(service, killed)
    assert found["restarts"] == restarts + 1
    assert running.pid(service) == found["pid"]
    assert {name: running.pid(name) for name in others} == others
    logged = [json.loads(line) for line in (running.home / "logs" / "supervisor.log").read_text().splitlines()]
    deaths = [line for line in logged if line["message"] == "service died" and line["process"] == service]
    assert [line["reason"] for line in deaths] == ["ended by SIGKILL"]


def test_what_was_stopped_stays_stopped_until_it_is_started(running: StackUnderTest) -> None:
    restarts = running.status()["alpha"]["restarts"]
    stopped = running.farandole("stop", "alpha")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped alpha\n")
    killed = running.kill("beta")
    running.restarted("beta", killed)  # the supervisor had every chance to start both
    alpha = running.status()["alpha"]
    assert (alpha["state"], alpha["pid"], alpha["health"]) == ("stopped", None, None)
    assert running.farandole("stop", "alpha").stdout == "alpha was stopped already\n"
    assert running.farandole("start", "alpha").stdout == "started alpha\n"
    alpha = running.status()["alpha"]
    assert (alpha["health"], alpha["restarts"]) == ("SERVING", restarts)
    assert running.farandole("start", "alpha").stdout == "alpha is running already\n"


def test_up_starts_what_was_stopped(running: StackUnderTest) -> None:
    beta = running.pid("beta")
    running.farandole("stop", "alpha")
    assert "started alpha\n" in running.up()
    assert running.status()["alpha"]["health"] == "SERVING"
    assert running.pid("beta") == beta


def test_start_hands_on_the_callers_settings(stack: StackUnderTest) -> None:
    stack.up()
    stack.farandole("stop", "alpha")
    unwell = stack.farandole("start", "alpha", "--timeout", "2", environment={"FARANDOLE_TEST_UNWELL": "out of paper"})
    assert unwell.returncode == 1
    assert "out of paper" in unwell.stderr
    stack.farandole("stop", "alpha")
    well = stack.farandole("start", "alpha")
    assert well.returncode == 0, "what one start was given is not kept for the next"


def test_on_a_full_disk_what_dies_is_started_again_all_the_same(tmp_path: Path) -> None:
    with small_disk(tmp_path / "home" / "run", mebibytes=1) as disk:
        stack = StackUnderTest(tmp_path, home=tmp_path / "home")
        stack.up()
        disk.fill()
        stack.restarted("alpha", stack.kill("alpha"))
        disk.make_room()
        assert stack.farandole("down").returncode == 0
    assert stack.leftovers() == []


def test_what_fails_at_its_start_is_started_anew_with_what_was_mended(stack: StackUnderTest) -> None:
    stack.up()
    stack.farandole("stop", "alpha")
    wrong = stack.farandole("start", "alpha", environment={"FARANDOLE_TEST_FAILS": "no such ink"})
    assert (wrong.returncode, "no such ink" in wrong.stderr) == (1, True), wrong.stderr
    assert stack.status()["alpha"]["state"] == "restarting"
    assert stack.farandole("start", "alpha").stdout == "started alpha\n"
    assert stack.status()["alpha"]["health"] == "SERVING"


def test_a_service_that_ignores_sigterm_is_killed_in_time(stack: StackUnderTest) -> None:
    stack.up(environment={"FARANDOLE_TEST_DEAF": "yes"})
    alpha = stack.pid("alpha")
    assert stack.farandole("stop", "alpha").returncode == 0
    assert not runs(alpha)


@pytest.mark.parametrize("again", ["up", "down"])
def test_what_a_killed_supervisor_left_running_is_ended(stack: StackUnderTest, again: str) -> None:
    stack.up()
    before = {name: stack.pid(name) for name in ("nats", "alpha", "beta")}
    supervisor = stack.kill("supervisor")
    eventually(lambda: not runs(supervisor), "the supervisor is gone")
    assert {name: runs(pid) for name, pid in before.items()} == dict.fromkeys(before, True)
    status = stack.status()
    assert {name: status[name]["state"] for name in before} == dict.fromkeys(before, "unsupervised")
    done = stack.farandole(again)
    assert done.returncode == 0, done.stderr
    assert {name: runs(pid) for name, pid in before.items()} == dict.fromkeys(before, False)
    status = stack.status()
    assert [status[name]["health"] for name in before] == ["SERVING" if again == "up" else None] * 3


def test_down_stops_services_before_the_broker_and_the_last_first(stack: StackUnderTest, tmp_path: Path) -> None:
    last_words = tmp_path / "last-words"
    stack.up(environment={"FARANDOLE_TEST_LAST_WORDS": str(last_words)})
    down = stack.farandole("down")
    assert (down.returncode, "stopped nats, alpha, beta" in down.stdout) == (0, True)
    assert last_words.read_text().splitlines() == ["beta broker=True", "alpha broker=True"]
    assert not list((stack.home / "run").glob("*.pid"))


def test_a_supervisor_that_gets_sigterm_takes_everything_down(stack: StackUnderTest, tmp_path: Path) -> None:
    last_words = tmp_path / "last-words"
    stack.up(environment={"FARANDOLE_TEST_LAST_WORDS": str(last_words)})
    nats_server = stack.pid("nats")
    os.kill(stack.pid("supervisor"), signal.SIGTERM)
    eventually(lambda: not (stack.home / "run" / "supervisor.pid").exists(), "the supervisor has ended")
    assert not runs(nats_server)
    assert last_words.read_text().splitlines() == ["beta broker=True", "alpha broker=True"]


def test_down_keeps_the_data(stack: StackUnderTest) -> None:
    stack.up()
    url = f"nats://127.0.0.1:{stack.environment['FARANDOLE_PORT_NATS']}"

    async def publish() -> int:
        client = await nats.connect(url)
        receipt = await client.jetstream().publish("events.ord-1.orders.v1.OrderCreated", b"{}")
        await client.close()
        return int(receipt.seq)

    async def last_sequence() -> int:
        client = await nats.connect(url)
        found = await client.jetstream().stream_info("EVENTS")
        await client.close()
        return int(found.state.last_seq)

    sequence = asyncio.run(publish())
    stack.farandole("down")
    stack.up()
    assert asyncio.run(last_sequence()) == sequence == 1


def test_down_is_fine_where_nothing_runs(stack: StackUnderTest) -> None:
    for _ in range(2):
        down = stack.farandole("down")
        assert (down.returncode, down.stdout) == (0, "nothing was running\n")
    stop = stack.farandole("stop", "alpha")
    assert (stop.returncode, stop.stderr) == (
        1, "farandole: the stack is not running; `farandole up` starts it\n",
    )  # fmt: skip


def test_up_that_waits_in_vain_says_for_whom_and_why_and_how_its_log_ends(stack: StackUnderTest) -> None:
    done = stack.farandole("up", "--timeout", "4", environment={"FARANDOLE_TEST_UNWELL": "the till is locked"})
    assert done.returncode == 1
    assert "alpha: running, NOT_SERVING: the till is locked" in done.stderr
    assert "    alpha serves, its database is" in done.stderr
    assert "beta: not started: waits for alpha" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_can_not_run_is_tried_again_ever_more_slowly(tmp_path: Path) -> None:
    stack = StackUnderTest(tmp_path)
    program = 'import sys; print("the till is missing", file=sys.stderr); raise SystemExit(3)'
    stack.file.write_text(stack.file.read_text().replace("[python, ", f"[python, -c, '{program}', "))
    try:
        done = stack.farandole("up")
        assert done.returncode == 1
        # it is tried again for ever, at 0.2, 0.6, 1.4, 3 s …, but nobody is kept waiting for the full minute
        assert "alpha can't run: it has ended 3 times" in done.stderr
        assert "exited with code 3: the till is missing" in stack.status()["alpha"]["reason"]
        again = stack.farandole("start", "alpha")
        assert again.returncode == 1
        assert "alpha can't run" in again.stderr
    finally:
        assert stack.farandole("down").returncode == 0


def test_a_home_too_deep_for_a_socket_works(tmp_path: Path) -> None:
    stack = StackUnderTest(tmp_path, home=tmp_path / ("deep" * 20) / ("deeper" * 10))
    try:
        stack.up()
        assert stack.status()["beta"]["health"] == "SERVING"
        assert not (stack.home / "run" / "supervisor.sock").exists()
    finally:
        assert stack.farandole("down").returncode == 0
    assert stack.leftovers() == []


def test_an_unsupported_broker_is_refused_before_anything_starts(stack: StackUnderTest, tmp_path: Path) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.10.4'\n")
    old.chmod(0o755)
    refused = stack.farandole("up", environment={"NATS_SERVER_BIN": str(old)})
    assert refused.returncode == 1
    assert "is nats-server 2.10.4; Farandole needs 2.15.x" in refused.stderr
    assert stack.status()["supervisor"]["pid"] is None


def test_an_unknown_service_is_guessed(running: StackUnderTest) -> None:
    for command in (["stop", "alpah"], ["start", "alpah"], ["logs", "alpah"]):
        refused = running.farandole(*command)
        assert refused.returncode == 2
        assert "did you mean alpha?" in refused.stderr


def test_logs_shows_what_was_written_and_follows_what_is(running: StackUnderTest) -> None:
    assert "alpha serves" in running.farandole("logs", "alpha").stdout
    every = running.farandole("logs").stdout
    assert "alpha      | alpha serves" in every
    assert "beta       | beta serves" in every
    with subprocess.Popen(
        [sys.executable, "-m", "farandole", "logs", "beta", "--follow", "--lines", "1"],
        cwd=running.directory,
        env=running.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        try:
            assert "beta serves" in following.stdout.readline()
            running.restarted("beta", running.kill("beta"))
            assert "beta serves" in following.stdout.readline()
        finally:
            following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130


def test_clean_removes_what_the_stack_keeps_and_nothing_of_another_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    stack, other = StackUnderTest(first), StackUnderTest(second)
    stack.up()
    (stack.home / "notes.txt").write_text("somebody's own")
    (other.home / "data").mkdir(parents=True)
    (other.home / "data" / "payments.db").write_text("money")
    cleaned = stack.farandole("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert "stopped nats, alpha, beta" in cleaned.stdout
    assert stack.leftovers() == []
    assert [path.name for path in stack.home.iterdir()] == ["notes.txt"]
    assert (other.home / "data" / "payments.db").read_text() == "money"
    again = stack.farandole("clean")
    assert again.returncode == 0, again.stderr


def test_what_can_not_be_stopped_keeps_its_data(stack: StackUnderTest) -> None:
    stack.up()
    (stack.directory / "farandole.yaml").write_text("services: []")
    refused = stack.farandole("clean")
    assert refused.returncode != 0
    assert any((stack.home / "data").iterdir())
    StackUnderTest(stack.directory)  # the stack file as it was
