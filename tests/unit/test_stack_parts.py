"""The parts of the stack that need no running stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farandole.errors import ConfigurationError, StackError
from farandole.stack.control import SupervisorClient
from farandole.stack.embedded_broker import find_nats_server, render_configuration, supported_version
from farandole.stack.home import Home
from farandole.stack.log_rotation import last_lines, rotate
from farandole.stack.processes import live_processes, record_process, take_down_orphans
from farandole.stack.restart_policy import RestartPolicy


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.prepare()
    return made


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as process:
        yield process
        process.kill()


def test_the_brokers_configuration_is_complete(tmp_path: Path) -> None:
    assert render_configuration(server_name="nats", port=4222, monitoring_port=8222, store=Path("/data/nats")) == (
        'server_name: "nats"\n'
        'listen: "127.0.0.1:4222"\n'
        'http: "127.0.0.1:8222"\n'
        "max_payload: 8388608\n"
        "jetstream {\n"
        '  store_dir: "/data/nats"\n'
        "  sync_interval: always\n"
        "  max_memory_store: 268435456\n"
        "  max_file_store: 68719476736\n"
        "}\n"
    )


def test_nats_server_takes_the_configuration_whatever_the_path(tmp_path: Path) -> None:
    store = tmp_path / 'a "strange" $HOME \\ place'
    configuration = tmp_path / "nats.conf"
    configuration.write_text(render_configuration(server_name="nats", port=4222, monitoring_port=8222, store=store))
    checked = subprocess.run(
        [find_nats_server(os.environ), "-t", "-c", configuration], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_broker_is_the_wheels_unless_a_variable_names_another(tmp_path: Path) -> None:
    assert find_nats_server({}).name == "nats-server"
    assert find_nats_server({"NATS_SERVER_BIN": "/bin/sh"}) == Path("/bin/sh")
    with pytest.raises(ConfigurationError, match="NATS_SERVER_BIN: names no program"):
        find_nats_server({"NATS_SERVER_BIN": str(tmp_path / "absent")})


def test_only_the_measured_minor_version_is_supported() -> None:
    assert supported_version("nats-server: v2.15.1", Path("nats-server")) == "2.15.1"
    for banner in ("nats-server: v2.14.9", "nats-server: v2.16.0", "nats-server: v3.15.0", "", "no version"):
        with pytest.raises(StackError):
            supported_version(banner, Path("nats-server"))


def test_the_wait_before_a_restart_doubles_up_to_a_limit_and_a_stable_run_forgets() -> None:
    policy = RestartPolicy(first_seconds=0.2, factor=2, longest_seconds=1, stable_after_seconds=10)
    assert [policy.delay_seconds(deaths) for deaths in (1, 2, 3, 4, 5000)] == [0.2, 0.4, 0.8, 1, 1]
    assert policy.deaths_in_a_row(3, ran_seconds=9.9) == 4
    assert policy.deaths_in_a_row(3, ran_seconds=10) == 1


def test_rotation_keeps_the_writer_writing_and_the_pieces_in_order(tmp_path: Path) -> None:
    log = tmp_path / "till.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(5):
            writer.write(f"{number}".encode() * 8)
            assert rotate(log, limit_bytes=8, keep=2)
        writer.write(b"now")
    assert not rotate(log, limit_bytes=8, keep=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "till.log": "now",
        "till.log.1": "4" * 8,
        "till.log.2": "3" * 8,
    }
    assert not rotate(tmp_path / "absent.log", limit_bytes=8, keep=2)


def test_last_lines_are_the_last_and_of_no_file_none(tmp_path: Path) -> None:
    log = tmp_path / "till.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log, 2) == ["line 98", "line 99"]
    assert last_lines(log, 0) == []
    assert last_lines(tmp_path / "absent.log", 5) == []


def test_an_orphan_is_ended_and_forgotten(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    record_process(home, "till", sleeper.pid, 1)
    assert [record.service for record in live_processes(home)] == ["till"]
    assert home.pid_file("till").read_text() == f"{sleeper.pid}\n"
    assert [record.service for record in take_down_orphans(home, stop_timeout_seconds=5)] == ["till"]
    assert sleeper.poll() is not None
    assert list(home.run.iterdir()) == []


def test_a_recycled_process_id_is_never_taken_for_the_service(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    record_process(home, "till", sleeper.pid, 1)
    record = json.loads(home.process_record("till").read_text())
    home.process_record("till").write_text(json.dumps({**record, "start_time": record["start_time"] - 60}))
    assert live_processes(home) == []
    assert take_down_orphans(home, stop_timeout_seconds=5) == []
    assert sleeper.poll() is None
    assert list(home.run.iterdir()) == []


def test_a_broken_record_is_no_record(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    home.process_record("till").write_text('{"pid": "')
    home.process_record("office").write_text(json.dumps({"pid": sleeper.pid}))
    assert live_processes(home) == []


def test_a_deep_home_gets_a_short_socket_that_is_its_own(tmp_path: Path) -> None:
    shallow, deep, deeper = (Home(Path("/h")), Home(Path("/h" + "o" * 100)), Home(Path("/h" + "o" * 101)))
    assert shallow.control_socket == Path("/h/run/supervisor.sock")
    assert len(os.fsencode(deep.control_socket)) <= 100
    assert deep.control_socket != deeper.control_socket
    assert deep.control_socket == Home(deep.directory).control_socket


def test_the_home_is_for_its_owner_only(home: Home) -> None:
    assert {path.stat().st_mode & 0o777 for path in (home.directory, home.run, home.data, home.logs)} == {0o700}


def test_a_home_that_can_not_be_made_says_what_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="set FARANDOLE_HOME"):
        Home(tmp_path / "file" / "home").prepare()


def test_without_a_supervisor_there_is_no_state_and_nothing_to_stop(home: Home) -> None:
    client = SupervisorClient(home)
    assert client.state() is None
    with pytest.raises(StackError, match="`farandole up` starts it"):
        client.stop("till", timeout_seconds=1)
