"""The benchmarks run, at sizes at which their figures mean nothing: what is never run rots."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import telemetry
from benchmarks.__main__ import BENCHMARKS
from tests.integration.stack_under_test import ROOT


@pytest.mark.timeout(300)
def test_every_benchmark_runs_and_shows_a_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if " took " in line] == list(BENCHMARKS)
    for title in ("the order saga", "ingest:", "queries over gRPC", "deadlines due at once", "telemetry:"):
        assert title in done.stdout


def test_what_telemetry_costs_is_told_in_processor_time_and_in_throughput() -> None:
    """Against what goes with all of it off, in the same round: the machine is not as fast in each."""
    off = telemetry.Variant("off", {}, seconds=[0.010, 0.010, 0.010, 0.010], rates=[100.0, 50.0, 200.0, 100.0])
    on = telemetry.Variant("on", {}, seconds=[0.011, 0.011, 0.011, 0.011], rates=[96.0, 48.0, 192.0, 120.0])
    table = telemetry.table_of([off, on])
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns == {
        "": ["off", "on"],
        "ms of processor a saga": ["10.00", "11.00"],
        "processor, against off": ["", "+10.0%"],
        "sagas/s": ["100", "108"],
        "throughput, against off": ["", "-4.0%"],
    }


def test_a_benchmark_that_there_is_not_is_told_with_those_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "order"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"there is no benchmark order; there are {', '.join(BENCHMARKS)}" in done.stderr
