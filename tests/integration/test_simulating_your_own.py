"""The page about simulation: its scenario finds what it says, its remedy helps, and its tables are complete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farandole.testing.simulation import Fault
from tests.e2e.readme_sessions import File, read_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "simulate.md"
TEAM = ROOT / "docs" / "your-own-saga.md"


def team_files() -> list[File]:
    pages = (TEAM.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
    return [part for page in pages for part in read_page(page) if isinstance(part, File)]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both pages, with the classes generated."""
    home = tmp_path_factory.mktemp("team")
    for file in team_files():
        path = home / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
    directory = home / "loyalty-team"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{ROOT}/proto", f"-I{ROOT}/third_party/proto"]
    outputs = ["--python_out=.", "--include_imports", "--descriptor_set_out=descriptors.binpb"]
    protos = sorted(str(proto.relative_to(directory)) for proto in directory.rglob("*.proto"))
    subprocess.run([*protoc, *outputs, *protos], cwd=directory, check=True, timeout=60)
    return directory


def typed(team: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and what is printed of a Python command in the team's directory."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=team,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_scenario_finds_the_race_that_the_page_tells_of(team: Path) -> None:
    code, told = typed(team, "-m", "farandole.testing.simulation", "simulation:scenario", "--seeds", "200")
    assert code == 1, told[-2000:]
    [shown] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("  welcome mem-")]
    what = shown.partition(": ")[2]
    assert any(line.startswith("  welcome mem-") and line.endswith(what) for line in told.splitlines()), told[-2000:]


def test_with_the_remedy_nothing_fails(team: Path) -> None:
    code, told = typed(team, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_careful.py")
    assert code == 0, told
    assert "1 passed" in told


def test_the_page_lists_every_kind_of_fault() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for fault in Fault:
        assert f"| {fault.name.lower().replace('_', ' ')} | {fault.value} |" in page
