"""The choice of the tests' broker: a container where a Docker engine answers, else a skip that says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from farandole.testing.brokers import docker_problem

ROOT = Path(__file__).parents[2]


def test_the_container_broker_serves_or_is_skipped_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--broker=container", "-k", "receipt", "tests/integration/test_publishing.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    if problem := docker_problem():
        assert "SKIPPED [1] tests/integration/test_publishing.py" in done.stdout
        assert problem in done.stdout
    else:
        assert "1 passed" in done.stdout
