"""Chaos in its short form: what `make chaos` does for several minutes, for two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORM_MINUTES = 1.75
SAGAS = 1000
WHOLE_SECONDS = 400
"""A run takes half of it; one that takes longer waits for something that does not come."""


@pytest.mark.timeout(WHOLE_SECONDS + 20)
def test_everything_holds_after_a_storm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", str(STORM_MINUTES), "--sagas", str(SAGAS)]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WHOLE_SECONDS,
        check=False,
        cwd=ROOT,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout
