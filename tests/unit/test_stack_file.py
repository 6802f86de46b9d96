"""The stack file: what is accepted, and that everything wrong is told at once, with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farandole.errors import ConfigurationError
from farandole.stack.plan import overriding, passed_on, resolve_command
from farandole.stack.planning import make_plan
from farandole.stack.ports import resolve_port
from farandole.stack.shape import Shape
from farandole.stack.stack_file import find_stack_file, parse_stack_file, read_stack_file

ROOT = Path(__file__).resolve().parents[2]

STACK = """\
services:
  - name: nats
    broker: embedded
  - name: till
    command: [python, -m, till]
    grpc_port: 50061
    depends_on: [nats]
  - name: back-office
    command: [farandole, correlator]
    grpc_port: 50062
    depends_on: [nats, till]
    environment: {FARANDOLE_LOG_LEVEL: debug}
next_steps:
  - say: look
    run: grpcurl ${back_office} list; echo $$HOME
"""


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse_stack_file(text, where="stack.yaml")
    return [str(fault) for fault in caught.value.faults]


def written(directory: Path, text: str = STACK) -> Path:
    file = directory / "farandole.yaml"
    file.write_text(text)
    return file


def test_every_fault_is_told_at_once_with_its_line() -> None:
    told = faults(
        """\
services:
  - name: nats
    broker: embedded
    depends_on: [till]
  - name: Till
    command: []
    grpc_port: 70000
  - name: office
    grpc_port: 4222
    depends_on: [nats, offices, press]
    color: red
  - name: office
    command: [python]
    grpc_port: 50062
  - name: supervisor
    command: [python]
    grpc_port: 50063
  - name: second
    broker: embedded
    port: 4223
    monitoring_port: 8223
next_steps:
  - say: look
    run: grpcurl ${offise}
    loudly: true
