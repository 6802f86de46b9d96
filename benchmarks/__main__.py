"""`make bench`: `python -m benchmarks [NAME …] [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks import deadlines, ingest, order_saga, queries, telemetry
from benchmarks.workbench import Workbench, workbench

BENCHMARKS: Mapping[str, Callable[[Workbench], Coroutine[Any, Any, Table]]] = {
    "order-saga": order_saga.run,
    "ingest": ingest.run,
    "queries": queries.run,
    "deadlines": deadlines.run,
    "telemetry": telemetry.run,
}


_WIDTH = 160
"""Where no terminal says how wide it is."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmarks that are named, or all, and prints a table for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Figures and ratios, never tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all where none is given")
    parser.add_argument("--quick", action="store_true", help="small sizes: do they work? The figures mean nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    with workbench(quick=chosen.quick, console=console) as bench:
        for name in chosen.names or BENCHMARKS:
            began = time.perf_counter()
            console.print(asyncio.run(BENCHMARKS[name](bench)))
            console.print(f"{name} took {time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main()
