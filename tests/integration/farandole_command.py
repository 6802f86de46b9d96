"""The command line on a test's own broker and database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.integration.correlators import ROOT


@dataclass(frozen=True)
class Command:
    """Runs `farandole` where the broker and the correlator's database are those of a test."""

    nats_url: str
    database_url: str

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Runs it, which must end with that code; returns all that it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "farandole", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
                "FARANDOLE_NATS_URL": self.nats_url,
                "FARANDOLE_DATABASE_URL": self.database_url,
            },
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What it prints with --json."""
        return json.loads(self(*arguments, "--json", code=code))
