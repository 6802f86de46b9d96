"""Where commands look for the broker and the correlator: what variables say, else where the stack is."""

from __future__ import annotations

from pathlib import Path

import pytest

from farandole.errors import ConfigurationError
from farandole.stack.addresses import default_correlator_address, default_nats_url
from farandole.stack.home import Home
from farandole.stack.shape import Shape, keep_shape
from farandole.stack.stack_file import STACK_FILE

STACK = """\
services:
  - name: nats
    broker: embedded
  - name: correlator
    command: [farandole, correlator]
    grpc_port: 50051
"""
CLUSTER = "nats://127.0.0.1:4222,nats://127.0.0.1:4223,nats://127.0.0.1:4224"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A directory below that of a stack of which the data are those of a cluster and of three replicas."""
    (tmp_path / STACK_FILE).write_text(STACK)
    home = Home.of(tmp_path, {})
    home.prepare()
    keep_shape(home, Shape(replicas=3, database="postgres", nats="cluster"))
    below = tmp_path / "below"
    below.mkdir()
    return below


def test_where_there_is_no_stack_the_usual_ports_are_asked(tmp_path: Path) -> None:
    for offset, broker, correlator in (
        ("", "127.0.0.1:4222", "127.0.0.1:50051"),
        ("10", "127.0.0.1:4232", "127.0.0.1:50061"),
    ):
        moved = {"FARANDOLE_PORT_OFFSET": offset}
        assert default_nats_url(moved, tmp_path) == f"nats://{broker}"
        assert default_correlator_address(moved, tmp_path) == correlator


def test_every_server_of_a_cluster_and_every_replica_may_answer(stack: Path) -> None:
    assert default_nats_url({}, stack) == CLUSTER
    assert default_correlator_address({}, stack) == "ipv4:127.0.0.1:50051,127.0.0.1:50151,127.0.0.1:50251"
    moved = {"FARANDOLE_PORT_NATS_2": "7000", "FARANDOLE_PORT_CORRELATOR_3": "7001"}
    assert default_nats_url(moved, stack) == CLUSTER.replace("4223", "7000")
    assert default_correlator_address(moved, stack).endswith(",127.0.0.1:7001")


def test_what_variables_say_counts_whatever_the_stack_is(stack: Path) -> None:
    assert default_nats_url({"FARANDOLE_NATS_URL": "nats://broker:1"}, stack) == "nats://broker:1"
    assert default_correlator_address({"FARANDOLE_CORRELATOR_ADDRESS": "far:1"}, stack) == "far:1"


def test_a_stack_without_them_leaves_the_usual_ports(tmp_path: Path) -> None:
    (tmp_path / STACK_FILE).write_text("services: [{name: till, command: [python], grpc_port: 50061}]")
    assert default_nats_url({}, tmp_path) == "nats://127.0.0.1:4222"
    assert default_correlator_address({}, tmp_path) == "127.0.0.1:50051"


def test_a_stack_file_that_is_wrong_is_said_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / STACK_FILE).write_text(STACK.replace("embedded", "elsewhere"))
    for look in (default_nats_url, default_correlator_address):
        with pytest.raises(ConfigurationError, match=r"farandole\.yaml:3"):
            look({}, tmp_path)
