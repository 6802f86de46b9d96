"""Judges a kept run again: `python -m tests.chaos.checker DIRECTORY`. Exits with 1 where anything is broken."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.chaos.checker.evidence import EvidenceError, read_end_state
from tests.chaos.checker.invariants import judge
from tests.chaos.checker.report import show

DATABASES = "databases"
"""Where a kept run has its databases."""


def check(directory: Path, databases: Path, console: Console) -> bool:
    """Judges a run and prints the verdict; returns whether everything holds."""
    try:
        state = read_end_state(directory, databases)
    except EvidenceError as error:
        console.print(f"the run can't be judged: {error}", style="bold red")
        return False
    verdicts = judge(state)
    show(console, state, verdicts)
    return all(verdict.holds for verdict in verdicts)


def main() -> None:
    """Judges the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.checker", description="judge a kept run again")
    parser.add_argument("directory", type=Path, help="what a run has kept")
    directory: Path = parser.parse_args().directory
    sys.exit(0 if check(directory, directory / DATABASES, Console()) else 1)


if __name__ == "__main__":
    main()
