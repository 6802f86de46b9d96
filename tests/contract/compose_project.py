"""docker-compose.yml as the Compose Specification's own loader resolves it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
IMAGE = "farandole:local"
"""What the Dockerfile makes."""
TIMEOUT_SECONDS = 60

JSON = dict[str, Any]


def required_program(name: str, remedy: str) -> Path:
    """A program from `make tools`, else from the PATH. Where there is none the test is skipped; in CI it fails."""
    made = ROOT / ".tools" / "bin" / name
    found = made if made.exists() else shutil.which(name)
    if found is None:
        problem = f"{name} is not installed; {remedy}"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    return Path(found)


def load(file: Path = COMPOSE_FILE, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What the loader prints about a file, where only these FARANDOLE_* variables are set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FARANDOLE_", "COMPOSE_"))}
    return subprocess.run(
        [required_program("compose-config", "`make tools` builds it"), file],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=inherited | dict(environment or {}),
    )


def resolved(environment: Mapping[str, str] | None = None) -> JSON:
    """The project: with anchors merged, variables replaced and paths absolute."""
    done = load(environment=environment)
    assert done.returncode == 0, done.stderr
    project: JSON = json.loads(done.stdout)
    return project


def published_ports(service: JSON) -> dict[int, tuple[str, int]]:
    """By port in the container: (address, port) of this machine."""
    return {port["target"]: (port.get("host_ip", ""), int(port["published"])) for port in service.get("ports", [])}


def dependencies(service: JSON) -> dict[str, str]:
    """By service that must come first: the condition."""
    return {name: needed["condition"] for name, needed in (service.get("depends_on") or {}).items()}


def is_one_shot(service: JSON) -> bool:
    """Whether it does one thing and ends."""
    return bool(service["restart"] == "no")