logs: {keep: 0}
"""
    )
    wheres = [fault.split(": ")[0] for fault in told]
    assert wheres == [
        "stack.yaml:4 services[0].depends_on",
        "stack.yaml:5 services[1].name",
        "stack.yaml:6 services[1].command",
        "stack.yaml:7 services[1].grpc_port",
        "stack.yaml:8 services[2].command",
        "stack.yaml:11 services[2].color",
        "stack.yaml:25 next_steps[0].loudly",
        "stack.yaml:26 logs.keep",
        "stack.yaml:4 services[0].depends_on[0]",
        "stack.yaml:10 services[2].depends_on[1]",
        "stack.yaml:10 services[2].depends_on[2]",
        "stack.yaml:9 services[2].grpc_port",
        "stack.yaml:12 services[3].name",
        "stack.yaml:15 services[4].name",
        "stack.yaml:19 services[5].broker",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services: {nats: 1}", "needs `services`, a list"),
        ("services: []", "needs `services`, a list"),
        ("[]", "needs `services`, a list"),
        ("services: [", "is not YAML"),
        ("services: [till]", "services[0]: Input should be a valid dictionary"),
        (STACK.replace("back_office", "backoffice"), "did you mean back_office?"),
        (STACK.replace("$$HOME", "$"), "write `$$` for a dollar"),
        (STACK.replace("[nats, till]", "[nats, tilt]"), "tilt does not stand earlier in the file; did you mean till?"),
        (STACK.replace("50062", "50061"), "port 50061 is till's already"),
        (STACK.replace("name: till", "name: offset"), "offset is the stack's own"),
    ],
)
def test_what_is_wrong_is_said_in_words(text: str, said: str) -> None:
    assert any(said in fault for fault in faults(text)), faults(text)


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_stack_file(tmp_path / "absent.yaml")
    with pytest.raises(ConfigurationError, match="name it by --file"):
        find_stack_file(tmp_path)


def test_the_file_is_found_from_a_directory_below(tmp_path: Path) -> None:
    file = written(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_stack_file(below) == file


def test_the_checkouts_own_file_is_valid() -> None:
    plan = make_plan(ROOT / "farandole.yaml", {}, Shape())
    assert {service.name: service.port.number for service in plan.services} == {
        "nats": 4222,
        "correlator": 50051,
        "orders": 50052,
        "inventory": 50053,
        "payments": 50054,
        "shipping": 50055,
        "parcels": 50056,
        "packaging": 50057,
        "drones": 50058,
        "delivery": 50059,
    }
    assert len(plan.brokers) == 1
    assert plan.brokers[0].monitoring is not None
    assert plan.brokers[0].monitoring.number == 8222
    assert plan.suggestions()


def test_each_service_gets_its_own_address_and_database(tmp_path: Path) -> None:
    plan = make_plan(written(tmp_path), {})
    assert plan.nats_url == "nats://127.0.0.1:4222"
    assert plan.service("back-office").environment == {
        "FARANDOLE_NATS_URL": "nats://127.0.0.1:4222",
        "FARANDOLE_GRPC_ADDRESS": "127.0.0.1:50062",
        "FARANDOLE_DATABASE_URL": f"sqlite:///{tmp_path}/.farandole/data/back-office.db",
        "FARANDOLE_REPLICA": "back-office",
        "FARANDOLE_LOG_LEVEL": "debug",
    }
    assert plan.suggestions() == [("look", "grpcurl 127.0.0.1:50062 list; echo $HOME")]


def test_one_variable_moves_one_port_and_the_offset_moves_the_others(tmp_path: Path) -> None:
    plan = make_plan(written(tmp_path), {"FARANDOLE_PORT_OFFSET": "100", "FARANDOLE_PORT_BACK_OFFICE": "7000"})
    assert [port.number for service in plan.services for port in service.ports] == [4322, 8322, 50161, 7000]
    assert [port.variable for port in plan.services[0].ports] == [
        "FARANDOLE_PORT_NATS",
        "FARANDOLE_PORT_NATS_MONITORING",
    ]
    assert plan.service("till").environment["FARANDOLE_NATS_URL"] == "nats://127.0.0.1:4322"


def test_wrong_port_variables_are_told_at_once(tmp_path: Path) -> None:
    environment = {
        "FARANDOLE_PORT_NATS": "x",
        "FARANDOLE_PORT_TILL": "66000",
        "FARANDOLE_PORT_BACK_OFFICE": "8222",
    }
    with pytest.raises(ConfigurationError) as caught:
        make_plan(written(tmp_path), environment)
    assert {fault.where for fault in caught.value.faults} == {"FARANDOLE_PORT_NATS", "FARANDOLE_PORT_TILL"}
    environment = {"FARANDOLE_PORT_BACK_OFFICE": "8222"}
    with pytest.raises(
        ConfigurationError, match="FARANDOLE_PORT_BACK_OFFICE: port 8222 is FARANDOLE_PORT_NATS_MONITORING"
    ):
        make_plan(written(tmp_path), environment)


def test_an_offset_out_of_range_is_told() -> None:
    with pytest.raises(ConfigurationError, match="FARANDOLE_PORT_OFFSET: puts till on port 65536"):
        resolve_port("till", 65000, {"FARANDOLE_PORT_OFFSET": "536"})


def test_the_home_moves_and_a_relative_one_counts_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert make_plan(file, {}).home.directory == tmp_path / ".farandole"
    assert make_plan(file, {"FARANDOLE_HOME": "other"}).home.directory == tmp_path / "other"
    assert make_plan(file, {"FARANDOLE_HOME": "/elsewhere"}).home.directory == Path("/elsewhere")


def test_a_callers_relative_paths_become_absolute_and_the_rest_passes_through(tmp_path: Path) -> None:
    environment = {
        "FARANDOLE_SAGAS": "mine/sagas",
        "FARANDOLE_DESCRIPTORS": "/set.binpb",
        "FARANDOLE_LOG_LEVEL": "debug",
    }
    assert passed_on(environment, tmp_path) == {
        "FARANDOLE_SAGAS": f"{tmp_path}/mine/sagas",
        "FARANDOLE_DESCRIPTORS": "/set.binpb",
        "FARANDOLE_LOG_LEVEL": "debug",
    }


def test_start_hands_on_settings_but_not_what_places_the_stack() -> None:
    environment = {
        "FARANDOLE_SAGAS": "/sagas",
        "FARANDOLE_PORT_OFFSET": "1",
        "FARANDOLE_HOME": "/home",
        "PATH": "/bin",
    }
    assert overriding(environment) == {"FARANDOLE_SAGAS": "/sagas"}


def test_python_and_farandole_are_those_that_run_the_stack() -> None:
    assert resolve_command(["python", "-m", "till"], "") == [sys.executable, "-m", "till"]
    assert resolve_command(["farandole", "correlator"], "") == [sys.executable, "-m", "farandole", "correlator"]
    assert resolve_command(["sh", "-c", "true"], "/bin") == ["/bin/sh", "-c", "true"]


def test_services_show_their_metrics_on_ports_of_their_own_where_they_are_to() -> None:
    assert all(service.metrics is None for service in make_plan(ROOT / "farandole.yaml", {}, Shape()).services)
    environment = {"FARANDOLE_STACK_METRICS": "on", "FARANDOLE_PORT_ORDERS_METRICS": "9464"}
    services = [one for one in make_plan(ROOT / "farandole.yaml", environment, Shape()).services if one.metrics]
    for service in services:
        assert service.metrics in service.ports
        assert service.environment["FARANDOLE_METRICS_ADDRESS"] == service.metrics.address
        assert service.metrics.number == (9464 if service.name == "orders" else service.port.number + 10_000)
    with pytest.raises(ConfigurationError, match="FARANDOLE_STACK_METRICS: must be on or off"):
        make_plan(ROOT / "farandole.yaml", {"FARANDOLE_STACK_METRICS": "yes"}, Shape())
