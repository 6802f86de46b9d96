"""The shapes of a stack: what a stack file becomes in each, and that the data of one are never taken for another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from farandole.errors import ConfigurationError, StackError
from farandole.stack.home import Home
from farandole.stack.plan import Plan
from farandole.stack.planning import make_plan
from farandole.stack.shape import Shape, asked_shape, keep_shape, kept_shape

STACK = """\
services:
  - name: nats
    broker: embedded
  - name: till
    command: [python, -m, till]
    grpc_port: 50061
    depends_on: [nats]
  - name: console
    command: [python, -m, console]
    grpc_port: 50062
    replicas: 1
    depends_on: [nats, till]
next_steps:
  - say: look
    run: grpcurl ${till} list; nats -s ${nats}
"""
SEVERAL = Shape(replicas=3, database="postgres")
CLUSTER = Shape(nats="cluster")


def planned(directory: Path, shape: Shape, text: str = STACK, **environment: str) -> Plan:
    file = directory / "farandole.yaml"
    file.write_text(text)
    return make_plan(file, environment, shape)


def prepared(directory: Path) -> Home:
    home = Home(directory)
    home.prepare()
    return home


def test_each_replica_is_a_service_of_its_own_and_all_share_one_database(tmp_path: Path) -> None:
    plan = planned(tmp_path, SEVERAL)
    tills = [service for service in plan.services if service.command == ("python", "-m", "till")]
    assert [(till.name, till.port.number, till.port.variable) for till in tills] == [
        ("till", 50061, "FARANDOLE_PORT_TILL"),
        ("till-2", 50161, "FARANDOLE_PORT_TILL_2"),
        ("till-3", 50261, "FARANDOLE_PORT_TILL_3"),
    ]
    assert [till.environment["FARANDOLE_REPLICA"] for till in tills] == ["till", "till-2", "till-3"]
    assert [till.environment["FARANDOLE_GRPC_ADDRESS"] for till in tills] == [till.port.address for till in tills]
    for variable, value in (
        ("FARANDOLE_DATABASE_URL", "postgresql://till@127.0.0.1:55432/till"),
        ("PGPASSFILE", str(tmp_path / ".farandole" / "data" / "postgres" / "passwords")),
        ("FARANDOLE_LANES", "8"),
        ("FARANDOLE_NATS_URL", "nats://127.0.0.1:4222"),
    ):
        assert {till.environment[variable] for till in tills} == {value}
    assert plan.suggestions() == [("look", "grpcurl 127.0.0.1:50061 list; nats -s 127.0.0.1:4222")]


def test_what_the_file_says_of_a_services_replicas_counts_whatever_up_is_told(tmp_path: Path) -> None:
    plan = planned(tmp_path, SEVERAL)
    (console,) = [service for service in plan.services if service.command == ("python", "-m", "console")]
    assert "FARANDOLE_LANES" not in console.environment
    assert console.depends_on == ("postgres", "nats", "till", "till-2", "till-3")
    more = STACK.replace("grpc_port: 50061", "grpc_port: 50061\n    replicas: 2")
    assert [s.name for s in planned(tmp_path, Shape(database="postgres"), more).services if "till" in s.name] == [
        "till", "till-2",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"till\.replicas: several replicas share one database"):
        planned(tmp_path, Shape(), more)


def test_the_callers_lanes_count(tmp_path: Path) -> None:
    plan = planned(tmp_path, SEVERAL, FARANDOLE_LANES="16")
    assert all("FARANDOLE_LANES" not in service.environment for service in plan.services)


def test_postgres_comes_first_and_its_port_moves_like_any_other(tmp_path: Path) -> None:
    plan = planned(tmp_path, SEVERAL, FARANDOLE_PORT_POSTGRES="7000")
    postgres = plan.services[0]
    assert (postgres.name, postgres.kind, postgres.port.number, postgres.depends_on) == (
        "postgres", "database", 7000, (),
    )  # fmt: skip
    assert planned(tmp_path, SEVERAL, FARANDOLE_PORT_OFFSET="100").services[0].port.number == 55532
    assert plan.service("till-2").environment["FARANDOLE_DATABASE_URL"].endswith("@127.0.0.1:7000/till")


def test_a_cluster_has_three_servers_and_every_service_knows_all(tmp_path: Path) -> None:
    plan = planned(tmp_path, CLUSTER, FARANDOLE_PORT_NATS_2_ROUTES="7000")
    assert [(b.name, *(port.number for port in b.ports)) for b in plan.brokers] == [
        ("nats-1", 4222, 8222, 6222),
        ("nats-2", 4223, 8223, 7000),
        ("nats-3", 4224, 8224, 6224),
    ]
    assert [port.variable for port in plan.brokers[0].ports] == [
        "FARANDOLE_PORT_NATS",
        "FARANDOLE_PORT_NATS_MONITORING",
        "FARANDOLE_PORT_NATS_ROUTES",
    ]
    url = "nats://127.0.0.1:4222,nats://127.0.0.1:4223,nats://127.0.0.1:4224"
    assert (plan.nats_url, plan.service("till").environment["FARANDOLE_NATS_URL"]) == (url, url)
    assert plan.service("till").depends_on == ("nats-1", "nats-2", "nats-3")


def test_a_cluster_needs_an_embedded_broker(tmp_path: Path) -> None:
    alone = "services: [{name: till, command: [python], grpc_port: 50061}]"
    with pytest.raises(ConfigurationError, match="--nats: a cluster needs `broker: embedded`"):
        planned(tmp_path, CLUSTER, alone)


def test_a_replica_and_a_service_of_one_name_or_port_are_told(tmp_path: Path) -> None:
    text = STACK.replace("name: console", "name: till-2").replace("50062", "50161")
    with pytest.raises(ConfigurationError) as caught:
        planned(tmp_path, SEVERAL, text)
    assert [str(fault) for fault in caught.value.faults] == [
        "till-2: is the name of a replica, and of another service too",
        "FARANDOLE_PORT_TILL_2: port 50161 is FARANDOLE_PORT_TILL_2's too",
    ]


def test_several_replicas_on_sqlite_are_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"--replicas: .*`--database postgres`"):
        Shape(replicas=2)
    with pytest.raises(ConfigurationError, match="from 1 to 16"):
        Shape(replicas=17, database="postgres")


def test_a_plan_without_a_shape_is_that_of_the_data(tmp_path: Path) -> None:
    home = prepared(tmp_path / ".farandole")
    assert kept_shape(home) is None
    keep_shape(home, CLUSTER)
    file = tmp_path / "farandole.yaml"
    file.write_text(STACK)
    assert make_plan(file, {}).shape == CLUSTER


def test_what_is_not_asked_for_is_as_the_data_have_it(tmp_path: Path) -> None:
    home = prepared(tmp_path)
    assert asked_shape(home, None, None, None) == Shape()
    assert asked_shape(home, 3, "postgres", None) == SEVERAL
    keep_shape(home, SEVERAL)
    assert asked_shape(home, None, None, None) == SEVERAL
    assert asked_shape(home, 2, None, None) == Shape(replicas=2, database="postgres")
    assert asked_shape(home, None, "postgres", "single") == SEVERAL


def test_nothing_of_the_datas_shape_counts_where_they_are_not_asked_for(tmp_path: Path) -> None:
    home = prepared(tmp_path)
    keep_shape(home, SEVERAL)
    for asked in (asked_shape(home, None, "sqlite", None), asked_shape(home, None, None, "cluster")):
        with pytest.raises(StackError, match="`farandole up --replicas 3 --database postgres` goes on with them"):
            keep_shape(home, asked)


@pytest.mark.parametrize(
    ("before", "after", "command"),
    [
        (CLUSTER, Shape(), "farandole up --nats cluster"),
        (Shape(), CLUSTER, "farandole up"),
        (SEVERAL, Shape(), "farandole up --replicas 3 --database postgres"),
        (Shape(), SEVERAL, "farandole up"),
    ],
)
def test_data_of_another_database_or_broker_are_never_left_behind(
    tmp_path: Path, before: Shape, after: Shape, command: str
) -> None:
    home = prepared(tmp_path)
    keep_shape(home, before)
    with pytest.raises(StackError) as refused:
        keep_shape(home, after)
    assert f"`{command}` goes on with them; `make clean` removes them" in str(refused.value)
    assert kept_shape(home) == before


def test_the_number_of_replicas_may_change(tmp_path: Path) -> None:
    home = prepared(tmp_path)
    keep_shape(home, SEVERAL)
    keep_shape(home, Shape(replicas=1, database="postgres"))
    assert kept_shape(home) == Shape(replicas=1, database="postgres")


def test_data_from_before_there_were_shapes_are_those_of_the_usual_one(tmp_path: Path) -> None:
    home = prepared(tmp_path)
    home.broker_store().mkdir()
    assert kept_shape(home) is None, "a place for data is none"
    (home.broker_store() / "jetstream").mkdir()
    assert kept_shape(home) == Shape()
    with pytest.raises(StackError, match="are those of"):
        keep_shape(home, CLUSTER)


@pytest.mark.parametrize("text", ["{", "{}", '{"replicas": 1, "database": "oracle"}', "[]"])
def test_a_shape_that_can_not_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    home = prepared(tmp_path)
    home.shape.write_text(text)
    with pytest.raises(StackError, match="can't be read"):
        kept_shape(home)
