"""The table of bad days: each row is brought about by a test, which looks for the row's own words."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bad-days.md").read_text(encoding="utf-8")
TESTS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "integration").glob("test_bad_*.py"))]
LOOKED_FOR = {what for test in TESTS for what in re.findall(r'\btold\("([^"]+)"', test)} | {
    what for test in TESTS for what in re.findall(r'\buntil_told\("([^"]+)"', test)
}


def test_every_row_is_brought_about_by_a_test() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| `", PAGE, re.MULTILINE)
    assert len(rows) == len(set(rows)) >= 13
    assert set(rows) == LOOKED_FOR


def test_what_is_logged_of_an_older_backup_is_looked_for() -> None:
    assert "`the store is older than what it had acknowledged`" in PAGE
    assert any('"the store is older"' in test for test in TESTS)
