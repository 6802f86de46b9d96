"""The package of the page on plug-ins: it keeps its ports' rules, is installed, and is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farandole.correlator.deadline_action_runner import AT_ONCE, PAUSES_SECONDS, consumer_of
from farandole.correlator.observer_runner import QUEUE_LENGTH
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.webhook import webhook_body, webhook_headers
from farandole.plugins import Kind, installed
from farandole.testing.deadline_action_conformance import overdue
from tests.e2e.readme_sessions import ROOT, File, read_page
from tests.integration.packages import install

PAGE = ROOT / "docs" / "plug-ins.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("package")
    for file in (part for part in read_page(TEXT) if isinstance(part, File)):
        path = home / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
    return home / "farandole-ticker"


def run(directory: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FARANDOLE_"))}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=outside | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_package_keeps_the_rules_of_its_ports(package: Path) -> None:
    done = run(package, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_installed_and_found(package: Path, tmp_path: Path) -> None:
    target = install(package, tmp_path / "installed")
    settings = re.search(r"^TICKER_FILE=paper (.*) farandole correlator$", TEXT, re.MULTILINE)
    assert settings is not None
    environment = dict(one.split("=") for one in settings[1].split())
    done = run(tmp_path, "farandole", "plugins", "--json", PYTHONPATH=str(target), **environment)
    found = {row["name"]: row for row in json.loads(done.stdout)["plugins"]}
    assert {name for name, row in found.items() if row["in_use"]} == {"sqlite", "ticker", "bell"}
    assert {row["problem"] for row in found.values()} == {""}
    assert found["ticking"]["package"] == "farandole-ticker 1.0.0"


def test_the_page_s_table_has_the_groups_and_what_ships() -> None:
    rows = re.findall(r"^\| [^|]+: [^|]+\| `(farandole\.\w+)` \| [^|]+ \| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert [group for group, _ in rows] == [kind.value for kind in Kind]
    for kind, (_, ships) in zip(Kind, rows, strict=True):
        assert set(re.findall(r"`(\w+)`", ships)) == {one.name for one in installed(kind) if one.package == "farandole"}


def test_the_body_and_the_headers_of_the_webhook_are_those_of_the_page() -> None:
    shown = re.search(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert json.loads(shown[1]) == json.loads(webhook_body(overdue("ord-1")))
    headers = webhook_headers("id", 1, b"", [b"s" * 24])
    assert set(re.findall(r"^\| `(webhook-\w+)` \|", TEXT, re.MULTILINE)) == set(headers)


def test_the_page_s_numbers_are_the_code_s() -> None:
    assert PAUSES_SECONDS == (1, 5, 30, 120, 600, 1800, 3600)
    assert "after 1 s, 5 s, 30 s, 2 min,\n10 min, 30 min, and then every hour" in TEXT
    tries = CorrelatorSettings.model_fields["deadline_action_tries"].default
    assert tries == 12
    assert "twelve times in all" in TEXT
    assert AT_ONCE == 8
    assert "Eight posts are\nunder way" in TEXT
    assert f"{QUEUE_LENGTH:,} transitions" in TEXT
    assert consumer_of("webhook") in TEXT
