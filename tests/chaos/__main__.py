"""Chaos: the real stack under load while everything around it fails, and a verdict on what is left.

`python -m tests.chaos --minutes 7 --sagas 5200 [--seed N] [--directory D]`. Exits with 1 where an invariant is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from farandole.stack.shape import DATABASE_VARIABLE, NATS_VARIABLE, REPLICAS_VARIABLE, Shape
from tests.chaos import isolation
from tests.chaos.checker.__main__ import DATABASES, check
from tests.chaos.stack import Stack, StackFailedError
from tests.chaos.storm import Plan, rage

_SAGAS_A_MINUTE = 750
_SAGAS_A_MINUTE_OF_REPLICAS = 240
"""Three times as many processes share the machine."""


def main() -> None:
    """Runs what the command line asks for."""
    arguments = _arguments()
    shape = Shape(arguments.replicas, arguments.database, arguments.nats)
    disk_problem = isolation.enter(as_caller=shape.database == "postgres")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    a_minute = _SAGAS_A_MINUTE if shape.replicas == 1 else _SAGAS_A_MINUTE_OF_REPLICAS
    sagas = arguments.sagas or int(arguments.minutes * a_minute)
    in_ci = bool(os.environ.get("CI"))
    plan = Plan.of(seed=seed, minutes=arguments.minutes, sagas=sagas, must_be_complete=in_ci, shape=shape)
    directory = (arguments.directory or Path(tempfile.mkdtemp(prefix="farandole-chaos-"))).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)  # PostgreSQL's user comes through where root runs this
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty")
    stack = Stack(directory, plan.durations, shape)
    console = Console(width=None if sys.stdout.isatty() else 160)
    began = time.monotonic()

    def say(words: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {words}", markup=False, highlight=False, soft_wrap=True)

    say(f"seed {seed}: {sagas} sagas in {arguments.minutes:g} minutes, in {directory}")
    say(f"the stack runs as {shape}")
    if disk_problem:
        say(f"no disk will be filled: {disk_problem}")
    holds = False
    try:
        asyncio.run(rage(plan, stack, disk_problem, say))
        say("judging what is left")
        holds = check(directory, stack.databases.files(directory / DATABASES), console)
    except StackFailedError as error:
        say(str(error))
    finally:
        kept = not holds or arguments.keep
        if kept:
            stack.databases.keep(directory / DATABASES)
        for disk in stack.disks:
            disk.unmount()
        if not kept:
            shutil.rmtree(directory)
    say(f"everything holds (seed {seed})" if holds else _how_to_go_on(plan, arguments.minutes, shape, directory))
    sys.exit(0 if holds else 1)


def _how_to_go_on(plan: Plan, minutes: float, shape: Shape, directory: Path) -> str:
    options = f"MINUTES={minutes:g} SEED={plan.seed}"
    if shape != Shape():
        options += f" REPLICAS={shape.replicas} DATABASE={shape.database} NATS={shape.nats}"
    return (
        f"BROKEN. The evidence is in {directory}; judge it again by `python -m tests.chaos.checker {directory}`. "
        f"The same orders and faults, though not the same moments: `make chaos {options}`"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=7.0, help="how long load and faults rage")
    parser.add_argument("--sagas", type=int, help=f"how many sagas are begun; default: {_SAGAS_A_MINUTE} a minute")
    environment = os.environ.get
    parser.add_argument(
        "--replicas", type=int, default=int(environment(REPLICAS_VARIABLE, "1")), help="of each service"
    )
    databases = ("sqlite", "postgres")
    parser.add_argument("--database", choices=databases, default=environment(DATABASE_VARIABLE, databases[0]))
    brokers = ("single", "cluster")
    parser.add_argument("--nats", choices=brokers, default=environment(NATS_VARIABLE, brokers[0]))
    parser.add_argument("--seed", type=int, help="decides orders and faults; default: drawn, and told")
    parser.add_argument("--directory", type=Path, help="where the run's home, logs and evidence go")
    parser.add_argument("--keep", action="store_true", help="keep the directory, whatever the verdict")
    return parser.parse_args()


if __name__ == "__main__":
    main()
