"""The servers' configuration in `docs/cluster.md`: nats-server takes it, and three servers with it are one cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from farandole.stack.embedded_broker import find_nats_server
from farandole.testing.brokers import free_port
from tests.integration.stack_under_test import ROOT, eventually

PASSWORD = "abcdefgh"
NAMES = ("nats-1", "nats-2", "nats-3")


@pytest.fixture
def configuration() -> str:
    """The one block of the page that is a server's configuration."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (block,) = re.findall(r"^```\n(server_name:.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(block)


def environment(ports: dict[str, str]) -> dict[str, str]:
    """Of every server: where the others wait, and the password."""
    routes = [f"nats://route:{PASSWORD}@{ports[name]}" for name in NAMES]
    return {**os.environ, "ROUTES_PASSWORD": PASSWORD, "ROUTES": json.dumps(routes)}


@pytest.fixture
def monitoring(configuration: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Three servers that run on it, with only the addresses and the directory moved; where each is asked how it is."""
    routes = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    asked = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    processes = []
    for name in NAMES:
        text = configuration
        for written, moved in (
            ("server_name: nats-1", f"server_name: {name}"),
            ("0.0.0.0:4222", f"127.0.0.1:{free_port()}"),
            ("127.0.0.1:8222", asked[name]),
            ("/var/lib/nats", str(tmp_path / name)),
            ("0.0.0.0:6222", routes[name]),
        ):
            assert text.count(written) == 1, written
            text = text.replace(written, moved)
        file = tmp_path / f"{name}.conf"
        file.write_text(text)
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [str(find_nats_server(os.environ)), "-c", str(file)]
            processes.append(subprocess.Popen(command, env=environment(routes), stdout=log, stderr=log))
    yield asked
    for process in processes:
        process.terminate()
        process.wait(30)


def test_nats_server_takes_the_configuration_as_it_stands(configuration: str, tmp_path: Path) -> None:
    file = tmp_path / "nats.conf"
    file.write_text(configuration)
    there = environment({name: f"{name}.example:6222" for name in NAMES})
    checked = subprocess.run(
        [find_nats_server(os.environ), "-t", "-c", file], env=there, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_three_servers_with_it_are_one_cluster(monitoring: dict[str, str]) -> None:
    def is_whole() -> bool:
        try:
            answers = [client.get(f"http://{address}/jsz").json() for address in monitoring.values()]
        except httpx.HTTPError:
            return False
        told = [answer.get("meta_cluster", {}) for answer in answers]
        return all(one.get("leader") and one.get("cluster_size") == len(NAMES) for one in told)

    with httpx.Client(trust_env=False) as client:
        eventually(is_whole, "all three have one leader")
