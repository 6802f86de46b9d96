"""The page on how Farandole is built names each module of the parts that it goes through, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "platform/farandole"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = {
    "Participants": "participant",
    "The loop that both share": "broker",
    "The correlator": "correlator",
    "The correlator's store": "correlator/sql_store",
    "Replay, prune and backup": "replay",
    "Telemetry": "telemetry",
    "The simulation": "testing/simulation",
}


@pytest.mark.parametrize("title", PACKAGES)
def test_a_table_has_the_modules_of_its_package(title: str) -> None:
    package = LIBRARY / PACKAGES[title]
    modules = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/*.py")}
    modules.discard("__init__")
    assert _named_in_the_table_of(title) == modules


def test_the_core_s_table_has_modules_that_there_are() -> None:
    named = _named_in_the_table_of("The pure core")
    assert named <= {path.stem for path in LIBRARY.glob("*.py")}
    assert "advance" in named


def _named_in_the_table_of(title: str) -> set[str]:
    """The words in backquotes of a table's first column."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, title
    return {
        name for row in re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
